// What the kernels for a window have in common: their parameter, how they move a lane's states, and
// what they make of the frames that a lane brings in and finishes.
#pragma once

#include "common/types.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "scan/math.cuh"

struct Scan {
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
    T* y;
    f32* h;
    f32* carry;   // {B, chunks, D, N}: what a chunk makes of a state of zero
    f32* elapsed; // {B, chunks, D}: the sum of its dt
    s64 length;
    s64 chunk; // frames of a chunk; chunks are for scan.cu alone
    s64 b_pitch, c_pitch, z_pitch; // elements from a frame to the next, where an entry goes by pitches
    int channels;
    int states;
    int chunks;
    int a_f32, d_f32, bias_f32;
    int softplus, clamp;
    f32 low, high;
};

// K values that lie in a row, 16 bytes at a time or all of them.
template <int K> __device__ __forceinline__ void read_row(f32 (&to)[K], const f32* from) {
    constexpr int M = K < 4 ? K : 4;
#pragma unroll
    for (int j = 0; j < K; j += M) *(Pack<f32, M>*)&to[j] = *(const Pack<f32, M>*)(from + j);
}

template <int K> __device__ __forceinline__ void write_row(f32* to, const f32 (&from)[K]) {
    constexpr int M = K < 4 ? K : 4;
#pragma unroll
    for (int j = 0; j < K; j += M) *(Pack<f32, M>*)(to + j) = *(const Pack<f32, M>*)&from[j];
}

__device__ __forceinline__ void keep(f32* to, const Wide<T, 4>& from) {
    const f32 four[4] = {from.at(0), from.at(1), from.at(2), from.at(3)};
    write_row(to, four);
}

// y[f] summed over the lanes of a channel, of which there are M, WARP / M lanes apart, into y[0] of
// the lane whose group is f.
template <int M> __device__ __forceinline__ f32 meet(f32 (&y)[M], int group) {
#pragma unroll
    for (int half = M / 2; half > 0; half /= 2) {
        const bool upper = group & half;
#pragma unroll
        for (int f = 0; f < half; f++) {
            const f32 given = upper ? y[f] : y[f + half], kept = upper ? y[f + half] : y[f];
            y[f] = kept + __shfl_xor_sync(~0u, given, half * (WARP / M));
        }
    }
    return y[0];
}

// What a lane's frames take of time, from dt and its bias.
template <int K> __device__ __forceinline__ void take_time(f32 (&dt)[K], const Scan& p) {
    if (p.softplus) {
#pragma unroll
        for (int o = 0; o < K; o++) dt[o] = softplus(dt[o]);
    }
    if (p.clamp) { // a NaN stays one
#pragma unroll
        for (int o = 0; o < K; o++) {
            dt[o] = dt[o] < p.low ? p.low : dt[o];
            dt[o] = dt[o] > p.high ? p.high : dt[o];
        }
    }
}

// The gate and the residual of a lane's frames, of which `z` and `residual` tell what is stored.
template <int K, class Z, class R>
__device__ __forceinline__ void finish(f32 (&y)[K], const Scan& p, Z z, R residual) {
    if (p.z) {
#pragma unroll
        for (int o = 0; o < K; o++) y[o] *= gate(to_f32(z(o)));
    }
    if (p.residual) {
#pragma unroll
        for (int o = 0; o < K; o++) y[o] += to_f32(residual(o));
    }
}
