// Tensor core products by a warpgroup, the four warps of 128 threads (sm_90a): d {64, N} += a · b, with
// a {64, 16} in registers and b {16, N} in shared memory. Warp w has rows 16 · w to + 15 of a and d, and
// its lanes have them as in mma.cuh; d's columns go 8 at a time.
#pragma once

#include "common/async.cuh"

// b: for each 8 entries along the reduction and each 8 columns, 16 bytes a column, one column after the
// other; `along` bytes from 8 entries to the next, 128 from 8 columns to the next.
__device__ __forceinline__ u64 describe_columns(u32 address, u32 along) {
    return (u64)(address & 0x3ffff) >> 4 | (u64)(along >> 4) << 16 | (u64)(128 >> 4) << 32;
}

// What threads wrote to shared memory, before a barrier, for products after it.
__device__ __forceinline__ void publish_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Before the first product after registers of it were written.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// They are on their way then.
__device__ __forceinline__ void products_asked() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_end() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Asks for d = a · b + (add ? d : 0).
template <class S, int N8>
__device__ __forceinline__ void product(f32 (&d)[N8][4], const u32 (&a)[4], u64 b, bool add);

#define NITROX_PRODUCT(TYPE, NAME)                                                                    \
    template <>                                                                                       \
    __device__ __forceinline__ void product<TYPE, 1>(f32 (&d)[1][4], const u32 (&a)[4], u64 b,        \
                                                     bool add) {                                      \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"                                      \
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32." NAME "." NAME                       \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}"                        \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3])                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));            \
    }                                                                                                 \
    template <>                                                                                       \
    __device__ __forceinline__ void product<TYPE, 2>(f32 (&d)[2][4], const u32 (&a)[4], u64 b,        \
                                                     bool add) {                                      \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32." NAME "." NAME                      \
                     " {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}"     \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),     \
                       "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3])                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));            \
    }                                                                                                 \
    template <>                                                                                       \
    __device__ __forceinline__ void product<TYPE, 4>(f32 (&d)[4][4], const u32 (&a)[4], u64 b,        \
                                                     bool add) {                                      \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32." NAME "." NAME                      \
                     " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15},"       \
                     " {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"                                     \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),     \
                       "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]),     \
                       "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]),     \
                       "+f"(d[3][3])                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));            \
    }

NITROX_PRODUCT(bf16, "bf16")
NITROX_PRODUCT(f16, "f16")
#undef NITROX_PRODUCT
