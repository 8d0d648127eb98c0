// N values of a 16-byte load (or one value), kept as the words that were loaded until each is used:
// as 16-bit values they would take a register each.
#pragma once

#include "common/types.cuh"

template <class S, int N> struct Wide {
    static constexpr int WORDS = (N * sizeof(S) + 3) / 4;
    u32 word[WORDS];

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int i = 0; i < WORDS; i++) word[i] = 0;
    }
    __device__ __forceinline__ void load(const S* p) {
        if (N * sizeof(S) >= 4) {
            const Pack<u32, WORDS> pack = *(const Pack<u32, WORDS>*)p;
#pragma unroll
            for (int i = 0; i < WORDS; i++) word[i] = pack.at[i];
        } else {
            word[0] = *(const u16*)p;
        }
    }
    __device__ __forceinline__ void store(S* p) const {
        if (N * sizeof(S) >= 4) {
            Pack<u32, WORDS> pack;
#pragma unroll
            for (int i = 0; i < WORDS; i++) pack.at[i] = word[i];
            *(Pack<u32, WORDS>*)p = pack;
        } else {
            *(u16*)p = (u16)word[0];
        }
    }
    // Rounded, 16-bit values two at a time.
    __device__ __forceinline__ void set(const f32 (&x)[N]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            if (sizeof(S) == 4) word[i] = __float_as_uint(x[i]);
            else word[i] = both(x[2 * i % N], x[(2 * i + 1) % N], S());
        }
    }
    __device__ __forceinline__ f32 at(int i) const { return value(word[i * (int)sizeof(S) / 4], i, S()); }

  private:
    static __device__ __forceinline__ f32 value(u32 w, int, f32) { return __uint_as_float(w); }
    static __device__ __forceinline__ f32 value(u32 w, int i, bf16) {
        return __uint_as_float(i % 2 ? w & 0xffff0000u : w << 16);
    }
    static __device__ __forceinline__ f32 value(u32 w, int i, f16) {
        return to_f32(f16{(u16)(i % 2 ? w >> 16 : w)});
    }
    static __device__ __forceinline__ u32 both(f32, f32, f32) { return 0; }
    static __device__ __forceinline__ u32 both(f32 low, f32 high, bf16) {
        u32 w;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
        return w;
    }
    static __device__ __forceinline__ u32 both(f32 low, f32 high, f16) {
        u32 w;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
        return w;
    }
};
