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
    constexpr int TAKEN = (CHUNKS * WIDTH * 4 + THREADS - 1) / THREADS;
    Frames<TAKEN> frames(stage, cluster, at.rows * at.ranks * 4);
    const int each = at.ranks * 4; // packs of a row, 8 units each
    // Where those of this thread lie, found once: the division takes longer than a pack.
    struct {
        int row, unit, place;
    } own[TAKEN];
#pragma unroll
    for (int i = 0; i < TAKEN; i++) {
        const int n = tid + i * THREADS, row = n / each, unit = (n - row * each) * 8;
        own[i] = {row, unit, pack_of(row, unit)};
    }
    Held w;
    hold_weights(w, p, shared, at.unit0);
    __syncthreads();
    auto* after = (f32*)(part + HALVES * WIDTH * PITCH);
    const Normed normed(stage, after, at.ranks * UNITS, WIDTH);
    for (int i = tid; i < CHUNKS * COLUMNS * WARP; i += THREADS) xs[i] = make_uint4(0, 0, 0, 0);
    Given<COLUMNS> given(stage, at, cluster, UNITS * p.share);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const int unit = at.unit0 + lane;
        given.start(p, j, unit, j * WARPS + warp < at.rows && unit < p.hidden);
    }
    __syncthreads();

    for (int step = 0; step < p.steps; step++) {
        frames.take(step, [&](int i, int, uint4 pack) { xs[own[i].place] = pack; });
        __syncthreads();
        frames.ask(step + 1);
        if (stage.norm.gamma) {
            for (int row = warp; row < at.rows; row += WARPS) {
                constexpr int PACKS = CHUNKS * 4 / WARP + (CHUNKS * 4 % WARP > 0);
                __align__(16) T v[PACKS][8];
#pragma unroll
                for (int i = 0; i < PACKS; i++) {
                    const int n = lane + i * WARP;
                    const uint4 none = make_uint4(0, 0, 0, 0);
                    *(uint4*)v[i] = n < each ? xs[pack_of(row, n * 8)] : none;
                }
                normed.find<PACKS * 8>(
                    row, [&](int i) { return (lane + i / 8 * WARP) * 8 + i % 8; },
                    [&](int i) { return to_f32(v[i / 8][i % 8]); });
            }
            __syncthreads();
            frames.own([&](int i) {
                __align__(16) T v[8];
                *(uint4*)v = xs[own[i].place];
                const float2 by = normed.found[own[i].row];
#pragma unroll
                for (int k = 0; k < 8; k += 4) {
                    f32 x[4] = {to_f32(v[k]), to_f32(v[k + 1]), to_f32(v[k + 2]), to_f32(v[k + 3])};
                    normed.apply(by, own[i].unit + k, x);
#pragma unroll
                    for (int j = 0; j < 4; j++) v[k + j] = from_f32<T>(x[j]);
                }
                xs[own[i].place] = *(uint4*)v;
            });
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
