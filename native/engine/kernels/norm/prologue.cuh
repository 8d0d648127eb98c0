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

// The sum over the threads of a block that share `threadIdx.x % ROWS`, in each of them. `scratch`
// holds WARPS · ROWS values; two sums in a row need two of them.
template <int ROWS, int WARPS> __device__ __forceinline__ f32 share_sum(f32 x, f32* scratch) {
#pragma unroll
    for (int lane = WARP / 2; lane >= ROWS; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    const int lane = threadIdx.x % WARP;
    if (lane < ROWS) scratch[threadIdx.x / WARP * ROWS + lane] = x;
    __syncthreads();
    f32 sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w * ROWS + lane % ROWS];
    return sum;
}

// Normalises the rows of k values at xs[i · ROWS + row], which the whole block has written and
// synchronised; what lies behind them stays as it is. `first` is `affine` at threadIdx.x / ROWS,
// `scratch` holds 3 · WARPS · ROWS values. A thread stays on one row, and neighbours on neighbouring
// addresses. Ends synchronised.
template <int ROWS, int WARPS, class S>
__device__ __forceinline__ void normalise(const Prologue<S>& p, Affine first, f32* xs, int k,
                                          f32* scratch) {
    constexpr int THREADS = WARPS * WARP;
    static_assert(THREADS % ROWS == 0 && WARP % ROWS == 0, "a thread would change rows");
    const int tid = threadIdx.x, end = k * ROWS;
    const f32 width = (f32)k;
    f32 mean = 0.f;
    if (p.centred) {
        f32 sum = 0.f;
#pragma unroll 2
        for (int i = tid; i < end; i += THREADS) sum += xs[i];
        mean = share_sum<ROWS, WARPS>(sum, scratch) / width;
    }
    f32 squares = 0.f, rest = 0.f;
#pragma unroll 2
    for (int i = tid; i < end; i += THREADS) {
        const f32 d = xs[i] - mean;
        squares = fmaf(d, d, squares);
        rest += d;
    }
    const f32 shift =
        p.centred ? share_sum<ROWS, WARPS>(rest, scratch + WARPS * ROWS) / width : 0.f;
    const f32 variance =
        share_sum<ROWS, WARPS>(squares, scratch + 2 * WARPS * ROWS) / width - shift * shift;
    const f32 scale = 1.f / sqrtf(variance + p.epsilon);
    for (int i = tid; i < end; i += THREADS) {
        const Affine a = i == tid ? first : affine(p, i / ROWS, k);
        xs[i] = fmaf((xs[i] - mean - shift) * scale, a.gamma, a.beta);
    }
    __syncthreads();
}
