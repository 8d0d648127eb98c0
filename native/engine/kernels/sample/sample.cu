// Draws an index from each row of logits, one block a row: temperature, top-k, top-p, then the
// largest logit plus Gumbel noise among what is kept.
//
// What is kept is all above a threshold, and of those at the threshold the first few. Both
// thresholds are found digit by digit from histograms over keys that sort as the logits do: of
// counts for top-k, of probabilities in fixed point for top-p. Integers add up to the same in any
// order, so atomics leave the result exact.
#include "common/early.cuh"
#include "reduce/best.cuh"
#include "reduce/lanes.cuh"
#include "sample/philox.cuh"

struct Options {
    u64 seed;
    f64 top_p;        // 1 keeps all
    u32 top_k;        // 0 keeps all
    f32 temperature;  // 0 takes the largest
};

// Sorts as f32 does, with one zero, and one NaN above all.
__device__ __forceinline__ u32 key_of(f32 z) {
    if (z != z) return ~0u;
    u32 bits = __float_as_uint(z + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Keeps keys above `key`, and of those equal to it the indices below `end`.
struct Cut {
    u32 key, end;
    __device__ __forceinline__ bool keeps(u32 k, u32 i) const {
        return k > key || (k == key && i < end);
    }
};

struct Row {
    const T* x;
    u32 n;
    f32 temperature;

    // A division is ten instructions, which the usual temperature does without.
    __device__ __forceinline__ f32 at(u32 i) const {
        f32 logit = load(x[i]);
        return temperature == 1 ? logit : logit / temperature;
    }

    // Calls `f(i, z)` for this thread's share.
    template <class F> __device__ __forceinline__ void each(F f) const {
        u32 i = threadIdx.x, step = blockDim.x;
        for (; (u64)i + 3 * (u64)step < n; i += 4 * step) {
            f32 z[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) z[k] = at(i + k * step);
#pragma unroll
            for (int k = 0; k < 4; ++k) f(i + k * step, z[k]);
        }
        for (; i < n; i += step) f(i, at(i));
    }
};

// 64-bit sums by 256 digits, as two words: a native add each.
struct Histogram {
    u32 low[256], high[256];
    // What the scan found.
    u32 digit;
    u64 before, in;

    __device__ __forceinline__ void clear() {
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) low[i] = high[i] = 0;
    }
    __device__ __forceinline__ void add(u32 digit, u64 weight) {
        u32 w = (u32)weight, old = atomicAdd(&low[digit], w);
        u32 carry = (u32)(weight >> 32) + (old + w < old);
        if (carry) atomicAdd(&high[digit], carry);
    }
    // By the first warp: the digit at which the sum from the highest down comes to `target`.
    __device__ __forceinline__ void scan(u64 target) {
        u32 lane = threadIdx.x, top = 255 - 8 * lane;
        u64 own = 0;
        for (u32 k = 0; k < 8; ++k) own += sum(top - k);
        u64 upto = own;
        for (u32 d = 1; d < 32; d *= 2) {
            u64 other = __shfl_up_sync(~0u, upto, d);
            if (lane >= d) upto += other;
        }
        u64 above = upto - own;
        if (above < target && upto >= target) {
            u32 k = 0;
            while (above + sum(top - k) < target) above += sum(top - k++);
            digit = top - k;
            before = above;
            in = sum(top - k);
        }
    }
    __device__ __forceinline__ u64 sum(u32 i) const { return ((u64)high[i] << 32) + low[i]; }
};

// The largest key at which the weights, from the largest key down, come to `target`.
struct Threshold {
    u32 key;
    u64 missing;  // what those above it leave of the target
    u64 in;       // what those at it weigh
};

// `entry(i, z, key)` gives an element's weight and sets its key. The weights come to `target`.
template <class F>
__device__ __forceinline__ Threshold descend(const Row& row, u64 target, Histogram& h, F entry) {
    Threshold t = {0, target, 0};
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        h.clear();
        __syncthreads();
        row.each([&](u32 i, f32 z) {
            u32 key;
            u64 weight = entry(i, z, key);
            if (weight && (u64)key >> (shift + 8) == t.key) h.add(key >> shift & 255, weight);
        });
        __syncthreads();
        if (threadIdx.x < 32) h.scan(t.missing);
        __syncthreads();
        t.key = t.key << 8 | h.digit;
        t.missing -= h.before;
        t.in = h.in;
    }
    return t;
}

// The cut behind a threshold at which each element weighs `each`: it keeps the first of equals.
__device__ __forceinline__ Cut cut_at(
    const Row& row, const Threshold& t, u64 each, Cut old, Histogram& h) {
    u32 end = t.key == old.key ? old.end : ~0u;
    u64 wanted = (t.missing + each - 1) / each;
    if (wanted * each < t.in) {
        // Of equal keys the lowest indices: the largest complements.
        Threshold last = descend(row, wanted, h, [&](u32 i, f32 z, u32& key) -> u64 {
            key = ~i;
            return key_of(z) == t.key && i < end;
        });
        end = ~last.key + 1;
    }
    return {t.key, end};
}

extern "C" __global__ void __launch_bounds__(1024, 1) sample(
    const T* logits, const s32* counter, s32* ids, s32* next, u64 rows, u32 n,
    const __grid_constant__ Options o) {
    __shared__ Histogram histogram;
    __shared__ Best<f32> bests[MAX_THREADS / 32];
    __shared__ Number<u64> sums[MAX_THREADS / 32];
    let_next_begin();
    await_previous();
    u32 count = (u32)*counter;
    if (blockIdx.x == 0 && threadIdx.x == 0) *next = (s32)(count + 1);
    // With no rows there still is the counter.
    if (blockIdx.x >= rows) return;
    Lanes l(blockDim.x);
    Better better;
    Row row = {logits + (u64)blockIdx.x * n, n, o.temperature == 0 ? 1 : o.temperature};

    Best<f32> best = {0, -1};
    if (o.temperature == 0 || o.top_p < 1) {
        row.each([&](u32 i, f32 z) { best = better(best, Best<f32>{z, (s32)i}); });
        best = join_lanes(l, best, bests, better);
        if (o.temperature == 0) {
            if (l.lane == 0) ids[blockIdx.x] = best.at;
            return;
        }
    }

    Cut cut = {0, ~0u};
    if (o.top_k > 0 && o.top_k < n) {
        Threshold t = descend(row, o.top_k, histogram, [](u32, f32 z, u32& key) -> u64 {
            key = key_of(z);
            return 1;
        });
        cut = cut_at(row, t, 1, cut, histogram);
    }
    if (o.top_p < 1) {
        // Each at most 2^bits, all together below 2^63.
        f32 unit = __int_as_float((127 + 30 + __clz(n)) << 23);
        f32 max = best.value;
        auto weigh = [=](f32 z) -> u64 {
            // Those at the top weigh 1, also where the top is an infinity or NaN.
            f32 w = key_of(z) == key_of(max) ? 1 : expf(z - max);
            return w > 0 ? (u64)(w * unit) : 0;
        };
        auto entry = [=](u32 i, f32 z, u32& key) -> u64 {
            key = key_of(z);
            return cut.keeps(key, i) ? weigh(z) : 0;
        };
        u64 sum = 0;
        row.each([&](u32 i, f32 z) {
            u32 key;
            sum += entry(i, z, key);
        });
        sum = join_lanes(l, Number<u64>{sum}, sums, [](Number<u64> a, Number<u64> b) {
            return Number<u64>{a.at + b.at};
        }).at;
        u64 target = (u64)ceil(o.top_p * (f64)sum);
        target = target < 1 ? 1 : target > sum ? sum : target;
        Threshold t = descend(row, target, histogram, entry);
        f32 z = __uint_as_float(t.key >> 31 ? t.key & 0x7fffffffu : ~t.key);
        cut = cut_at(row, t, weigh(z), cut, histogram);
    }

    best = {0, -1};
    for (u32 quad = threadIdx.x; (u64)quad * 4 < n; quad += blockDim.x) {
        f32 z[4];
        bool kept[4], any = false;
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            u32 i = quad * 4 + k;
            z[k] = i < n ? row.at(i) : 0;
            kept[k] = i < n && cut.keeps(key_of(z[k]), i);
            any |= kept[k];
        }
        if (!any) continue;
        Words words = philox(o.seed, quad, blockIdx.x, count, 0);
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (kept[k]) {
                f32 noise = -logf(-logf(uniform(words.at[k])));
                best = better(best, Best<f32>{z[k] + noise, (s32)(quad * 4 + k)});
            }
    }
    best = join_lanes(l, best, bests, better);
    if (l.lane == 0) ids[blockIdx.x] = best.at;
}
