// Keys: unsigned numbers in the order of the values they stand for. Of floats a NaN is the largest,
// whatever its bits, and the two zeros are one.
#pragma once
#include "common/types.cuh"

__device__ __forceinline__ u32 key_of(u8 x) { return x; }
__device__ __forceinline__ u32 key_of(u16 x) { return x; }
__device__ __forceinline__ u32 key_of(u32 x) { return x; }
__device__ __forceinline__ u64 key_of(u64 x) { return x; }
__device__ __forceinline__ u32 key_of(s8 x) { return (u32)(s32)x ^ 0x80000000u; }
__device__ __forceinline__ u32 key_of(s16 x) { return (u32)(s32)x ^ 0x80000000u; }
__device__ __forceinline__ u32 key_of(s32 x) { return (u32)x ^ 0x80000000u; }
__device__ __forceinline__ u64 key_of(s64 x) { return (u64)x ^ 1ull << 63; }
__device__ __forceinline__ u32 key_of(f32 x) {
    if (x != x) return ~0u;
    // Adding zero makes the negative one positive.
    u32 bits = __float_as_uint(x + 0.f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ u32 key_of(f16 x) { return key_of(to_f32(x)); }
__device__ __forceinline__ u32 key_of(bf16 x) { return key_of(to_f32(x)); }
__device__ __forceinline__ u64 key_of(f64 x) {
    if (x != x) return ~0ull;
    u64 bits = (u64)__double_as_longlong(x + 0.0);
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}
