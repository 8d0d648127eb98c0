// Windows of f32 LSTM or GRU layers one upon the other (see stack.cuh). Compiled as cells_f32.cuh says.

#define NORM 1
#include "recurrent/cells_f32.cuh"
#include "recurrent/stack.cuh"

constexpr int OWN = UNITS * ROWS; // pairs of a block

// The input of a layer: as cells.
__device__ __forceinline__ void inputs(const Stage& stage, const Place& at, int cluster,
                                       unsigned char* shared) {
    const Layer& p = stage.layer;
    const Memory memory(shared);
    f32* const xs = memory.hs; // of one frame, in the order in which h lies there
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    Frames<(ENTRIES * ROWS / 4 + THREADS - 1) / THREADS> frames(stage, cluster, stage.taken);
    auto* after = (f32*)(memory.spilled + WARPS * SPILLED * UNITS);
    const Normed normed(stage, after, at.ranks * UNITS, ROWS);
    Held w;
    hold_weights(w, p, memory.spilled, at.unit0);
    for (int i = tid; i < ENTRIES * ROWS; i += THREADS) xs[i] = 0.f;
    Given<PAIRS> given(stage, at, cluster, OWN);
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        const int i = tid + j * THREADS, unit = at.unit0 + i / ROWS;
        given.start(p, j, unit, i < OWN && i % ROWS < at.rows && unit < p.hidden);
    }
    __syncthreads();

    for (int step = 0; step < p.steps; step++) {
        frames.take(step, [&](int, int n, uint4 pack) { ((uint4*)xs)[n] = pack; });
        __syncthreads();
        frames.ask(step + 1);
        if (stage.norm.gamma) {
            if (warp < at.rows) {
                auto unit = [&](int i) { return lane + i * WARP; };
                normed.find<ENTRIES / WARP>(warp, unit,
                                            [&](int i) { return xs[unit(i) * ROWS + warp]; });
            }
            __syncthreads();
            frames.own([&](int own) {
                const int n = tid + own * THREADS;
                f32 v[4];
                *(float4*)v = ((float4*)xs)[n];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = normed.apply(normed.found[(4 * n + i) % ROWS], (4 * n + i) / ROWS, v[i]);
                ((float4*)xs)[n] = *(float4*)v;
            });
            __syncthreads();
        }
        multiply(w, memory.spilled, xs, memory.part);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            if (!given.live[j]) continue;
            f32 sum[4] = {};
#pragma unroll
            for (int from = 0; from < WARPS; from++) {
                const float4 q = part_of(memory.part, from, tid + j * THREADS);
                sum[0] += q.x;
                sum[1] += q.y;
                sum[2] += q.z;
                sum[3] += q.w;
            }
            given.give(step, j, sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) stack(const __grid_constant__ Stack p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 ticket = draw_ticket(p.tickets);
    const int cluster = ticket / p.stages, which = ticket % p.stages;
    const Stage& stage = p.stage[which];
    const Place at(stage.layer, cluster * stage.layer.share);
    if (which % 2) inputs(stage, at, cluster, shared);
    else cells(stage.layer, at, Linked(stage, at, cluster, OWN), shared);
    cluster_sync(); // what was sent within the cluster has arrived
}
