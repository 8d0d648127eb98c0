// What the elements along an axis come to up to each of them. The axis may be cut into parts: then
// the totals of the parts come first, then what each part begins with, then the parts.
#include "common/walk.cuh"
#include "order/fold.cuh"

// There may be very many terms, and each of them is rounded into all results after it: f32 goes by
// way of f64, types of 16 bits within a stretch by f32, and from one stretch to the next by f64.
template <class S> struct AOf { typedef Acc<S> type; };
template <> struct AOf<f32> { typedef f64 type; };
typedef AOf<T>::type A;
template <class N> struct CarryOf { typedef N type; };
template <> struct CarryOf<f32> { typedef f64 type; };
typedef CarryOf<A>::type C;

constexpr u32 THREADS = 256;
constexpr u32 ITEMS = 8;
constexpr u32 TILE = THREADS * ITEMS;

struct Scan {
    u64 outer, n, chunk;
    Divisor inner, parts;
    u32 kind;
    u32 reverse;
};

// Element j in the order of the scan.
__device__ __forceinline__ u64 place(const Scan& s, u64 j) { return s.reverse ? s.n - 1 - j : j; }

// A word beside each 32, so that threads that take neighbouring items meet different banks.
__device__ __forceinline__ u32 bank(u32 e) { return e + e / 32; }

// Rows that lie in one piece, a block a part of one.
template <bool WRITES>
__device__ __forceinline__ void rows(const T* x, T* y, C* carries, const Scan& s) {
    __shared__ A tile[TILE + TILE / 32];
    __shared__ A warps[THREADS / 32];
    Folding<A> fold{s.kind};
    Folding<C> wide{s.kind};
    u64 row = divide(blockIdx.x, s.parts);
    u64 part = blockIdx.x - row * s.parts.by;
    u64 from = part * s.chunk, to = from + s.chunk < s.n ? from + s.chunk : s.n;
    x += row * s.n;
    y += row * s.n;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    C carry = WRITES && carries ? carries[blockIdx.x] : wide.none();
    for (; from < to; from += TILE) {
        u32 count = to - from < TILE ? (u32)(to - from) : TILE;
        for (u32 e = threadIdx.x; e < TILE; e += THREADS)
            tile[bank(e)] = e < count ? (A)load(x[place(s, from + e)]) : fold.none();
        __syncthreads();
        A mine[ITEMS];
        A total = fold.none();
#pragma unroll
        for (u32 v = 0; v < ITEMS; ++v) {
            total = fold.join(total, tile[bank(threadIdx.x * ITEMS + v)]);
            mine[v] = total;
        }
        // Up to and with each lane, then each warp.
#pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            A before = __shfl_up_sync(~0u, total, d);
            if (lane >= d) total = fold.join(before, total);
        }
        if (lane == 31) warps[warp] = total;
        __syncthreads();
        A before = __shfl_up_sync(~0u, total, 1);
        if (lane == 0) before = fold.none();
        A others = fold.none(), all = fold.none();
#pragma unroll
        for (u32 w = 0; w < THREADS / 32; ++w) {
            if (w == warp) others = all;
            all = fold.join(all, warps[w]);
        }
        before = fold.join(others, before);
        if (WRITES) {
#pragma unroll
            for (u32 v = 0; v < ITEMS; ++v)
                tile[bank(threadIdx.x * ITEMS + v)] = fold.join(before, mine[v]);
            __syncthreads();
            for (u32 e = threadIdx.x; e < count; e += THREADS)
                y[place(s, from + e)] = store<T>((Acc<T>)wide.join(carry, (C)tile[bank(e)]));
        }
        carry = wide.join(carry, (C)all);
        __syncthreads();
    }
    if (!WRITES && threadIdx.x == 0) carries[blockIdx.x] = carry;
}

extern "C" __global__ void __launch_bounds__(THREADS) cumulative_rows(
    const T* x, T* y, C* carries, const __grid_constant__ Scan s) {
    rows<true>(x, y, carries, s);
}

extern "C" __global__ void __launch_bounds__(THREADS) total_rows(
    const T* x, T* y, C* carries, const __grid_constant__ Scan s) {
    rows<false>(x, y, carries, s);
}

// Along another axis than the last, a thread a part of a column.
template <bool WRITES>
__device__ __forceinline__ void columns(const T* x, T* y, C* carries, const Scan& s) {
    u64 i = thread_index();
    u64 q = divide(i, s.inner), column = i - q * s.inner.by;
    u64 outer = divide(q, s.parts), part = q - outer * s.parts.by;
    if (outer >= s.outer) return;
    Folding<C> fold{s.kind};
    u64 from = part * s.chunk, to = from + s.chunk < s.n ? from + s.chunk : s.n;
    u64 base = outer * s.n * s.inner.by + column;
    C total = WRITES && carries ? carries[i] : fold.none();
#pragma unroll 4
    for (u64 j = from; j < to; ++j) {
        u64 at = base + place(s, j) * s.inner.by;
        total = fold.join(total, (C)load(x[at]));
        if (WRITES) y[at] = store<T>((Acc<T>)total);
    }
    if (!WRITES) carries[i] = total;
}

extern "C" __global__ void cumulative_columns(
    const T* x, T* y, C* carries, const __grid_constant__ Scan s) {
    columns<true>(x, y, carries, s);
}

extern "C" __global__ void total_columns(
    const T* x, T* y, C* carries, const __grid_constant__ Scan s) {
    columns<false>(x, y, carries, s);
}

// The totals of the parts of each column become what its parts begin with: of a row, by a block.
extern "C" __global__ void __launch_bounds__(THREADS) begin_rows(
    C* carries, const __grid_constant__ Scan s) {
    __shared__ C warps[THREADS / 32];
    Folding<C> fold{s.kind};
    u32 parts = (u32)s.parts.by, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    C* mine = carries + (u64)blockIdx.x * parts + threadIdx.x * ITEMS;
    C item[ITEMS];
    C total = fold.none();
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) {
        item[v] = threadIdx.x * ITEMS + v < parts ? mine[v] : fold.none();
        total = fold.join(total, item[v]);
    }
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        C before = __shfl_up_sync(~0u, total, d);
        if (lane >= d) total = fold.join(before, total);
    }
    if (lane == 31) warps[warp] = total;
    __syncthreads();
    C before = __shfl_up_sync(~0u, total, 1);
    if (lane == 0) before = fold.none();
    C others = fold.none();
    for (u32 w = 0; w < warp; ++w) others = fold.join(others, warps[w]);
    before = fold.join(others, before);
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) {
        if (threadIdx.x * ITEMS + v < parts) mine[v] = before;
        before = fold.join(before, item[v]);
    }
}

// Of other columns, by a thread.
extern "C" __global__ void begin_columns(C* carries, const __grid_constant__ Scan s) {
    u64 i = thread_index();
    u64 outer = divide(i, s.inner), column = i - outer * s.inner.by;
    if (outer >= s.outer) return;
    Folding<C> fold{s.kind};
    C* mine = carries + outer * s.parts.by * s.inner.by + column;
    C total = fold.none();
    for (u64 part = 0; part < s.parts.by; part += 8) {
        C some[8];
#pragma unroll
        for (u32 k = 0; k < 8; ++k)
            if (part + k < s.parts.by) some[k] = mine[(part + k) * s.inner.by];
#pragma unroll
        for (u32 k = 0; k < 8; ++k) {
            if (part + k < s.parts.by) {
                mine[(part + k) * s.inner.by] = total;
                total = fold.join(total, some[k]);
            }
        }
    }
}
