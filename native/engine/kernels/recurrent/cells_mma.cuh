// A layer's window in bf16 or f16, by the blocks of a cluster (see cluster.cuh), on tensor cores.
//
// h is rounded to the storage type on its way round, or, where the state tensors are f32, goes as the
// sum of two numbers in two columns.
//
// Compiled for -DTILES=32s of h a warp multiplies, and -DCOLUMNS=8s of columns.
#pragma once

#include "recurrent/cluster.cuh"
#include "recurrent/halves.cuh"

// The whole window; `link` is where the layer stands (`Alone`).
template <class Link>
__device__ __forceinline__ void cells(const Layer& p, const Place& at, const Link& link,
                                      unsigned char* shared) {
    __shared__ __align__(8) u64 barriers[2];
    __shared__ __align__(16) u16 outbox[WARPS][COLUMNS + 1][UNITS]; // the low parts from its end
    auto* hs = (uint4*)shared;                                 // [2][CHUNKS][COLUMNS][WARP]
    auto* part = (float4*)(hs + 2 * CHUNKS * COLUMNS * WARP);  // [HALVES][WIDTH][PITCH]
    const u32 hs_at = shared_address(hs);

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const Arrivals arrivals(barriers, at.ranks * UNITS * 2 * (at.rows << (p.low > 0)));
    if (tid == 0) arrivals.start();

    Held w;
    hold_weights(w, p, shared, at.unit0);
    __syncthreads();

    // Columns that are no row's, and entries past h, stay zero: 0 · NaN must not reach a sum.
    for (int i = tid; i < 2 * CHUNKS * COLUMNS * WARP; i += THREADS)
        hs[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    if (p.h) {
        auto* first = (u16*)(hs + CHUNKS * COLUMNS * WARP); // as if a step had been before the first
        for (int i = tid; i < at.rows * p.hidden; i += THREADS) {
            const int row = i / p.hidden, k = i % p.hidden;
            u16 high, low;
            split(read_state(p.h, p.state_f32, (s64)at.row0 * p.hidden + i), high, low);
            first[pack_of(row, k) * 8 + k % 8] = high;
            if (p.low) first[pack_of(p.low + row, k) * 8 + k % 8] = low;
        }
    }

    // A warp finishes every eighth row, a lane a unit of it.
    constexpr int AHEAD = COLUMNS == 1 ? 2 : 1; // a step of few rows is short
    Pairs<COLUMNS, AHEAD> pairs;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const int row = j * WARPS + warp, unit = at.unit0 + lane;
        pairs.start(p, j, at.row0 + row, unit, row < at.rows && unit < p.hidden);
    }
    pairs.fetch_first(p, link);
    // A lane sends one pack of 8 units to two blocks.
    const u32 first_to = lane / 4, second_to = lane / 4 + 8;
    const u32 to_first = distance_to(min(first_to, at.ranks - 1), hs_at);
    const u32 to_second = distance_to(min(second_to, at.ranks - 1), hs_at);
    cluster_sync();

    for (int step = 0; step < p.steps; step++) {
        if (step > 0) arrivals.wait(step - 1);
        multiply(w, hs + (step + 1) % 2 * CHUNKS * COLUMNS * WARP, part);
        __syncthreads();

#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const int row = j * WARPS + warp;
            if (row >= at.rows) break;
            Sums s = pairs.sums(j, step, link);
            add_sums(s, part, row);
            if (p.low) add_sums(s, part, p.low + row);
            State& state = pairs.state[j];
            if (pairs.frame[j] >= 0 && !pairs.kept[0][j]) state = advance_16(state, s, p.low);
            u16 high, low;
            split(state.h, high, low);
            outbox[warp][j][lane] = high;
            if (p.low) outbox[warp][COLUMNS - j][lane] = low;
        }
        __syncwarp();
        if (link.gives()) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const int row = j * WARPS + warp;
                if (row >= at.rows) break;
                const uint4 pack = *(const uint4*)(outbox[warp][j] + lane % 4 * 8);
                link.give(step, (row * (int)at.ranks + (int)at.rank) * 4 + lane, lane < 4, pack);
            }
        }
        if (step + 1 < p.steps) {
            const u32 barrier = arrivals.barrier(step);
            const u32 to = hs_at + (step % 2 * CHUNKS * COLUMNS * WARP + lane % 4) * 16;
            auto give = [&](const u16* box, int column) {
                const uint4 pack = *(const uint4*)(box + lane % 4 * 8);
                const u32 address = to + pack_of(column, at.unit0) * 16;
                send(first_to < at.ranks, address + to_first, barrier + to_first, pack);
                send(second_to < at.ranks, address + to_second, barrier + to_second, pack);
            };
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const int row = j * WARPS + warp;
                if (row >= at.rows) break;
                give(outbox[warp][j], row);
                if (p.low) give(outbox[warp][COLUMNS - j], p.low + row);
            }
        }
        // Under the wait for h.
        pairs.fetch(p, step + AHEAD, link);
        if (!link.gives()) pairs.write_seq(p, step);
    }
    pairs.write_states(p);
}
