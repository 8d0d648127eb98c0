// Attention by online softmax, after FlashAttention-2: scores live in registers only.
//
// A module is one KERNEL for a storage type T and a head size HEAD of 64, 128 or 256; smaller heads
// are padded with zeros in shared memory. Rows are queries of a head, or for few queries those of
// all the heads that share a key head, so that the keys are read once for all of them. With
// gridDim.y > 1 each block takes its share of the keys, and `combine` puts the parts together.
#include "attention/online.cuh"

// What KERNEL may be.
#define WIDE 1    // 128 rows a block
#define NARROW 2  // 64 rows a block
#define FULL 3    // 64 rows a block, every option
#define DECODE 4  // 16 rows a block, every option

constexpr int HD = HEAD, WARPS = 4, THREADS = WARPS * 32;
// Keys a tile, so that Q, K and V fit into 96 KB.
constexpr int KEYS = sizeof(T) == 2 ? (HD == 64 ? 128 : 64) : HD == 64 ? 64 : HD == 128 ? 32 : 16;
constexpr int ROW_BYTES = HD * (int)sizeof(T);

// Aligned to the longest row.
extern __shared__ __align__(1024) unsigned char shared[];

// This block's share of the tiles of `size` keys in `keys`.
__device__ __forceinline__ Range share(Range keys, int size) {
    const s32 first = keys.low / size;
    const s32 count = keys.high > keys.low ? (keys.high + size - 1) / size - first : 0;
    const s32 each = (count + gridDim.y - 1) / gridDim.y;
    const s32 from = min(count, (s32)blockIdx.y * each);
    return Range{first + from, first + min(count, from + each)};
}

// MT tiles of 16 rows a warp. ALL takes every option; without it there is only a positive scale,
// and each row sees one range of keys.
template <int MT, bool ALL> __device__ __forceinline__ void forward(const Params& p) {
    constexpr int TILE = ALL ? 32 < KEYS ? 32 : KEYS : KEYS, NT = TILE / 8, ROWS = WARPS * MT * 16;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const u32 q = shared_address(shared), k = q + ROWS * ROW_BYTES, v = k + TILE * ROW_BYTES;
    const Place at(p, ROWS);
    // The keys that any row sees, and those that all see: a later row sees later keys.
    const Row first(p, at, 0), last(p, at, min(ROWS, at.rows - at.row) - 1);
    const Range from_first = first.sees(p, at), from_last = last.sees(p, at);
    const Range tiles = share(Range{from_first.low, from_last.high}, TILE);
    const bool whole = p.d % PER_CHUNK<T> == 0;
    const s64 stride = (s64)(p.hq / p.ratio) * p.d;
    const s64 from = (s64)at.b * p.sk * stride + (s64)(at.head / p.ratio) * p.d;
    const T *keys = p.k + from, *values = p.v + from;
    const u8* mask = ALL && p.key_mask ? p.key_mask + (s64)at.b * p.sk : nullptr;
    const f32 unit = (ALL ? 1.0f : p.scale) * Exponent<T>::UNIT;
    const int my_row = warp * MT * 16;

    f32 o[MT][HD / 8][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < HD / 8; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) o[m][n][c] = 0.0f;
    Softmax<MT> softmax;

    if (tiles.low < tiles.high) {
        load_queries<HD, ROWS, THREADS>(q, p, at, whole, thread);
        load_rows<HD, TILE, THREADS>(k, keys, stride, tiles.low * TILE, at.keys, p.d, whole, nullptr, thread);
        copy_async_commit();
    }
    // The values of a tile arrive under its scores, the next tile's keys under the softmax and the
    // product with the values: each has one buffer.
    for (s32 tile = tiles.low; tile < tiles.high; ++tile) {
        const s32 key = tile * TILE;
        copy_async_wait<0>();
        __syncthreads();
        load_rows<HD, TILE, THREADS>(v, values, stride, key, at.keys, p.d, whole, mask, thread);
        copy_async_commit();

        f32 s[MT][NT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) s[m][n][c] = 0.0f;
        scores_of<T, HD, MT, NT>(s, q + my_row * ROW_BYTES, k, lane);

        copy_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles.high)
            load_rows<HD, TILE, THREADS>(k, keys, stride, key + TILE, at.keys, p.d, whole, nullptr, thread);
        copy_async_commit();

        const s32 row = my_row + (lane >> 2), column = key + (lane & 3) * 2;
        // A row past the end sees nothing, which matters where more is read than keys and values.
        const bool inside = key >= from_last.low && key + TILE <= from_first.high &&
                            (!ALL || at.row + ROWS <= at.rows);
        if (ALL)
            modify(s, p, at, row, column, inside);
        else if (!inside)
            hide(s, p, at, row, column);
        softmax.add(s, o, unit);
        Values<T, HD, MT, NT>::add(o, s, v, lane);
    }

    softmax.finish();
    f32* results = (f32*)shared + my_row * HD;
    __syncthreads();  // the results go over the tiles
    stage<HD, MT>(results, o, lane, [&](int m, int r) {
        const f32 sum = softmax.sum[m][r];
        if ((lane & 3) == 0)
            store_lse(p, at, Row(p, at, my_row + m * 16 + r * 8 + (lane >> 2)), softmax.top[m][r], sum);
        // A sum that is NaN stays so.
        return sum == 0.0f ? 0.0f : 1.0f / sum;
    });
    __syncwarp();
    store_rows<HD>(p, at, results, my_row, MT * 16, lane, 32);
}

#if KERNEL == WIDE
extern "C" __global__ void __launch_bounds__(THREADS, 2) attend(const Params p) { forward<2, false>(p); }
#elif KERNEL == NARROW
extern "C" __global__ void __launch_bounds__(THREADS, 2) attend(const Params p) { forward<1, false>(p); }
#elif KERNEL == FULL
extern "C" __global__ void __launch_bounds__(THREADS, 2) attend(const Params p) { forward<1, true>(p); }
#elif KERNEL == DECODE

// Few rows and many keys: all warps have the same 16 rows, and each streams keys of its own
// through two buffers of its own. Bound by memory, so that every option may be in it.
constexpr int STREAM_KEYS = ROW_BYTES == 128 ? 32 : 16;
constexpr int STREAM_BYTES = STREAM_KEYS * ROW_BYTES;  // of keys, and of values
constexpr int STREAMS = ROW_BYTES <= 256 ? 4 : ROW_BYTES == 512 ? 2 : 1;

extern "C" __global__ void __launch_bounds__(STREAMS * 32, STREAMS == 4 ? 3 : 2) attend(const Params p) {
    constexpr int NT = STREAM_KEYS / 8;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const u32 q = shared_address(shared), buffers = q + 16 * ROW_BYTES + warp * STREAM_BYTES * 4;
    const Place at(p, 16);
    const Row first(p, at, 0), last(p, at, min(16, at.rows - at.row) - 1);
    const Range tiles = share(Range{first.sees(p, at).low, last.sees(p, at).high}, STREAM_KEYS);
    const bool whole = p.d % PER_CHUNK<T> == 0;
    const s64 stride = (s64)(p.hq / p.ratio) * p.d;
    const s64 from = (s64)at.b * p.sk * stride + (s64)(at.head / p.ratio) * p.d;
    const u8* mask = p.key_mask ? p.key_mask + (s64)at.b * p.sk : nullptr;
    const f32 unit = Exponent<T>::UNIT;

    f32 o[1][HD / 8][4];
#pragma unroll
    for (int n = 0; n < HD / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) o[0][n][c] = 0.0f;
    Softmax<1> softmax;

    auto load = [&](s32 tile, int buffer) {
        const u32 to = buffers + buffer * STREAM_BYTES * 2;
        load_rows<HD, STREAM_KEYS, 32>(to, p.k + from, stride, tile * STREAM_KEYS, at.keys, p.d, whole, nullptr, lane);
        load_rows<HD, STREAM_KEYS, 32>(to + STREAM_BYTES, p.v + from, stride, tile * STREAM_KEYS, at.keys, p.d, whole, mask, lane);
    };
    load_queries<HD, 16, STREAMS * 32>(q, p, at, whole, thread);
    if (tiles.low + warp < tiles.high) load(tiles.low + warp, 0);
    copy_async_commit();
    if (tiles.low + warp + STREAMS < tiles.high) load(tiles.low + warp + STREAMS, 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();  // for q
    int buffer = 0;
    for (s32 tile = tiles.low + warp; tile < tiles.high; tile += STREAMS) {
        copy_async_wait<1>();
        __syncwarp();
        const u32 k = buffers + buffer * STREAM_BYTES * 2;
        f32 s[1][NT][4];
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) s[0][n][c] = 0.0f;
        scores_of<T, HD, 1, NT>(s, q, k, lane);
        modify(s, p, at, lane >> 2, tile * STREAM_KEYS + (lane & 3) * 2, false);
        softmax.add(s, o, unit);
        Values<T, HD, 1, NT>::add(o, s, k + STREAM_BYTES, lane);
        __syncwarp();  // all lanes are done with this buffer
        if (tile + 2 * STREAMS < tiles.high) load(tile + 2 * STREAMS, buffer);
        copy_async_commit();
        buffer ^= 1;
    }
    softmax.finish();

    // The warps' parts, brought to one top and added in the warps' order.
    __shared__ f32 tops[STREAMS][16], sums[STREAMS][16];
    f32* parts = (f32*)shared;
    copy_async_wait<0>();
    if ((lane & 3) == 0)
        for (int r = 0; r < 2; ++r) {
            const int row = r * 8 + (lane >> 2);
            tops[warp][row] = softmax.top[0][r], sums[warp][row] = softmax.sum[0][r];
        }
    __syncthreads();
    stage<HD, 1>(parts + warp * 16 * HD, o, lane, [&](int, int r) {
        const int row = r * 8 + (lane >> 2);
        f32 top = -INF, sum = 0.0f;
        for (int w = 0; w < STREAMS; ++w) top = fmaxf(top, tops[w][row]);
        const f32 base = top == -INF ? 0.0f : top;
        for (int w = 0; w < STREAMS; ++w)
            sum = fmaf(sums[w][row], Exponent<T>::of(tops[w][row] - base), sum);
        if (warp == 0 && (lane & 3) == 0) store_lse(p, at, Row(p, at, row), top, sum);
        return sum == 0.0f ? 0.0f : Exponent<T>::of(softmax.top[0][r] - base) / sum;
    });
    __syncthreads();
    const int used = min(16, at.rows - at.row) * HD;
#pragma unroll 1
    for (int i = thread; STREAMS > 1 && i < used; i += STREAMS * 32) {
        f32 x = parts[i];
#pragma unroll
        for (int w = 1; w < STREAMS; ++w) x += parts[w * 16 * HD + i];
        parts[i] = x;
    }
    __syncthreads();
    store_rows<HD>(p, at, parts, 0, 16, thread, STREAMS * 32);
}

#endif

// Puts the splits' parts of a row together: a block a row, at most as many splits as threads.
extern "C" __global__ void __launch_bounds__(THREADS) combine(const Params p, int splits) {
    __shared__ f32 weights[THREADS], part[WARPS];
    const s64 row = blockIdx.x, rows = gridDim.x;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const f32 lse = thread < splits ? p.partial_lse[thread * rows + row] : -INF;
    f32 top = lse;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
    if (lane == 0) part[warp] = top;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, part[w]);
    // A NaN among them is dropped by the maximum and comes back here.
    weights[thread] = lse == -INF ? 0.0f : expf(lse - (top == -INF ? 0.0f : top));
    __syncthreads();
    f32 sum = 0.0f;
    for (int s = 0; s < splits; ++s) sum += weights[s];
    const f32 inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll 1
    for (int c = thread; c < p.d; c += THREADS) {
        f32 x = 0.0f;
#pragma unroll 8
        for (int s = 0; s < splits; ++s) {
            // An empty split's part may not even be finite.
            if (weights[s] != 0.0f) x = fmaf(weights[s], p.partial[(s * rows + row) * p.d + c], x);
        }
        p.out[row * p.d + c] = from_f32<T>(x * inverse);
    }
    if (thread == 0 && p.lse) {
        const s64 head = row % p.hq, query = row / p.hq % p.sq, b = row / p.hq / p.sq;
        p.lse[(b * p.hq + head) * p.sq + query] = sum == 0.0f ? -INF : top + logf(sum);
    }
}
