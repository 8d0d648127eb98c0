// A whole window of a bf16 or f16 LSTM or GRU layer by a grid whose blocks are all there at once
// (sm_80 and up), on tensor cores: where wh does not fit a cluster, or there are none.
//
// The grid is (units, parts): a block owns UNITS hidden units with all their gates for a part of the
// batch's rows, and keeps their recurrent weights in registers, an eighth of the reduction a warp; of
// 32 units half in shared memory. The operands are those of the cluster kernel (see operands.cuh).
//
// How h goes round is said in ring.cuh. Every block reads all of h of its rows in every step, and that
// is what a step waits for most: twice the units for half of the rows is half as much to read.
//
// Compiled for -DUNITS=16 or 32, -DTILES=32s of h a warp multiplies, -DCOLUMNS=8s of columns.

#include "recurrent/layer.cuh"
#include "recurrent/operands.cuh"
#include "recurrent/ring.cuh"

constexpr int GROUPS = UNITS / 8;
constexpr int CHUNKS = TILES * WARPS; // 32s of h
constexpr int WIDTH = 8 * COLUMNS;
// Sixteens of rows of weights that a product takes: two gates of 8 units, or a GRU's n of two eights.
constexpr int STRIPS = GROUPS * GATES / 2;
constexpr int HELD = 4 < STRIPS ? 4 : STRIPS; // in registers
// Clocks between the barrier of a step and the first look for h. It comes too early by most of a trip
// through L2 where h is not there yet, and too late by the rest of it where it is.
constexpr u32 SOON = 30;
constexpr int PITCH = UNITS + 1;
constexpr int STAGED = GATES * UNITS * 2 + (GATES * UNITS * 2 % 128 == 112 ? 32 : 16);
constexpr int REST = (STRIPS - HELD) * 2; // operands of 16 bytes a lane, for each 32 of h

// What half a strip is: the gate, and the eight of units.
__device__ __forceinline__ int gate_of(int strip, int half) {
    return GATES == 4 ? strip % 2 * 2 + half : strip < GROUPS ? half : 2;
}
__device__ __forceinline__ int group_of(int strip, int half) {
    return GATES == 4 ? strip / 2 : strip < GROUPS ? strip : (strip - GROUPS) * 2 + half;
}
constexpr int PAIRS = (UNITS * WIDTH + THREADS - 1) / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS, 1) window(const Layer p) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ __align__(16) u16 outbox[PAIRS][2][THREADS];
    constexpr int KEPT = WARPS * TILES * REST * WARP; // of the weights
    auto* const part = (float4*)shared + KEPT;        // [WARPS][WIDTH][PITCH]

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int unit0 = blockIdx.x * UNITS, row0 = blockIdx.y * p.share;
    const int rows = min(p.share, p.batch - row0);
    const int units = gridDim.x * UNITS; // of all blocks

    const Ring<64> ring(p, blockIdx.y, gridDim.y, CHUNKS * COLUMNS * WARP);
    auto pack_of = [&](int column, int k) {
        return (k / 32 * COLUMNS + column / 8) * WARP + column % 8 * 4 + k % 32 / 8;
    };
    // This warp's rows of wh, 32 at a time by way of shared memory.
    u32 w[HELD][TILES][2][4];
    uint4* const rest = (uint4*)shared + warp * TILES * REST * WARP + lane;
    auto rest_of = [](int i, int strip, int k) { return (i * REST + (strip - HELD) * 2 + k) * WARP; };
    unsigned char* const staged = (unsigned char*)part + warp * 32 * STAGED;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        const int k0 = (warp * TILES + i) * 32;
        if (p.hidden % 8 == 0) {
            constexpr int PACKS = GATES * GROUPS;
            for (int n = lane; n < 32 * PACKS; n += WARP) {
                const int pack = n % PACKS, k = k0 + n / PACKS;
                const int gate = pack / GROUPS, unit = unit0 + pack % GROUPS * 8;
                const bool in = k < p.hidden && unit < p.hidden;
                const T* from = in ? p.wh + ((s64)k * GATES + gate) * p.hidden + unit : p.wh;
                copy_async(staged + slot_of(k - k0) * STAGED + pack * 16, from, in);
            }
            copy_async_commit();
            copy_async_wait<0>();
        } else {
            for (int n = lane; n < 32 * GATES * UNITS; n += WARP) {
                const int u = n % UNITS, gate = n / UNITS % GATES, k = k0 + n / (UNITS * GATES);
                const bool in = k < p.hidden && unit0 + u < p.hidden;
                *(T*)(staged + slot_of(k - k0) * STAGED + (gate * UNITS + u) * 2) =
                    in ? p.wh[((s64)k * GATES + gate) * p.hidden + unit0 + u] : from_f32<T>(0.f);
            }
        }
        __syncwarp();
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int matrix = lane / 8, half = matrix % 2;
                const int column = gate_of(strip, half) * UNITS + group_of(strip, half) * 8;
                const int slot = (2 * k + matrix / 2) * 8 + lane % 8;
                u32 a[4];
                load_matrices_transposed(a, staged + slot * STAGED + column * 2);
                if (strip < HELD) {
#pragma unroll
                    for (int m = 0; m < 4; m++) w[strip % HELD][i][k][m] = a[m];
                } else {
                    rest[rest_of(i, strip, k)] = make_uint4(a[0], a[1], a[2], a[3]);
                }
            }
        __syncwarp();
    }

    constexpr int AHEAD = 2;
    Pairs<PAIRS, AHEAD> pairs;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        const int i = tid + j * THREADS, row = i / UNITS, unit = unit0 + i % UNITS;
        pairs.start(p, j, row0 + row, unit, row < rows && unit < p.hidden);
    }
    pairs.fetch_first(p);
    __syncthreads();

    bool wanted[TILES][COLUMNS];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            const int column = n * 8 + lane / 4;
            const bool high = column < rows, low = p.low && column >= p.low && column < p.low + rows;
            wanted[i][n] = (high || low) && (warp * TILES + i) * 32 + lane % 4 * 8 < units;
        }
    // Where the first lane of eight gives their h, in the first buffer.
    uint4* given[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        const int i = tid + j * THREADS, row = i / UNITS, unit = unit0 + i % UNITS;
        given[j] = lane % 8 || row >= rows ? nullptr : ring.first + pack_of(row, unit);
    }
    const int to_low = pack_of(p.low, 0);
    auto give = [&](int step) {
        const s64 buffer = ring.offset(step);
        if (p.low) {
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
                split(pairs.state[j].h, outbox[j][0][tid], outbox[j][1][tid]);
        } else {
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
                outbox[j][0][tid] = from_f32<T>(pairs.state[j].h).bits;
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            if (!given[j]) continue;
            write_pack(given[j] + buffer, inverted(*(const uint4*)&outbox[j][0][tid]));
            if (p.low)
                write_pack(given[j] + buffer + to_low, inverted(*(const uint4*)&outbox[j][1][tid]));
        }
    };
    give(-1); // the state before the first step

    uint4 x[TILES][COLUMNS]; // h of a step as this warp multiplies it
    const uint4* const mine = ring.first + warp * TILES * COLUMNS * WARP + lane;
    // Whatever is missing is asked for again together: one after the other would cost a trip through L2
    // each.
    auto look = [&](int step) {
        const uint4* const from = mine + ring.offset(step);
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                if (wanted[i][n] && !is_there(x[i][n]))
                    x[i][n] = read_pack(from + (i * COLUMNS + n) * WARP);
    };
    auto look_first = [&](int step) {
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) x[i][n] = make_uint4(0, 0, 0, 0);
        look(step);
    };
    auto all_there = [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) all &= !wanted[i][n] || is_there(x[i][n]);
        return all;
    };
    look_first(-1);

    for (int step = 0; step < p.steps; step++) {
        while (!all_there()) look(step - 1);
        __syncwarp();

        f32 sum[STRIPS][COLUMNS][4] = {};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                x[i][n] = wanted[i][n] ? inverted(x[i][n]) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int strip = 0; strip < STRIPS; strip++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    u32 a[4];
                    if (strip < HELD) {
#pragma unroll
                        for (int m = 0; m < 4; m++) a[m] = w[strip % HELD][i][k][m];
                    } else {
                        const uint4 v = rest[rest_of(i, strip, k)];
                        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
                    }
#pragma unroll
                    for (int n = 0; n < COLUMNS; n++)
                        mma<T>(sum[strip][n], a, k ? x[i][n].z : x[i][n].x,
                               k ? x[i][n].w : x[i][n].y);
                }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                float4* const to =
                    part + (warp * WIDTH + n * 8 + lane % 4 * 2) * PITCH + group * 8 + lane / 4;
#if GATES == 4
                const f32(&a)[4] = sum[group * 2][n], (&b)[4] = sum[group * 2 + 1][n];
                to[0] = make_float4(a[0], a[2], b[0], b[2]);
                to[PITCH] = make_float4(a[1], a[3], b[1], b[3]);
#else
                const f32(&a)[4] = sum[group][n], (&b)[4] = sum[GROUPS + group / 2][n];
                const int half = group % 2 * 2;
                to[0] = make_float4(a[0], a[2], b[half], 0.f);
                to[PITCH] = make_float4(a[1], a[3], b[half + 1], 0.f);
#endif
            }
        __syncthreads();

#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = tid + j * THREADS, row = i / UNITS, u = i % UNITS;
            if (row < rows) {
                Sums s = pairs.sums(j);
                auto add = [&](int column) {
#pragma unroll
                    for (int from = 0; from < WARPS; from++) {
                        const float4 q = part[(from * WIDTH + column) * PITCH + u];
                        s.at[0] += q.x;
                        s.at[1] += q.y;
                        if (GATES == 4) s.at[2] += q.z;
                        s.at[3] += GATES == 4 ? q.w : q.z;
                    }
                };
                add(row);
                if (p.low) add(p.low + row);
                State& state = pairs.state[j];
                if (pairs.frame[j] >= 0 && !pairs.kept[0][j]) state = advance_16(state, s, p.low);
            }
        }
        const bool last = step + 1 == p.steps;
        if (!last) give(step);
        // What nobody waits for, while h is on its way.
        pairs.fetch(p, step + AHEAD);
        pairs.write_seq(p, step);
        __syncthreads(); // the sums are read
        if (warp == WARPS - 1)
            ring.empty(step, (p.low ? 2 : 1) * rows * GROUPS, [&](int i) {
                const int row = i / GROUPS % rows, column = i / GROUPS < rows ? row : p.low + row;
                return pack_of(column, unit0 + i % GROUPS * 8);
            });
        pause(SOON);
        if (!last) look_first(step);
    }
    pairs.write_states(p);
}
