// How the blocks of a grid that are all there at once hand each other h (sm_80 and up).
//
// h goes round through global memory in packs, each polled by all blocks of the part (packs.cuh).
//
// There are BUFFERS that take turns. A block that has all of step s - 1 knows that everybody
// has read step s - 2 and before. So it empties its packs of an older step, half a ring before their
// next turn, and every FENCED steps, before it gives its next packs, a fence has this seen by all.
// Everybody needs those packs before they poll the buffers that were emptied. One warp does this, and
// a fence takes it 1400 clocks: hence so seldom.
#pragma once

#include "recurrent/layer.cuh"
#include "recurrent/packs.cuh"

// The buffers of one part of the batch, a power of two.
template <int BUFFERS> struct Ring {
    static constexpr int FENCED = BUFFERS / 4;
    static_assert(BUFFERS / 2 + FENCED < BUFFERS, "an emptied pack would be one that is read");
    uint4* first;
    s64 buffer; // packs from one to the next

    // `packs` of a part, of which there are `parts`.
    __device__ __forceinline__ Ring(const Layer& p, int part, int parts, int packs)
        : first((uint4*)p.exchange + (s64)part * packs), buffer((s64)parts * packs) {}
    __device__ __forceinline__ s64 offset(int step) const { return (step & (BUFFERS - 1)) * buffer; }
    __device__ __forceinline__ uint4* at(int step) const { return first + offset(step); }
    // To be called by one warp in every step, when everybody has all of the step before. `pack(i)`
    // are the places of the block's `count` packs.
    template <class Pack> __device__ __forceinline__ void empty(int step, int count, Pack pack) const {
        for (int i = threadIdx.x % WARP; i < count; i += WARP)
            write_pack(at(step + BUFFERS / 2) + pack(i), make_uint4(0, 0, 0, 0));
        if (step % FENCED == 0) asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
};
