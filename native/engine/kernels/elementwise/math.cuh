// The type that elementwise arithmetic is done in, and the loop over a pack.
#pragma once
#include "common/types.cuh"

template <class S> struct MathOf { typedef S type; };
template <> struct MathOf<u8> { typedef u32 type; };
template <> struct MathOf<u16> { typedef u32 type; };
template <> struct MathOf<s8> { typedef s32 type; };
template <> struct MathOf<s16> { typedef s32 type; };
template <> struct MathOf<f16> { typedef f32 type; };
template <> struct MathOf<bf16> { typedef f32 type; };
template <class S> using Math = typename MathOf<S>::type;

template <class C> struct IsFloat { static const bool value = false; };
template <> struct IsFloat<f32> { static const bool value = true; };
template <> struct IsFloat<f64> { static const bool value = true; };

template <class S> struct IsSigned { static const bool value = (S)-1 < (S)0; };

// Integers wrap, which C++ only promises for unsigned types.
template <class C> struct WrapOf { typedef C type; };
template <> struct WrapOf<s32> { typedef u32 type; };
template <> struct WrapOf<s64> { typedef u64 type; };
template <class C> using Wrap = typename WrapOf<C>::type;

template <class S> __device__ __forceinline__ Math<S> get(S x) { return x; }
template <> __device__ __forceinline__ f32 get<f16>(f16 x) { return to_f32(x); }
template <> __device__ __forceinline__ f32 get<bf16>(bf16 x) { return to_f32(x); }

template <class S> __device__ __forceinline__ S round_to(Math<S> x) { return (S)x; }
template <> __device__ __forceinline__ f16 round_to<f16>(f32 x) { return from_f32<f16>(x); }
template <> __device__ __forceinline__ bf16 round_to<bf16>(f32 x) { return from_f32<bf16>(x); }
