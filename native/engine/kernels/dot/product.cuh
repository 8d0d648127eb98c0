// What products of any type are computed in: f32 for the 16-bit floats, and unsigned integers for
// the integers, since those wrap.
#pragma once

#include "common/types.cuh"

template <class S> struct SumOf { typedef u32 type; };
template <> struct SumOf<s64> { typedef u64 type; };
template <> struct SumOf<u64> { typedef u64 type; };
template <> struct SumOf<f16> { typedef f32 type; };
template <> struct SumOf<bf16> { typedef f32 type; };
template <> struct SumOf<f32> { typedef f32 type; };
template <> struct SumOf<f64> { typedef f64 type; };
typedef SumOf<T>::type Sum;

__device__ __forceinline__ Sum widen(T x) { return (Sum)load(x); }
template <class S, class V> __device__ __forceinline__ S narrow_to(V x) { return (S)x; }
template <> __device__ __forceinline__ f16 narrow_to<f16>(f32 x) { return from_f32<f16>(x); }
template <> __device__ __forceinline__ bf16 narrow_to<bf16>(f32 x) { return from_f32<bf16>(x); }
__device__ __forceinline__ T narrow(Sum x) { return narrow_to<T>(x); }

__device__ __forceinline__ f32 multiply_add(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
__device__ __forceinline__ f64 multiply_add(f64 a, f64 b, f64 c) { return fma(a, b, c); }
__device__ __forceinline__ u32 multiply_add(u32 a, u32 b, u32 c) { return a * b + c; }
__device__ __forceinline__ u64 multiply_add(u64 a, u64 b, u64 c) { return a * b + c; }

// How an operand lies, in elements from one to the next.
struct Side {
    s64 batch, free, inner;
};
