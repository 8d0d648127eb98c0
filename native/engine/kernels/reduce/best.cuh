// The largest of several numbers and where it is: a NaN beats any number, and of equals the first
// wins, or the last.
#pragma once
#include "common/types.cuh"

template <class A> struct Best {
    A value;
    s32 at;  // -1 for nothing yet
    __device__ __forceinline__ Best shuffle(u32 d) const {
        return {__shfl_xor_sync(~0u, value, d), __shfl_xor_sync(~0u, at, d)};
    }
};

struct Better {
    bool last = false;
    template <class A>
    __device__ __forceinline__ Best<A> operator()(Best<A> a, Best<A> b) const {
        if (a.at < 0) return b;
        if (b.at < 0) return a;
        bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        bool a_wins = a_nan ? !b_nan : a.value > b.value;
        bool b_wins = b_nan ? !a_nan : b.value > a.value;
        return a_wins || (!b_wins && (a.at < b.at) != last) ? a : b;
    }
};
