// Functions for results of 16 bits: good to the last digit of f16, without a branch, and shorter than the
// ones that are good to f32's.
#pragma once

#include "common/types.cuh"

// Below the least normal number these give zero.
__device__ __forceinline__ f32 short_exp2(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ f32 short_reciprocal(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / (1 + exp(-x)). Both terms of the sum are 2^-20 of what they are, so that neither a large exponential
// overflows nor a small quotient is lost where the types still have numbers.
__device__ __forceinline__ f32 short_sigmoid(f32 x) {
    const f32 part = 9.5367431640625e-7f;
    return part * short_reciprocal(part + short_exp2(fmaf(x, -1.4426950408889634f, -20.f)));
}

// (1 - e) / (1 + e) with e = exp(-2|x|). Where 1 - e would cancel, tanh x is x to those digits.
__device__ __forceinline__ f32 short_tanh(f32 x) {
    const f32 e = short_exp2(fabsf(x) * -2.8853900817779268f);
    const f32 far = (1.f - e) * short_reciprocal(1.f + e);
    return fabsf(x) < 0.0156f ? x : copysignf(far, x);
}

// x times the normal distribution, whose tail is exp(-x²/2) times a polynomial of 1 / (1 + 0.38|x|), to
// 3.3e-5 of itself where f16 has numbers and 2.2e-4 beyond. So no digit of the tail is lost, as 1 + erf
// loses it.
__device__ __forceinline__ f32 short_gelu(f32 x) {
    const f32 z = fabsf(x), t = short_reciprocal(fmaf(0.38f, z, 1.f));
    f32 p = fmaf(t, -0.0890271064f, 0.186461944f);
    p = fmaf(t, p, 0.0943012877f);
    p = fmaf(t, p, 0.156887704f);
    p = fmaf(t, p, 0.151359916f);
    const f32 tail = p * t * short_exp2(z * z * -0.72134752044448170f);
    return x * (x < 0.f ? tail : 1.f - tail);
}

// As far as the numbers of turns below are exact.
constexpr f32 SHORT_TURNS = 65536.f;

// The sine, or the cosine, of |x| up to SHORT_TURNS: of what x is off the nearest multiple of π (of π/2
// after one, for the cosine), by a polynomial good to 1.1e-6 of itself.
template <bool COSINE> __device__ __forceinline__ f32 short_sine(f32 x) {
    // Added to a number it leaves no bits for a fraction, and its last bit says whether that is odd.
    const f32 whole = 12582912.f;
    const f32 shifted =
        COSINE ? fmaf(x, 0.31830988618f, 0.5f) + whole : fmaf(x, 0.31830988618f, whole);
    const f32 turns = COSINE ? shifted - whole - 0.5f : shifted - whole;
    // π in two parts.
    f32 r = fmaf(turns, -3.14159274f, x);
    r = fmaf(turns, 8.74227766e-8f, r);
    const f32 z = r * r;
    f32 p = fmaf(z, -1.8539596e-4f, 8.3141964e-3f);
    p = fmaf(z, p, -0.16665848f);
    const f32 sine = fmaf(r * z, p, r);
    return __uint_as_float(__float_as_uint(sine) ^ (__float_as_uint(shifted) << 31));
}
