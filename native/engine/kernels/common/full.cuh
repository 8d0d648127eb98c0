// Functions for results of f32 without a branch: the compiler's own division and erfc each have a path for
// few arguments, and around it neighbours in a pack can't be computed side by side. Where an approximation
// of the hardware is used its error is then taken away, or is of no weight in the result.
#pragma once

#include "common/short.cuh"

// By the exponential that is at most 1, so that the sum is between 1 and 2. The reciprocal is off by a last
// place, and one step of Newton's gives it back.
__device__ __forceinline__ f32 full_sigmoid(f32 x) {
    const f32 e = expf(-fabsf(x)), sum = 1.f + e;
    const f32 near = short_reciprocal(sum);
    const f32 r = fmaf(near, fmaf(-sum, near, 1.f), near);
    return (x < 0.f ? e : 1.f) * r;
}

// x times the normal distribution. Its tail is exp(-z²/2) times a polynomial of t = 1 / (1 + 0.345z), z being
// |x|, which is good to 2e-8 of itself. z² has twice the digits of z: those that its rounding and that of
// its product lose come back as a factor, since the exponential would make 2^-17 of the tail of them. What
// is left is 4e-7 of the result, from -13 on as at 1. Below the least normal number it is zero.
__device__ __forceinline__ f32 full_gelu(f32 x) {
    // From 15 on the tail is zero; further on z² would not be a number.
    const f32 z = fminf(fabsf(x), 15.f), t = short_reciprocal(fmaf(z, 0.345f, 1.f));
    f32 p = fmaf(t, -0.0284271006f, 0.145487456f);
    p = fmaf(t, p, -0.271568866f);
    p = fmaf(t, p, 0.187616692f);
    p = fmaf(t, p, -0.0378694218f);
    p = fmaf(t, p, 0.111904252f);
    p = fmaf(t, p, 0.117213865f);
    p = fmaf(t, p, 0.138023988f);
    p = fmaf(t, p, 0.137619126f);
    const f32 half_log = -0.72134752044448170f, of_it = -9.6298e-9f;
    const f32 square = z * z, power = square * half_log;
    f32 lost = fmaf(square, half_log, -power);
    lost = fmaf(fmaf(z, z, -square), half_log, lost);
    lost = fmaf(square, of_it, lost);
    const f32 near = short_exp2(power), e = fmaf(near * lost, 0.69314718f, near);
    const f32 tail = p * t * e;
    return x * (x < 0.f ? tail : 1.f - tail);
}
