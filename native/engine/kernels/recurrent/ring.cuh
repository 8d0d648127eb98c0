// How the blocks of a grid that are all there at once hand each other h (sm_80 and up).
//
// h goes round through global memory in 16-byte packs, each written by one thread and polled by all
// blocks of the part until it is there: no barrier, no flag. A pack is stored inverted, so that a
// word of zeros means that it is yet to come (it would be two NaNs of a kind that a rounding never
// gives).
//
// There are RING buffers that take turns. A block that has all of step s - 1 knows that everybody
// has read step s - 2 and before. So it empties its packs of an older step, half a ring before their
// next turn, and every FENCED steps, before it gives its next packs, a fence has this seen by all.
// Everybody needs those packs before they poll the buffers that were emptied. One warp does this, and
// a fence takes it 1400 clocks: hence so seldom.
#pragma once

#include "recurrent/layer.cuh"

constexpr int RING = 64, FENCED = 16;
static_assert(RING / 2 + FENCED < RING, "an emptied pack would be one that is read");

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
__device__ __forceinline__ bool is_there(uint4 v) { return v.x && v.y && v.z && v.w; }
__device__ __forceinline__ uint4 inverted(uint4 v) { return make_uint4(~v.x, ~v.y, ~v.z, ~v.w); }

// The buffers of one part of the batch.
struct Ring {
    uint4* first;
    s64 buffer; // packs from one to the next

    // `packs` of a part, of which there are `parts`.
    __device__ __forceinline__ Ring(const Layer& p, int part, int parts, int packs)
        : first((uint4*)p.exchange + (s64)part * packs), buffer((s64)parts * packs) {}
    __device__ __forceinline__ uint4* at(int step) const {
        return first + (step & (RING - 1)) * buffer;
    }
    // To be called by one warp in every step, when everybody has all of the step before. `pack(i)`
    // are the places of the block's `count` packs.
    template <class Pack> __device__ __forceinline__ void empty(int step, int count, Pack pack) const {
        for (int i = threadIdx.x % WARP; i < count; i += WARP)
            write_pack(at(step + RING / 2) + pack(i), make_uint4(0, 0, 0, 0));
        if (step % FENCED == 0) asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
};
