// Where an index leads to. `cuda/index.rs` lays the structs out.
#pragma once
#include "common/integer.cuh"
#include "common/walk.cuh"

// A row of `n` numbers, each along an axis of x.
struct Index {
    const void* numbers;
    u32 type;
    u32 n;
    s64 length[8];
    s64 stride[8];  // in elements of x
};

// Where row `r` leads to, each number moved into its axis.
__device__ __forceinline__ s64 clamped(const Index& x, u64 r) {
    s64 at = 0;
#pragma unroll 1
    for (u32 k = 0; k < x.n; ++k) {
        s64 i = integer_at(x.numbers, r * x.n + k, x.type);
        i = i >= x.length[k] ? x.length[k] - 1 : i < 0 ? 0 : i;
        at += i * x.stride[k];
    }
    return at;
}

constexpr u64 NOWHERE = ~0ull;

// Where row `r` leads to, or NOWHERE.
__device__ __forceinline__ u64 checked(const Index& x, u64 r) {
    s64 at = 0;
    bool inside = true;
#pragma unroll 1
    for (u32 k = 0; k < x.n; ++k) {
        s64 i = integer_at(x.numbers, r * x.n + k, x.type);
        inside &= i >= 0 && i < x.length[k];
        at += i * x.stride[k];
    }
    return inside ? (u64)at : NOWHERE;
}
