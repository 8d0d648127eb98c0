// A layer's window in f32, by the blocks of a cluster (see cluster.cuh).
//
// A lane has a unit with all its gates, a warp an eighth of the reduction, for all rows of the
// cluster. The weights of a warp's first HELD entries of h are in registers, those of the others in
// shared memory.
//
// Compiled for -DWIDTH=entries of h a warp multiplies, a multiple of 4, -DHELD=those in registers,
// and -DROWS=rows of a cluster.
#pragma once

#include "recurrent/cluster.cuh"
#include "recurrent/gates.cuh"

constexpr int UNITS = WARP; // of a block
constexpr int ENTRIES = WIDTH * WARPS;
constexpr int SPILLED = WIDTH - HELD;
constexpr int STEP = ROWS % 4 == 0 ? 1 : ROWS % 2 == 0 ? 2 : 4; // entries, whole packs of values
constexpr int VALUES = STEP * ROWS;
constexpr int PITCH = UNITS + (ROWS == 8 ? 1 : 2);
constexpr int PAIRS = (UNITS * ROWS + THREADS - 1) / THREADS;

// What a block has in shared memory.
struct Memory {
    f32* hs;         // [2][ENTRIES][ROWS]
    float4* part;    // [WARPS][ROWS][PITCH]
    float4* spilled; // [WARPS][SPILLED][UNITS]

    __device__ __forceinline__ explicit Memory(unsigned char* shared)
        : hs((f32*)shared), part((float4*)(hs + 2 * ENTRIES * ROWS)),
          spilled(part + WARPS * ROWS * PITCH) {}
};

typedef f32 Held[HELD][GATES];

// wh of this block's units.
__device__ __forceinline__ void hold_weights(Held& w, const Layer& p, float4* spilled, int unit0) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, k0 = warp * WIDTH;
    const f32* const from = p.wh + (s64)k0 * GATES * p.hidden + unit0 + lane;
    const bool in = unit0 + lane < p.hidden;
#pragma unroll
    for (int k = 0; k < HELD; k++)
#pragma unroll
        for (int g = 0; g < GATES; g++)
            w[k][g] = in && k0 + k < p.hidden ? from[(s64)(k * GATES + g) * p.hidden] : 0.f;
#pragma unroll 4
    for (int k = HELD; k < WIDTH; k++) {
        f32 v[4] = {};
#pragma unroll
        for (int g = 0; g < GATES; g++)
            if (in && k0 + k < p.hidden) v[g] = from[(s64)(k * GATES + g) * p.hidden];
        spilled[(warp * SPILLED + k - HELD) * UNITS + lane] = make_float4(v[0], v[1], v[2], v[3]);
    }
}

// This warp's share of the product with all rows of h, to `part`.
__device__ __forceinline__ void multiply(const Held& w, const float4* spilled, const f32* h,
                                         float4* part) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    h += warp * WIDTH * ROWS;
    f32 sum[ROWS][GATES] = {};
    auto add = [&](int k, auto weight) {
        f32 x[VALUES];
#pragma unroll
        for (int v = 0; v < VALUES; v += 4) *(float4*)(x + v) = *(const float4*)(h + k * ROWS + v);
#pragma unroll
        for (int i = 0; i < STEP; i++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int g = 0; g < GATES; g++)
                    sum[r][g] = fmaf(x[i * ROWS + r], weight(i, g), sum[r][g]);
    };
    // What lies in shared memory is fetched under products of what does not.
    constexpr int FETCHES = SPILLED / STEP, PRODUCTS = HELD / STEP;
#pragma unroll
    for (int fetch = 0; fetch < FETCHES + (FETCHES == 0); fetch++) {
        f32 y[STEP][4];
#pragma unroll
        for (int i = 0; i < STEP && FETCHES; i++)
            *(float4*)y[i] = spilled[(warp * SPILLED + fetch * STEP + i) * UNITS + lane];
        constexpr int PARTS = FETCHES ? FETCHES : 1;
#pragma unroll
        for (int n = PRODUCTS * fetch / PARTS; n < PRODUCTS * (fetch + 1) / PARTS; n++)
            add(n * STEP, [&](int i, int g) { return w[n * STEP + i][g]; });
        if (FETCHES) add(HELD + fetch * STEP, [&](int i, int g) { return y[i][g]; });
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        part[(warp * ROWS + r) * PITCH + lane] = make_float4(
            sum[r][0], sum[r][1], sum[r][2], GATES == 4 ? sum[r][GATES - 1] : 0.f);
}

// What the warps have of the pair i, unit · ROWS + row.
__device__ __forceinline__ float4 part_of(const float4* part, int warp, int i) {
    return part[(warp * ROWS + i % ROWS) * PITCH + i / ROWS];
}

// The whole window; `link` is where the layer stands (`Alone`).
template <class Link>
__device__ __forceinline__ void cells(const Layer& p, const Place& at, const Link& link,
                                      unsigned char* shared) {
    __shared__ __align__(8) u64 barriers[2];
    __shared__ __align__(16) f32 outbox[PAIRS][THREADS];
    const Memory memory(shared);
    f32* const hs = memory.hs;
    const u32 hs_at = shared_address(hs);

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const Arrivals arrivals(barriers, at.ranks * UNITS * ROWS * 4);
    if (tid == 0) arrivals.start();

    Held w;
    hold_weights(w, p, memory.spilled, at.unit0);
    for (int i = tid; i < ENTRIES * ROWS; i += THREADS) {
        const int k = i / ROWS, row = i % ROWS;
        const bool in = row < at.rows && k < p.hidden;
        hs[i] = 0.f;
        // As if a step had been before the first.
        hs[ENTRIES * ROWS + i] =
            in ? read_state(p.h, p.state_f32, (s64)(at.row0 + row) * p.hidden + k) : 0.f;
    }
    Pairs<PAIRS, 1> pairs;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        const int i = tid + j * THREADS, unit = at.unit0 + i / ROWS, row = i % ROWS;
        const bool live = i < UNITS * ROWS && row < at.rows && unit < p.hidden;
        pairs.start(p, j, at.row0 + row, unit, live);
    }
    pairs.fetch_first(p, link);
    // A warp's eight packs go to the blocks of the cluster, four blocks at a time.
    u32 distance[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        distance[i] = distance_to(min(lane / 8 + i * 4, (int)at.ranks - 1), hs_at);
    cluster_sync();

    for (int step = 0; step < p.steps; step++) {
        if (step > 0) arrivals.wait(step - 1);
        multiply(w, memory.spilled, hs + (step + 1) % 2 * ENTRIES * ROWS, memory.part);
        __syncthreads();

#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = tid + j * THREADS;
            if (i >= UNITS * ROWS) break;
            Sums s = pairs.sums(j, step, link);
#pragma unroll
            for (int from = 0; from < WARPS; from++) {
                const float4 q = part_of(memory.part, from, i);
                s.at[0] += q.x;
                s.at[1] += q.y;
                if (GATES == 4) s.at[2] += q.z;
                s.at[3] += GATES == 4 ? q.w : q.z;
            }
            State& state = pairs.state[j];
            if (pairs.frame[j] >= 0 && !pairs.kept[0][j]) state = advance_by<Accurate>(state, s);
            const bool last = step + 1 == p.steps;
            if (last && !link.gives()) continue;
            f32* box = outbox[j] + warp * WARP;
            box[lane] = state.h;
            __syncwarp();
            const uint4 pack = *(const uint4*)(box + lane % 8 * 4);
            const int place = at.unit0 * ROWS + i / WARP * WARP + lane % 8 * 4;
            link.give(step, place / 4, lane < 8, pack);
            if (last) continue;
            const int to = step % 2 * ENTRIES * ROWS + place;
#pragma unroll
            for (int d = 0; d < 4; d++)
                send(lane / 8 + d * 4 < (int)at.ranks, hs_at + to * 4 + distance[d],
                     arrivals.barrier(step) + distance[d], pack);
        }
        // Under the wait for h.
        pairs.fetch(p, step + 1, link);
        if (!link.gives()) pairs.write_seq(p, step);
    }
    pairs.write_states(p);
}
