// What follows the product in `dense`: bias, activation, residual, in f32.
#pragma once

#include "common/warp.cuh"

// In the order of the engine's `Activation`.
enum Activation { NONE, RELU, SILU, GELU, GELU_TANH, TANH, SIGMOID };

__device__ __forceinline__ f32 activate(f32 x, int activation) {
    switch (activation) {
        case RELU: return x < 0.f ? 0.f : x; // a NaN stays one
        case SILU: return x * sigmoid(x);
        // erfc, since 1 + erf loses the tail.
        case GELU: return 0.5f * x * erfcf(-0.70710678118654752f * x);
        case GELU_TANH: {
            // 1 + tanh(u) = 2·σ(2u), which keeps the tail too.
            f32 u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
            return x * sigmoid(2.f * u);
        }
        case TANH: return tanhf(x);
        case SIGMOID: return sigmoid(x);
        default: return x;
    }
}

// The result at row `m` and column `n` of `columns`.
template <class S> struct Epilogue {
    const S* bias;
    const S* residual;
    void* y;
    int columns;
    int activation;
    int y_f32; // y is f32 whatever S is: pre-activations of a recurrent net

    __device__ __forceinline__ f32 finish(f32 sum, s64 m, int n) const {
        if (bias) sum += to_f32(bias[n]);
        sum = activate(sum, activation);
        if (residual) sum += to_f32(residual[m * columns + n]);
        return sum;
    }
    __device__ __forceinline__ void put(f32 sum, s64 m, int n) const {
        f32 value = finish(sum, m, n);
        s64 at = m * columns + n;
        if (y_f32) ((f32*)y)[at] = value;
        else ((S*)y)[at] = from_f32<S>(value);
    }
};

// Writes a block's tile of sums, which lies in shared memory in rows of BN + 4. By way of shared
// memory, a warp writes whole lines, and the code above is there once rather than once a register.
template <int BM, int BN, int THREADS, class S>
__device__ __forceinline__ void put_tile(const f32 (*sums)[BN + 4], const Epilogue<S>& end, s64 m0,
                                         s64 m, int n0) {
    const int n = end.columns;
#pragma unroll 1
    for (int i = threadIdx.x; i < BM * BN / 4; i += THREADS) {
        const int row = i / (BN / 4), column = i % (BN / 4) * 4;
        if (m0 + row >= m || n0 + column >= n) continue;
        const float4 sum = *(const float4*)&sums[row][column];
        const f32 values[4] = {sum.x, sum.y, sum.z, sum.w};
        if (n % 4 != 0) {
#pragma unroll 1
            for (int c = 0; c < 4 && n0 + column + c < n; c++)
                end.put(sums[row][column + c], m0 + row, n0 + column + c);
            continue;
        }
        Pack<f32, 4> y;
#pragma unroll
        for (int c = 0; c < 4; c++) y.at[c] = end.finish(values[c], m0 + row, n0 + column + c);
        const s64 at = (m0 + row) * n + n0 + column;
        if (end.y_f32) {
            *(Pack<f32, 4>*)((f32*)end.y + at) = y;
        } else {
            Pack<S, 4> stored;
#pragma unroll
            for (int c = 0; c < 4; c++) stored.at[c] = from_f32<S>(y.at[c]);
            *(Pack<S, 4>*)((S*)end.y + at) = stored;
        }
    }
}
