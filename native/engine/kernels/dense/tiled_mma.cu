// dense on many rows in bf16 or f16: tensor core products with f32 sums, three tiles in flight.

#include "common/mma.cuh"
#include "dense/epilogue.cuh"
#include "dense/raster.cuh"

constexpr int BK = 32;
constexpr int STAGES = 3;
// Rows are padded by one 16-byte access, so that the eight rows that ldmatrix reads together lie
// in different banks.
constexpr int PAD = 8;

template <int BM, int BN> struct Stage {
    T a[BM][BK + PAD];
    T b[BK][BN + PAD];
};

// Eight values of a row at `at` to shared memory; zeros outside of `rows` × `width`.
template <bool ALIGNED>
__device__ __forceinline__ void fetch(T* to, const T* p, s64 row, s64 rows, int at, int width) {
    if (ALIGNED) {
        const bool in = row < rows && at < width;
        copy_async(to, in ? p + row * width + at : p, in);
    } else {
        Pack<T, 8> pack;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const bool in = row < rows && at + i < width;
            pack.at[i] = in ? p[row * width + at + i] : from_f32<T>(0.f);
        }
        *(Pack<T, 8>*)to = pack;
    }
}

template <int BM, int BN, int WM, int WN, bool ALIGNED>
__device__ __forceinline__ void product(const T* x, const T* w, Epilogue<T> end, s64 m, int k) {
    constexpr int THREADS = BM / WM * (BN / WN) * WARP;
    extern __shared__ __align__(16) unsigned char shared[];
    auto* stages = (Stage<BM, BN>*)shared;

    const int n = end.columns;
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    const Tile tile = tile_of_block<BM, BN>(m, n);

    auto load = [&](int step) {
        Stage<BM, BN>& s = stages[step % STAGES];
#pragma unroll
        for (int i = tid; i < BM * BK / 8; i += THREADS) {
            const int row = i / (BK / 8), at = i % (BK / 8) * 8;
            fetch<ALIGNED>(&s.a[row][at], x, tile.m + row, m, step * BK + at, k);
        }
#pragma unroll
        for (int i = tid; i < BK * BN / 8; i += THREADS) {
            const int row = i / (BN / 8), at = i % (BN / 8) * 8;
            fetch<ALIGNED>(&s.b[row][at], w, step * BK + row, k, tile.n + at, n);
        }
    };

    const int steps = (k + BK - 1) / BK;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        copy_async_commit();
    }
    f32 sum[WM / 16][WN / 8][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        // This tile is there for all, and nobody reads the one before, which is overwritten next.
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copy_async_commit();
        const Stage<BM, BN>& s = stages[step % STAGES];
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

#define ENTRY(NAME, BM, BN, WM, WN, ALIGNED)                                                      \
    extern "C" __global__ void __launch_bounds__(BM / WM*(BN / WN) * WARP)                        \
        NAME(const T* x, const T* w, Epilogue<T> end, s64 m, int k) {                             \
        product<BM, BN, WM, WN, ALIGNED>(x, w, end, m, k);                                        \
    }

ENTRY(tiled_big, 128, 128, 64, 32, true)
ENTRY(tiled_mid, 64, 64, 32, 32, true)
ENTRY(tiled_slim, 64, 32, 32, 16, true)
ENTRY(tiled_odd, 64, 64, 32, 32, false)
