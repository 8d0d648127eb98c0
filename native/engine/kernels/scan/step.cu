// selective_scan of one frame, as scan.cu has it, with the norm over D in the same launch.
//
// `lanes` neighbouring lanes share a channel, four states each at a time, so that a, and the state
// that comes and goes, move by whole lines. For the norm a row is a cluster's: each of its CLUSTER
// blocks has `width` channels, finds their mean and what they are off it, and hands both to all the
// others through distributed shared memory, where they are put together in the order of the blocks.

#include "common/cluster.cuh"
#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "scan/math.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

struct Step {
    const T* x;
    const T* dt;
    const void* a;
    const T* b;
    const T* c;
    const void* d; // or null, as all below
    const T* z;
    const void* bias;
    const f32* state;
    const T* residual;
    const T* gamma;
    const T* beta;
    T* y;
    T* normed;
    f32* h;
    s64 b_pitch, c_pitch, z_pitch; // elements from a row to the next
    int channels;
    int states;
    int width; // channels of a block
    int lanes; // of a channel, a power of two
    int a_f32, d_f32, bias_f32;
    int softplus, clamp, centred;
    f32 low, high, epsilon;
    int padding;
};

// Four values as they were stored, of which `left` are there. Where a row is whole packs of four, so
// is what is left.
template <class S> struct Four {
    Wide<S, 4> pack;
    S at[4];

    __device__ __forceinline__ void load(const S* from, bool whole, int left) {
        if (whole) pack.load(from);
        else
#pragma unroll
            for (int j = 0; j < 4; j++) at[j] = j < left ? from[j] : S{};
    }
    __device__ __forceinline__ f32 value(bool whole, int j) const {
        return whole ? pack.at(j) : to_f32(at[j]);
    }
};

// What a block knows of its share of a row: its mean, then Σ (v − mean) and Σ (v − mean)².
struct Moments {
    f32 mean, rest, squares;
};

template <bool NORM> __device__ __forceinline__ void step(const Step& p) {
    extern __shared__ f32 values[]; // NORM: the block's share of the row
    const int tid = threadIdx.x, lanes = p.lanes;
    const int rank = NORM ? blockIdx.x % CLUSTER : blockIdx.y;
    const s64 row = NORM ? blockIdx.x / CLUSTER : blockIdx.x;
    const int first = rank * p.width, count = min(p.width, p.channels - first); // maybe < 0
    const int n0 = tid % lanes * 4, at_once = THREADS / lanes;
    const bool whole = p.states % 4 == 0;
    if (NORM) cluster_arrive(); // no block writes to another that has not begun
    let_next_begin();
    await_previous();

#pragma unroll 1
    for (int c0 = 0; c0 < count; c0 += at_once) {
        const int i = c0 + tid / lanes, channel = first + min(i, count - 1);
        const bool live = i < count;
        const s64 at = row * p.channels + channel;
        const T dt_of = p.dt[at], x_of = p.x[at];
        const T z = p.z ? p.z[row * p.z_pitch + channel] : T{}, residual = p.residual ? p.residual[at] : T{};
        Parameter d, bias;
        if (p.d) d.load(p.d, p.d_f32, channel);
        if (p.bias) bias.load(p.bias, p.bias_f32, channel);
        f32 dt, x, y = 0.f;
#pragma unroll 1
        for (int n = n0; n == n0 || n < p.states; n += 4 * lanes) {
            const s64 cell = (s64)channel * p.states + n;
            const s64 held = row * p.channels * p.states + cell;
            const int left = p.states - n;
            const bool in = whole && left > 0;
            Four<f32> a_f32, h_of = {};
            Four<T> a_t, b, c;
            if (EXACT || p.a_f32) a_f32.load((const f32*)p.a + cell, in, left);
            else a_t.load((const T*)p.a + cell, in, left);
            if (p.state) h_of.load(p.state + held, in, left);
            b.load(p.b + row * p.b_pitch + n, in, left);
            c.load(p.c + row * p.c_pitch + n, in, left);
            if (n == n0) {
                x = to_f32(x_of);
                dt = to_f32(dt_of) + bias.value(p.bias_f32);
                if (p.softplus) dt = softplus(dt);
                if (p.clamp) { // a NaN stays one
                    dt = dt < p.low ? p.low : dt;
                    dt = dt > p.high ? p.high : dt;
                }
            }
            f32 h[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const f32 a = EXACT || p.a_f32 ? a_f32.value(in, j) : a_t.value(in, j);
                h[j] = fmaf(power(dt * (a * LOG2E)), h_of.value(in, j), dt * x * b.value(in, j));
                if (j < left) y = fmaf(h[j], c.value(in, j), y);
            }
            if (!live) continue;
            if (in) *(float4*)(p.h + held) = float4{h[0], h[1], h[2], h[3]};
            else
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (j < left) p.h[held + j] = h[j];
        }
        for (int m = 1; m < lanes; m *= 2) y += __shfl_xor_sync(~0u, y, m);
        if (p.d) y = fmaf(d.value(p.d_f32), x, y);
        if (p.z) y *= gate(to_f32(z));
        y += to_f32(residual);
        if (!live || n0 != 0) continue;
        p.y[at] = from_f32<T>(y);
        if (NORM) values[i] = y;
    }
    if constexpr (!NORM) return;

    __shared__ f32 scratch[3][WARPS];
    __shared__ Moments all[CLUSTER];
    __syncthreads();
    f32 sum = 0.f, rest = 0.f, squares = 0.f;
    if (p.centred)
        for (int i = tid; i < count; i += THREADS) sum += values[i];
    const f32 mean =
        p.centred && count > 0 ? block_sum<WARPS>(sum, scratch[0]) / (f32)count : 0.f;
    for (int i = tid; i < count; i += THREADS) {
        const f32 off = values[i] - mean;
        rest += off;
        squares = fmaf(off, off, squares);
    }
    rest = block_sum<WARPS>(rest, scratch[1]);
    squares = block_sum<WARPS>(squares, scratch[2]);
    cluster_wait();
    if (tid < CLUSTER) {
        hand(&all[rank].mean, tid, mean);
        hand(&all[rank].rest, tid, p.centred ? rest : 0.f);
        hand(&all[rank].squares, tid, squares);
    }
    cluster_arrive();
    cluster_wait();

    // The row's mean is the first block's and `shift`: together they are more exact than one f32.
    const f32 pivot = all[0].mean, n = (f32)p.channels;
    auto share = [&](int r) { return (f32)max(min(p.width, p.channels - r * p.width), 0); };
    f32 shift = 0.f, total = 0.f;
#pragma unroll
    for (int r = 0; r < CLUSTER; r++)
        shift += share(r) * (all[r].mean - pivot) + all[r].rest;
    shift = p.centred ? shift / n : 0.f;
#pragma unroll
    for (int r = 0; r < CLUSTER; r++) {
        // Σ (v − mean)² about the row's mean: what the block's own was off it comes on top.
        const f32 off = all[r].mean - pivot - shift;
        total += all[r].squares + off * (2.f * all[r].rest + share(r) * off);
    }
    const f32 scale = 1.f / sqrtf(total / n + p.epsilon);
    for (int i = tid; i < count; i += THREADS) {
        const int channel = first + i;
        f32 v = (values[i] - pivot - shift) * scale * to_f32(p.gamma[channel]);
        if (p.beta) v += to_f32(p.beta[channel]);
        p.normed[row * p.channels + channel] = from_f32<T>(v);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Step p) {
    step<false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) step_norm(const __grid_constant__ Step p) {
    step<true>(p);
}
