// What every attention kernel shares: the parameters, which keys a row sees, and the online
// softmax.
#pragma once
#include "attention/tile.cuh"

struct Params {
    const T *q, *k, *v;
    const void* bias;    // null where there is none, as the next three
    const u8* key_mask;
    const s32* kv_len;
    const s32* offset;
    T* out;
    f32* lse;
    f32* partial;        // [splits][rows][d], where there is more than one split
    f32* partial_lse;    // [splits][rows]
    s64 bias_stride[4];  // of b, h, i, j, in elements; 0 where it is broadcast
    s64 low, high;       // query i sees the keys i + low … i + high - 1, moved by the offset's input
    s32 sq, sk, hq, ratio, d;
    s32 pack;            // rows a query: 1, or the heads that share a key head
    s32 per_batch;       // units a batch entry; a unit is the rows that one block's heads make
    s32 units, tiles;    // units in all, and tiles of rows in each
    s32 group;           // units whose keys and values are in the cache together
    s32 offset_step;     // 1 where every batch entry has an offset of its own
    s32 bias_is_f32;
    f32 scale, softcap;  // softcap 0: none
};

#define INF __int_as_float(0x7f800000)
constexpr f32 LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Exponents are of base 2 for the 16-bit types, where the hardware's own approximation will do,
// and of base e for f32. UNIT takes a natural exponent to that base.
template <class S> struct Exponent {
    static constexpr f32 UNIT = LOG2_E, NATURAL = LN_2;
    static __device__ __forceinline__ f32 of(f32 x) {
        f32 y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
};
template <> struct Exponent<f32> {
    static constexpr f32 UNIT = 1.0f, NATURAL = 1.0f;
    static __device__ __forceinline__ f32 of(f32 x) { return expf(x); }
};

struct Range { s32 low, high; };

// A block's place: one tile of rows of one unit, in one batch entry.
struct Place {
    s32 b, head, row, rows, keys;  // `keys`: those of the batch entry that are not hidden
    s64 shift;

    __device__ __forceinline__ Place(const Params& p, int tile_rows) {
        // The last tile first: under a causal mask it has the most to do.
        const s32 per_group = p.group * p.tiles, group = blockIdx.x / per_group;
        const s32 rest = blockIdx.x - group * per_group;
        const s32 first = group * p.group, in_group = min(p.group, p.units - first);
        const s32 tile = p.tiles - 1 - rest / in_group, unit = first + rest % in_group;
        b = unit / p.per_batch;
        head = (unit - b * p.per_batch) * p.pack;
        row = tile * tile_rows;
        rows = p.sq * p.pack;
        keys = p.kv_len ? max(0, min(p.kv_len[b], p.sk)) : p.sk;
        shift = p.offset ? p.offset[b * p.offset_step] : 0;
    }

    // The keys that the query at i sees.
    __device__ __forceinline__ Range range(const Params& p, s32 i) const {
        const s64 low = max(0ll, min(i + shift + p.low, (s64)keys));
        return Range{(s32)low, (s32)max(low, min(i + shift + p.high, (s64)keys))};
    }
};

// A row of a tile: which query of which head.
struct Row {
    s32 query, head;
    bool valid;

    __device__ __forceinline__ Row(const Params& p, const Place& at, s32 row) {
        query = at.row + row, head = at.head;
        valid = query < at.rows;
        if (p.pack > 1) {
            const s32 r = query;
            query = r / p.pack;
            head += r - query * p.pack;
        }
    }
    // The row of q and of the output.
    __device__ __forceinline__ s64 index(const Params& p, const Place& at) const {
        return ((s64)at.b * p.sq + query) * p.hq + head;
    }
    __device__ __forceinline__ Range sees(const Params& p, const Place& at) const {
        return valid ? at.range(p, query) : Range{0, 0};
    }
};

// Copies rows of keys or values, those from `end` on and those that `mask` hides as zeros. `whole`
// says that rows are made of whole, aligned chunks; then the copies are asynchronous.
template <int HD, int ROWS, int THREADS>
__device__ __forceinline__ void load_rows(u32 to, const T* from, s64 stride, s32 first, s32 end,
                                          int d, bool whole, const u8* mask, int thread) {
    constexpr int C = CHUNKS<T, HD>, ACROSS = C < THREADS ? C : THREADS, STEP = THREADS / ACROSS;
    static_assert(ROWS % STEP == 0 && C % ACROSS == 0, "threads share the chunks evenly");
    const s32 row = thread / ACROSS, own = thread % ACROSS;
    if (mask) mask += first;
    from += first * stride;
    end -= first;
    if (whole) {
#pragma unroll
        for (int chunk = own; chunk < own + C; chunk += ACROSS) {
            const T* source = from + row * stride + chunk * PER_CHUNK<T>;
            const s32 last = chunk * PER_CHUNK<T> < d ? end : 0;
#pragma unroll
            for (int i = 0; i < ROWS / STEP; ++i) {
                bool valid = row + i * STEP < last;
                if (mask) valid = valid && mask[row + i * STEP] != 0;
                // Where a step is a multiple of eight rows, the chunk's place in them is the same.
                const u32 at = STEP % 8 == 0
                                   ? chunk_at<T, HD>(row, chunk) + i * STEP * HD * (int)sizeof(T)
                                   : chunk_at<T, HD>(row + i * STEP, chunk);
                copy_async(to + at, source, valid);
                source += STEP * stride;
            }
        }
    } else {
#pragma unroll 1
        for (int i = thread; i < ROWS * C; i += THREADS) {
            const s32 r = i / C, chunk = i % C;
            const bool valid = r < end && (!mask || mask[r] != 0);
            copy_elements(to + chunk_at<T, HD>(r, chunk), from + r * stride, chunk, d, valid);
        }
    }
}

// The rows of q of a tile, those past the end as zeros.
template <int HD, int ROWS, int THREADS>
__device__ __forceinline__ void load_queries(u32 to, const Params& p, const Place& at, bool whole,
                                             int thread) {
    constexpr int C = CHUNKS<T, HD>;
#pragma unroll 1
    for (int i = thread; i < ROWS * C; i += THREADS) {
        const int chunk = i % C;
        const Row row(p, at, i / C);
        const T* from = p.q + row.index(p, at) * p.d;
        const u32 into = to + chunk_at<T, HD>(i / C, chunk);
        if (whole) {
            const bool valid = row.valid && chunk * PER_CHUNK<T> < p.d;
            copy_async(into, from + chunk * PER_CHUNK<T>, valid);
        } else {
            copy_elements(into, from, chunk, p.d, row.valid);
        }
    }
}

template <class S>
__device__ __forceinline__ void put(S* to, const Pack<f32, 4>& x, int d, int column) {
    if (d % 4 == 0) {
        Pack<S, 4> y;
#pragma unroll
        for (int c = 0; c < 4; ++c) y.at[c] = from_f32<S>(x.at[c]);
        *(Pack<S, 4>*)to = y;
    } else {
#pragma unroll
        for (int c = 0; c < 4; ++c)
            if (column + c < d) to[c] = from_f32<S>(x.at[c]);
    }
}

// Writes `count` rows of results that lie in shared memory: to the output itself, or as this
// split's part of it.
template <int HD>
__device__ __forceinline__ void store_rows(const Params& p, const Place& at, const f32* from,
                                           int first, int count, int thread, int threads) {
    const s64 part = (s64)blockIdx.y * (p.units / p.per_batch) * p.sq * p.hq;
#pragma unroll 1
    for (int i = thread; i < count * (HD / 4); i += threads) {
        const int r = i / (HD / 4), column = i % (HD / 4) * 4;
        const Row row(p, at, first + r);
        if (!row.valid || column >= p.d) continue;
        const Pack<f32, 4> x = *(const Pack<f32, 4>*)(from + r * HD + column);
        const s64 to = row.index(p, at) * p.d + column;
        if (gridDim.y > 1) {
            put(p.partial + part * p.d + to, x, p.d, column);
        } else {
            put(p.out + to, x, p.d, column);
        }
    }
}
__device__ __forceinline__ void store_lse(const Params& p, const Place& at, const Row& row, f32 top,
                                          f32 sum) {
    if (!row.valid || (gridDim.y == 1 && !p.lse)) return;
    const f32 lse = sum == 0.0f ? -INF : top * Exponent<T>::NATURAL + logf(sum);
    if (gridDim.y > 1)
        p.partial_lse[(s64)blockIdx.y * (p.units / p.per_batch) * p.sq * p.hq + row.index(p, at)] = lse;
    else
        p.lse[((s64)at.b * p.hq + row.head) * p.sq + row.query] = lse;
}

// Calls f(score, m, r, column) on every score: of row m * 16 + r * 8 and of column `column`, both
// counted from the thread's first.
template <int MT, int NT, class F>
__device__ __forceinline__ void each(f32 (&s)[MT][NT][4], F f) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) f(s[m][n][r * 2 + c], m, r, n * 8 + c);
}

// The scores of keys that their row does not see become -∞.
template <int MT, int NT>
__device__ __forceinline__ void hide(f32 (&s)[MT][NT][4], const Params& p, const Place& at, s32 row,
                                     s32 key) {
    Range sees[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sees[m][r] = Row(p, at, row + m * 16 + r * 8).sees(p, at);
            sees[m][r].low -= key, sees[m][r].high -= key;
        }
    each(s, [&](f32& x, int m, int r, int column) {
        if (column < sees[m][r].low || column >= sees[m][r].high) x = -INF;
    });
}

// c · tanh(x / c). For the 16-bit types an error of a few times 1e-7 · c will do.
template <class S> __device__ __forceinline__ f32 cap(f32 x, f32 c) {
    if (sizeof(S) == 4) return c * tanhf(x / c);
    const f32 e = Exponent<S>::of(__fdividef(fminf(x, c * 20.0f) * (2.0f * LOG2_E), c));
    return c * (1.0f - __fdividef(2.0f, e + 1.0f));
}

template <class B, int MT, int NT>
__device__ __forceinline__ void add_bias(f32 (&s)[MT][NT][4], const Params& p, const Place& at,
                                         s32 row, s32 key) {
    const B* from[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Row i(p, at, row + m * 16 + r * 8);
            from[m][r] = (const B*)p.bias + at.b * p.bias_stride[0] + i.head * p.bias_stride[1] +
                         i.query * p.bias_stride[2] + key * p.bias_stride[3];
        }
    each(s, [&](f32& x, int m, int r, int column) {
        // A hidden score may have no bias, and its row may be no row.
        if (x != -INF) x += to_f32(from[m][r][column * p.bias_stride[3]]);
    });
}

// Scale, soft cap, bias and every mask.
template <int MT, int NT>
__device__ __forceinline__ void modify(f32 (&s)[MT][NT][4], const Params& p, const Place& at,
                                       s32 row, s32 key, bool inner) {
    each(s, [&](f32& x, int, int, int) { x *= p.scale; });
    if (p.softcap != 0.0f) each(s, [&](f32& x, int, int, int) { x = cap<T>(x, p.softcap); });
    if (!inner) hide(s, p, at, row, key);
    if (p.bias) {
        if (p.bias_is_f32) {
            add_bias<f32>(s, p, at, row, key);
        } else {
            add_bias<T>(s, p, at, row, key);
        }
    }
    if (p.key_mask) {
        const u8* mask = p.key_mask + (s64)at.b * p.sk + key;
        const s32 keys = p.sk - key;
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c)
                if (n * 8 + c >= keys || mask[n * 8 + c] == 0) {
#pragma unroll
                    for (int m = 0; m < MT; ++m) s[m][n][c] = s[m][n][c + 2] = -INF;
                }
    }
}

// The running maximum and sum of each row of a warp's tiles. The sum is the thread's own part
// until `finish`.
template <int MT> struct Softmax {
    f32 top[MT][2], sum[MT][2];

    __device__ __forceinline__ Softmax() {
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) top[m][r] = -INF, sum[m][r] = 0.0f;
    }

    // Scores, in units of `unit` exponents, become exp(score - top); what was summed before is
    // brought to the new top.
    template <int NT, int N>
    __device__ __forceinline__ void add(f32 (&s)[MT][NT][4], f32 (&o)[MT][N][4], f32 unit) {
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                f32 most = s[m][0][r * 2];
#pragma unroll
                for (int n = 0; n < NT; ++n)
                    most = fmaxf(most, fmaxf(s[m][n][r * 2], s[m][n][r * 2 + 1]));
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                most = fmaxf(most * unit, top[m][r]);
                // Where nothing was seen yet: any finite number, so that -∞ - top is -∞.
                const f32 base = most == -INF ? 0.0f : most;
                const f32 shrink = Exponent<T>::of(top[m][r] - base);
                top[m][r] = most;
                f32 total = 0.0f;
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        f32& x = s[m][n][r * 2 + c];
                        x = Exponent<T>::of(fmaf(x, unit, -base));
                        total += x;
                    }
                sum[m][r] = sum[m][r] * shrink + total;
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    o[m][n][r * 2] *= shrink;
                    o[m][n][r * 2 + 1] *= shrink;
                }
            }
    }

    // Completes the sums.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 1);
                sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 2);
            }
    }
};

// Puts a thread's accumulators, times `factor` of their row, where `store_rows` takes them.
template <int HD, int MT, class F>
__device__ __forceinline__ void stage(f32* to, f32 (&o)[MT][HD / 8][4], int lane, F factor) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const f32 f = factor(m, r);
            f32* row = to + (m * 16 + r * 8 + (lane >> 2)) * HD + (lane & 3) * 2;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
                Pack<f32, 2> pair;
                pair.at[0] = o[m][n][r * 2] * f, pair.at[1] = o[m][n][r * 2 + 1] * f;
                *(Pack<f32, 2>*)(row + n * 8) = pair;
            }
        }
}
