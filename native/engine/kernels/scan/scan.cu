// selective_scan: h ← exp(dt·A)·h + dt·B·x, y = (C·h + d·x)·silu(z) + residual.
//
// A warp has its own channels. LANES lanes share one, STATES of its states each, in registers and
// f32; the lanes of neighbouring channels lie side by side, so that loads are whole lines. A block
// goes through its frames tile by tile, FRAMES = OWN · LANES of them. Of a tile, each lane brings in
// and finishes OWN frames: it turns dt into the step and dt·x, which the channel's lanes read from
// the warp's shared memory, and gets its frames' sums of C·h back in the end: lanes add up what they
// have by halving, LANES frames at once, so that no lane computes what another one does. b and c of
// a tile lie in shared memory for the whole block. The next tile's dt, x, b and c are on their way
// meanwhile.
//
// What bounds it is issue: 4 multiply-adds and a 2^x a state, and about 60 instructions a frame and
// channel for all else. See guides/kernels/scan.md.
//
// Where channels are too few to fill the card, a grid of `chunks` cuts the window: `scan_carry` finds
// what each makes of a state of zero, and how much time passes in it; `scan_y` folds what is before
// its chunk, exp(Σ dt · A) being the decay over any number of frames, and goes on from there.
//
// b, c and z may each be a part of the rows of another tensor: the entries whose names end in `rows`
// go by pitches. They are entries of their own, since the others are measured as they are.
//
// With NORM the norm over D is done in the same launch: see scan/normed.cuh.
//
// With the module come STATES, LANES, OWN, WARPS_A_BLOCK, BLOCKS (that a multiprocessor is to
// hold), and EVEN (there are STATES · LANES states, and not fewer).

#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "scan/window.cuh"
#ifdef NORM
#include "scan/normed.cuh"
#endif

constexpr int THREADS = WARPS_A_BLOCK * WARP;
constexpr int CHANNELS = WARP / LANES; // of a warp
constexpr int FRAMES = OWN * LANES;
constexpr int PADDED = STATES * LANES;
constexpr int TILES = EVEN && FRAMES < 32 ? 32 / FRAMES : 1;
constexpr int BUFFERS = EVEN ? 2 : 1;
constexpr bool SKIPS = LANES >= 8;
constexpr int SPAN = TILES * FRAMES; // of b and c in shared memory
constexpr int PACKS = SPAN * PADDED / 4; // of b, and as many of c
constexpr int SHARE = (2 * PACKS + THREADS - 1) / THREADS;

// `bytes` behind a pointer that all threads have in common.
template <class S> __device__ __forceinline__ S* behind(S* p, u32 bytes) {
    return (S*)((char*)p + bytes);
}
template <class S> __device__ __forceinline__ const S* behind(const S* p, u32 bytes) {
    return (const S*)((const char*)p + bytes);
}

// A lane's states, `own` of them (maybe less than none) from `at` on; zeros where there are none.
__device__ __forceinline__ void read(f32 (&to)[STATES], const f32* from, s64 at, bool in, int own) {
    if constexpr (EVEN && STATES % 4 == 0) {
#pragma unroll
        for (int j = 0; j < STATES; j += 4)
            *(float4*)&to[j] = in && from ? *(const float4*)(from + at + j) : float4{};
    } else {
#pragma unroll
        for (int j = 0; j < STATES; j++)
            to[j] = in && from && (EVEN || j < own) ? from[at + j] : 0.f;
    }
}

__device__ __forceinline__ void write(f32* to, const f32 (&from)[STATES], s64 at, int own) {
    if constexpr (EVEN && STATES % 4 == 0) {
#pragma unroll
        for (int j = 0; j < STATES; j += 4) *(float4*)(to + at + j) = *(const float4*)&from[j];
    } else {
#pragma unroll
        for (int j = 0; j < STATES; j++)
            if (EVEN || j < own) to[at + j] = from[j];
    }
}

// The sum over the lanes of a channel, in each of them.
__device__ __forceinline__ f32 all_meet(f32 y) {
#pragma unroll
    for (int m = CHANNELS; m < WARP; m *= 2) y += __shfl_xor_sync(~0u, y, m);
    return y;
}

#ifdef NORM
typedef Normed<WARPS_A_BLOCK, OWN, LANES> Exchange;
#define WITH_NORM(...) __VA_ARGS__
constexpr bool NORMS = true;
#else
#define WITH_NORM(...)
constexpr bool NORMS = false;
#endif

template <bool OUT, bool ROWS>
__device__ __forceinline__ void scan(const Scan& p WITH_NORM(, const Norm& norm)) {
    __shared__ __align__(16) f32 s_b[BUFFERS][SPAN * PADDED];
    __shared__ __align__(16) f32 s_c[BUFFERS][SPAN * PADDED];
    __shared__ float2 s_du[WARPS_A_BLOCK][FRAMES * CHANNELS]; // dt and dt·x

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int group = lane / CHANNELS, ch = lane % CHANNELS;
    const s64 row = blockIdx.x;
    const int chunk = blockIdx.z;
#ifdef NORM
    extern __shared__ __align__(16) f32 kept[];
    const Exchange exchange{norm, kept, row, p.length, p.channels, (int)blockIdx.y, (int)gridDim.y,
                            warp, lane};
    // From one lane, so that the warp is known not to part.
    if (__shfl_sync(~0u, warp, 0) >= WARPS_A_BLOCK) {
        let_next_begin();
        await_previous();
        exchange.serve();
        return;
    }
#endif
    const int channel = ((int)blockIdx.y * WARPS_A_BLOCK + warp) * CHANNELS + ch;
    const bool live = channel < p.channels;
    const int n0 = group * STATES, own = p.states - n0;

    const s64 begin = chunk * p.chunk, end = min(p.length, begin + p.chunk);
    // What a lane brings in lies so many bytes behind the tile's first value. Lanes beyond the last
    // channel do as that does.
    const u32 hop = (u32)(LANES * sizeof(T)) * (u32)p.channels;
    const u32 at0 = (u32)sizeof(T) * ((u32)group * (u32)p.channels + (u32)min(channel, p.channels - 1));

    // Parameters do not change while what is ahead of this kernel runs.
    let_next_begin();
    const s64 cell = (s64)channel * p.states + n0, cells = (s64)p.channels * p.states;
    f32 a[STATES], h[STATES]; // a times log2 e
    Parameter bias_of, d_of;
    if (p.bias && live) bias_of.load(p.bias, p.bias_f32, channel);
    if (p.d && live) d_of.load(p.d, p.d_f32, channel);
    if (p.a_f32) read(a, (const f32*)p.a, cell, live, own);
    else {
#pragma unroll
        for (int j = 0; j < STATES; j++)
            a[j] = live && (EVEN || j < own) ? to_f32(((const T*)p.a)[cell + j]) : 0.f;
    }
    await_previous();

    // As it was stored: to convert it is to wait for it.
    T next_dt[OWN], next_x[OWN];
    Wide<T, 4> next_bc[EVEN ? SHARE : 1];
    auto bring_by = [&](T (&to)[OWN], const T* from, int count, u32 at, u32 hop) {
        if (count == FRAMES) {
#pragma unroll
            for (int o = 0; o < OWN; o++) to[o] = *behind(from, at + o * hop);
        } else {
#pragma unroll
            for (int o = 0; o < OWN; o++)
                to[o] = group + o * LANES < count ? *behind(from, at + o * hop) : T{};
        }
    };
    auto bring = [&](T (&to)[OWN], const T* from, int count) {
        bring_by(to, from, count, at0, hop);
    };
    auto fetch = [&](s64 t0) {
        const int count = (int)min((s64)FRAMES, end - t0);
        const s64 first = row * p.length + t0;
        bring(next_dt, p.dt + first * p.channels, count);
        bring(next_x, p.x + first * p.channels, count);
    };
    auto fetch_vectors = [&](s64 t0) {
        const int count = (int)min((s64)SPAN, end - t0) * PADDED;
        const s64 first = (row * p.length + t0) * PADDED;
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int pack = tid + i * THREADS, of = pack % PACKS * 4;
            next_bc[i].zero();
            if (pack < (OUT ? 2 : 1) * PACKS && of < count) {
                if constexpr (ROWS) {
                    const s64 frame = row * p.length + t0 + of / PADDED;
                    const T* const at = pack < PACKS ? p.b + frame * p.b_pitch : p.c + frame * p.c_pitch;
                    next_bc[i].load(at + of % PADDED);
                } else next_bc[i].load((pack < PACKS ? p.b : p.c) + first + of);
            }
        }
    };
    fetch(begin);
    if (EVEN) fetch_vectors(begin);
    read(h, OUT ? p.state : nullptr, row * cells + cell, live, own);
#pragma unroll
    for (int j = 0; j < STATES; j++) a[j] *= LOG2E;
    if (OUT && live) {
#pragma unroll 1
        for (int q = 0; q < chunk; q++) {
            const s64 at = (row * p.chunks + q) * p.channels + channel;
            const f32 elapsed = p.elapsed[at];
            f32 carry[STATES];
            read(carry, p.carry, at * p.states + n0, true, own);
#pragma unroll
            for (int j = 0; j < STATES; j++) h[j] = fmaf(power(elapsed * a[j]), h[j], carry[j]);
        }
    }
    if constexpr (NORMS || (ROWS && !EXACT)) {
        // Used here, or each tile's first multiply-adds wait for the loads of the next one as well, which
        // ptxas may count as it does those of h.
#pragma unroll
        for (int j = 0; j < STATES; j++) h[j] += 0.f;
    }
    const f32 bias = bias_of.value(p.bias_f32), d = d_of.value(p.d_f32);
    f32 elapsed = 0.f;

    int turn = 0;
    const f32 *at_b = nullptr, *at_c = nullptr;
#pragma unroll 1
    for (s64 t0 = begin; t0 < end; t0 += FRAMES) {
        const int count = (int)min((s64)FRAMES, end - t0);
        const s64 first = row * p.length + t0;
        if (turn % TILES == 0) {
            f32* const b = s_b[turn / TILES % BUFFERS];
            f32* const c = s_c[turn / TILES % BUFFERS];
            if constexpr (EVEN) {
#pragma unroll
                for (int i = 0; i < SHARE; i++) {
                    const int pack = tid + i * THREADS;
                    if (pack >= (OUT ? 2 : 1) * PACKS) break;
                    const Pack<f32, 4> four = {next_bc[i].at(0), next_bc[i].at(1),
                                               next_bc[i].at(2), next_bc[i].at(3)};
                    *(Pack<f32, 4>*)((pack < PACKS ? b : c) + pack % PACKS * 4) = four;
                }
                if (t0 + SPAN < end) fetch_vectors(t0 + SPAN);
            } else {
                __syncthreads(); // what was there has been read
#pragma unroll 1
                for (int i = tid; i < SPAN * PADDED; i += THREADS) {
                    const int f = i / PADDED, n = i % PADDED;
                    const bool in = t0 + f < end && n < p.states;
                    const s64 of_b = (first + f) * (ROWS ? p.b_pitch : p.states) + n;
                    const s64 of_c = ROWS ? (first + f) * p.c_pitch + n : of_b;
                    b[i] = in ? to_f32(p.b[of_b]) : 0.f;
                    if (OUT) c[i] = in ? to_f32(p.c[of_c]) : 0.f;
                }
            }
#ifdef NORM
            Exchange::meet_scanning();
#else
            __syncthreads();
#endif
            at_b = b + n0;
            at_c = c + n0;
        }
        WITH_NORM(Exchange::await_room(turn);)
        turn++;

        f32 dt[OWN], skip[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) dt[o] = to_f32(next_dt[o]) + bias;
        take_time(dt, p);
        if (count < FRAMES) { // frames beyond the last are of no time and change nothing
#pragma unroll
            for (int o = 0; o < OWN; o++)
                if (group + o * LANES >= count) dt[o] = 0.f;
        }
        __syncwarp();
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const f32 x = to_f32(next_x[o]);
            skip[o] = p.d ? d * x : 0.f; // 0 · ∞ is no number
            s_du[warp][(o * LANES + group) * CHANNELS + ch] = float2{dt[o], dt[o] * x};
            if (!OUT) elapsed += dt[o];
        }
        __syncwarp();

        T z[OWN] = {}, residual[OWN] = {};
        if (OUT && p.z) {
            if constexpr (ROWS) {
                const u32 pitch = (u32)p.z_pitch * (u32)sizeof(T);
                const u32 at = (u32)group * pitch + (u32)sizeof(T) * (u32)min(channel, p.channels - 1);
                bring_by(z, p.z + first * p.z_pitch, count, at, (u32)LANES * pitch);
            } else bring(z, p.z + first * p.channels, count);
        }
        if (OUT && p.residual) bring(residual, p.residual + first * p.channels, count);
        if (t0 + FRAMES < end) fetch(t0 + FRAMES);

        f32 y[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            // A branch keeps what is loaded from being asked for ahead of it: only where lanes are many.
            if (SKIPS && o * LANES >= count) {
                y[o] = 0.f;
                continue;
            }
            auto advance = [&](int f) {
                f32 b[STATES], c[STATES], sum = 0.f;
                read_row(b, at_b + (o * LANES + f) * PADDED);
                if (OUT) read_row(c, at_c + (o * LANES + f) * PADDED);
                const float2 du = s_du[warp][(o * LANES + f) * CHANNELS + ch];
#pragma unroll
                for (int j = 0; j < STATES; j++) {
                    h[j] = fmaf(power(du.x * a[j]), h[j], du.y * b[j]);
                    // Without a test what pads the states would make NaN of infinity.
                    if (OUT && (EVEN || j < own)) sum = fmaf(h[j], c[j], sum);
                }
                return sum;
            };
            if constexpr (EVEN) {
                f32 sums[LANES];
#pragma unroll
                for (int f = 0; f < LANES; f++) sums[f] = advance(f);
                if (OUT) y[o] = meet(sums, group);
            } else {
#pragma unroll 1
                for (int f = 0; f < LANES; f++) {
                    const f32 sum = all_meet(advance(f));
                    if (group == f) y[o] = sum;
                }
            }
        }
        at_b += FRAMES * PADDED;
        at_c += FRAMES * PADDED;
        if constexpr (OUT) {
#pragma unroll
            for (int o = 0; o < OWN; o++) y[o] += skip[o];
            finish(y, p, [&](int o) { return z[o]; }, [&](int o) { return residual[o]; });
            T* const to = p.y + first * p.channels;
            if (live && count == FRAMES) {
#pragma unroll
                for (int o = 0; o < OWN; o++) *behind(to, at0 + o * hop) = from_f32<T>(y[o]);
            } else {
#pragma unroll
                for (int o = 0; o < OWN; o++)
                    if (live && group + o * LANES < count)
                        *behind(to, at0 + o * hop) = from_f32<T>(y[o]);
            }
            WITH_NORM(exchange.keep(y, turn - 1, t0 + FRAMES >= end);)
        }
    }

    if (OUT) {
        if (live && chunk == p.chunks - 1) write(p.h, h, row * cells + cell, own);
    } else {
        elapsed = all_meet(elapsed);
        const s64 at = (row * p.chunks + chunk) * p.channels + channel;
        if (live) write(p.carry, h, at * p.states + n0, own);
        if (live && group == 0) p.elapsed[at] = elapsed;
    }
}

#ifdef NORM
#define ENTRY(NAME, ROWS)                                                                          \
    extern "C" __global__ void __launch_bounds__(Exchange::THREADS, BLOCKS)                        \
        NAME(const __grid_constant__ Scan p, const __grid_constant__ Norm norm) {                  \
        scan<true, ROWS>(p, norm);                                                                 \
    }

ENTRY(scan_norm, false)
ENTRY(scan_norm_rows, true)
#else
#define ENTRY(NAME, OUT, ROWS)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                  \
        NAME(const __grid_constant__ Scan p) {                                                     \
        scan<OUT, ROWS>(p);                                                                        \
    }

ENTRY(scan_y, true, false)
ENTRY(scan_carry, false, false)
ENTRY(scan_y_rows, true, true)
ENTRY(scan_carry_rows, false, true)
#endif
