// What follows the product in `dense`: bias, activation, residual, in f32.
#pragma once

#include "common/warp.cuh"

// A gated product is activation(x · w) ⊙ (x · up): the one half of a block's columns is of w, the
// other of up, and they meet in the epilogue.
#ifndef GATED
#define GATED 0
#endif

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
    __device__ __forceinline__ void store(f32 value, s64 at) const {
        if (y_f32) ((f32*)y)[at] = value;
        else ((S*)y)[at] = from_f32<S>(value);
    }
};

// Writes a block's tile of sums, which lies in shared memory in rows of BN + 4. By way of shared
// memory, a warp writes whole lines, and the code above is there once rather than once a register.
template <int BM, int BN, int THREADS, class S>
__device__ __forceinline__ void put_tile(const f32 (*sums)[BN + 4], const Epilogue<S>& end, s64 m0,
                                         s64 m, int n0) {
    constexpr int WIDTH = GATED ? BN / 2 : BN;
    const int n = end.columns;
    auto value = [&](f32 sum, int row, int column) {
        if (GATED) return activate(sum, end.activation) * sums[row][column + BN / 2];
        return end.finish(sum, m0 + row, n0 + column);
    };
#pragma unroll 1
    for (int i = threadIdx.x; i < BM * WIDTH / 4; i += THREADS) {
        const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
        if (m0 + row >= m || n0 + column >= n) continue;
        const s64 at = (m0 + row) * n + n0 + column;
        if (n % 4 != 0) {
#pragma unroll 1
            for (int c = 0; c < 4 && n0 + column + c < n; c++)
                end.store(value(sums[row][column + c], row, column + c), at + c);
            continue;
        }
        const float4 sum = *(const float4*)&sums[row][column];
        const f32 values[4] = {sum.x, sum.y, sum.z, sum.w};
        Pack<f32, 4> y;
#pragma unroll
        for (int c = 0; c < 4; c++) y.at[c] = value(values[c], row, column + c);
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
