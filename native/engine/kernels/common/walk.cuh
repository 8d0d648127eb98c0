// Walking a dense output while each input is read by its own strides. The host drops axes of
// length 1, joins neighbours that lie as one, and hands the rest over by value; `cuda/walk.rs`
// lays the structs out.
#pragma once
#include "common/types.cuh"

// A division by a number the host knows: a product and a shift for dividends below 2^31.
struct Divisor {
    u64 by;
    u32 magic, shift;
};

__device__ __forceinline__ u64 divide(u64 n, const Divisor& d) {
    if (n >> 31) return n / d.by;
    return (__umulhi((u32)n, d.magic) + (u32)n) >> d.shift;
}

// One axis: its length, and how far apart its elements are in each operand.
struct Axis {
    Divisor length;
    s64 stride[3];
};

// Lengths and strides of the last axis count packs where the kernel moves packs. `n` is the number
// of elements, which only a walk of one axis may have more or fewer of than whole packs.
struct Walk {
    u64 n;
    u32 rank;
    u32 spread;  // bit k: operand k stays where it is along the last axis
    Axis axis[8];
};

// Where pack `i` of the output lies in the first N operands, in elements.
template <int N> __device__ __forceinline__ void locate(const Walk& w, u64 i, s64 (&at)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) at[k] = 0;
#pragma unroll 1
    for (int a = (int)w.rank - 1; a > 0; --a) {
        u64 q = divide(i, w.axis[a].length);
        s64 c = (s64)(i - q * w.axis[a].length.by);
#pragma unroll
        for (int k = 0; k < N; ++k) at[k] += c * w.axis[a].stride[k];
        i = q;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) at[k] += (s64)i * w.axis[0].stride[k];
}

__device__ __forceinline__ u64 thread_index() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

// V elements from `x`, or one of them V times, or the first `left` where fewer are left.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> fetch(const S* x, bool spread, u64 left) {
    Pack<S, V> p;
    if (spread) {
        S one = *x;
#pragma unroll
        for (int v = 0; v < V; ++v) p.at[v] = one;
    } else if (V == 1 || left >= V) {
        p = *(const Pack<S, V>*)x;
    } else {
#pragma unroll
        for (int v = 0; v < V; ++v) p.at[v] = v < left ? x[v] : x[0];
    }
    return p;
}

template <class S, int V>
__device__ __forceinline__ void put(S* y, const Pack<S, V>& p, u64 left) {
    if (V == 1 || left >= V) {
        *(Pack<S, V>*)y = p;
    } else {
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (v < left) y[v] = p.at[v];
    }
}

// An element that is only moved: all that matters is its size.
template <int N> struct RawOf;
template <> struct RawOf<1> { typedef u8 type; };
template <> struct RawOf<2> { typedef u16 type; };
template <> struct RawOf<4> { typedef u32 type; };
template <> struct RawOf<8> { typedef u64 type; };
template <int N> using Raw = typename RawOf<N>::type;
