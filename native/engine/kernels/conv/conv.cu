// causal_conv1d: y[t] = act(b + Σ w[k]·x[t − K + 1 + k]) over {B, L, D}, and the last K − 1 frames as
// the new state. Bound by memory.
//
// A thread takes a run of frames of one pack of channels, neighbours in a warp the packs beside it.
// With a K that the compiler knows, the weights and the last K − 1 frames stay in registers and
// each frame is read once; a larger K reads its frames again, from L1.

#include "common/early.cuh"
#include "common/walk.cuh"
#include "common/wide.cuh"
#include "dense/epilogue.cuh"

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
    Wide<T, VEC> v;
    if (t >= kept) v.load(p.x + (row * p.length + t - kept) * p.pitch + at);
    else if (p.state) v.load(p.state + (row * kept + t) * p.channels + at);
    else v.zero();
    return v;
}

template <int VEC> __device__ __forceinline__ void keep(T* to, const Wide<T, VEC>& v) {
    Pack<T, VEC> pack;
#pragma unroll
    for (int i = 0; i < VEC; i++) pack.at[i] = from_f32<T>(v.at(i));
    *(Pack<T, VEC>*)to = pack;
}

// The activations that are seldom with a convolution, once rather than once an element.
__device__ __noinline__ f32 seldom(f32 x, int activation) {
    f32 y[1] = {x};
    activate<T>(y, activation);
    return y[0];
}

template <int VEC>
__device__ __forceinline__ void put(const Conv& p, s64 row, s64 t, int at, const f32 (&sum)[VEC]) {
    Pack<T, VEC> y;
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        f32 v = sum[i];
        if (p.activation == SILU) v *= sigmoid(v);
        else if (p.activation != NONE) v = seldom(v, p.activation);
        y.at[i] = from_f32<T>(v);
    }
    *(Pack<T, VEC>*)(p.y + (row * p.length + t) * p.channels + at) = y;
}

// TAPS of 0 takes them from `p`.
template <int TAPS, int VEC> __device__ __forceinline__ void convolve(const Conv& p) {
    let_next_begin();
    await_previous();
    const u64 item = thread_index();
    if (item >= p.items) return;
    const s64 row = divide(item, p.per_row);
    const u64 rest = item - row * p.per_row.by;
    const s64 run = divide(rest, p.packs);
    const int at = (int)(rest - run * p.packs.by) * VEC;
    const int taps = TAPS ? TAPS : p.taps, kept = taps - 1;
    const s64 from = run * p.run, to = min(p.length, from + p.run);

    Wide<T, VEC> bias;
    bias.zero();
    if (p.b) bias.load(p.b + at);
    if (TAPS) {
        Wide<T, VEC> w[TAPS ? TAPS : 1], window[TAPS ? TAPS : 1];
#pragma unroll
        for (int k = 0; k < TAPS; k++) w[k].load(p.w + (s64)k * p.channels + at);
#pragma unroll
        for (int k = 0; k < TAPS - 1; k++) window[k] = frame<VEC>(p, row, kept, from + k, at);
#pragma unroll 1
        for (s64 t = from; t < to; t++) {
            window[TAPS ? TAPS - 1 : 0].load(p.x + (row * p.length + t) * p.pitch + at);
            f32 sum[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[i] = bias.at(i);
#pragma unroll
            for (int k = 0; k < TAPS; k++)
#pragma unroll
                for (int i = 0; i < VEC; i++) sum[i] = fmaf(w[k].at(i), window[k].at(i), sum[i]);
            put<VEC>(p, row, t, at, sum);
#pragma unroll
            for (int k = 0; k < TAPS - 1; k++) window[k] = window[k + 1];
        }
    } else {
#pragma unroll 1
        for (s64 t = from; t < to; t++) {
            f32 sum[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[i] = bias.at(i);
#pragma unroll 2
            for (int k = 0; k < taps; k++) {
                Wide<T, VEC> w;
                w.load(p.w + (s64)k * p.channels + at);
                const Wide<T, VEC> x = frame<VEC>(p, row, kept, t + k, at);
#pragma unroll
                for (int i = 0; i < VEC; i++) sum[i] = fmaf(w.at(i), x.at(i), sum[i]);
            }
            put<VEC>(p, row, t, at, sum);
        }
    }
    if (run == p.runs - 1) {
        // The state is never its own input, so what is read here is still what it was.
#pragma unroll 1
        for (int j = 0; j < kept; j++)
            keep<VEC>(p.last + (row * kept + j) * p.channels + at,
                      frame<VEC>(p, row, kept, p.length + j, at));
    }
}

#define ENTRY(NAME, TAPS, VEC)                                                                    \
    extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ Conv p) {      \
        convolve<TAPS, VEC>(p);                                                                   \
    }

ENTRY(conv_2, 2, 16 / sizeof(T))
ENTRY(conv_3, 3, 16 / sizeof(T))
ENTRY(conv_4, 4, 16 / sizeof(T))
ENTRY(conv_any, 0, 16 / sizeof(T))
// Where rows of channels are not whole 16-byte packs.
ENTRY(conv_odd, 0, 1)
