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
//
// A module is for one size of a block: WIDTH, INNER, STATES, TAPS, RANK (of dt), and CENTRED, a LayerNorm.

#define NORM 1
#include "common/early.cuh"
#include "common/meeting.cuh"
#include "norm/prologue.cuh"
#include "norm/row.cuh"
#include "scan/math.cuh"

constexpr int THREADS = 512;
constexpr int VEC = 16 / sizeof(T);
#include "dense/columns.cuh"

constexpr int MINE = INNER / CLUSTER, COLUMNS = WIDTH / CLUSTER; // of a block
constexpr int DT_B_C = RANK + 2 * STATES;                        // columns of x_w
constexpr int GATHERED = (DT_B_C + 3) / 4 * 4;
// Threads that have a row of x_w, and rows that are multiplied at once.
constexpr int ACROSS = DT_B_C <= 32 ? 32 : DT_B_C <= 64 ? 64 : DT_B_C <= 128 ? 128 : DT_B_C <= 256 ? 256 : 512;
constexpr int DOWN = THREADS / ACROSS;
constexpr int LANES = THREADS / MINE; // of a channel in the scan, a power of two
// Threads that have four columns' sums.
constexpr int SPLIT = 4;

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
    int a_f32, bias_f32, d_f32;
};

// The sum over LANES neighbouring lanes, in each of them.
__device__ __forceinline__ f32 lanes_sum(f32 x) {
#pragma unroll
    for (int m = 1; m < LANES; m *= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) block(const __grid_constant__ Block p) {
    extern __shared__ __align__(16) f32 shared[];
    __shared__ __align__(8) u64 barriers[2];
    const u32 tid = threadIdx.x, rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const u32 channel0 = rank * MINE, column0 = rank * COLUMNS;
    const Meeting of_all(&barriers[0]), of_outputs(&barriers[1]);
    if (tid == 0) {
        of_all.begin(CLUSTER * GATHERED * 4);
        of_outputs.begin(WIDTH * 4);
    }
    cluster_arrive();
    let_next_begin();

    f32* const gamma = shared;                       // [WIDTH]
    f32* const beta = gamma + WIDTH;                 // [WIDTH]
    f32* const v = beta + WIDTH;                     // [MINE], after the convolution
    f32* const z = v + MINE;                         // [MINE], silu of the gate; then the scan's y
    f32* const got = z + MINE;                       // [GATHERED]: dt, b, c
    f32* const gathered = got + GATHERED;            // [CLUSTER][GATHERED]
    f32* const outputs = gathered + CLUSTER * GATHERED; // [CLUSTER][COLUMNS]
    f32* const part = outputs + WIDTH;               // sums of groups of threads

    // What the frame has no part in.
    const Columns<WIDTH, MINE, 2, 4> in(p.in_w, 2 * INNER, channel0, INNER);
    const Columns<MINE, WIDTH, 1, 4> out(p.out_w + (s64)channel0 * WIDTH, WIDTH, 0);
    typedef Sums<2 * MINE, decltype(in)::PARTS, 2 * MINE, 1, SPLIT> InSums;
    typedef Sums<GATHERED, DOWN, ACROSS, CLUSTER, SPLIT> XSums;
    typedef Sums<WIDTH, decltype(out)::PARTS, WIDTH, 1, SPLIT> OutSums;
    typedef Sums<COLUMNS, CLUSTER, COLUMNS, 1, SPLIT> RowSums;

    const u32 ch = tid / LANES, l = tid % LANES, channel = channel0 + ch;
    const s64 cell = (s64)channel * STATES, held = batch * INNER * STATES + cell;
    constexpr int EARLY = 2;
    T dt_w[EARLY];
    Parameter a[EARLY], bias, d;
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
        const u32 n = l + i * LANES;
        dt_w[i] = n < RANK ? p.dt_w[(s64)n * INNER + channel] : T{};
        if (n < STATES) a[i].load(p.a, p.a_f32, cell + n);
    }
    if (p.bias) bias.load(p.bias, p.bias_f32, channel);
    if (p.d) d.load(p.d, p.d_f32, channel);

    const u32 group = tid / ACROSS, at = tid % ACROSS;
    T x_w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 r = group + i * DOWN;
        x_w[i] = r < MINE && at < DT_B_C ? p.x_w[(s64)(channel0 + r) * DT_B_C + at] : T{};
    }
    // A thread that ends with a channel of v has its taps and frames.
    static_assert(InSums::KEPT == 1 && InSums::USED == 2 * MINE, "a thread has one channel, or more of them");
    constexpr int FEW = TAPS < 4 ? TAPS : 4;
    T taps[FEW] = {}, frames[FEW] = {}, conv_b = {};
    const int own = channel0 + InSums::column();
    const bool convolves = InSums::column() < MINE;
    const s64 kept_frames = batch * (TAPS - 1) * INNER + own;
    if (convolves) {
#pragma unroll
        for (int k = 0; k < FEW; k++) taps[k] = p.conv_w[(s64)k * INNER + own];
        if (p.conv_b) conv_b = p.conv_b[own];
    }
    for (u32 i = tid; i < WIDTH; i += THREADS) {
        gamma[i] = to_f32(p.norm.gamma[i]);
        if (CENTRED) beta[i] = p.norm.beta ? to_f32(p.norm.beta[i]) : 0.f;
    }
    // Where what there is to read lies.
    const T* const x = p.x + batch * WIDTH;
    u32 x_early = in.row, x_first = Row<T, WIDTH>::first();
    u32 state = held + l, old_frames = kept_frames, result = batch * WIDTH + column0 + RowSums::column();
    ready(x_early);
    ready(x_first);
    ready(state);
    ready(old_frames);
    ready(result);
    cluster_wait(); // all have begun
    __syncthreads();

    await_previous();
    // All is asked for, x first, before any of it is waited for.
    f32 early[decltype(in)::AHEAD];
    in.early(x + x_early, early);
    const Row<T, WIDTH> x_row(x + x_first);
    f32 h[EARLY] = {};
#pragma unroll
    for (int i = 0; i < EARLY; i++)
        if (p.state && l + i * LANES < STATES) h[i] = p.state[state + i * LANES];
    if (p.frames && convolves)
#pragma unroll
        for (int k = 0; k < FEW; k++)
            if (k < TAPS - 1) frames[k] = p.frames[old_frames + k * INNER];
    T residual[RowSums::KEPT] = {};
    if (p.residual)
#pragma unroll
        for (int k = 0; k < RowSums::KEPT; k++) residual[k] = p.residual[result + k];

    Scaling s = {0.f, 1.f};
    if (CENTRED) s = scaling<true>(p.norm.epsilon, x_row);
    in.multiply(
        [&](int i, int r) {
            const f32 x_r = i >= 0 ? early[i] : to_f32(x[r]);
            return normed<CENTRED>(x_r, s, gamma, beta, r);
        },
        part);
    // The scale of an RMS norm is the row's, and so the sums'.
    if (!CENTRED && InSums::takes_part()) s = scaling<false>(p.norm.epsilon, x_row);
    __syncthreads();
    InSums::collect(
        part,
        [&](int, int c, f32 sum) {
            if (!CENTRED) sum *= s.scale;
            if (c >= MINE) return gate(sum);
            f32 y = to_f32(conv_b);
            auto tap = [&](int k, f32 w, f32 f) { // frame k of TAPS
                y = fmaf(w, f, y);
                if (k > 0) p.frames_out[kept_frames + (s64)(k - 1) * INNER] = from_f32<T>(f);
            };
#pragma unroll
            for (int k = 0; k < FEW; k++)
                tap(k, to_f32(taps[k]), k == TAPS - 1 ? sum : to_f32(frames[k]));
            for (int k = FEW; k < TAPS; k++)
                tap(k, to_f32(p.conv_w[(s64)k * INNER + own]),
                    k == TAPS - 1 ? sum : p.frames ? to_f32(p.frames[kept_frames + (s64)k * INNER]) : 0.f);
            return gate(y);
        },
        [&](bool wanted, int, int c, f32 (&four)[4]) {
            if (wanted) *(float4*)(v + c) = make_float4(four[0], four[1], four[2], four[3]);
        });
    __syncthreads();

    // This block's part of dt, b and c, to all.
    {
        f32 sum = 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (group + i * DOWN < MINE) sum = fmaf(to_f32(x_w[i]), v[group + i * DOWN], sum);
        for (u32 r = group + 4 * DOWN; r < MINE; r += DOWN)
            if (at < DT_B_C) sum = fmaf(to_f32(p.x_w[(s64)(channel0 + r) * DT_B_C + at]), v[r], sum);
        part[tid] = sum;
    }
    __syncthreads();
    XSums::collect(
        part, [&](int, int, f32 sum) { return sum; },
        [&](bool wanted, int to, int c, f32 (&four)[4]) {
            of_all.give(wanted, to, gathered + rank * GATHERED + c, four);
        });
    of_all.wait();
    if (tid < DT_B_C) {
        f32 sum = 0.f;
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) sum += gathered[r * GATHERED + tid];
        got[tid] = sum;
    }
    __syncthreads();

    {
        f32 dt = 0.f;
#pragma unroll
        for (int i = 0; i < EARLY; i++)
            if (l + i * LANES < RANK) dt = fmaf(got[l + i * LANES], to_f32(dt_w[i]), dt);
        for (u32 r = l + EARLY * LANES; r < RANK; r += LANES)
            dt = fmaf(got[r], to_f32(p.dt_w[(s64)r * INNER + channel]), dt);
        dt = softplus(lanes_sum(dt) + bias.value(p.bias_f32));
        const f32 x = v[ch], u = dt * x;
        const f32 *const b = got + RANK, *const c = b + STATES;
        f32 y = 0.f;
#pragma unroll
        for (int i = 0; i < EARLY; i++) {
            const u32 n = l + i * LANES;
            if (n >= STATES) break;
            const f32 next = fmaf(power(dt * (a[i].value(p.a_f32) * LOG2E)), h[i], u * b[n]);
            y = fmaf(next, c[n], y);
            p.h[held + n] = next;
        }
        for (u32 n = l + EARLY * LANES; n < STATES; n += LANES) {
            const f32 old = p.state ? p.state[held + n] : 0.f;
            Parameter a;
            a.load(p.a, p.a_f32, cell + n);
            const f32 next = fmaf(power(dt * (a.value(p.a_f32) * LOG2E)), old, u * b[n]);
            y = fmaf(next, c[n], y);
            p.h[held + n] = next;
        }
        y = lanes_sum(y);
        if (p.d) y = fmaf(d.value(p.d_f32), x, y);
        if (l == 0) z[ch] *= y;
    }
    __syncthreads();

    // This block's part of the outputs, each to the block that has it.
    out.multiply([&](int, int r) { return z[r]; }, part);
    __syncthreads();
    OutSums::collect(
        part, [&](int, int, f32 sum) { return sum; },
        [&](bool wanted, int, int c, f32 (&four)[4]) {
            of_outputs.give(wanted, c / COLUMNS, outputs + rank * COLUMNS + c % COLUMNS, four);
        });
    of_outputs.wait();
    cluster_leave(); // all that was sent to this block is here
    RowSums::collect(
        outputs, [&](int k, int, f32 sum) { return sum + to_f32(residual[k]); },
        [&](bool wanted, int, int c, f32 (&four)[4]) {
            if (wanted) store_four(p.y + batch * WIDTH + column0 + c, four);
        });
    cluster_wait();
}
