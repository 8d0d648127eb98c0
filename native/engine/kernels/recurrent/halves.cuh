// Blocks of 32 units on tensor cores: four warps along the units, two along the reduction (see
// operands.cuh for how the operands lie).
//
// The recurrent weights are the left operand, 16 rows of which are two gates of 8 units; h is the
// right one, its columns the rows of the batch. A warp holds two such tiles, so that a lane gets all
// four sums of its unit, for one half of the reduction.
#pragma once

#include "recurrent/layer.cuh"
#include "recurrent/operands.cuh"

constexpr int UNITS = WARP; // of a block
constexpr int GROUPS = UNITS / 8;       // of units, a warp each
constexpr int HALVES = WARPS / GROUPS;  // of the reduction
constexpr int CHUNKS = TILES * HALVES;  // 32s of h
constexpr int WIDTH = 8 * COLUMNS;
constexpr int PITCH = UNITS + 1;        // of sums: eight lanes write to different banks
constexpr int STAGED = GATES * UNITS * 2 + 16; // bytes of a row of wh in shared memory
constexpr int PASS = COLUMNS % 2 ? 1 : 2;      // 8s of columns at a time

// The 16-byte pack with h's entry k of a column.
__device__ __forceinline__ int pack_of(int column, int k) {
    return (k / 32 * COLUMNS + column / 8) * WARP + column % 8 * 4 + k % 32 / 8;
}

typedef u32 Held[2][TILES][2][4]; // pairs of gates, 32s of h, 16s of it, operands

// wh of this block's units, by way of shared memory. Ends unsynchronised.
__device__ __forceinline__ void hold_weights(Held& w, const Layer& p, unsigned char* shared,
                                             int unit0) {
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int group = warp % GROUPS, half = warp / GROUPS;
    // wh of these units by way of shared memory: 32 rows at a time in the order of h.
    if (p.hidden % 8 == 0) {
        constexpr int PACKS = GATES * UNITS / 8;
        for (int i = tid; i < CHUNKS * 32 * PACKS; i += THREADS) {
            const int pack = i % PACKS, k = i / PACKS;
            const int gate = pack / GROUPS, unit = unit0 + pack % GROUPS * 8;
            const bool in = k < p.hidden && unit < p.hidden;
            const T* from = in ? p.wh + ((s64)k * GATES + gate) * p.hidden + unit : p.wh;
            copy_async(shared + slot_of(k) * STAGED + pack * 16, from, in);
        }
        copy_async_commit();
        copy_async_wait<0>();
    } else {
        for (int i = tid; i < CHUNKS * 32 * GATES * UNITS; i += THREADS) {
            const int u = i % UNITS, gate = i / UNITS % GATES, k = i / (UNITS * GATES);
            const bool in = k < p.hidden && unit0 + u < p.hidden;
            *(T*)(shared + slot_of(k) * STAGED + (gate * UNITS + u) * 2) =
                in ? p.wh[((s64)k * GATES + gate) * p.hidden + unit0 + u] : from_f32<T>(0.f);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int pair = 0; pair < 2; pair++) // of gates
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int matrix = lane / 8, gate = min(pair * 2 + matrix % 2, GATES - 1);
                const int slot = (half * TILES + i) * 32 + (2 * k + matrix / 2) * 8 + lane % 8;
                const int column = gate * UNITS + group * 8;
                load_matrices_transposed(w[pair][i][k], shared + slot * STAGED + column * 2);
                if (GATES == 3 && pair == 1) w[pair][i][k][1] = w[pair][i][k][3] = 0;
            }
}

// This warp's share of the product with all columns of h, to `part` {HALVES, WIDTH, PITCH}.
__device__ __forceinline__ void multiply(const Held& w, const uint4* h, float4* part) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int group = warp % GROUPS, half = warp / GROUPS;
    h += half * TILES * COLUMNS * WARP + lane;
    float4* sums = part + half * WIDTH * PITCH + group * 8 + lane / 4;
#pragma unroll
    for (int n0 = 0; n0 < COLUMNS; n0 += PASS) {
        f32 sum[2][2][PASS][4] = {}; // two of each where one chain of products would be slow
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint4 x[PASS];
#pragma unroll
            for (int n = 0; n < PASS; n++) x[n] = h[(i * COLUMNS + n0 + n) * WARP];
#pragma unroll
            for (int n = 0; n < PASS; n++)
#pragma unroll
                for (int pair = 0; pair < 2; pair++) {
                    mma<T>(sum[0][pair][n], w[pair][i][0], x[n].x, x[n].y);
                    mma<T>(sum[PASS == 1][pair][n], w[pair][i][1], x[n].z, x[n].w);
                }
        }
#pragma unroll
        for (int n = 0; n < PASS; n++) {
            if (PASS == 1) {
#pragma unroll
                for (int i = 0; i < 8; i++) sum[0][i / 4][n][i % 4] += sum[1][i / 4][n][i % 4];
            }
            const f32(&x)[4] = sum[0][0][n], (&y)[4] = sum[0][1][n];
            const int column = (n0 + n) * 8 + lane % 4 * 2;
            sums[column * PITCH] = make_float4(x[0], x[2], y[0], y[2]);
            sums[(column + 1) * PITCH] = make_float4(x[1], x[3], y[1], y[3]);
        }
    }
}

// Adds up a column's four sums of the lane's unit.
__device__ __forceinline__ void add_sums(Sums& s, const float4* part, int column) {
#pragma unroll
    for (int i = 0; i < HALVES; i++) {
        const float4 q = part[(i * WIDTH + column) * PITCH + threadIdx.x % WARP];
        s.at[0] += q.x;
        s.at[1] += q.y;
        if (GATES == 4) s.at[2] += q.z;
        s.at[3] += GATES == 4 ? q.w : q.z;
    }
}
