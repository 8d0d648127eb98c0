// Asynchronous copies from global to shared memory (sm_80 and up).
#pragma once

#include "common/types.cuh"

__device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

// 16 bytes, past L1; zeros where `valid` is false, and then `from` is not read. `to` is a pointer
// into shared memory, or an address of it.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    copy_async(shared_address(to), from, valid);
}
// 4 or 8 bytes, the same way but through L1.
template <int BYTES>
__device__ __forceinline__ void copy_async_few(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES),
                 "r"(valid ? BYTES : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most PENDING groups are under way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
