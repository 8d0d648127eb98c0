// The rows of a matrix, each dense, by a vector: LANES threads a row, or a whole block. Sums meet in
// the same order each time.

#include "common/warp.cuh"
#include "dot/product.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP, DEPTH = 4;

__device__ __forceinline__ Sum across_warp(Sum x) {
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// VEC values a load: K, the pitch and the steps of the batch are whole packs.
template <int LANES, int VEC>
__device__ __forceinline__ void product(const T* a, const T* x, T* y, s64 a_batch, s64 pitch,
                                        s64 x_batch, u32 rows, u64 outputs, s64 k) {
    typedef Pack<T, VEC> Values;
    __shared__ Sum part[WARPS];
    const u64 at = (u64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const bool live = at < outputs;
    const u64 entry = live ? at / rows : 0, row = live ? at % rows : 0;
    a += (s64)entry * a_batch + (s64)row * pitch;
    x += (s64)entry * x_batch;
    Sum sum[VEC] = {};
    for (s64 base = (s64)(threadIdx.x % LANES) * VEC; live && base < k;
         base += (s64)LANES * VEC * DEPTH) {
        Values left[DEPTH], right[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const s64 i = base + (s64)d * LANES * VEC;
            if (i >= k) break;
            left[d] = *(const Values*)(a + i);
            right[d] = *(const Values*)(x + i);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (base + (s64)d * LANES * VEC >= k) break;
#pragma unroll
            for (int v = 0; v < VEC; v++)
                sum[v] = multiply_add(widen(left[d].at[v]), widen(right[d].at[v]), sum[v]);
        }
    }
    Sum total = 0;
#pragma unroll
    for (int v = 0; v < VEC; v++) total += sum[v];
    total = across_warp(total);
    if (LANES > WARP) {
        if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = total;
        __syncthreads();
        total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += part[w];
    }
    if (live && threadIdx.x % LANES == 0) y[at] = narrow(total);
}

#define ENTRY(NAME, LANES, VEC)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const T* a, const T* x, T* y, s64 a_batch, s64 pitch, s64 x_batch, u32 rows,         \
             u64 outputs, s64 k) {                                                                \
        product<LANES, VEC>(a, x, y, a_batch, pitch, x_batch, rows, outputs, k);                  \
    }

ENTRY(warp_packs, WARP, 16 / sizeof(T))
ENTRY(block_packs, THREADS, 16 / sizeof(T))
ENTRY(warp_odd, WARP, 1)
ENTRY(block_odd, THREADS, 1)
