// A whole window of a bf16 or f16 LSTM or GRU layer by a grid whose blocks are all there at once
// (sm_80 and up), on tensor cores: where wh does not fit a cluster, or there are none.
//
// The grid is (units, parts): a block owns UNITS hidden units with all their gates for a part of the
// batch's rows, and keeps their recurrent weights in registers, an eighth of the reduction a warp.
// The operands are those of the cluster kernel (see operands.cuh).
//
// How h goes round is said in ring.cuh.
//
// Compiled for -DUNITS=8 or 16, -DTILES=32s of h a warp multiplies, -DCOLUMNS=8s of columns.

#include "recurrent/layer.cuh"
#include "recurrent/operands.cuh"
#include "recurrent/ring.cuh"

constexpr int GROUPS = UNITS / 8;
constexpr int CHUNKS = TILES * WARPS; // 32s of h
constexpr int WIDTH = 8 * COLUMNS;
constexpr int PITCH = UNITS + 1;
constexpr int STAGED = GATES * UNITS * 2 + (GATES * UNITS * 2 % 128 == 112 ? 32 : 16);
constexpr int PAIRS = (UNITS * WIDTH + THREADS - 1) / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS, 1) window(const Layer p) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ __align__(16) u16 outbox[PAIRS][2][THREADS];
    auto* const part = (float4*)shared; // [WARPS][WIDTH][PITCH]

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int unit0 = blockIdx.x * UNITS, row0 = blockIdx.y * p.share;
    const int rows = min(p.share, p.batch - row0);
    const int units = gridDim.x * UNITS; // of all blocks

    const Ring<64> ring(p, blockIdx.y, gridDim.y, CHUNKS * COLUMNS * WARP);
    auto pack_of = [&](int column, int k) {
        return (k / 32 * COLUMNS + column / 8) * WARP + column % 8 * 4 + k % 32 / 8;
    };
    // This warp's rows of wh, 32 at a time by way of shared memory.
    u32 w[GROUPS][2][TILES][2][4];
    unsigned char* const staged = shared + warp * 32 * STAGED;
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
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
            for (int pair = 0; pair < 2; pair++) // of gates
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int matrix = lane / 8, gate = min(pair * 2 + matrix % 2, GATES - 1);
                    const int slot = (2 * k + matrix / 2) * 8 + lane % 8;
                    u32(&to)[4] = w[group][pair][i][k];
                    load_matrices_transposed(
                        to, staged + slot * STAGED + (gate * UNITS + group * 8) * 2);
                    if (GATES == 3 && pair == 1) to[1] = to[3] = 0;
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
    auto give = [&](int step) {
#pragma unroll
        for (int j = 0; j < PAIRS; j++)
            split(pairs.state[j].h, outbox[j][0][tid], outbox[j][1][tid]);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = tid + j * THREADS, row = i / UNITS, unit = unit0 + i % UNITS;
            if (lane % 8 || row >= rows) continue;
            auto write = [&](int column, const u16* box) {
                const int at = pack_of(column, unit);
                write_pack(ring.at(step) + at, inverted(*(const uint4*)box));
            };
            write(row, &outbox[j][0][tid]);
            if (p.low) write(p.low + row, &outbox[j][1][tid]);
        }
    };
    give(-1); // the state before the first step

    for (int step = 0; step < p.steps; step++) {
        uint4 x[TILES][COLUMNS];
        const uint4* from = ring.at(step - 1) + warp * TILES * COLUMNS * WARP + lane;
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) x[i][n] = make_uint4(0, 0, 0, 0);
        // Whatever is missing is asked for again together: one after the other would cost a trip
        // through L2 each.
        bool all;
        do {
            all = true;
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
                    if (wanted[i][n] && !is_there(x[i][n]))
                        x[i][n] = read_pack(from + (i * COLUMNS + n) * WARP);
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) all &= !wanted[i][n] || is_there(x[i][n]);
        } while (!all);
        __syncwarp();

        f32 sum[GROUPS][2][COLUMNS][4] = {};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                const uint4 h = wanted[i][n] ? inverted(x[i][n]) : make_uint4(0, 0, 0, 0);
#pragma unroll
                for (int group = 0; group < GROUPS; group++)
#pragma unroll
                    for (int pair = 0; pair < 2; pair++) {
                        mma<T>(sum[group][pair][n], w[group][pair][i][0], h.x, h.y);
                        mma<T>(sum[group][pair][n], w[group][pair][i][1], h.z, h.w);
                    }
            }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                const f32(&a)[4] = sum[group][0][n], (&b)[4] = sum[group][1][n];
                float4* to = part + (warp * WIDTH + n * 8 + lane % 4 * 2) * PITCH + group * 8 +
                             lane / 4;
                to[0] = make_float4(a[0], a[2], b[0], b[2]);
                to[PITCH] = make_float4(a[1], a[3], b[1], b[3]);
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
        if (step + 1 < p.steps) give(step);
        // Under the wait for h.
        pairs.fetch(p, step + AHEAD);
        pairs.write_seq(p, step);
        __syncthreads(); // the sums are read
        if (warp == WARPS - 1)
            ring.empty(step, (p.low ? 2 : 1) * rows * GROUPS, [&](int i) {
                const int row = i / GROUPS % rows, column = i / GROUPS < rows ? row : p.low + row;
                return pack_of(column, unit0 + i % GROUPS * 8);
            });
    }
    pairs.write_states(p);
}
