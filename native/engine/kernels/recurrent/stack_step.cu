// One frame of LSTM or GRU layers one upon the other in one launch, for one row (sm_90):
//
//     h[l], c[l] ← cell(x[l] · wi[l] + h[l] · wh[l] + b[l])       x[l + 1] = h[l], or the norm of it
//
// One cluster has it all. A block owns an equal share of every layer's units with all their gates, and
// asks for its columns of all weights before the frame is there: the first layer's into registers, what is
// left of them and the layers above into shared memory, where a thread finds what it asked for itself.
// So when the frame comes nothing is waited for but its x, and between layers a meeting of the cluster,
// in which every block gets all of h through distributed shared memory. Sums are taken in one order, so
// that each run gives the same bits.
//
// Compiled for -DCLUSTER=blocks of a cluster.

#define NORM 1
#include "common/async.cuh"
#include "common/cluster.cuh"
#include "common/early.cuh"
#include "common/wide.cuh"
#include "norm/prologue.cuh"
#include "recurrent/gates.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int VEC = 16 / sizeof(T);
constexpr int LAYERS = 4;
constexpr int SLOTS = 4;             // sums of a unit
constexpr int SHARE = WARP / SLOTS;  // neighbouring lanes that add up one of them
constexpr int DEPTH = VEC == 4 ? 9 : 5; // packs of each matrix of the first layer that a thread holds

struct Level {
    const T* wi; // {input or hidden, GATES · hidden}
    const T* wh; // {hidden, GATES · hidden}
    const T* b;  // {4 · hidden} or null
    const void* c;
    const void* h;
    const u8* mask;
    void* c_out;
    void* h_out;
    Prologue<T> norm; // of x; gamma is null where there is none
};

struct Frame {
    Level level[LAYERS];
    const T* x;
    T* y;
    int layers, input, hidden, state_f32;
};

// Where a thread's packs of a matrix lie: one of every `at_once`-th row.
struct Packs {
    int group, at_once, column, stride;
    bool busy;

    __device__ __forceinline__ int count(int rows) const { return (rows + at_once - 1) / at_once; }
    __device__ __forceinline__ int row(int i) const { return group + i * at_once; }
    __device__ __forceinline__ bool has(int i, int rows) const { return busy && row(i) < rows; }
    __device__ __forceinline__ const T* place(const T* w, int i) const {
        return w + row(i) * stride + column;
    }
};

__device__ __forceinline__ void add(f32 (&sum)[VEC], const Wide<T, VEC>& w, f32 x) {
#pragma unroll
    for (int v = 0; v < VEC; v++) sum[v] = fmaf(x, w.at(v), sum[v]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) frame(const __grid_constant__ Frame p) {
    extern __shared__ __align__(16) f32 shared[];
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int rank = blockIdx.x % CLUSTER;
    const int hidden = p.hidden, units = hidden / CLUSTER, unit0 = rank * units;
    cluster_arrive(); // no block writes to another that has not begun
    let_next_begin();

    const int across = units / VEC, packs = GATES * across; // of a row
    const int gate = tid % packs / across, at = tid % across * VEC;
    const Packs mine = {tid / packs, THREADS / packs, gate * hidden + unit0 + at, GATES * hidden,
                        tid / packs < THREADS / packs};
    const int next = SLOTS * units + 4; // from a row of sums to the next: SHARE rows, all banks

    const int input = (p.input + 3) / 4 * 4, all = p.layers * hidden;
    f32* const xs = shared;                        // [input], then [layers - 1][hidden]
    f32* const hs = xs + input + all - hidden;     // [layers][hidden]
    f32* const cs = hs + all;                      // [layers][units]
    f32* const bias = cs + p.layers * units;       // [layers][units][SLOTS]
    f32* const gamma = bias + SLOTS * p.layers * units; // [layers][hidden]
    f32* const beta = gamma + all;
    f32* const part = beta + all;                  // [at_once][next], and scratch of the norms
    auto* const held = (uint4*)(part + max(mine.at_once * next, 3 * WARPS)); // [packs][THREADS]

    // What the frame has no part in.
    Wide<T, VEC> first_i[DEPTH], first_h[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        first_i[i].zero();
        first_h[i].zero();
        if (mine.has(i, p.input)) first_i[i].load(mine.place(p.level[0].wi, i));
        if (mine.has(i, hidden)) first_h[i].load(mine.place(p.level[0].wh, i));
    }
    {
        uint4* to = held + tid;
#pragma unroll 1
        for (int l = 0; l < p.layers; l++)
#pragma unroll 1
            for (int m = 0; m < 2; m++) {
                const T* const w = m ? p.level[l].wh : p.level[l].wi;
                const int rows = m || l ? hidden : p.input, count = mine.count(rows);
                for (int i = l ? 0 : DEPTH; i < count; i++, to += THREADS) {
                    const bool has = mine.has(i, rows);
                    copy_async(to, has ? mine.place(w, i) : w, has);
                }
            }
        copy_async_commit();
    }
#pragma unroll 1
    for (int i = tid; i < SLOTS * p.layers * units; i += THREADS) {
        const int l = i / (SLOTS * units), unit = i / SLOTS % units, slot = i % SLOTS;
        const T* const b = p.level[l].b;
        bias[i] = b ? to_f32(b[slot * hidden + unit0 + unit]) : 0.f;
    }
#pragma unroll 1
    for (int i = tid; i < all; i += THREADS) {
        const Prologue<T>& norm = p.level[i / hidden].norm;
        Affine a = {0.f, 0.f};
        if (norm.gamma) a = affine(norm, i % hidden, hidden);
        gamma[i] = a.gamma;
        beta[i] = a.beta;
    }

    await_previous();
#pragma unroll 1
    for (int i = tid; i < p.input; i += THREADS) xs[i] = to_f32(p.x[i]);
#pragma unroll 1
    for (int i = tid; i < all; i += THREADS)
        hs[i] = read_state(p.level[i / hidden].h, p.state_f32, i % hidden);
    if (GATES == 4)
        for (int i = tid; i < p.layers * units; i += THREADS)
            cs[i] = read_state(p.level[i / units].c, p.state_f32, unit0 + i % units);
    copy_async_wait<0>();
    __syncthreads();

    const uint4* from = held + tid;
    const f32* x = xs; // of the layer
#pragma unroll 1
    for (int l = 0;; l++) {
        const Level& level = p.level[l];
        const f32* const h = hs + l * hidden;
        const int rows = l ? hidden : p.input;
        f32 sum[VEC] = {};
        // The rest of a matrix whose first packs are in registers, or all of it.
        auto rest = [&](const f32* x, int rows) {
            const int count = mine.count(rows);
#pragma unroll 4
            for (int i = l ? 0 : DEPTH; i < count; i++, from += THREADS) {
                Wide<T, VEC> w;
                w.load((const T*)from);
                // What a thread has none of may be infinite in x.
                add(sum, w, mine.has(i, rows) ? x[mine.row(i)] : 0.f);
            }
        };
        auto give = [&](int slot) {
            if (!mine.busy) return;
            f32* const to = part + mine.group * next + at * SLOTS + slot;
#pragma unroll
            for (int v = 0; v < VEC; v++) to[v * SLOTS] = sum[v];
        };
        if (l == 0) {
#pragma unroll
            for (int i = 0; i < DEPTH; i++)
                add(sum, first_i[i], mine.has(i, rows) ? x[mine.row(i)] : 0.f);
        }
        rest(x, rows);
        // GRU's third sum takes the input part alone, its fourth the recurrent part of the same gate.
        const bool apart = GATES == 3 && gate == 2;
        if (apart) {
            give(2);
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = 0.f;
        }
        if (l == 0) {
#pragma unroll
            for (int i = 0; i < DEPTH; i++)
                add(sum, first_h[i], mine.has(i, hidden) ? h[mine.row(i)] : 0.f);
        }
        rest(h, hidden);
        give(apart ? 3 : gate);
        __syncthreads();
        if (l == 0) cluster_wait(); // all have begun

        const bool last = l + 1 == p.layers, kept = level.mask && level.mask[0];
        f32* const above = xs + input + l * hidden; // x of the next layer
        // A warp has a unit, SHARE lanes each of its sums.
#pragma unroll 1
        for (int u = warp; u < units; u += WARPS) {
            const int slot = lane / SHARE, unit = unit0 + u;
            f32 s = 0.f;
#pragma unroll 4
            for (int r = lane % SHARE; r < mine.at_once; r += SHARE) s += part[r * next + u * SLOTS + slot];
#pragma unroll
            for (int m = 1; m < SHARE; m *= 2) s += __shfl_xor_sync(~0u, s, m);
            s += bias[(l * units + u) * SLOTS + slot];
            Sums sums;
#pragma unroll
            for (int i = 0; i < SLOTS; i++) sums.at[i] = __shfl_sync(~0u, s, i * SHARE);
            const State old = {GATES == 4 ? cs[l * units + u] : 0.f, h[unit]};
            const State now = kept ? old : advance_by<Accurate>(old, sums);
            const T seq = from_f32<T>(now.h);
            if (lane == 0) {
                if (GATES == 4) write_state(level.c_out, p.state_f32, unit, now.c);
                write_state(level.h_out, p.state_f32, unit, now.h);
                if (last) p.y[unit] = seq;
            }
            if (!last && lane < CLUSTER) hand(above + unit, lane, to_f32(seq));
        }
        if (last) break;
        cluster_arrive();
        cluster_wait();
        if (p.level[l + 1].norm.gamma) {
            Affine a = {0.f, 0.f};
            if (tid < hidden) a = {gamma[(l + 1) * hidden + tid], beta[(l + 1) * hidden + tid]};
            normalise<1, WARPS>(p.level[l + 1].norm, a, above, hidden, part);
        }
        x = above;
    }
}
