// The cell's pointwise part in three accuracies: the kernels for whole windows wait for it in every
// step.
#pragma once

#include "recurrent/cell.cuh"

constexpr f32 LOG2E = 1.4426950408889634f;

// f32: within a few units in the last place, and without a branch, as the division has one.
struct Accurate {
    // 1 / (1 + 2^x): a guess from the exponent, within an eighth, and two cubic steps.
    static __device__ __forceinline__ f32 logistic(f32 x) {
        const f32 d = 1.f + exp2f(x > 120.f ? 120.f : x); // NaN stays
        f32 r = __uint_as_float(0x7ef311c7u - __float_as_uint(d));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const f32 rest = fmaf(-d, r, 1.f);
            r = fmaf(r, fmaf(rest, rest, rest), r);
        }
        return r;
    }
    static __device__ __forceinline__ f32 sigmoid(f32 x) { return logistic(x * -LOG2E); }
    static __device__ __forceinline__ f32 tanh(f32 x) {
        const f32 large = fmaf(-2.f, logistic(x * (2.f * LOG2E)), 1.f);
        // x + x³ · p(x²), fitted at the Chebyshev nodes of |x| < 0.55.
        const f32 y = x * x;
        f32 p = fmaf(y, -0.00661022774875164f, 0.021309388801455498f);
        p = fmaf(y, p, -0.05390942841768265f);
        p = fmaf(y, p, 0.13333113491535187f);
        p = fmaf(y, p, -0.3333333134651184f);
        const f32 small = fmaf(x * y, p, x);
        return fabsf(x) < 0.55f ? small : large;
    }
};

// 16-bit types: the exponent unit's own accuracy, 1e-7 of the function's range.
struct Quick {
    static __device__ __forceinline__ f32 exp2(f32 x) {
        f32 y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    static __device__ __forceinline__ f32 reciprocal(f32 x) {
        f32 y;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    static __device__ __forceinline__ f32 sigmoid(f32 x) {
        return reciprocal(1.f + exp2(x * -LOG2E));
    }
    static __device__ __forceinline__ f32 tanh(f32 x) {
        return fmaf(-2.f, reciprocal(1.f + exp2(x * (2.f * LOG2E))), 1.f);
    }
};

// bf16: one instruction, within 2⁻¹¹; bf16 itself has 2⁻⁹.
struct Coarse {
    static __device__ __forceinline__ f32 tanh(f32 x) {
        f32 y;
        asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    static __device__ __forceinline__ f32 sigmoid(f32 x) { return fmaf(tanh(0.5f * x), 0.5f, 0.5f); }
};

template <class F> __device__ __forceinline__ State advance_by(const State& old, const Sums& s) {
#if GATES == 4
    const f32 c = F::sigmoid(s.at[1]) * old.c + F::sigmoid(s.at[0]) * F::tanh(s.at[2]);
    return State{c, F::sigmoid(s.at[3]) * F::tanh(c)};
#else
    const f32 z = F::sigmoid(s.at[1]);
    const f32 n = F::tanh(fmaf(F::sigmoid(s.at[0]), s.at[3], s.at[2]));
    return State{0.f, (1.f - z) * n + z * old.h};
#endif
}
