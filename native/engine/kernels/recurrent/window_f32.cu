// A whole window of an f32 LSTM or GRU layer in one launch (see window.cuh).
//
// A warp takes every eighth group of h's entries and tiles the block's sums: a lane has the four
// sums of one unit for ROWS rows, `row_groups` lanes stand along the rows, and the lanes that are
// left split the reduction.
//
// Compiled for -DUNITS=1, 2, 4 or 8 and -DROWS=1 or 4.

#include "recurrent/window.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) window(const Window p) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int groups = p.row_groups, tile = groups * ROWS; // rows of a pass
    const int hidden = p.hidden;
    auto* w = (float4*)shared;                 // [hidden][UNITS]
    auto* hs = (f32*)(w + (s64)hidden * UNITS); // [hidden][tile], padded to 16 bytes
    auto* part = (float4*)(hs + (hidden * tile + 3) / 4 * 4); // [WARPS][tile · UNITS]
    auto* states = (State*)(part + WARPS * tile * UNITS);     // [share][UNITS]

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int unit0 = blockIdx.x * UNITS;
    const int row0 = blockIdx.y * p.share;
    const int rows = min(p.share, p.batch - row0);
    const int passes = (rows + tile - 1) / tile;
    const Exchange exchange(p);

    // GRU's third sum has no recurrent part.
    f32* const ws = (f32*)w;
#pragma unroll 8
    for (int i = tid; i < hidden * UNITS * 4; i += THREADS) {
        const int u = i % UNITS, slot = i / UNITS % 4, k = i / (UNITS * 4);
        const int gate = GATES == 3 && slot == 3 ? 2 : slot;
        const bool in = unit0 + u < hidden && !(GATES == 3 && slot == 2);
        ws[(k * UNITS + u) * 4 + slot] =
            in ? p.wh[((s64)k * GATES + gate) * hidden + unit0 + u] : 0.f;
    }
    auto pair_of = [&](int pass) {
        const int row = pass * tile + tid / UNITS, unit = unit0 + tid % UNITS;
        return Pair{tid < tile * UNITS && row < rows && unit < hidden, row0 + row, unit};
    };
    for (int pass = 0; pass < passes; pass++) {
        const Pair pair = pair_of(pass);
        if (pair.live) states[pass * tile * UNITS + tid] = pair.start(p);
    }

    const int unit = lane % UNITS, group = lane / UNITS % groups;
    const int split = WARP / UNITS / groups, part_of_k = lane / UNITS / groups;

    for (int step = 0; step < p.steps; step++) {
        const int t = p.reverse ? p.steps - 1 - step : step;
        // Read under the wait for h.
        Pair pair = pair_of(0);
        Pair::Ahead ahead = pair.ahead(p, t);
        if (step > 0) exchange.wait(step - 1);
        for (int pass = 0; pass < passes; pass++) {
            if (pass > 0) {
                pair = pair_of(pass);
                ahead = pair.ahead(p, t);
            }
            const int live = min(tile, rows - pass * tile);
            const s64 pass_at = (s64)pass * hidden * tile;
            if (step == 0) {
                for (int i = tid; i < hidden * tile; i += THREADS) {
                    const int row = i / hidden, k = i % hidden;
                    const s64 at = (s64)(row0 + pass * tile + row) * hidden + k;
                    hs[k * tile + row] = row < live ? read_state(p.h, p.state_f32, at) : 0.f;
                }
            } else if (WORDS) {
                receive(exchange.words(step - 1), hidden * live, step - 1, [&](int i, f32 value) {
                    hs[live == tile ? i : i / live * tile + i % live] = value;
                });
            } else {
                // Rows past the batch are whatever was there: nobody reads their sums.
                read_quads(exchange.values(step - 1) + pass_at, hidden * tile / 4,
                           [&](int i, float4 q) { *(float4*)(hs + i * 4) = q; });
            }
            __syncthreads();

            f32 sum[ROWS][4] = {};
#pragma unroll 4
            for (int k = warp * split + part_of_k; k < hidden; k += WARPS * split) {
                const float4 wk = w[k * UNITS + unit];
                f32 hk[ROWS];
                if (ROWS == 4) *(float4*)hk = *(const float4*)&hs[k * tile + group * 4];
                else hk[0] = hs[k * tile + group];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    sum[r][0] = fmaf(hk[r], wk.x, sum[r][0]);
                    sum[r][1] = fmaf(hk[r], wk.y, sum[r][1]);
                    if (GATES == 4) sum[r][2] = fmaf(hk[r], wk.z, sum[r][2]);
                    sum[r][3] = fmaf(hk[r], wk.w, sum[r][3]);
                }
            }
            for (int apart = UNITS * groups; apart < WARP; apart <<= 1) {
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int s = 0; s < 4; s++)
                        sum[r][s] += __shfl_xor_sync(~0u, sum[r][s], apart);
            }
            if (part_of_k == 0) {
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    part[(warp * tile + group * ROWS + r) * UNITS + unit] =
                        make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
            }
            __syncthreads();

            if (pair.live) {
#pragma unroll
                for (int i = 0; i < WARPS; i++) {
                    const float4 s = part[i * tile * UNITS + tid];
                    ahead.sums.at[0] += s.x;
                    ahead.sums.at[1] += s.y;
                    if (GATES == 4) ahead.sums.at[2] += s.z;
                    ahead.sums.at[3] += s.w;
                }
                const int pitch = WORDS ? live : tile;
                const s64 to = pass_at + (s64)pair.unit * pitch + tid / UNITS;
                pair.finish(p, exchange, step, to, ahead, states[pass * tile * UNITS + tid]);
            }
        }
        if (step + 1 < p.steps) exchange.arrive();
        for (int pass = 0; pass < passes; pass++)
            pair_of(pass).write_seq(p, t, states[pass * tile * UNITS + tid]);
    }
}
