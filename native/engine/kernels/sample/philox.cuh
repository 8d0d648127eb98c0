// Philox4x32-10: four random words for a 64-bit key and a 128-bit counter, with no state.
#pragma once
#include "common/types.cuh"

struct Words { u32 at[4]; };

__device__ __forceinline__ Words philox(u64 key, u32 c0, u32 c1, u32 c2, u32 c3) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        u32 n0 = (u32)(b >> 32) ^ c1 ^ k0, n2 = (u32)(a >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (u32)b, c2 = n2, c3 = (u32)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Strictly between 0 and 1.
__device__ __forceinline__ f32 uniform(u32 word) {
    return ((f32)(word >> 9) + 0.5f) * 1.1920928955078125e-7f;
}
