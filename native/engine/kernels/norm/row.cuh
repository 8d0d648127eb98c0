// A norm of one row by each warp for itself, with no barrier: for kernels of a frame. The row's values lie
// in the registers of a warp's lanes, asked for before anything waits for them.
//
// The arithmetic is that of norm/norm.cu. An RMS norm's scale is the same for all of a row, so that it may
// as well be multiplied with a product's sums, which then need not wait for it.
#pragma once

#include "common/warp.cuh"
#include "common/wide.cuh"

template <class S, int LENGTH> struct Row {
    static constexpr int PACK = 16 / sizeof(S);
    static constexpr int CHUNKS = (LENGTH + WARP * PACK - 1) / (WARP * PACK);
    Wide<S, PACK> pack[CHUNKS];

    // Where in the row a thread's first values lie.
    static __device__ __forceinline__ u32 first() { return at(0); }

    __device__ __forceinline__ explicit Row(const S* first) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            if (at(i) < LENGTH) pack[i].load(first + i * WARP * PACK);
            else pack[i].zero();
        }
    }
    template <class F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            if (at(i) < LENGTH)
#pragma unroll
                for (int k = 0; k < PACK; k++) f(pack[i].at(k));
    }

  private:
    static __device__ __forceinline__ int at(int i) {
        return (int)(i * WARP + threadIdx.x % WARP) * PACK;
    }
};

// What is taken from a row's values, and what they are multiplied with then.
struct Scaling {
    f32 mean, scale;
};

// The i-th value as a product takes it; of an RMS norm without its scale.
template <bool LAYER_NORM>
__device__ __forceinline__ f32 normed(f32 x, const Scaling& s, const f32* gamma, const f32* beta, int i) {
    return LAYER_NORM ? fmaf((x - s.mean) * s.scale, gamma[i], beta[i]) : x * gamma[i];
}

template <bool LAYER_NORM, class S, int LENGTH>
__device__ __forceinline__ Scaling scaling(f32 epsilon, const Row<S, LENGTH>& row) {
    f32 mean = 0.f, squares = 0.f, shift = 0.f;
    if (LAYER_NORM) {
        row.each([&](f32 x) { mean += x; });
        mean = warp_sum(mean) / LENGTH;
        f32 rest = 0.f;
        row.each([&](f32 x) {
            const f32 d = x - mean;
            squares = fmaf(d, d, squares);
            rest += d;
        });
        shift = warp_sum(rest) / LENGTH;
    } else {
        row.each([&](f32 x) { squares = fmaf(x, x, squares); });
    }
    const f32 variance = warp_sum(squares) / LENGTH - shift * shift;
    return {mean + shift, 1.f / sqrtf(variance + epsilon)};
}
