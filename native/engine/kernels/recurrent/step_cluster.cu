// One step of an LSTM or GRU layer for one row, by clusters of thread blocks (sm_90).
//
// A cluster owns 32 hidden units with all their gates, and its blocks share the reduction over x and
// h: so a block reads whole lines of the weights, and there are blocks for every multiprocessor. All
// of a thread's loads are under way before x and h are there. The blocks' sums go to the first of
// the cluster, which finishes the units.
//
// It may begin early. Then a kernel behind it may have any place on a multiprocessor that a block of
// this one leaves, while the rest of the cluster is at work. So none ends before all that was sent
// within the cluster has arrived, as shared memory of other blocks demands: a block whose sums were
// still on their way would be gone, and its place another kernel's.

#include "common/async.cuh"
#include "common/early.cuh"
#include "common/wide.cuh"
#include "norm/prologue.cuh"
#include "recurrent/gates.cuh"
#include "common/remote.cuh"
#include "recurrent/step.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int UNITS = 32;
constexpr int WIDE = 16 / sizeof(T);
constexpr int LANES = UNITS / WIDE;       // of a row of a gate
constexpr int ACROSS = WARP / LANES / 4;  // rows of the weights that a warp reads at once
constexpr int DEPTH = 16;                 // loads of a thread in flight
constexpr int SPAN = 4096;                // values of x and h
constexpr int MOST = 16;                  // blocks of a cluster

extern "C" __global__ void __launch_bounds__(THREADS) step_cluster(const Step p) {
    __shared__ __align__(16) f32 xs[SPAN];
    __shared__ __align__(16) f32 part[WARPS][4][UNITS];
    __shared__ __align__(16) f32 sums[MOST][4][UNITS]; // of the first block: every block's
    __shared__ __align__(8) u64 barrier;
    typedef Wide<T, WIDE> Row;

    u32 rank, ranks;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int unit0 = blockIdx.x / ranks * UNITS;
    const u32 bar = shared_address(&barrier);
    if (tid == 0 && rank == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                     "r"((u32)(ranks * 4 * UNITS * 4)) : "memory");
    }
    // It is waited for by those who send, at the end.
    cluster_arrive();
    let_next_begin();

    const int total = p.input + p.hidden;
    const int share = (total + ranks - 1) / ranks; // of the reduction
    const int begin = min((int)rank * share, total), end = min(begin + share, total);
    const int slot = lane / LANES % 4, unit = unit0 + lane % LANES * WIDE;
    const int first = begin + warp * ACROSS + lane / LANES / 4;
    constexpr int STRIDE = WARPS * ACROSS;
    // GRU's third sum takes the input part alone, its fourth the recurrent part of the same gate.
    const int gate = min(slot, GATES - 1);
    const int from = GATES == 3 && slot == 3 ? max(begin, p.input) : begin;
    const int to = unit >= p.hidden ? 0 : GATES == 3 && slot == 2 ? min(end, p.input) : end;

    Row rows[DEPTH];
    auto fetch = [&](int k) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int at = k + d * STRIDE;
            if (at >= from && at < to) {
                const bool is_x = at < p.input;
                const T* w = is_x ? p.wi : p.wh;
                const s64 row = is_x ? at : at - p.input;
                rows[d].load(w + (row * GATES + gate) * p.hidden + unit);
            } else {
                rows[d].zero();
            }
        }
    };
    fetch(first);
    const Affine mine = affine(p.norm, begin + tid, min(end, p.input));

    // A thread of the first block finishes one unit. What it needs for that is under way, too.
    const int my_unit = unit0 + tid;
    const bool finishes = rank == 0 && tid < UNITS && my_unit < p.hidden;
    State old = {0.f, 0.f};
    Sums s = {};
    bool kept = false;
    if (finishes && p.b) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (!p.projected || (GATES == 3 && i == 3)) s.at[i] = to_f32(p.b[i * p.hidden + my_unit]);
    }
    await_previous();
    if (finishes) {
        if (GATES == 4) old.c = read_state(p.c, p.in_f32, my_unit);
        old.h = read_state(p.h, p.in_f32, my_unit);
        kept = p.mask && p.mask[0];
        if (p.projected) {
#pragma unroll
            for (int g = 0; g < GATES; g++) s.at[g] = p.projected[g * p.hidden + my_unit];
        }
    }

    // A norm is of all of x, whatever the block multiplies of it.
    const bool normed = NORM && begin < p.input;
    const int last = normed ? max(end, p.input) : end;
    for (int i = (normed ? 0 : begin) + tid; i < last; i += THREADS)
        xs[i] = i < p.input ? to_f32(p.x[i]) : read_state(p.h, p.in_f32, i - p.input);
    __syncthreads();
    if (normed)
        normalise_part<1, WARPS>(p.norm, mine, xs, p.input, begin, min(end, p.input),
                                 &part[0][0][0]);

    f32 sum[WIDE] = {};
    for (int k = first;; k += DEPTH * STRIDE) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int at = k + d * STRIDE;
            // What a GRU's third and fourth sum leave out may be infinite.
            const f32 x = at >= from && at < to ? xs[at] : 0.f;
#pragma unroll
            for (int v = 0; v < WIDE; v++) sum[v] = fmaf(x, rows[d].at(v), sum[v]);
        }
        if (k - first + DEPTH * STRIDE >= end - begin) break;
        fetch(k + DEPTH * STRIDE);
    }
    if (ACROSS == 2) {
#pragma unroll
        for (int v = 0; v < WIDE; v++) sum[v] += __shfl_xor_sync(~0u, sum[v], WARP / 2);
    }
    if (lane < 4 * LANES) {
#pragma unroll
        for (int v = 0; v < WIDE; v++) part[warp][slot][lane % LANES * WIDE + v] = sum[v];
    }
    __syncthreads();
    cluster_wait();
    if (tid < UNITS) { // four sums of a slot each
        float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float4 q = *(const float4*)(&part[w][0][0] + tid * 4);
            v.x += q.x;
            v.y += q.y;
            v.z += q.z;
            v.w += q.w;
        }
        const u32 at = shared_address(&sums[rank][0][0] + tid * 4);
        const u32 distance = distance_to(0, at);
        send(true, at + distance, bar + distance,
             make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                        __float_as_uint(v.w)));
        if (rank == 0) await_phase(bar, 0);
    }
    cluster_arrive(); // the first block's, once it has all sums
    if (finishes) {
        for (u32 r = 0; r < ranks; r++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s.at[i] += sums[r][i][tid];
        }
        const State next = kept ? old : advance_by<Accurate>(old, s);
        p.seq[my_unit] = from_f32<T>(next.h);
        if (GATES == 4) write_state(p.c_out, p.out_f32, my_unit, next.c);
        write_state(p.h_out, p.out_f32, my_unit, next.h);
    }
    cluster_wait();
}
