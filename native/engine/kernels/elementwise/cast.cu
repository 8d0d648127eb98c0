// From T to a type that is the same for all threads. Each value is rounded once; a float that goes
// to an integer type is truncated and held to the type's range, and NaN gives 0.
#include "common/walk.cuh"
#include "elementwise/math.cuh"

// In the order of the engine's DType.
enum Type : u32 {
    TO_U8, TO_U16, TO_U32, TO_U64, TO_S8, TO_S16, TO_S32, TO_S64, TO_F16, TO_BF16, TO_F32, TO_F64
};

// Four elements, 4 to 32 bytes on either side.
constexpr int V = 4;

template <class D, class F> __device__ __forceinline__ D truncate(F x) {
    constexpr int W = 8 * sizeof(D) - (IsSigned<D>::value ? 1 : 0);
    // 2^W: the first number beyond the type.
    constexpr F end = (F)(1ull << (W - 1)) * (F)2;
    constexpr u64 top = ~0ull >> (64 - W);
    if (x != x) return 0;
    if (x >= end) return (D)top;
    if (x <= (IsSigned<D>::value ? -end : (F)0)) return IsSigned<D>::value ? (D)~top : (D)0;
    return (D)x;
}

// f32 with the last bit set where digits were lost ("round to odd"), so that rounding it again to
// 16 bits gives what rounding once would.
__device__ __forceinline__ f32 narrow(f64 x) {
    f32 y = __double2float_rz(x);
    return x == x && (f64)y != x ? __uint_as_float(__float_as_uint(y) | 1) : y;
}
__device__ __forceinline__ f32 narrow(f32 x) { return x; }
__device__ __forceinline__ f32 narrow(s64 x) {
    f32 y = __ll2float_rz(x);
    return (s64)y != x ? __uint_as_float(__float_as_uint(y) | 1) : y;
}
__device__ __forceinline__ f32 narrow(u64 x) {
    f32 y = __ull2float_rz(x);
    return (u64)y != x ? __uint_as_float(__float_as_uint(y) | 1) : y;
}
__device__ __forceinline__ f32 narrow(u32 x) { return narrow((s64)x); }
__device__ __forceinline__ f32 narrow(s32 x) { return narrow((s64)x); }

template <class D> struct To {
    template <class C> static __device__ __forceinline__ D from(C x) {
        if constexpr (IsFloat<C>::value && !IsFloat<D>::value) return truncate<D>(x);
        else return (D)x;
    }
};
template <> struct To<f16> {
    template <class C> static __device__ __forceinline__ f16 from(C x) {
        return from_f32<f16>(narrow(x));
    }
};
template <> struct To<bf16> {
    template <class C> static __device__ __forceinline__ bf16 from(C x) {
        return from_f32<bf16>(narrow(x));
    }
};

template <class D> __device__ __forceinline__ void run(const T* x, D* y, u64 at, u64 n) {
    Pack<T, V> in = fetch<T, V>(x + at, false, n - at);
    Pack<D, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.at[v] = To<D>::from(get(in.at[v]));
    put<D, V>(y + at, out, n - at);
}

extern "C" __global__ void cast(const T* x, void* y, u64 n, u32 type) {
    u64 at = thread_index() * V;
    if (at >= n) return;
    switch (type) {
        case TO_U8: run(x, (u8*)y, at, n); return;
        case TO_U16: run(x, (u16*)y, at, n); return;
        case TO_U64: run(x, (u64*)y, at, n); return;
        case TO_S8: run(x, (s8*)y, at, n); return;
        case TO_S16: run(x, (s16*)y, at, n); return;
        case TO_U32: run(x, (u32*)y, at, n); return;
        case TO_S32: run(x, (s32*)y, at, n); return;
        case TO_S64: run(x, (s64*)y, at, n); return;
        case TO_F16: run(x, (f16*)y, at, n); return;
        case TO_BF16: run(x, (bf16*)y, at, n); return;
        case TO_F32: run(x, (f32*)y, at, n); return;
        case TO_F64: run(x, (f64*)y, at, n); return;
    }
}
