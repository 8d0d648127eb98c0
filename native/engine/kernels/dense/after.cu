// What follows a product that a library left in y: bias, activation and residual, or the gate. A
// thread takes a pack of columns of every so many rows.

#include "dense/epilogue.cuh"

constexpr int ACROSS = 32, DOWN = 8;

template <class Y, int N>
__device__ __forceinline__ void finish(const T* up, const Epilogue<T>& end, s64 m) {
    typedef Pack<Y, N> Values;
    typedef Pack<T, N> Others;
    const int column = (blockIdx.x * ACROSS + threadIdx.x) * N;
    if (column >= end.columns) return;
    Others bias;
    if (end.bias) bias = *(const Others*)(end.bias + column);
    for (s64 row = (s64)blockIdx.y * DOWN + threadIdx.y; row < m; row += (s64)gridDim.y * DOWN) {
        const s64 at = row * end.columns + column;
        Values y = *(Values*)((Y*)end.y + at);
        Others other;
        if (up) other = *(const Others*)(up + at);
        else if (end.residual) other = *(const Others*)(end.residual + at);
        f32 sum[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            sum[i] = to_f32(y.at[i]);
            if (end.bias) sum[i] += to_f32(bias.at[i]);
        }
        activate<T>(sum, end.activation);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (up) sum[i] *= to_f32(other.at[i]);
            else if (end.residual) sum[i] += to_f32(other.at[i]);
            y.at[i] = from_f32<Y>(sum[i]);
        }
        *(Values*)((Y*)end.y + at) = y;
    }
}

// A bias of the type of the sums.
extern "C" __global__ void __launch_bounds__(256) widen(const T* from, f32* to, u64 n) {
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i < n) to[i] = to_f32(from[i]);
}

#define ENTRY(NAME, Y, N)                                                                         \
    extern "C" __global__ void __launch_bounds__(ACROSS * DOWN)                                   \
        NAME(const T* up, Epilogue<T> end, s64 m) {                                               \
        finish<Y, N>(up, end, m);                                                                 \
    }

ENTRY(after_packs, T, 16 / sizeof(T))
ENTRY(after_odd, T, 1)
ENTRY(after_f32_packs, f32, 4)
ENTRY(after_f32_odd, f32, 1)
