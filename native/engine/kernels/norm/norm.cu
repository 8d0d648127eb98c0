// layer_norm and rms_norm over the last axis, with an optional residual added first.
//
// A row is held in registers as f32 by a warp or a block, so memory is read once; a row too long
// for that is read three times. The variance is that of the differences from the mean: the mean of
// squares less the squared mean would cancel. A mean rounded to f32 is off by as much as 2⁻²⁴ of
// it, which counts where it is large beside the differences; the mean of the differences, which
// costs no further pass, takes that out again.

#include "common/early.cuh"
#include "common/warp.cuh"

struct Norm {
    const T* x;
    const T* residual; // or null
    const T* gamma;
    const T* beta; // null for rms_norm
    T* y;
    T* sum; // x + residual, where there is one
    s64 rows;
    int width;
    int centred; // layer_norm
    f32 epsilon;
};

template <int VEC>
__device__ __forceinline__ void read(const Norm& p, s64 at, f32 (&value)[VEC]) {
    typedef Pack<T, VEC> P;
    const P x = *(const P*)(p.x + at);
#pragma unroll
    for (int v = 0; v < VEC; v++) value[v] = to_f32(x.at[v]);
    if (p.residual) {
        const P r = *(const P*)(p.residual + at);
#pragma unroll
        for (int v = 0; v < VEC; v++) value[v] += to_f32(r.at[v]);
    }
}

template <int VEC>
__device__ __forceinline__ void write(const Norm& p, s64 row, int i, const f32 (&value)[VEC],
                                      f32 mean, f32 shift, f32 scale) {
    typedef Pack<T, VEC> P;
    const s64 at = row * p.width + i;
    P y, sum, gamma = *(const P*)(p.gamma + i), beta;
    if (p.beta) beta = *(const P*)(p.beta + i);
#pragma unroll
    for (int v = 0; v < VEC; v++) {
        f32 z = (value[v] - mean - shift) * scale * to_f32(gamma.at[v]);
        if (p.beta) z += to_f32(beta.at[v]);
        y.at[v] = from_f32<T>(z);
        sum.at[v] = from_f32<T>(value[v]);
    }
    *(P*)(p.y + at) = y;
    if (p.residual) *(P*)(p.sum + at) = sum;
}

// The sum over the THREADS that share a row: a warp, or the block.
template <int THREADS> __device__ __forceinline__ f32 row_sum(f32 x, f32* scratch) {
    if (THREADS == WARP) return warp_sum(x);
    return block_sum<THREADS / WARP>(x, scratch);
}

template <int THREADS, int VEC, int PACKS> __device__ __forceinline__ void held(const Norm& p) {
    __shared__ f32 scratch[3][WARP];
    let_next_begin();
    await_previous();
    const int tid = threadIdx.x % THREADS;
    const s64 row = (s64)blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    if (row >= p.rows) return; // whole warps, and no block-wide sum follows where rows share a block
    const f32 width = (f32)p.width;

    f32 value[PACKS][VEC];
    f32 sum = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int at = (i * THREADS + tid) * VEC;
        if (at < p.width) {
            read<VEC>(p, row * p.width + at, value[i]);
#pragma unroll
            for (int v = 0; v < VEC; v++) sum += value[i][v];
        }
    }
    const f32 mean = p.centred ? row_sum<THREADS>(sum, scratch[0]) / width : 0.f;
    f32 squares = 0.f, rest = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        if ((i * THREADS + tid) * VEC < p.width) {
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                const f32 d = value[i][v] - mean;
                squares = fmaf(d, d, squares);
                rest += d;
            }
        }
    }
    const f32 shift = p.centred ? row_sum<THREADS>(rest, scratch[2]) / width : 0.f;
    const f32 variance = row_sum<THREADS>(squares, scratch[1]) / width - shift * shift;
    const f32 scale = 1.f / sqrtf(variance + p.epsilon);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int at = (i * THREADS + tid) * VEC;
        if (at < p.width) write<VEC>(p, row, at, value[i], mean, shift, scale);
    }
}

template <int THREADS, int VEC> __device__ __forceinline__ void streamed(const Norm& p) {
    __shared__ f32 scratch[3][WARP];
    let_next_begin();
    await_previous();
    const s64 row = blockIdx.x;
    const f32 width = (f32)p.width;
    f32 value[VEC];
    f32 mean = 0.f;
    if (p.centred) {
        f32 sum = 0.f;
        for (int at = threadIdx.x * VEC; at < p.width; at += THREADS * VEC) {
            read<VEC>(p, row * p.width + at, value);
#pragma unroll
            for (int v = 0; v < VEC; v++) sum += value[v];
        }
        mean = block_sum<THREADS / WARP>(sum, scratch[0]) / width;
    }
    f32 squares = 0.f, rest = 0.f;
    for (int at = threadIdx.x * VEC; at < p.width; at += THREADS * VEC) {
        read<VEC>(p, row * p.width + at, value);
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            const f32 d = value[v] - mean;
            squares = fmaf(d, d, squares);
            rest += d;
        }
    }
    const f32 shift = p.centred ? block_sum<THREADS / WARP>(rest, scratch[2]) / width : 0.f;
    const f32 variance =
        block_sum<THREADS / WARP>(squares, scratch[1]) / width - shift * shift;
    const f32 scale = 1.f / sqrtf(variance + p.epsilon);
    for (int at = threadIdx.x * VEC; at < p.width; at += THREADS * VEC) {
        read<VEC>(p, row * p.width + at, value);
        write<VEC>(p, row, at, value, mean, shift, scale);
    }
}

constexpr int WIDE = 16 / sizeof(T);

// Widths: a warp holds 1024, a block of 256 4096, a block of 1024 16384.
extern "C" __global__ void __launch_bounds__(128) norm_warp(const Norm p) {
    held<WARP, WIDE, 32 / WIDE>(p);
}
extern "C" __global__ void __launch_bounds__(256) norm_block(const Norm p) {
    held<256, WIDE, 16 / WIDE>(p);
}
extern "C" __global__ void __launch_bounds__(1024) norm_large(const Norm p) {
    held<1024, WIDE, 16 / WIDE>(p);
}
extern "C" __global__ void __launch_bounds__(1024) norm_streamed(const Norm p) {
    streamed<1024, WIDE>(p);
}
// Rows that are not whole 16-byte packs.
extern "C" __global__ void __launch_bounds__(128) norm_warp_odd(const Norm p) {
    held<WARP, 1, 32>(p);
}
extern "C" __global__ void __launch_bounds__(256) norm_block_odd(const Norm p) {
    held<256, 1, 16>(p);
}
extern "C" __global__ void __launch_bounds__(1024) norm_large_odd(const Norm p) {
    held<1024, 1, 16>(p);
}
extern "C" __global__ void __launch_bounds__(1024) norm_streamed_odd(const Norm p) {
    streamed<1024, 1>(p);
}
