// Counting numbers of any type. Each element is its place along an axis of `length`, whose places
// are `inner` elements apart.
#include "common/walk.cuh"

// In the order of the engine's DType.
enum Type : u32 { U8, U16, U32, U64, S8, S16, S32, S64, F16, BF16, F32, F64 };

template <class D> __device__ __forceinline__ D number(u64 i) { return (D)i; }
// Beyond 2^24 an f32 would be rounded twice; 16 bits are rounded from what is left of the number
// with its last bit set where more was cut off.
__device__ __forceinline__ f32 odd(u64 i) {
    f32 y = __ull2float_rz(i);
    return (u64)y != i ? __uint_as_float(__float_as_uint(y) | 1) : y;
}
template <> __device__ __forceinline__ f16 number<f16>(u64 i) { return from_f32<f16>(odd(i)); }
template <> __device__ __forceinline__ bf16 number<bf16>(u64 i) { return from_f32<bf16>(odd(i)); }

struct Count {
    u64 n;
    Divisor inner, length;
};

template <class D> __device__ __forceinline__ void run(D* y, const Count& c) {
    constexpr int V = 16 / sizeof(D);
    u64 at = thread_index() * V;
    if (at >= c.n) return;
    Pack<D, V> out;
    u64 row = divide(at, c.inner), rest = at - row * c.inner.by;
    u64 place = row - divide(row, c.length) * c.length.by;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        out.at[v] = number<D>(place);
        if (++rest == c.inner.by) {
            rest = 0;
            if (++place == c.length.by) place = 0;
        }
    }
    put<D, V>(y + at, out, c.n - at);
}

extern "C" __global__ void iota(void* y, const __grid_constant__ Count c, u32 type) {
    switch (type) {
        case U8: case S8: run((u8*)y, c); return;
        case U16: case S16: run((u16*)y, c); return;
        case U32: case S32: run((u32*)y, c); return;
        case U64: case S64: run((u64*)y, c); return;
        case F16: run((f16*)y, c); return;
        case BF16: run((bf16*)y, c); return;
        case F32: run((f32*)y, c); return;
        case F64: run((f64*)y, c); return;
    }
}
