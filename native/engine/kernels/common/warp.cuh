// Sums over the threads of a warp and of a block, and the cell functions in full f32 accuracy.
#pragma once

#include "common/types.cuh"

constexpr int WARP = 32;

__device__ __forceinline__ f32 warp_sum(f32 x) {
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// The sum over all threads of a block of `WARPS` warps, in every thread. `scratch` holds one value
// a warp; two sums in a row need two of them.
template <int WARPS> __device__ __forceinline__ f32 block_sum(f32 x, f32* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    f32 sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w];
    return sum;
}

// No fast division and no __expf: f32 in means f32 accuracy out.
__device__ __forceinline__ f32 sigmoid(f32 x) { return 1.f / (1.f + expf(-x)); }
