// A norm of x done by the kernel that reads x: every block normalises the rows it holds in shared
// memory, which costs less than a launch, and y is never rounded to the storage type.
//
// The arithmetic is that of norm/norm.cu. A module is compiled with it (-DNORM=1) or without, so
// that it takes no registers where there is none.
#pragma once

#include "common/warp.cuh"

#ifndef NORM
#define NORM 0
#endif

template <class S> struct Prologue {
    const S* gamma;
    const S* beta;  // null for rms_norm
    f32 epsilon;
    int centred; // layer_norm
};

// What a thread multiplies its first element with and adds to it; asked for before x is there.
struct Affine {
    f32 gamma, beta;
};

template <class S> __device__ __forceinline__ Affine affine(const Prologue<S>& p, int i, int k) {
    Affine a = {0.f, 0.f};
    if (NORM && i < k) {
        a.gamma = to_f32(p.gamma[i]);
        if (p.beta) a.beta = to_f32(p.beta[i]);
    }
    return a;
}

// The sum over the threads of a block that share `threadIdx.x % COUNT`, in each of them. `scratch`
// holds WARPS · COUNT values; two sums in a row need two of them.
template <int COUNT, int WARPS> __device__ __forceinline__ f32 share_sum(f32 x, f32* scratch) {
#pragma unroll
    for (int lane = WARP / 2; lane >= COUNT; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    const int lane = threadIdx.x % WARP;
    if (lane < COUNT) scratch[threadIdx.x / WARP * COUNT + lane] = x;
    __syncthreads();
    f32 sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w * COUNT + lane % COUNT];
    return sum;
}

// As `normalise`, of the values from `from` to `to` alone: those the block multiplies. The scale is that
// of all k. `first` is `affine` at from + threadIdx.x / COUNT.
template <int COUNT, int WARPS, class S>
__device__ __forceinline__ void normalise_part(const Prologue<S>& p, Affine first, f32* xs, int k,
                                               int from, int to, f32* scratch) {
    constexpr int THREADS = WARPS * WARP;
    static_assert(THREADS % COUNT == 0 && WARP % COUNT == 0, "a thread would change rows");
    const int tid = threadIdx.x, end = k * COUNT;
    const f32 width = (f32)k;
    f32 mean = 0.f;
    if (p.centred) {
        f32 sum = 0.f;
#pragma unroll 2
        for (int i = tid; i < end; i += THREADS) sum += xs[i];
        mean = share_sum<COUNT, WARPS>(sum, scratch) / width;
    }
    f32 squares = 0.f, rest = 0.f;
#pragma unroll 2
    for (int i = tid; i < end; i += THREADS) {
        const f32 d = xs[i] - mean;
        squares = fmaf(d, d, squares);
        rest += d;
    }
    const f32 shift =
        p.centred ? share_sum<COUNT, WARPS>(rest, scratch + WARPS * COUNT) / width : 0.f;
    const f32 variance =
        share_sum<COUNT, WARPS>(squares, scratch + 2 * WARPS * COUNT) / width - shift * shift;
    const f32 scale = 1.f / sqrtf(variance + p.epsilon);
    const int begin = from * COUNT + tid;
    for (int i = begin; i < to * COUNT; i += THREADS) {
        const Affine a = i == begin ? first : affine(p, i / COUNT, k);
        xs[i] = fmaf((xs[i] - mean - shift) * scale, a.gamma, a.beta);
    }
    __syncthreads();
}

// Normalises the rows of k values at xs[i · COUNT + row], which the whole block has written and
// synchronised; what lies behind them stays as it is. `first` is `affine` at threadIdx.x / COUNT,
// `scratch` holds 3 · WARPS · COUNT values. A thread stays on one row, and neighbours on neighbouring
// addresses. Ends synchronised.
template <int COUNT, int WARPS, class S>
__device__ __forceinline__ void normalise(const Prologue<S>& p, Affine first, f32* xs, int k,
                                          f32* scratch) {
    normalise_part<COUNT, WARPS>(p, first, xs, k, 0, k, scratch);
}
