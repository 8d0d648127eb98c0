// dense on many rows in bf16 or f16: tensor core products with f32 sums, tiles in flight behind them.

#include "common/mma.cuh"
#include "dense/epilogue.cuh"
#include "dense/tile.cuh"

constexpr int BK = 32;
// Rows are padded by one 16-byte access, so that the eight rows that ldmatrix reads together lie
// in different banks.
constexpr int PAD = 8;

template <int BM, int BN, int WM, int WN, int STAGES, bool ALIGNED>
__device__ __forceinline__ void product(const T* x, const T* w, const T* up,
                                        Epilogue<T> end, s64 m, int k) {
    constexpr int THREADS = BM / WM * (BN / WN) * WARP;
    struct Stage {
        T a[BM][BK + PAD];
        T b[BK][BN + PAD];
    };
    extern __shared__ __align__(16) unsigned char shared[];
    auto* stages = (Stage*)shared;

    constexpr int WIDTH = GATED ? BN / 2 : BN;
    const int n = end.columns;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    const Tile tile = tile_of_block<BM, WIDTH>(m, n);

    const int steps = (k + BK - 1) / BK;
    auto load = [&](int step) {
        if (step < steps) {
            Stage& s = stages[step % STAGES];
            fetch<BM, BK, THREADS, ALIGNED>(s.a, x, tile.m, m, step * BK, k);
            fetch<BK, WIDTH, THREADS, ALIGNED>(s.b, w, step * BK, k, tile.n, n);
            if (GATED) fetch<BK, WIDTH, THREADS, ALIGNED>(s.b, up, step * BK, k, tile.n, n, WIDTH);
        }
        copy_async_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) load(s);
    f32 sum[WM / 16][WN / 8][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        // This tile is there for all, and nobody reads the one before, which is overwritten next.
        __syncthreads();
        load(step + STAGES - 1);
        const Stage& s = stages[step % STAGES];
#pragma unroll
        for (int kk = 0; kk < BK; kk += 16) {
            u32 a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
                load_matrices(a[i], &s.a[wm + i * 16 + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < WN / 16; j++)
                load_matrices_transposed(b[j], &s.b[kk + lane % 16][wn + j * 16 + lane / 16 * 8]);
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 8; j++)
                    mma<T>(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }

    copy_async_wait<0>();
    __syncthreads();
    auto* sums = (f32(*)[BN + 4])shared;
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++) {
            const int row = wm + i * 16 + lane / 4, column = wn + j * 8 + lane % 4 * 2;
            *(float2*)&sums[row][column] = make_float2(sum[i][j][0], sum[i][j][1]);
            *(float2*)&sums[row + 8][column] = make_float2(sum[i][j][2], sum[i][j][3]);
        }
    __syncthreads();
    put_tile<BM, BN, THREADS>(sums, end, tile.m, m, tile.n);
}

#define ENTRY(NAME, BM, BN, WM, WN, STAGES, ALIGNED)                                              \
    extern "C" __global__ void __launch_bounds__(BM / WM*(BN / WN) * WARP)                        \
        NAME(const T* x, const T* w, const T* up, Epilogue<T> end, s64 m, int k) {                \
        product<BM, BN, WM, WN, STAGES, ALIGNED>(x, w, up, end, m, k);                            \
    }

ENTRY(tiled_big, 128, 128, 64, 32, 3, true)
ENTRY(tiled_mid, 64, 64, 32, 32, 4, true)
ENTRY(tiled_slim, 64, 32, 32, 16, 6, true)
ENTRY(tiled_odd, 64, 64, 32, 32, 4, false)
