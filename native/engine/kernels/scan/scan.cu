// selective_scan: h ← exp(dt·A)·h + dt·B·x, y = (C·h + d·x)·silu(z) + residual, and the norm over D
// where a block has whole rows.
//
// A channel's states are shared by `groups` lanes of a warp, in registers and f32. A block has `wide`
// channels and goes through its frames tile by tile: all threads bring dt and dt·x
// of a tile to shared memory, so that what dt takes is computed once a channel; then every lane
// advances its states frame after frame and the lanes of a channel add up C·h; then all threads
// finish y, in the order it lies in memory.
//
// Along L: a tile is cut among `splits` sets of warps. Each first finds what its frames make of a
// state of zero, and how much time passes in them; what comes in is folded from those before it,
// exp(Σ dt · A) being the decay over any number of frames, and then the frames are run again from
// there. Where that is too little a grid of `chunks` does the same in two launches.

#include "common/warp.cuh"

struct Scan {
    const T* x;
    const T* dt;
    const void* a;
    const T* b;
    const T* c;
    const void* d;     // or null, as all below
    const T* z;
    const void* bias;
    const f32* state;
    const T* residual;
    const T* gamma;
    const T* beta;
    T* y;
    T* normed;         // null where the norm is not done here
    f32* h;
    f32* carry;        // {B, chunks, D, N}: what a chunk makes of a state of zero
    f32* elapsed;      // {B, chunks, D}: the sum of its dt
    s64 length;
    s64 chunk;         // frames of a chunk
    int channels;
    int states;
    int tiles;
    int chunks;
    int wide;          // channels of a block
    int groups;        // lanes of a channel, a power of two
    int splits;
    int steps;         // frames of a split
    int a_f32, d_f32, bias_f32;
    int softplus, clamp, centred;
    f32 low, high, epsilon;
    int padding;
};

__device__ __forceinline__ f32 parameter(const void* p, int is_f32, int i) {
    return is_f32 ? ((const f32*)p)[i] : to_f32(((const T*)p)[i]);
}

// 16-bit types need no more than what the special function unit gives.
constexpr bool EXACT = sizeof(T) == 4;

// 2^x. For 16-bit types what is below the normal numbers may go to zero.
__device__ __forceinline__ f32 power(f32 x) {
    if (EXACT) return exp2f(x);
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ln(1 + e^x) for x of at most 0.
__device__ __forceinline__ f32 soft(f32 x) {
    if (EXACT) return log1pf(expf(x));
    const f32 e = power(x * 1.4426950408889634f);
    f32 log;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(1.f + e));
    // Of a small e the sum with 1 has lost too much.
    return e < 0.015625f ? e * (1.f - e * (0.5f - e * 0.33333333f)) : log * 0.69314718f;
}

__device__ __forceinline__ f32 gate(f32 z) {
    if (EXACT) return z * sigmoid(z);
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.f + power(z * -1.4426950408889634f)));
    return z * y;
}

__device__ __forceinline__ f32 step_of(const Scan& p, f32 dt, f32 bias) {
    dt += bias;
    if (p.softplus) dt = (dt < 0.f ? 0.f : dt) + soft(-fabsf(dt));
    if (p.clamp) { // a NaN stays one
        dt = dt < p.low ? p.low : dt;
        dt = dt > p.high ? p.high : dt;
    }
    return dt;
}

__device__ __forceinline__ f32 block_sum(f32 x, f32* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.f);
}

// The norm of rows of D values in shared memory, all threads a row.
__device__ __forceinline__ void norm_rows(const Scan& p, const f32* rows, int count, s64 at) {
    __shared__ f32 scratch[3][WARP];
    const int n = p.channels, tid = threadIdx.x, threads = blockDim.x;
#pragma unroll 1
    for (int f = 0; f < count; f++) {
        const f32* row = rows + f * p.wide;
        f32 mean = 0.f, squares = 0.f, rest = 0.f;
        if (p.centred) {
            for (int i = tid; i < n; i += threads) mean += row[i];
            mean = block_sum(mean, scratch[0]) / n;
        }
        for (int i = tid; i < n; i += threads) {
            const f32 off = row[i] - mean;
            squares = fmaf(off, off, squares);
            rest += off;
        }
        // What the rounding of the mean has left.
        const f32 shift = p.centred ? block_sum(rest, scratch[1]) / n : 0.f;
        const f32 variance = block_sum(squares, scratch[2]) / n - shift * shift;
        const f32 scale = 1.f / sqrtf(variance + p.epsilon);
        for (int i = tid; i < n; i += threads) {
            f32 v = (row[i] - mean - shift) * scale * to_f32(p.gamma[i]);
            if (p.beta) v += to_f32(p.beta[i]);
            p.normed[at + (s64)f * n + i] = from_f32<T>(v);
        }
        __syncthreads(); // before the next row takes the scratch
    }
}

template <int EACH> struct States {
    __align__(16) f32 a[EACH]; // times log2 e
    __align__(16) f32 h[EACH];
};

// A lane's states, `own` of them (maybe less than none) from `at` on; zeros where there are none.
template <int EACH>
__device__ __forceinline__ void read(f32 (&to)[EACH], const f32* from, s64 at, bool in, int own) {
    if (in && from && own >= EACH && at % 4 == 0) {
#pragma unroll
        for (int j = 0; j < EACH; j += 4) *(float4*)&to[j] = *(const float4*)(from + at + j);
        return;
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) to[j] = in && from && j < own ? from[at + j] : 0.f;
}

template <int EACH>
__device__ __forceinline__ void write(f32* to, const f32 (&from)[EACH], s64 at, int own) {
    if (own >= EACH && at % 4 == 0) {
#pragma unroll
        for (int j = 0; j < EACH; j += 4) *(float4*)(to + at + j) = *(const float4*)&from[j];
        return;
    }
#pragma unroll
    for (int j = 0; j < EACH; j++)
        if (j < own) to[at + j] = from[j];
}

// COUNT frames from `dt`, `u`, `b` and `c` on; y takes the place of u. A lane has `own` states.
template <int EACH, int LANES, int COUNT, bool OUT>
__device__ __forceinline__ void advance(States<EACH>& s, const f32* dt, f32* u, const f32* b,
                                        const f32* c, int own, int wide, int padded,
                                        int per_warp, int group) {
    f32 dts[COUNT], us[COUNT], y[COUNT];
#pragma unroll
    for (int f = 0; f < COUNT; f++) {
        dts[f] = dt[f * wide];
        us[f] = u[f * wide];
        y[f] = 0.f;
    }
#pragma unroll
    for (int f = 0; f < COUNT; f++) {
#pragma unroll
        for (int q = 0; q < EACH; q += 4) {
            const float4 b4 = *(const float4*)(b + f * padded + q);
            const f32 bs[4] = {b4.x, b4.y, b4.z, b4.w};
            f32 cs[4] = {};
            if (OUT) {
                const float4 c4 = *(const float4*)(c + f * padded + q);
                cs[0] = c4.x, cs[1] = c4.y, cs[2] = c4.z, cs[3] = c4.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                f32& h = s.h[q + j];
                h = fmaf(power(dts[f] * s.a[q + j]), h, us[f] * bs[j]);
                // Without a test what pads the states would make NaN of infinity.
                if (OUT && (LANES || q + j < own)) y[f] = fmaf(h, cs[j], y[f]);
            }
        }
    }
    if constexpr (!OUT) return;
    if constexpr (LANES == 4 && COUNT == 4) {
        // Each of the four lanes ends with the sum of one frame.
        const bool odd = group & 1, upper = group & 2;
        f32 low = (odd ? y[1] : y[0]) + __shfl_xor_sync(~0u, odd ? y[0] : y[1], 8);
        f32 high = (odd ? y[3] : y[2]) +
                   __shfl_xor_sync(~0u, odd ? y[2] : y[3], 8);
        const f32 sum = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, 16);
        __syncwarp(); // every lane of the channel has read u
        u[group * wide] = sum;
    } else {
#pragma unroll 1
        for (int m = per_warp; m < WARP; m <<= 1)
#pragma unroll
            for (int f = 0; f < COUNT; f++) y[f] += __shfl_xor_sync(~0u, y[f], m);
        __syncwarp(); // every lane of the channel has read u
        if (group != 0) return;
#pragma unroll
        for (int f = 0; f < COUNT; f++) u[f * wide] = y[f];
    }
}

// As many frames together as registers allow.
template <int EACH, int LANES, bool OUT>
__device__ __forceinline__ void pass(States<EACH>& s, const f32* dt, f32* u, const f32* b,
                                     const f32* c, int steps, int own, int wide, int padded,
                                     int per_warp, int group) {
    constexpr int COUNT = 16 / EACH;
    int f = 0;
#pragma unroll 1
    for (; f + COUNT <= steps; f += COUNT)
        advance<EACH, LANES, COUNT, OUT>(s, dt + f * wide, u + f * wide, b + f * padded,
                                         c + f * padded, own, wide, padded, per_warp, group);
    if constexpr (COUNT > 1) {
#pragma unroll 1
        for (; f < steps; f++)
            advance<EACH, LANES, 1, OUT>(s, dt + f * wide, u + f * wide, b + f * padded,
                                         c + f * padded, own, wide, padded, per_warp, group);
    }
}

template <int EACH, int LANES, bool OUT> __device__ __forceinline__ void scan(const Scan& p) {
    extern __shared__ __align__(16) f32 shared[];
    const int groups = LANES ? LANES : p.groups;
    const int padded = groups * EACH, per_warp = WARP / groups, wide = p.wide;
    const int frames = p.splits * p.steps;
    const int plane = (frames * wide + 3) / 4 * 4;
    f32* const s_dt = shared;
    f32* const s_u = s_dt + plane;
    f32* const s_x = s_u + plane; // d·x
    f32* const s_b = s_x + plane;
    f32* const s_c = s_b + frames * padded;
    f32* const s_h = s_c + frames * padded; // [splits][wide][padded]
    f32* const s_t = s_h + p.splits * wide * padded;

    const int tid = threadIdx.x, threads = blockDim.x;
    const int lane = tid % WARP, warp = tid / WARP;
    const int warps = wide / per_warp; // of a split
    const int split = warp / warps, group = lane / per_warp;
    const int ch = warp % warps * per_warp + lane % per_warp;

    const int tile = blockIdx.x % p.tiles;
    const int chunk = blockIdx.x / p.tiles % p.chunks;
    const s64 row = blockIdx.x / p.tiles / p.chunks;
    const int channel = tile * wide + ch, n0 = group * EACH, own = p.states - n0;

    const s64 cell = (s64)channel * p.states + n0;
    const bool here = channel < p.channels;
    States<EACH> s;
    if (p.a_f32) read(s.a, (const f32*)p.a, cell, here, own);
    else {
#pragma unroll
        for (int j = 0; j < EACH; j++)
            s.a[j] = here && j < own ? to_f32(((const T*)p.a)[cell + j]) : 0.f;
    }
    const s64 cells = (s64)p.channels * p.states;
    read(s.h, OUT ? p.state : nullptr, row * cells + cell, here, own);
#pragma unroll
    for (int j = 0; j < EACH; j++) s.a[j] *= 1.4426950408889634f;
    if (OUT && here) {
#pragma unroll 1
        for (int q = 0; q < chunk; q++) {
            const s64 at = (row * p.chunks + q) * p.channels + channel;
            const f32 elapsed = p.elapsed[at];
            __align__(16) f32 carry[EACH];
            read(carry, p.carry, at * p.states + n0, true, own);
#pragma unroll
            for (int j = 0; j < EACH; j++)
                s.h[j] = fmaf(power(elapsed * s.a[j]), s.h[j], carry[j]);
        }
    }

    // A thread brings in, and finishes, frames of the one channel, AHEAD of them a tile at most.
    const int mine = tid % wide, f0 = tid / wide, stride = p.splits * groups;
    const int my_channel = tile * wide + mine;
    const bool live = my_channel < p.channels;
    const f32 bias = p.bias && live ? parameter(p.bias, p.bias_f32, my_channel) : 0.f;
    const f32 d = p.d && live ? parameter(p.d, p.d_f32, my_channel) : 0.f;
    const s64 hop = (s64)stride * p.channels; // from one of its frames to the next
    f32 elapsed = 0.f;

    const s64 begin = chunk * p.chunk, end = min(p.length, begin + p.chunk);
    // The next tile is on its way while this one is computed.
    f32 next_dt[AHEAD], next_x[AHEAD], next_b[2], next_c[2];
    auto vectors = [&](s64 t0, int i, f32& b, f32& c) {
        const int f = i / padded, n = i % padded;
        const bool in = f < frames && t0 + f < end && n < p.states;
        const s64 at = (row * p.length + t0 + f) * p.states + n;
        b = in ? to_f32(p.b[at]) : 0.f;
        c = OUT && in ? to_f32(p.c[at]) : 0.f;
    };
    auto fetch = [&](s64 t0) {
        const int count = live ? (int)min((s64)frames, end - t0) : 0;
        s64 at = (row * p.length + t0 + f0) * p.channels + my_channel;
#pragma unroll
        for (int e = 0; e < AHEAD; e++, at += hop) {
            const bool in = f0 + e * stride < count;
            next_dt[e] = in ? to_f32(p.dt[at]) : 0.f;
            next_x[e] = in ? to_f32(p.x[at]) : 0.f;
        }
#pragma unroll
        for (int e = 0; e < 2; e++) vectors(t0, tid + e * threads, next_b[e], next_c[e]);
    };
    fetch(begin);
#pragma unroll 1
    for (s64 t0 = begin; t0 < end; t0 += frames) {
        const int count = (int)min((s64)frames, end - t0);
        const s64 first = row * p.length + t0;
#pragma unroll
        for (int e = 0; e < AHEAD; e++) {
            const int f = f0 + e * stride;
            if (f >= frames) break;
            s_dt[f * wide + mine] = next_dt[e];
            s_x[f * wide + mine] = next_x[e];
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int i = tid + e * threads;
            if (i >= frames * padded) break;
            s_b[i] = next_b[e];
            if (OUT) s_c[i] = next_c[e];
        }
#pragma unroll 1
        for (int i = tid + 2 * threads; i < frames * padded; i += threads) {
            f32 b, c;
            vectors(t0, i, b, c);
            s_b[i] = b;
            if (OUT) s_c[i] = c;
        }
        // Frames beyond the last are of no time and change nothing.
#pragma unroll 1
        for (int f = f0; f < frames; f += stride) {
            const int at = f * wide + mine;
            const f32 x = s_x[at], dt = f < count ? step_of(p, s_dt[at], bias) : 0.f;
            s_dt[at] = dt;
            s_u[at] = dt * x;
            s_x[at] = p.d ? d * x : 0.f; // 0 · ∞ is no number
        }
        __syncthreads();
        f32 z[AHEAD];
        if constexpr (OUT) {
            s64 at = (first + f0) * p.channels + my_channel;
#pragma unroll
            for (int e = 0; e < AHEAD; e++, at += hop) {
                const bool in = p.z && live && f0 + e * stride < count;
                z[e] = in ? to_f32(p.z[at]) : 0.f;
            }
        }
        if (t0 + frames < end) fetch(t0 + frames);

        const int from = split * p.steps;
        const f32* dt = s_dt + from * wide + ch;
        f32* u = s_u + from * wide + ch;
        const f32* b = s_b + from * padded + n0;
        const f32* c = s_c + from * padded + n0;
        f32 incoming[EACH];
        if (OUT && p.splits > 1) {
            States<EACH> local = s;
            f32 passed = 0.f;
#pragma unroll
            for (int j = 0; j < EACH; j++) local.h[j] = 0.f;
#pragma unroll 1
            for (int f = 0; f < p.steps; f++) passed += dt[f * wide];
            pass<EACH, LANES, false>(local, dt, u, b, c, p.steps, own, wide, padded, per_warp, group);
#pragma unroll
            for (int j = 0; j < EACH; j++) s_h[(split * wide + ch) * padded + n0 + j] = local.h[j];
            if (group == 0) s_t[split * wide + ch] = passed;
            __syncthreads();
#pragma unroll
            for (int j = 0; j < EACH; j++) incoming[j] = s.h[j];
#pragma unroll 1
            for (int q = 0; q < p.splits; q++) {
                const f32 passed = s_t[q * wide + ch];
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    if (q == split) s.h[j] = incoming[j];
                    incoming[j] = fmaf(power(passed * s.a[j]), incoming[j],
                                       s_h[(q * wide + ch) * padded + n0 + j]);
                }
            }
        }
        if constexpr (!OUT) {
#pragma unroll 1
            for (int f = 0; f < p.steps; f++) elapsed += dt[f * wide];
        }
        pass<EACH, LANES, OUT>(s, dt, u, b, c, p.steps, own, wide, padded, per_warp, group);
        if (OUT && p.splits > 1) {
#pragma unroll
            for (int j = 0; j < EACH; j++) s.h[j] = incoming[j];
        }
        __syncthreads();
        if constexpr (OUT) {
            if (p.z) {
#pragma unroll
                for (int e = 0; e < AHEAD; e++)
                    if (f0 + e * stride < frames) s_dt[(f0 + e * stride) * wide + mine] = z[e];
            }
#pragma unroll 1
            for (int f = f0; live && f < count; f += stride) {
                const int in = f * wide + mine;
                const s64 at = (first + f) * p.channels + my_channel;
                f32 y = s_u[in] + s_x[in];
                if (p.z) y *= gate(s_dt[in]);
                if (p.residual) y += to_f32(p.residual[at]);
                p.y[at] = from_f32<T>(y);
                if (p.normed) s_u[in] = y;
            }
            if (p.normed) {
                __syncthreads();
                norm_rows(p, s_u, count, first * p.channels);
            }
        }
    }

    if (split != 0 || !here) return;
    if (OUT) {
        if (chunk != p.chunks - 1) return;
        write(p.h, s.h, row * cells + cell, own);
    } else {
        const s64 at = (row * p.chunks + chunk) * p.channels + channel;
        write(p.carry, s.h, at * p.states + n0, own);
        if (group == 0) p.elapsed[at] = elapsed;
    }
}

// With the module come STATES (of a lane), GROUPS (0 where the launch says), MOST (threads of a block,
// 1024 where it has whole rows for the norm), BLOCKS (that a multiprocessor is to hold) and AHEAD
// (frames of a tile that a thread brings in, at most).
extern "C" __global__ void __launch_bounds__(MOST, BLOCKS) scan_y(const __grid_constant__ Scan p) {
    scan<STATES, GROUPS, true>(p);
}
#if MOST < 1024
extern "C" __global__ void __launch_bounds__(MOST, BLOCKS) scan_carry(const __grid_constant__ Scan p) {
    scan<STATES, GROUPS, false>(p);
}
#endif
