// Types and their conversions. NVRTC has no CUDA headers here, so the names are our own.
//
// A module is compiled for one storage type: `-DT=bf16`. Arithmetic is in `Acc<T>`: f32 for the
// 16-bit types and f32, f64 for f64, u64 for u64, s64 for the other integers.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef float f32;
typedef double f64;

struct __align__(2) f16 { u16 bits; };
struct __align__(2) bf16 { u16 bits; };

__device__ __forceinline__ f32 to_f32(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ f32 to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ f32 to_f32(f32 x) { return x; }

template <class S> __device__ __forceinline__ S from_f32(f32 x);
template <> __device__ __forceinline__ f16 from_f32<f16>(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ bf16 from_f32<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f32 from_f32<f32>(f32 x) { return x; }

template <class S> struct AccOf { typedef s64 type; };
template <> struct AccOf<f16> { typedef f32 type; };
template <> struct AccOf<bf16> { typedef f32 type; };
template <> struct AccOf<f32> { typedef f32 type; };
template <> struct AccOf<f64> { typedef f64 type; };
template <> struct AccOf<u64> { typedef u64 type; };
template <class S> using Acc = typename AccOf<S>::type;

// To and from the type of arithmetic.
__device__ __forceinline__ f32 load(f16 x) { return to_f32(x); }
__device__ __forceinline__ f32 load(bf16 x) { return to_f32(x); }
__device__ __forceinline__ f32 load(f32 x) { return x; }
__device__ __forceinline__ f64 load(f64 x) { return x; }
__device__ __forceinline__ s64 load(u8 x) { return x; }
__device__ __forceinline__ s64 load(u16 x) { return x; }
__device__ __forceinline__ s64 load(u32 x) { return x; }
__device__ __forceinline__ u64 load(u64 x) { return x; }
__device__ __forceinline__ s64 load(s8 x) { return x; }
__device__ __forceinline__ s64 load(s16 x) { return x; }
__device__ __forceinline__ s64 load(s32 x) { return x; }
__device__ __forceinline__ s64 load(s64 x) { return x; }

template <class S> __device__ __forceinline__ S store(f32 x) { return from_f32<S>(x); }
template <class S> __device__ __forceinline__ S store(f64 x) { return (S)x; }
template <class S> __device__ __forceinline__ S store(s64 x) { return (S)x; }
template <class S> __device__ __forceinline__ S store(u64 x) { return (S)x; }

// N values that travel in one access of up to 16 bytes.
template <class S, int N> struct __align__(sizeof(S) * N) Pack { S at[N]; };
