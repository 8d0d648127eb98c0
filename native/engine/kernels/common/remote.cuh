// Into the shared memory of another block of the cluster (sm_90).
#pragma once

#include "common/async.cuh"
#include "common/cluster.cuh"

// What to add to an address in this block's shared memory for the same place in another's.
__device__ __forceinline__ u32 distance_to(u32 rank, u32 address) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there - address;
}

// 16 bytes to a block of the cluster, counted at its barrier when they are there. A predicate, where
// a branch would cost the other lanes.
__device__ __forceinline__ void send(bool wanted, u32 to, u32 barrier, uint4 v) {
    asm volatile("{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %6, 0;\n"
                 "@wanted st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
                 "[%0], {%1, %2, %3, %4}, [%5];\n}" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w), "r"(barrier), "r"((u32)wanted) : "memory");
}

// Waits until the phase of this parity of a barrier of this block has ended.
__device__ __forceinline__ void await_phase(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(barrier), "r"(parity) : "memory");
}
