// What the blocks of a cluster hand to each other, counted where it arrives (sm_90).
//
// A meeting is a barrier in each block's shared memory and the bytes that are sent to it. Who waits at it
// waits for those bytes and for nothing else. The barrier of a cluster waits until every store of every
// thread has been seen by the others, which takes twice as long.
//
// A meeting is for once. Before the first value is sent, all blocks must have begun theirs and met
// (`cluster_arrive` after `begin`, `cluster_wait` before `send`). And no block may end before what it has
// sent has arrived: each arrives at the cluster's barrier a second time when it has all that it was sent,
// and waits for that before its end.
#pragma once

#include "common/remote.cuh"

struct Meeting {
    u32 barrier;

    __device__ __forceinline__ explicit Meeting(const u64* at) : barrier(shared_address(at)) {}
    // By one thread.
    __device__ __forceinline__ void begin(u32 bytes) const {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                     "r"(bytes) : "memory");
    }
    // Four values to where `to` lies in the block `rank`.
    __device__ __forceinline__ void give(bool wanted, u32 rank, const f32* to, const f32 (&v)[4]) const {
        const u32 at = shared_address(to), distance = distance_to(rank, at);
        send(wanted, at + distance, barrier + distance,
             make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                        __float_as_uint(v[3])));
    }
    // By all threads. racecheck does not count what is sent by st.async among what puts threads in order,
    // so for it they meet here.
    __device__ __forceinline__ void wait() const {
        await_phase(barrier, 0);
#ifdef RACECHECK
        __syncthreads();
#endif
    }
};
