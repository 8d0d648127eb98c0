// A whole window by clusters of thread blocks (sm_90): what the f32 kernel and the tensor core
// kernel share.
//
// A cluster takes some rows of the batch and needs no other cluster. Each of its blocks owns 32
// hidden units with all their gates and keeps their recurrent weights in registers (what does not
// fit there, in shared memory) for all steps. After a step a block sends its part of h into the
// shared memory of every block of the cluster, itself too, and each store counts down a barrier at
// the receiver: a block waits for the bytes of h, and for nothing else.
//
// There are two buffers of h and a barrier for each. To send step s + 2 into the buffer of step s a
// block needs all of step s + 1, which a block sends after it has read step s: nobody overwrites
// what is still read. The same holds for the sums in shared memory, since a block receives its own
// part, too, from threads that have read their sums.
#pragma once

#include "recurrent/layer.cuh"
#include "common/remote.cuh"

// Where this block stands.
struct Place {
    u32 rank, ranks; // in the cluster
    int unit0, row0, rows;

    // In the cluster that has these rows of the batch; else as the grid has them in order.
    __device__ __forceinline__ Place(const Layer& p, int first_row) : row0(first_row) {
        asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
        unit0 = rank * WARP; // a block has a unit for each lane
        rows = min(p.share, p.batch - row0);
    }
    __device__ __forceinline__ explicit Place(const Layer& p)
        : Place(p, blockIdx.x / cluster_blocks() * p.share) {}

  private:
    static __device__ __forceinline__ u32 cluster_blocks() {
        u32 blocks;
        asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
        return blocks;
    }
};

// How a layer that stands alone gets its input and what it gives: to nobody but its caller.
struct Alone : Projected {
    __device__ __forceinline__ constexpr bool gives() const { return false; }
    __device__ __forceinline__ void give(int, int, bool, uint4) const {}
};

// The barriers of the two buffers: `bytes` of h complete a phase.
struct Arrivals {
    u32 at, bytes;

    __device__ __forceinline__ Arrivals(const u64* barriers, u32 bytes)
        : at(shared_address(barriers)), bytes(bytes) {}
    __device__ __forceinline__ u32 barrier(int step) const { return at + step % 2 * 8; }
    __device__ __forceinline__ void arm(int step) const {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(step)),
                     "r"(bytes) : "memory");
    }
    __device__ __forceinline__ void start() const {
        for (int step = 0; step < 2; step++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(step)) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            arm(step);
        }
    }
    // All of h after `step` is here. One thread then readies the barrier for two steps later.
    //
    // With it all threads of this block have read their sums, as the text above says. racecheck does
    // not count what is sent by st.async among what puts threads in order, so for it they meet here.
    __device__ __forceinline__ void wait(int step) const {
        await_phase(barrier(step), step >> 1 & 1);
#ifdef RACECHECK
        __syncthreads();
#endif
        if (threadIdx.x == 0) arm(step);
    }
};

__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
