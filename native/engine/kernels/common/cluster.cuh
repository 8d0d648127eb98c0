// The barrier of a cluster's blocks (sm_90); before, a cluster is one block. Where CLUSTER says how many
// blocks these are, they also write to each other's shared memory.
#pragma once

#include "common/types.cuh"

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// An arrival that orders nothing, where it only says that this block needs the others no longer. The other
// one waits until all that its thread has stored is seen, which after stores to memory is the half of a
// microsecond.
__device__ __forceinline__ void cluster_leave() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// The barrier of threads that have arrived; it orders what they have written, to each other as well.
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

#ifdef CLUSTER
#if __CUDA_ARCH__ < 900
#undef CLUSTER
#define CLUSTER 1
#endif

// `value` to where `to`, of shared memory, lies in the block `rank`.
__device__ __forceinline__ void hand(f32* to, u32 rank, f32 value) {
#if CLUSTER > 1
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(remote) : "r"((u32)__cvta_generic_to_shared(to)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
#else
    *to = value;
#endif
}
#endif
