// Numbers of any integer type, which a kernel is told as it runs.
#pragma once
#include "common/types.cuh"

// In the order of the engine's DType.
enum Integer : u32 { AS_U8, AS_U16, AS_U32, AS_U64, AS_S8, AS_S16, AS_S32, AS_S64 };

// A u64 beyond s64 gives its end.
__device__ __forceinline__ s64 integer_at(const void* x, u64 i, u32 type) {
    switch (type) {
        case AS_U8: return ((const u8*)x)[i];
        case AS_U16: return ((const u16*)x)[i];
        case AS_U32: return ((const u32*)x)[i];
        case AS_S8: return ((const s8*)x)[i];
        case AS_S16: return ((const s16*)x)[i];
        case AS_S32: return ((const s32*)x)[i];
        case AS_U64: {
            u64 value = ((const u64*)x)[i];
            return value >> 63 ? 0x7fffffffffffffffll : (s64)value;
        }
        default: return ((const s64*)x)[i];
    }
}
