// What `cumulative` and `window_reduce` do with two elements, chosen as it runs.
#pragma once
#include "common/types.cuh"

// In the order of the engine's FoldKind.
enum Fold : u32 { SUM, PRODUCT, MAX, MIN };

template <class N> struct WrapOf { typedef N type; };
template <> struct WrapOf<s64> { typedef u64 type; };

// The ends of the elements' type S in the type of arithmetic N: a window that sees no element gives
// one of them.
template <class N, class S> __device__ __forceinline__ N greatest() {
    if constexpr ((N)0.5 != (N)0) return (N)__int_as_float(0x7f800000);
    else return (N)(~0ull >> (64 - 8 * sizeof(S) + ((S)-1 < (S)0)));
}
template <class N, class S> __device__ __forceinline__ N least() {
    if constexpr ((N)0.5 != (N)0) return -greatest<N, S>();
    else return (S)-1 < (S)0 ? (N)(-(s64)greatest<N, S>() - 1) : (N)0;
}

template <class N> struct Folding {
    u32 kind;
    typedef typename WrapOf<N>::type W;

    __device__ __forceinline__ N none() const {
        return kind == SUM ? (N)0 : kind == PRODUCT ? (N)1 : kind == MAX ? least<N, T>() : greatest<N, T>();
    }
    // A NaN stays.
    __device__ __forceinline__ N join(N a, N b) const {
        switch (kind) {
            case SUM: return (N)((W)a + (W)b);
            case PRODUCT: return (N)((W)a * (W)b);
            case MAX: return a > b || a != a ? a : b;
            default: return a < b || a != a ? a : b;
        }
    }
};
