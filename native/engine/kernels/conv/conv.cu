// causal_conv1d: y[t] = act(b + Σ w[k]·x[t − K + 1 + k]) over {B, L, D}, and the last K − 1 frames as
// the new state. Bound by memory.
//
// A thread takes a run of frames of one pack of channels, neighbours in a warp the packs beside it.
// With a K that the compiler knows each frame is read once and widened once: it goes into the K sums
// that it is a part of. The sums and the weights take 8 registers a channel, so a pack is 4 channels,
// whatever the type, and the registers that are left hold the loads under way. A larger K reads its
// frames again, from L1.

#include "common/early.cuh"
#include "common/full.cuh"
#include "common/walk.cuh"
#include "common/wide.cuh"
#include "dense/epilogue.cuh"

constexpr int THREADS = 128;
// Blocks that a multiprocessor is to hold; `cuda/conv.rs` cuts its runs by it.
constexpr int RESIDENT = 6;
constexpr int WINDOW = 4;
// Bytes that a thread has under way.
constexpr int AHEAD = 64;

struct Conv {
    const T* x;
    const T* w;
    const T* b;     // or null
    const T* state; // or null, for zeros
    T* y;
    T* last;
    s64 pitch; // elements of x from a frame to the next
    u64 items; // packs · runs · rows
    s64 length;
    s64 run; // frames a thread takes
    s64 runs;
    int channels;
    int taps;
    int activation;
    int padding;
    Divisor packs; // of channels
    Divisor per_row; // packs · runs
};

// Frame `t` of the state and then of x.
template <int VEC>
__device__ __forceinline__ Wide<T, VEC> frame(const Conv& p, s64 row, int kept, s64 t, int at) {
    const bool old = t < kept;
    const T* from = old ? p.state + (row * kept + t) * p.channels + at
                        : p.x + (row * p.length + t - kept) * p.pitch + at;
    Wide<T, VEC> v;
    v.zero();
    if (!old || p.state) v.load(from);
    return v;
}

// The activations that are seldom with a convolution, once rather than once an element.
__device__ __noinline__ f32 seldom(f32 x, int activation) {
    f32 y[1] = {x};
    activate<T>(y, activation);
    return y[0];
}

template <int VEC> __device__ __forceinline__ void put(T* y, f32 (&sum)[VEC], int activation) {
    if (activation == SILU) {
#pragma unroll
        for (int i = 0; i < VEC; i++)
            sum[i] *= sizeof(T) == 2 ? short_sigmoid(sum[i]) : full_sigmoid(sum[i]);
    } else if (activation != NONE) {
#pragma unroll
        for (int i = 0; i < VEC; i++) sum[i] = seldom(sum[i], activation);
    }
    Wide<T, VEC> rounded;
    rounded.set(sum);
    rounded.store(y);
}

template <bool B> struct Is { static constexpr bool value = B; };

// A thread's part of the work.
template <int VEC> struct Part {
    s64 row, run, from, to;
    int at;

    __device__ __forceinline__ Part(const Conv& p, u64 item) {
        row = divide(item, p.per_row);
        const u64 rest = item - row * p.per_row.by;
        run = divide(rest, p.packs);
        at = (int)(rest - run * p.packs.by) * VEC;
        from = run * p.run;
        to = min(p.length, from + p.run);
    }
};

template <int TAPS> __device__ __forceinline__ void window(const Conv& p) {
    constexpr int VEC = WINDOW, KEPT = TAPS - 1, DEEP = AHEAD / (VEC * sizeof(T));
    typedef Wide<T, VEC> Frame;
    let_next_begin();
    await_previous();
    const u64 item = thread_index();
    if (item >= p.items) return;
    const Part<VEC> part(p, item);
    const int at = part.at, frames = (int)(part.to - part.from);

    // All that can be asked for is, before anything is waited for.
    Frame ahead[DEEP], before[KEPT], raw[TAPS], offset;
    const T* x = p.x + (part.row * p.length + part.from) * p.pitch + at;
#pragma unroll
    for (int u = 0; u < DEEP; u++, x += p.pitch)
        if (u < frames) ahead[u].load(x);
#pragma unroll
    for (int k = 0; k < KEPT; k++) before[k] = frame<VEC>(p, part.row, KEPT, part.from + k, at);
#pragma unroll
    for (int k = 0; k < TAPS; k++) raw[k].load(p.w + (s64)k * p.channels + at);
    offset.zero();
    if (p.b) offset.load(p.b + at);
    if (part.run == p.runs - 1) {
        // The state is never its own input, so what is read here is still what it was.
        Frame end[KEPT];
#pragma unroll
        for (int j = 0; j < KEPT; j++) end[j] = frame<VEC>(p, part.row, KEPT, p.length + j, at);
#pragma unroll
        for (int j = 0; j < KEPT; j++) end[j].store(p.last + (part.row * KEPT + j) * p.channels + at);
    }

    f32 w[TAPS][VEC], bias[VEC], sums[KEPT][VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        bias[i] = offset.at(i);
#pragma unroll
        for (int k = 0; k < TAPS; k++) w[k][i] = raw[k].at(i);
#pragma unroll
        for (int k = 0; k < KEPT; k++) sums[k][i] = bias[i];
    }
    // sums[0] is all but the newest frame of the next result, sums[1] all but two of the one after.
    auto add = [&](const Frame& newest, f32(&y)[VEC]) {
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const f32 v = newest.at(i);
            y[i] = fmaf(w[KEPT][i], v, sums[0][i]);
#pragma unroll
            for (int k = 0; k < KEPT; k++)
                sums[k][i] = fmaf(w[KEPT - 1 - k][i], v, k + 1 < KEPT ? sums[k + 1][i] : bias[i]);
        }
    };
    f32 sum[VEC];
#pragma unroll
    for (int k = 0; k < KEPT; k++) add(before[k], sum);

    T* y = p.y + (part.row * p.length + part.from) * p.channels + at;
    auto convolve = [&](auto silu) {
        const int activation = decltype(silu)::value ? SILU : p.activation;
#pragma unroll 1
        for (int left = frames; left > 0; left -= DEEP) {
#pragma unroll
            for (int u = 0; u < DEEP; u++) {
                if (left <= u) break;
                add(ahead[u], sum);
                if (left > u + DEEP) ahead[u].load(x);
                x += p.pitch;
                put<VEC>(y, sum, activation);
                y += p.channels;
            }
        }
    };
    // Asked once, since a frame of a pack is 55 instructions or so.
    if (p.activation == SILU) convolve(Is<true>());
    else convolve(Is<false>());
}

template <int VEC> __device__ __forceinline__ void any(const Conv& p) {
    let_next_begin();
    await_previous();
    const u64 item = thread_index();
    if (item >= p.items) return;
    const Part<VEC> part(p, item);
    const int at = part.at, kept = p.taps - 1;
    Wide<T, VEC> bias;
    bias.zero();
    if (p.b) bias.load(p.b + at);
#pragma unroll 1
    for (s64 t = part.from; t < part.to; t++) {
        f32 sum[VEC];
#pragma unroll
        for (int i = 0; i < VEC; i++) sum[i] = bias.at(i);
#pragma unroll 2
        for (int k = 0; k <= kept; k++) {
            Wide<T, VEC> w;
            w.load(p.w + (s64)k * p.channels + at);
            const Wide<T, VEC> x = frame<VEC>(p, part.row, kept, t + k, at);
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[i] = fmaf(w.at(i), x.at(i), sum[i]);
        }
        put<VEC>(p.y + (part.row * p.length + t) * p.channels + at, sum, p.activation);
    }
    if (part.run == p.runs - 1) {
        // As above.
#pragma unroll 1
        for (int j = 0; j < kept; j++)
            frame<VEC>(p, part.row, kept, p.length + j, at)
                .store(p.last + (part.row * kept + j) * p.channels + at);
    }
}

#define ENTRY(NAME, BODY)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)                               \
        NAME(const __grid_constant__ Conv p) {                                                    \
        BODY(p);                                                                                  \
    }

ENTRY(conv_2, window<2>)
ENTRY(conv_3, window<3>)
ENTRY(conv_4, window<4>)
ENTRY(conv_any, any<16 / sizeof(T)>)
// Where rows of channels are not whole packs.
ENTRY(conv_odd, any<1>)
