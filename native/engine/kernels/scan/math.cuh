// What a frame of the scan takes beside its states: 2^x, softplus and the gate.
//
// The special function unit's ex2 and rcp are good to about one unit in the last place, and are what
// exp2f and a division are made of; in f32 what their callers round is put right here, so that no
// accuracy is lost against expf, log1pf and a division, at a third of their instructions. 16-bit
// types do without that.
#pragma once

#include "common/types.cuh"

constexpr bool EXACT = sizeof(T) == 4;
constexpr f32 LOG2E = 1.4426950408889634f;
constexpr f32 LN2 = 0.69314718055994531f;

// 2^x; what is below the normal numbers goes to zero.
__device__ __forceinline__ f32 power(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ f32 reciprocal(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return EXACT ? fmaf(fmaf(-x, y, 1.f), y, y) : y;
}

// e^-x for x that is finite.
__device__ __forceinline__ f32 decay(f32 x) {
    const f32 t = x * LOG2E, e = power(-t);
    if (!EXACT) return e;
    const f32 rest = fmaf(x, LOG2E, -t); // of the product, which was rounded
    return fmaf(e, rest * -LN2, e);
}

// ln(1 + e^x).
__device__ __forceinline__ f32 softplus(f32 x) {
    const f32 e = decay(fminf(fabsf(x), 128.f));
    const f32 above = x < 0.f ? 0.f : x; // a NaN stays one
    if (!EXACT) {
        f32 log;
        asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(1.f + e));
        // Of a small e the sum with 1 has lost too much.
        const f32 small = e * fmaf(e, -0.5f, 1.f);
        return above + (e < 0.0078125f ? small : log * LN2);
    }
    // ln(1 + e) = 2·atanh(s), s = e / (2 + e) at most 1/3: a polynomial in s², to 4e-9.
    const f32 s = e * reciprocal(2.f + e), w = s * s;
    f32 p = 0.28157778366592f;
    p = fmaf(p, w, 0.27965157744563f);
    p = fmaf(p, w, 0.40024595230711f);
    p = fmaf(p, w, 0.66666321641380f);
    p = fmaf(p, w, 2.0000000076818f);
    return fmaf(s, p, above);
}

// z·σ(z); σ goes no further down than e^-87.
__device__ __forceinline__ f32 gate(f32 z) {
    const f32 bound = fminf(fmaxf(z, -87.f), 87.f);
    return z * reciprocal(1.f + decay(bound));
}

// A parameter that is f32 or of the storage type. It stays as it was stored until it is used, since
// to convert it is to wait for it.
struct Parameter {
    u32 bits = 0;

    __device__ __forceinline__ void load(const void* p, int is_f32, s64 i) {
        if (EXACT || is_f32) bits = ((const u32*)p)[i];
        else bits = ((const u16*)p)[i];
    }
    __device__ __forceinline__ f32 value(int is_f32) const {
        return EXACT || is_f32 ? __uint_as_float(bits) : of(T());
    }

  private:
    __device__ __forceinline__ f32 of(f32) const { return __uint_as_float(bits); }
    __device__ __forceinline__ f32 of(bf16) const { return __uint_as_float(bits << 16); }
    __device__ __forceinline__ f32 of(f16) const { return to_f32(f16{(u16)bits}); }
};
