// Clusters of CLUSTER blocks, which read and write each other's shared memory; from sm_90 on. Before,
// a cluster is one block.
#pragma once

#include "common/cluster.cuh"
#include "common/types.cuh"

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
