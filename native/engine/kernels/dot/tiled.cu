// y {M, N} = a {M, K} · b {K, N} for each of a batch, of any type, whichever way a and b lie: tiles in
// shared memory, TILE / 16 sums a thread each way.

#include "dot/product.cuh"

constexpr int TILE = 64, DEPTH = 16, EACH = TILE / 16, THREADS = 256;

// DEPTH × TILE values from (`inner`, `free`) on, read along whichever axis is dense; zeros beyond.
__device__ __forceinline__ void fetch(Sum (&to)[DEPTH][TILE + 1], const T* p, const Side& side,
                                      s64 free, s64 most_free, s64 inner, s64 most_inner) {
    const bool along = side.inner == 1;
#pragma unroll
    for (int i = 0; i < DEPTH * TILE / THREADS; i++) {
        const int at = threadIdx.x + i * THREADS;
        const int k = along ? at % DEPTH : at / TILE, f = along ? at / DEPTH : at % TILE;
        const bool in = free + f < most_free && inner + k < most_inner;
        to[k][f] = in ? widen(p[(free + f) * side.free + (inner + k) * side.inner]) : Sum(0);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tiled(const T* a, const T* b, T* y, Side of_a, Side of_b, s64 y_batch, s64 m, s64 n, s64 k,
          u32 down, u32 across) {
    __shared__ Sum as[DEPTH][TILE + 1], bs[DEPTH][TILE + 1];
    const u32 entry = blockIdx.x / (down * across), tile = blockIdx.x % (down * across);
    const s64 row = (s64)(tile / across) * TILE, column = (s64)(tile % across) * TILE;
    a += entry * of_a.batch;
    b += entry * of_b.batch;
    y += entry * y_batch;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    Sum sum[EACH][EACH] = {};
    for (s64 base = 0; base < k; base += DEPTH) {
        fetch(as, a, of_a, row, m, base, k);
        fetch(bs, b, of_b, column, n, base, k);
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk++) {
            Sum left[EACH], right[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                left[i] = as[kk][ty + i * 16];
                right[i] = bs[kk][tx + i * 16];
            }
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    sum[i][j] = multiply_add(left[i], right[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const s64 r = row + ty + i * 16, c = column + tx + j * 16;
            if (r < m && c < n) y[r * n + c] = narrow(sum[i][j]);
        }
}
