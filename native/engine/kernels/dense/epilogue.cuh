// What follows the product in `dense`: bias, activation, residual, in f32.
#pragma once

#include "common/short.cuh"
#include "common/warp.cuh"

// A gated product is activation(x · w) ⊙ (x · up): the one half of a block's columns is of w, the
// other of up, and they meet in the epilogue.
#ifndef GATED
#define GATED 0
#endif

// In the order of the engine's `Activation`.
enum Activation { NONE, RELU, SILU, GELU, GELU_TANH, TANH, SIGMOID };

// Of values whose results are of type S. The kind is the same for all of them, and asked for once.
template <class S, int N> __device__ __forceinline__ void activate(f32 (&x)[N], int activation) {
    constexpr bool SHORT = sizeof(S) == 2;
    auto each = [&x](auto f) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = f(x[i]);
    };
    switch (activation) {
        case RELU: each([](f32 x) { return x < 0.f ? 0.f : x; }); return; // a NaN stays one
        case SILU: each([](f32 x) { return x * sigmoid(x); }); return;
        case GELU:
            // erfc, since 1 + erf loses the tail.
            if (SHORT) each([](f32 x) { return short_gelu(x); });
            else each([](f32 x) { return 0.5f * x * erfcf(-0.70710678118654752f * x); });
            return;
        case GELU_TANH:
            // 1 + tanh(u) = 2·σ(2u), which keeps the tail too.
            each([](f32 x) {
                f32 u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
                return x * sigmoid(2.f * u);
            });
            return;
        case TANH: each([](f32 x) { return SHORT ? short_tanh(x) : tanhf(x); }); return;
        case SIGMOID: each([](f32 x) { return sigmoid(x); }); return;
    }
}

// The results at row `m`, from column `n` of `columns` on.
template <class S> struct Epilogue {
    const S* bias;
    const S* residual;
    void* y;
    int columns;
    int activation;
    int y_f32; // y is f32 whatever S is: pre-activations of a recurrent net, with no activation

    template <int N> __device__ __forceinline__ void finish(f32 (&sum)[N], s64 m, int n) const {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (bias) sum[i] += to_f32(bias[n + i]);
        activate<S>(sum, activation);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (residual) sum[i] += to_f32(residual[m * columns + n + i]);
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
    auto values = [&](auto& sum, int row, int column) {
        constexpr int N = sizeof(sum) / sizeof(f32);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = sums[row][column + i];
        if (!GATED) return end.finish(sum, m0 + row, n0 + column);
        activate<S>(sum, end.activation);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] *= sums[row][column + i + BN / 2];
    };
#pragma unroll 1
    for (int i = threadIdx.x; i < BM * WIDTH / 4; i += THREADS) {
        const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
        if (m0 + row >= m || n0 + column >= n) continue;
        const s64 at = (m0 + row) * n + n0 + column;
        if (n % 4 != 0) {
#pragma unroll 1
            for (int c = 0; c < 4 && n0 + column + c < n; c++) {
                f32 one[1];
                values(one, row, column + c);
                end.store(one[0], at + c);
            }
            continue;
        }
        Pack<f32, 4> y;
        values(y.at, row, column);
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
