// Words of 8 bytes by which blocks tell each other something within a launch, past L1, which would not see
// them change. A word is read or written as a whole, and orders nothing else.
#pragma once

#include "common/types.cuh"

__device__ __forceinline__ u64 read_word(const u64* p) {
    u64 word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
    return word;
}
__device__ __forceinline__ void write_word(u64* p, u64 word) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}
