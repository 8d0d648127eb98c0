// selective_scan as scan.cu has it, for windows of few channels: the warps of a block have the same
// channels, and share out the frames.
//
// A block goes through its frames tile by tile, and of each a warp takes FRAMES that follow one
// another. It finds their decays and what flows into each state, and what these make of a state of
// zero. That and the decay over all of its frames it hands to the warps behind it; each folds what
// lies before it and goes through its frames from there, for which there is but a multiply-add a
// state left, and y. So the exponentials of a tile, most of the work, wait for nothing before it.
//
//     warp 0   | e, u·b → from zero, Σ dt |        | h ← e·h + u·b, y |
//     warp 1   | e, u·b → from zero, Σ dt |  fold  | h ← e·h + u·b, y |
//     …        |                          |   ‖    |                  |
//     the last | e, u·b → from zero, Σ dt |        | h ← e·h + u·b, y | → h for the next tile
//
// Within a warp all is as in scan.cu: LANES lanes share a channel, STATES of its states each, and
// each brings in and finishes OWN frames. b, c and z may be parts of the rows of another tensor.
//
// With the module come STATES, OWN, WARPS_A_BLOCK and BLOCKS (that a multiprocessor is to hold).
// There are 16 states.

#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "scan/window.cuh"

constexpr int THREADS = WARPS_A_BLOCK * WARP;
constexpr int N = 16;
constexpr int LANES = N / STATES;
constexpr int CHANNELS = WARP / LANES; // of a block
constexpr int FRAMES = OWN * LANES; // of a warp
constexpr int TILE = FRAMES * WARPS_A_BLOCK;
constexpr int PACKS = TILE * N / 4; // of b, and as many of c
constexpr int SHARE = (PACKS + THREADS - 1) / THREADS;
constexpr bool WHOLE = PACKS % THREADS == 0;
constexpr int LAST = WARPS_A_BLOCK - 1;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    scan_spread(const __grid_constant__ Scan p) {
    __shared__ __align__(16) f32 s_b[2][TILE * N];
    __shared__ __align__(16) f32 s_c[2][TILE * N];
    __shared__ float2 s_du[WARPS_A_BLOCK][FRAMES * CHANNELS]; // dt and dt·x
    // By lanes, so that a warp reads whole lines: a lane's states are the same in all warps.
    __shared__ __align__(16) f32 s_decay[WARPS_A_BLOCK][WARP * STATES];
    __shared__ __align__(16) f32 s_made[WARPS_A_BLOCK][WARP * STATES];
    __shared__ __align__(16) f32 s_h[WARP * STATES]; // after the tile before

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int group = lane / CHANNELS, ch = lane % CHANNELS;
    const s64 row = blockIdx.x;
    const int channel = (int)blockIdx.y * CHANNELS + ch;
    const bool live = channel < p.channels;
    const int held = min(channel, p.channels - 1); // lanes beyond the last do as that does
    const int length = (int)p.length, last = length - 1;

    // Parameters do not change while what is ahead of this kernel runs.
    let_next_begin();
    const s64 cell = (s64)held * N + group * STATES, cells = (s64)p.channels * N;
    f32 a[STATES], h[STATES] = {}; // a times log2 e
    Parameter bias_of, d_of;
    if (p.bias) bias_of.load(p.bias, p.bias_f32, held);
    if (p.d) d_of.load(p.d, p.d_f32, held);
    if (p.a_f32) read_row(a, (const f32*)p.a + cell);
    else {
#pragma unroll
        for (int j = 0; j < STATES; j++) a[j] = to_f32(((const T*)p.a)[cell + j]);
    }
    await_previous();

    // As it was stored: to convert it is to wait for it.
    T next_dt[OWN], next_x[OWN], next_z[OWN] = {}, next_residual[OWN] = {};
    Wide<T, 4> next_b[SHARE], next_c[SHARE];
    const s64 first = row * p.length;
    auto fetch = [&](int t0) { // frames beyond the last are as that is
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const s64 frame = first + min(t0 + warp * FRAMES + o * LANES + group, last);
            const s64 at = frame * p.channels + held;
            next_dt[o] = p.dt[at];
            next_x[o] = p.x[at];
            if (p.z) next_z[o] = p.z[frame * p.z_pitch + held];
            if (p.residual) next_residual[o] = p.residual[at];
        }
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int pack = tid + i * THREADS, n = pack % (N / 4) * 4;
            const s64 frame = first + min(t0 + pack / (N / 4), last);
            if (WHOLE || pack < PACKS) {
                next_b[i].load(p.b + frame * p.b_pitch + n);
                next_c[i].load(p.c + frame * p.c_pitch + n);
            }
        }
    };
    fetch(0);
    if (p.state) read_row(h, p.state + row * cells + cell);
#pragma unroll
    for (int j = 0; j < STATES; j++) a[j] *= LOG2E;
    const f32 bias = bias_of.value(p.bias_f32), d = d_of.value(p.d_f32);

    int turn = 0;
#pragma unroll 1
    for (int t0 = 0; t0 < length; t0 += TILE, turn ^= 1) {
        const int mine = t0 + warp * FRAMES; // the first of this warp's
        f32 dt[OWN], x[OWN];
        T z[OWN], residual[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) dt[o] = to_f32(next_dt[o]) + bias;
        take_time(dt, p);
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            x[o] = to_f32(next_x[o]);
            z[o] = next_z[o];
            residual[o] = next_residual[o];
            // Frames beyond the last are of no time and change nothing.
            const bool in = mine + o * LANES + group <= last;
            s_du[warp][o * WARP + lane] = in ? float2{dt[o], dt[o] * x[o]} : float2{};
        }
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int pack = tid + i * THREADS;
            if (WHOLE || pack < PACKS) {
                keep(s_b[turn] + pack * 4, next_b[i]);
                keep(s_c[turn] + pack * 4, next_c[i]);
            }
        }
        __syncthreads();
        if (t0 + TILE < length) fetch(t0 + TILE);
        if (t0 > 0) read_row(h, s_h + lane * STATES);

        f32 e[FRAMES][STATES], in[FRAMES][STATES], made[STATES] = {}, time = 0.f;
        const int from = warp * FRAMES * N + group * STATES;
#pragma unroll
        for (int f = 0; f < FRAMES; f++) {
            f32 b[STATES];
            read_row(b, s_b[turn] + from + f * N);
            const float2 du = s_du[warp][f * CHANNELS + ch];
            time += du.x;
#pragma unroll
            for (int j = 0; j < STATES; j++) {
                e[f][j] = power(du.x * a[j]);
                in[f][j] = du.y * b[j];
                made[j] = fmaf(e[f][j], made[j], in[f][j]);
            }
        }
        if (warp != LAST) {
            f32 decay[STATES];
#pragma unroll
            for (int j = 0; j < STATES; j++) decay[j] = power(time * a[j]);
            write_row(s_decay[warp] + lane * STATES, decay);
            write_row(s_made[warp] + lane * STATES, made);
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < LAST; q++) {
            if (q >= warp) break;
            f32 decay[STATES], made[STATES];
            read_row(decay, s_decay[q] + lane * STATES);
            read_row(made, s_made[q] + lane * STATES);
#pragma unroll
            for (int j = 0; j < STATES; j++) h[j] = fmaf(decay[j], h[j], made[j]);
        }
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            f32 sums[LANES];
#pragma unroll
            for (int f = 0; f < LANES; f++) {
                f32 c[STATES];
                read_row(c, s_c[turn] + from + (o * LANES + f) * N);
                sums[f] = 0.f;
#pragma unroll
                for (int j = 0; j < STATES; j++) {
                    h[j] = fmaf(e[o * LANES + f][j], h[j], in[o * LANES + f][j]);
                    sums[f] = fmaf(h[j], c[j], sums[f]);
                }
            }
            f32 y[1] = {meet(sums, group)};
            const int frame = mine + o * LANES + group;
            const f32 skipping = fmaf(d, x[o], y[0]); // 0 · ∞ is no number
            y[0] = p.d ? skipping : y[0];
            finish(y, p, [&](int) { return z[o]; }, [&](int) { return residual[o]; });
            if (live && frame <= last) p.y[(first + frame) * p.channels + held] = from_f32<T>(y[0]);
        }
        if (warp == LAST) write_row(s_h + lane * STATES, h);
    }
    if (live && warp == LAST) write_row(p.h + row * cells + cell, h);
}
