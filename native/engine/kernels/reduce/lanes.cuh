// How the threads of a block share rows, and how their values come together.
#pragma once
#include "common/walk.cuh"

constexpr int MAX_THREADS = 1024;

// The threads of a block in groups of `lanes` (a power of two), a group a row.
struct Lanes {
    u32 lane, group, lanes, groups;
    __device__ __forceinline__ Lanes(u32 lanes)
        : lane(threadIdx.x % lanes), group(threadIdx.x / lanes), lanes(lanes),
          groups(blockDim.x / lanes) {}
};

// The value of all lanes of the caller's group joined, on each of them. All threads take part.
// The order is fixed, so the same input gives the same bits.
template <class A, class F>
__device__ __forceinline__ A join_lanes(const Lanes& l, A value, A* shared, F join) {
    for (u32 d = 1; d < (l.lanes < 32 ? l.lanes : 32); d *= 2)
        value = join(value, value.shuffle(d));
    if (l.lanes > 32) {
        u32 warps = l.lanes / 32;
        __syncthreads();
        if (l.lane % 32 == 0) shared[threadIdx.x / 32] = value;
        __syncthreads();
        A* mine = shared + l.group * warps;
        value = mine[0];
        for (u32 k = 1; k < warps; ++k) value = join(value, mine[k]);
    }
    return value;
}

// One number as a value of `join_lanes`.
template <class N> struct Number {
    N at;
    __device__ __forceinline__ Number shuffle(u32 d) const {
        return {__shfl_xor_sync(~0u, at, d)};
    }
};

// Calls `pack` on each aligned 16-byte pack of x[0, n) and `one` on what is left at the ends, the
// caller taking each `lanes`-th.
template <class S, class P, class O>
__device__ __forceinline__ void sweep(const S* x, u64 n, u32 lane, u32 lanes, P pack, O one) {
    constexpr u32 V = 16 / sizeof(S);
    u64 head = (16 - (u64)x % 16) % 16 / sizeof(S);
    if (head > n) head = n;
    u64 packs = (n - head) / V;
    for (u64 i = lane; i < head; i += lanes) one(i);
    const Pack<S, V>* p = (const Pack<S, V>*)(x + head);
    u64 i = lane;
    for (; i + 3 * (u64)lanes < packs; i += 4 * (u64)lanes) {
        Pack<S, V> four[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) four[k] = p[i + k * lanes];
        pack(four, head + i * V, lanes * V);
    }
    for (; i < packs; i += lanes) {
        Pack<S, V> single[1] = {p[i]};
        pack(single, head + i * V, 0u);
    }
    for (u64 k = head + packs * V + lane; k < n; k += lanes) one(k);
}

// x as {outer, n, inner} to be gone through along n, which is cut into `parts` of `chunk`. The
// threads of a block lie `across` neighbouring columns by as many down as there are.
struct Columns {
    u64 n, inner, chunk;
    Divisor parts, tiles;  // tiles of `across` columns
    u32 across;
};

struct Column {
    u64 outer, column, part;
    u32 ty, down, across;
    __device__ __forceinline__ Column(const Columns& c) : across(c.across) {
        u64 q = divide(blockIdx.x, c.tiles);
        column = (blockIdx.x - q * c.tiles.by) * c.across + threadIdx.x % c.across;
        outer = divide(q, c.parts);
        part = q - outer * c.parts.by;
        ty = threadIdx.x / c.across;
        down = blockDim.x / c.across;
    }
};

// The values of all threads of a column joined, on each of them, in a fixed order. All threads
// take part; they lie a power of two down.
template <class A, class F>
__device__ __forceinline__ A join_column(const Column& l, A value, A* shared, F join) {
    shared[threadIdx.x] = value;
    for (u32 d = l.down / 2; d > 0; d /= 2) {
        __syncthreads();
        if (l.ty < d)
            shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + d * l.across]);
    }
    __syncthreads();
    return shared[threadIdx.x % l.across];
}
