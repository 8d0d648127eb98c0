// Windows of bf16 or f16 LSTM or GRU layers one upon the other, on tensor cores (see stack.cuh). What a
// layer gives to the next is rounded to the storage type, as its seq is, and so is a norm of it.
//
// Compiled as cells_mma.cuh says.

#define NORM 1
#include "recurrent/cells_mma.cuh"
#include "recurrent/stack.cuh"

// The input of a layer: as cells.
__device__ __forceinline__ void inputs(const Stage& stage, const Place& at, int cluster,
                                       unsigned char* shared) {
    const Layer& p = stage.layer;
    auto* xs = (uint4*)shared;                            // [CHUNKS][COLUMNS][WARP], of one frame
    auto* part = (float4*)(xs + 2 * CHUNKS * COLUMNS * WARP); // [HALVES][WIDTH][PITCH]
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    Frames<(CHUNKS * WIDTH * 4 + THREADS - 1) / THREADS> frames(stage, cluster, at.rows * at.ranks * 4);
    Held w;
    hold_weights(w, p, shared, at.unit0);
    __syncthreads();
    const Normed normed(stage, (f32*)(part + HALVES * WIDTH * PITCH));
    for (int i = tid; i < CHUNKS * COLUMNS * WARP; i += THREADS) xs[i] = make_uint4(0, 0, 0, 0);
    Given<COLUMNS> given(stage, at, cluster, UNITS * p.share);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const int unit = at.unit0 + lane;
        given.start(p, j, unit, j * WARPS + warp < at.rows && unit < p.hidden);
    }
    __syncthreads();

    for (int step = 0; step < p.steps; step++) {
        frames.take(step, [&](int n, uint4 pack) {
            const int each = at.ranks * 4; // packs of a row, 8 units each
            xs[pack_of(n / each, n % each * 8)] = pack;
        });
        __syncthreads();
        frames.ask(step + 1);
        if (stage.norm.gamma) {
            for (int row = warp; row < at.rows; row += WARPS) {
                auto place = [&](int k) { return (T*)xs + pack_of(row, k) * 8 + k % 8; };
                normed.apply([&](int k) { return to_f32(*place(k)); },
                             [&](int k, f32 value) { *place(k) = from_f32<T>(value); });
            }
            __syncthreads();
        }
        multiply(w, xs, part);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            if (!given.live[j]) continue;
            f32 sum[4] = {};
#pragma unroll
            for (int i = 0; i < HALVES; i++) {
                const float4 q = part[(i * WIDTH + j * WARPS + warp) * PITCH + lane];
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
    else cells(stage.layer, at, Linked(stage, at, cluster, UNITS * stage.layer.share), shared);
    cluster_sync(); // what was sent within the cluster has arrived
}
