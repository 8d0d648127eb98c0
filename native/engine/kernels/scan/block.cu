// One frame of a whole Mamba block in one launch:
//
//     v, z ← norm(x) · in            v ← silu(conv(v)) on the frames kept
//     dt, b, c ← v · x_w             dt ← softplus(dt · dt_w + bias)
//     h ← exp(dt·a)·h + dt·v·b       y ← (h·c + d·v)·silu(z)
//     out ← y · out_w + residual
//
// A cluster of CLUSTER blocks takes a row of the batch, each an equal share of the inner channels
// from end to end: its columns of `in`, its rows of `x_w` and `out_w`. So the blocks meet but twice:
// what their channels give to dt, b and c goes to all, what they give to an output goes to the block
// that has it; both through distributed shared memory, and are added up there in the order of the
// blocks. All that does not depend on the frame is asked for before anything else, and is in
// registers or on its way by the time it is multiplied.

#define NORM 1
#include "common/cluster.cuh"
#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "norm/prologue.cuh"
#include "scan/math.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int VEC = 16 / sizeof(T);

struct Block {
    const T* x;
    const T* in_w;
    const T* conv_w;
    const T* conv_b; // or null, as all below
    const T* x_w;
    const T* dt_w;
    const void* bias;
    const void* a;
    const void* d;
    const T* out_w;
    const T* residual;
    const T* frames;  // {B, taps − 1, inner}
    const f32* state; // {B, inner, states}
    T* y;
    T* frames_out;
    f32* h;
    Prologue<T> norm;
    int width, inner, states, taps, rank;
    int a_f32, bias_f32, d_f32;
};

// The sum over `lanes` neighbouring lanes, a power of two, in each of them.
__device__ __forceinline__ f32 lanes_sum(f32 x, int lanes) {
    for (int m = 1; m < lanes; m *= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// `share` neighbouring threads have one row's packs; the block's rows are `rows` in all, of which a
// thread takes every THREADS / share. The first DEPTH are asked for when it is made.
template <int DEPTH> struct Rows {
    Wide<T, VEC> ahead[DEPTH];
    const T* from;
    s64 hop;
    int row, at_once, rows;

    __device__ __forceinline__ Rows(const T* w, s64 stride, int share, int rows)
        : row(threadIdx.x / share), at_once(THREADS / share), rows(rows) {
        from = w + row * stride;
        hop = at_once * stride;
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (row + i * at_once < rows) ahead[i].load(from + i * hop);
            else ahead[i].zero();
        }
    }
    // sum[v] += x[row] · w[row][v]
    __device__ __forceinline__ void multiply(f32 (&sum)[VEC], const f32* x) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int r = row + i * at_once;
            if (r >= rows) break;
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = fmaf(x[r], ahead[i].at(v), sum[v]);
        }
#pragma unroll 4
        for (int r = row + DEPTH * at_once; r < rows; r += at_once) {
            Wide<T, VEC> w;
            w.load(from + (s64)(r - row) / at_once * hop);
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = fmaf(x[r], w.at(v), sum[v]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) block(const __grid_constant__ Block p) {
    extern __shared__ __align__(16) f32 shared[];
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const int mine = p.inner / CLUSTER, columns = p.width / CLUSTER; // of this block
    const int channel0 = rank * mine;
    const int wide = p.rank + 2 * p.states; // of x_w
    cluster_arrive();                       // no block writes to another that has not begun
    let_next_begin();

    f32* const row = shared;                     // [width], the norm of x
    f32* const v = row + p.width;                // [mine], after the convolution
    f32* const z = v + mine;                     // [mine], silu of the gate; then the scan's y
    f32* const got = z + mine;                   // [wide]: dt, b, c
    f32* const gathered = got + (wide + 3) / 4 * 4; // [CLUSTER][wide]
    f32* const outputs = gathered + CLUSTER * wide; // [CLUSTER][columns]
    f32* const part = outputs + CLUSTER * columns;  // sums of warps or groups of threads

    // What the frame has no part in.
    const int share = 2 * mine / VEC; // threads that have a row of in_w, at most a warp
    const int column = tid % share * VEC;
    const T* const in_w =
        p.in_w + channel0 + (column < mine ? column : p.inner - mine + column);
    Rows<8> in(in_w, 2 * (s64)p.inner, share, p.width);
    const int across = p.width / VEC; // threads that have a row of out_w
    Rows<4> out(p.out_w + (s64)channel0 * p.width + tid % across * VEC, p.width, across, mine);

    int lanes = THREADS / mine; // of a channel in the scan
    const int ch = tid / lanes, l = tid % lanes, channel = channel0 + ch;
    const s64 cell = (s64)channel * p.states, held = batch * p.inner * p.states + cell;
    constexpr int EARLY = 2;
    T dt_w[EARLY];
    Parameter a[EARLY], bias, d;
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
        const int n = l + i * lanes;
        dt_w[i] = n < p.rank ? p.dt_w[(s64)n * p.inner + channel] : T{};
        if (n < p.states) a[i].load(p.a, p.a_f32, cell + n);
    }
    if (p.bias) bias.load(p.bias, p.bias_f32, channel);
    if (p.d) d.load(p.d, p.d_f32, channel);

    const int grouped = wide <= 32 ? 32 : wide <= 64 ? 64 : wide <= 128 ? 128 : wide <= 256 ? 256 : 512;
    const int group = tid / grouped, groups = THREADS / grouped, at = tid % grouped;
    T x_w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = group + i * groups;
        x_w[i] = r < mine && at < wide ? p.x_w[(s64)(channel0 + r) * wide + at] : T{};
    }
    constexpr int TAPS = 4;
    T taps[TAPS] = {}, frames[TAPS] = {}, conv_b = {};
    const int own = channel0 + tid; // for tid < mine
    const s64 kept = batch * (p.taps - 1) * p.inner + own;
    if (tid < mine) {
#pragma unroll
        for (int k = 0; k < TAPS; k++)
            if (k < p.taps) taps[k] = p.conv_w[(s64)k * p.inner + own];
        if (p.conv_b) conv_b = p.conv_b[own];
    }
    const Affine first = affine(p.norm, tid, p.width);

    await_previous();
    f32 h[EARLY] = {};
#pragma unroll
    for (int i = 0; i < EARLY; i++)
        if (p.state && l + i * lanes < p.states) h[i] = p.state[held + l + i * lanes];
    if (tid < mine && p.frames)
#pragma unroll
        for (int k = 0; k < TAPS; k++)
            if (k < p.taps - 1) frames[k] = p.frames[kept + (s64)k * p.inner];
    for (int i = tid; i < p.width; i += THREADS) row[i] = to_f32(p.x[batch * p.width + i]);
    T residual = {};
    const s64 result = batch * p.width + rank * columns + tid; // for tid < columns
    if (tid < columns && p.residual) residual = p.residual[result];
    __syncthreads();
    normalise<1, WARPS>(p.norm, first, row, p.width, part);

    {
        f32 sum[VEC] = {};
        in.multiply(sum, row);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            for (int m = share; m < WARP; m *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], m);
        if (lane < share)
#pragma unroll
            for (int i = 0; i < VEC; i++) part[warp * 2 * mine + column + i] = sum[i];
    }
    __syncthreads();
    if (tid < 2 * mine) {
        f32 sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += part[w * 2 * mine + tid];
        if (tid < mine) {
            f32 y = to_f32(conv_b);
            auto tap = [&](int k, f32 w, f32 f) { // frame k of taps
                y = fmaf(w, f, y);
                if (k > 0) p.frames_out[kept + (s64)(k - 1) * p.inner] = from_f32<T>(f);
            };
#pragma unroll
            for (int k = 0; k < TAPS; k++)
                if (k < p.taps) tap(k, to_f32(taps[k]), k == p.taps - 1 ? sum : to_f32(frames[k]));
            for (int k = TAPS; k < p.taps; k++)
                tap(k, to_f32(p.conv_w[(s64)k * p.inner + own]),
                    k == p.taps - 1 ? sum : p.frames ? to_f32(p.frames[kept + (s64)k * p.inner]) : 0.f);
            v[tid] = gate(y);
        } else {
            z[tid - mine] = gate(sum);
        }
    }
    __syncthreads();

    // This block's part of dt, b and c, to all.
    f32 sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (group + i * groups < mine) sum = fmaf(to_f32(x_w[i]), v[group + i * groups], sum);
    for (int r = group + 4 * groups; r < mine; r += groups)
        if (at < wide) sum = fmaf(to_f32(p.x_w[(s64)(channel0 + r) * wide + at]), v[r], sum);
    part[tid] = sum;
    __syncthreads();
    cluster_wait(); // all have begun
    if (at < wide) {
        sum = 0.f;
        for (int g = 0; g < groups; g++) sum += part[g * grouped + at];
        for (int r = group; r < CLUSTER; r += groups) hand(&gathered[rank * wide + at], r, sum);
    }
    cluster_arrive();
    cluster_wait();
    if (tid < wide) {
        sum = 0.f;
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) sum += gathered[r * wide + tid];
        got[tid] = sum;
    }
    __syncthreads();

    {
        f32 dt = 0.f;
#pragma unroll
        for (int i = 0; i < EARLY; i++)
            if (l + i * lanes < p.rank) dt = fmaf(got[l + i * lanes], to_f32(dt_w[i]), dt);
        for (int r = l + EARLY * lanes; r < p.rank; r += lanes)
            dt = fmaf(got[r], to_f32(p.dt_w[(s64)r * p.inner + channel]), dt);
        dt = softplus(lanes_sum(dt, lanes) + bias.value(p.bias_f32));
        const f32 x = v[ch], u = dt * x;
        const f32 *const b = got + p.rank, *const c = b + p.states;
        f32 y = 0.f;
#pragma unroll
        for (int i = 0; i < EARLY; i++) {
            const int n = l + i * lanes;
            if (n >= p.states) break;
            const f32 next = fmaf(power(dt * (a[i].value(p.a_f32) * LOG2E)), h[i], u * b[n]);
            y = fmaf(next, c[n], y);
            p.h[held + n] = next;
        }
        for (int n = l + EARLY * lanes; n < p.states; n += lanes) {
            const f32 old = p.state ? p.state[held + n] : 0.f;
            Parameter a;
            a.load(p.a, p.a_f32, cell + n);
            const f32 next = fmaf(power(dt * (a.value(p.a_f32) * LOG2E)), old, u * b[n]);
            y = fmaf(next, c[n], y);
            p.h[held + n] = next;
        }
        y = lanes_sum(y, lanes);
        if (p.d) y = fmaf(d.value(p.d_f32), x, y);
        if (l == 0) z[ch] *= y;
    }
    __syncthreads();

    // This block's part of the outputs, each to the block that has it.
    {
        f32 sum[VEC] = {};
        out.multiply(sum, z);
        const int groups = THREADS / across;
#pragma unroll
        for (int i = 0; i < VEC; i++)
            part[tid / across * p.width + tid % across * VEC + i] = sum[i];
        __syncthreads();
        for (int i = tid; i < p.width; i += THREADS) {
            f32 total = 0.f;
            for (int g = 0; g < groups; g++) total += part[g * p.width + i];
            hand(&outputs[rank * columns + i % columns], i / columns, total);
        }
    }
    cluster_arrive();
    cluster_wait();
    if (tid < columns) {
        f32 total = 0.f;
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) total += outputs[r * columns + tid];
        p.y[result] = from_f32<T>(total + to_f32(residual));
    }
}
