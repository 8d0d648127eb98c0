// How blocks that share no memory but the GPU's hand each other values (sm_80 and up): 16 bytes at a
// time, written by one thread and polled by those who need them until they are there. There is no flag,
// and so no fence.
//
// A pack is stored inverted, and a word of zeros means that it is yet to come: it would be a NaN of a
// kind that no arithmetic gives, or two of them.
#pragma once

#include "common/types.cuh"

__device__ __forceinline__ uint4 read_pack(const uint4* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void write_pack(uint4* p, uint4 v) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// Half of a pack.
__device__ __forceinline__ void write_half(uint2* p, uint2 v) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y)
                 : "memory");
}
__device__ __forceinline__ bool is_there(uint4 v) { return v.x && v.y && v.z && v.w; }
__device__ __forceinline__ uint4 inverted(uint4 v) { return make_uint4(~v.x, ~v.y, ~v.z, ~v.w); }
__device__ __forceinline__ void pause(u32 clocks) {
    const u32 from = clock();
    while ((u32)clock() - from < clocks) {}
}
// Of values that may be a NaN of any kind, as a caller's are: another NaN then.
__device__ __forceinline__ uint4 inverted_any(uint4 v) {
    return make_uint4(max(~v.x, 1u), max(~v.y, 1u), max(~v.z, 1u), max(~v.w, 1u));
}
