// selective_scan as scan.cu has it, for long windows of many channels in a 16-bit type: what the lanes
// bring in and finish moves by way of shared memory.
//
// In scan.cu a lane loads its own values, two bytes each: OWN instructions a tile and kind, with an
// address each, for what is one of 16 bytes here. A warp copies the next tile's lines of dt, x, z and
// residual into its own part of shared memory while it goes through this one's; a lane reads its own
// values from there, leaves y where dt was, and the warp stores lines again. A line is a frame's
// values of the warp's channels, and lies as the tile's values lie by lanes: that of frame f and
// channel c at f · CHANNELS + c, which is o · WARP + lane for a lane's own frame o.
//
// There are 16 states, 8 a lane, and a whole number of 16 bytes of channels. Windows are not cut for it.

#include "common/async.cuh"
#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "scan/window.cuh"
#ifdef NORM
#include "scan/normed.cuh"
#endif

constexpr int STATES = 8;
constexpr int LANES = 2;
constexpr int OWN = 8; // frames of a tile that a lane finishes
constexpr int WARPS = 4;
#ifdef NORM
constexpr int BLOCKS = 2; // that a multiprocessor is to hold
#else
constexpr int BLOCKS = 4;
#endif
constexpr int N = STATES * LANES;
constexpr int THREADS = WARPS * WARP;
constexpr int CHANNELS = WARP / LANES; // of a warp
constexpr int FRAMES = OWN * LANES;
constexpr int TILES = 4;
constexpr int SPAN = TILES * FRAMES; // of b and c in shared memory
constexpr int PACKS = SPAN * N / 4; // of b, and as many of c
constexpr int SHARE = 2 * PACKS / THREADS;
constexpr int PACK = 16 / (int)sizeof(T);
constexpr int PARTS = CHANNELS / PACK; // of a line, 16 bytes each
constexpr int TILE = FRAMES * CHANNELS;
// A lane has one part of a tile.
static_assert(sizeof(T) == 2 && 2 * PACKS % THREADS == 0 && FRAMES * PARTS == WARP);

#ifdef NORM
typedef Normed<WARPS, OWN, LANES> Exchange;
#define WITH_NORM(...) __VA_ARGS__
#else
#define WITH_NORM(...)
#endif

template <bool ROWS>
__device__ __forceinline__ void scan(const Scan& p WITH_NORM(, const Norm& norm)) {
    __shared__ __align__(16) f32 s_b[2][SPAN * N];
    __shared__ __align__(16) f32 s_c[2][SPAN * N];
    __shared__ float2 s_du[WARPS][TILE]; // dt and dt·x
    __shared__ __align__(16) T s_in[WARPS][2][4][TILE]; // dt and then y, x, z, residual

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int group = lane / CHANNELS, ch = lane % CHANNELS;
    const s64 row = blockIdx.x, length = p.length;
#ifdef NORM
    extern __shared__ __align__(16) f32 kept[];
    const Exchange exchange{norm, kept, row, length, p.channels, (int)blockIdx.y, (int)gridDim.y,
                            warp, lane};
    // From one lane, so that the warp is known not to part.
    if (__shfl_sync(~0u, warp, 0) >= WARPS) {
        let_next_begin();
        await_previous();
        exchange.serve();
        return;
    }
#endif
    const int channel0 = ((int)blockIdx.y * WARPS + warp) * CHANNELS, channel = channel0 + ch;
    const bool live = channel < p.channels;

    // Parameters do not change while what is ahead of this kernel runs.
    let_next_begin();
    const s64 cell = (s64)channel * N + group * STATES, cells = (s64)p.channels * N;
    f32 a[STATES] = {}, h[STATES] = {}; // a times log2 e
    Parameter bias_of, d_of;
    if (p.bias && live) bias_of.load(p.bias, p.bias_f32, channel);
    if (p.d && live) d_of.load(p.d, p.d_f32, channel);
    if (live && p.a_f32) read_row(a, (const f32*)p.a + cell);
    else if (live) {
#pragma unroll
        for (int j = 0; j < STATES; j++) a[j] = to_f32(((const T*)p.a)[cell + j]);
    }
    await_previous();

    // The lane's part of a tile: of which line, and where in it.
    const int of_line = lane % PARTS * PACK, line = lane / PARTS;
    const bool in_row = channel0 + of_line < p.channels;
    const s64 z_pitch = ROWS ? p.z_pitch : (s64)p.channels;
    const s64 first = (row * length + line) * p.channels + channel0 + of_line;
    const T* const dt_at = p.dt + first;
    const T* const x_at = p.x + first;
    const T* const z_at = p.z + (row * length + line) * z_pitch + channel0 + of_line;
    const T* const residual_at = p.residual + first;
    T* const y_at = p.y + first;
    const u32 s_at = shared_address(&s_in[warp][0][0][lane * PACK]);
    constexpr u32 KIND = TILE * sizeof(T);
    auto fetch = [&](s64 t0, int turn) { // zeros beyond the last frame and channel
        const bool in = in_row && t0 + line < length;
        const u32 to = s_at + (u32)(turn & 1) * 4 * KIND;
        const s64 off = in ? t0 * p.channels : 0;
        copy_async(to, dt_at + off, in);
        copy_async(to + KIND, x_at + off, in);
        if (p.z) copy_async(to + 2 * KIND, z_at + (in ? t0 * z_pitch : 0), in);
        if (p.residual) copy_async(to + 3 * KIND, residual_at + off, in);
        copy_async_commit();
    };
    Wide<T, 4> next_bc[SHARE]; // as it was stored: to convert it is to wait for it
    auto fetch_vectors = [&](s64 t0) {
        const int count = (int)min((s64)SPAN, length - t0) * N;
        const s64 at = (row * length + t0) * N;
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int pack = tid + i * THREADS, of = pack % PACKS * 4;
            next_bc[i].zero();
            if (of < count) {
                if constexpr (ROWS) {
                    const s64 frame = row * length + t0 + of / N;
                    const T* const from = pack < PACKS ? p.b + frame * p.b_pitch : p.c + frame * p.c_pitch;
                    next_bc[i].load(from + of % N);
                } else next_bc[i].load((pack < PACKS ? p.b : p.c) + at + of);
            }
        }
    };
    fetch(0, 0);
    fetch_vectors(0);
    if (p.state && live) read_row(h, p.state + row * cells + cell);
#pragma unroll
    for (int j = 0; j < STATES; j++) a[j] *= LOG2E;
    const f32 bias = bias_of.value(p.bias_f32), d = d_of.value(p.d_f32);

    int turn = 0;
    const f32 *at_b = nullptr, *at_c = nullptr;
#pragma unroll 1
    for (s64 t0 = 0; t0 < length; t0 += FRAMES, turn++) {
        const int count = (int)min((s64)FRAMES, length - t0);
        if (turn % TILES == 0) {
            f32* const b = s_b[turn / TILES % 2];
            f32* const c = s_c[turn / TILES % 2];
#pragma unroll
            for (int i = 0; i < SHARE; i++) {
                const int pack = tid + i * THREADS;
                keep((pack < PACKS ? b : c) + pack % PACKS * 4, next_bc[i]);
            }
            if (t0 + SPAN < length) fetch_vectors(t0 + SPAN);
#ifdef NORM
            Exchange::meet_scanning();
#else
            __syncthreads();
#endif
            at_b = b + group * STATES;
            at_c = c + group * STATES;
        }
        WITH_NORM(Exchange::await_room(turn);)
        copy_async_wait<0>();
        __syncwarp(); // what the warp asked for is there, and what the tile before left has been stored
        if (t0 + FRAMES < length) fetch(t0 + FRAMES, turn + 1);
        T* const dt_in = &s_in[warp][turn & 1][0][lane];
        const T* const x_in = dt_in + TILE;
        const T* const z_in = dt_in + 2 * TILE;
        const T* const residual_in = dt_in + 3 * TILE;

        f32 dt[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) dt[o] = to_f32(dt_in[o * WARP]) + bias;
        take_time(dt, p);
        if (count < FRAMES) { // frames beyond the last are of no time and change nothing
#pragma unroll
            for (int o = 0; o < OWN; o++)
                if (group + o * LANES >= count) dt[o] = 0.f;
        }
#pragma unroll
        for (int o = 0; o < OWN; o++)
            s_du[warp][o * WARP + lane] = float2{dt[o], dt[o] * to_f32(x_in[o * WARP])};
        __syncwarp();

        f32 y[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            f32 sums[LANES];
#pragma unroll
            for (int f = 0; f < LANES; f++) {
                f32 b[STATES], c[STATES], sum[2] = {}; // two, as one would wait for itself
                read_row(b, at_b + (o * LANES + f) * N);
                read_row(c, at_c + (o * LANES + f) * N);
                const float2 du = s_du[warp][(o * LANES + f) * CHANNELS + ch];
#pragma unroll
                for (int j = 0; j < STATES; j++) {
                    h[j] = fmaf(power(du.x * a[j]), h[j], du.y * b[j]);
                    sum[j % 2] = fmaf(h[j], c[j], sum[j % 2]);
                }
                sums[f] = sum[0] + sum[1];
            }
            y[o] = meet(sums, group);
        }
        at_b += FRAMES * N;
        at_c += FRAMES * N;
        if (p.d) { // 0 · ∞ is no number
#pragma unroll
            for (int o = 0; o < OWN; o++) y[o] = fmaf(d, to_f32(x_in[o * WARP]), y[o]);
        }
        finish(y, p, [&](int o) { return z_in[o * WARP]; }, [&](int o) { return residual_in[o * WARP]; });
        WITH_NORM(exchange.keep(y, turn, t0 + FRAMES >= length);)
#pragma unroll
        for (int o = 0; o < OWN; o++) dt_in[o * WARP] = from_f32<T>(y[o]);
        __syncwarp();
        if (in_row && line < count) { // the lane's 16 bytes rather than its value
            const uint4 part = *(const uint4*)(dt_in + lane * (PACK - 1));
            *(uint4*)(y_at + t0 * p.channels) = part;
        }
    }
    if (live) write_row(p.h + row * cells + cell, h);
}

#ifdef NORM
extern "C" __global__ void __launch_bounds__(Exchange::THREADS, BLOCKS)
    scan_staged_norm(const __grid_constant__ Scan p, const __grid_constant__ Norm norm) {
    scan<false>(p, norm);
}

extern "C" __global__ void __launch_bounds__(Exchange::THREADS, BLOCKS)
    scan_staged_norm_rows(const __grid_constant__ Scan p, const __grid_constant__ Norm norm) {
    scan<true>(p, norm);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    scan_staged(const __grid_constant__ Scan p) {
    scan<false>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    scan_staged_rows(const __grid_constant__ Scan p) {
    scan<true>(p);
}
#endif
