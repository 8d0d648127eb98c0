// dense on many rows in true f32: tiles in shared memory with the next ones on their way, TM × TN
// sums a thread in registers.

#include "dense/epilogue.cuh"
#include "dense/tile.cuh"

constexpr int BK = 16;
// Keeps the rows of x that a warp reads together in different banks.
constexpr int PAD = 4;

template <int BM, int BN, int TM, int TN, int STAGES, bool ALIGNED>
__device__ __forceinline__ void product(const f32* x, const f32* w, const f32* up,
                                        Epilogue<f32> end, s64 m, int k) {
    constexpr int ACROSS = BN / TN, DOWN = BM / TM, THREADS = ACROSS * DOWN;
    struct Stage {
        f32 a[BM][BK + PAD];
        f32 b[BK][BN];
    };
    extern __shared__ __align__(16) unsigned char shared[];
    auto* stages = (Stage*)shared;

    constexpr int WIDTH = GATED ? BN / 2 : BN;
    const int n = end.columns;
    const int tx = threadIdx.x % ACROSS, ty = threadIdx.x / ACROSS;
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
    // A thread's rows lie DOWN apart, its columns in fours that lie 4 · ACROSS apart, so that what
    // the lanes read together stands side by side.
    f32 sum[TM][TN] = {};
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        // This tile is there for all, and nobody reads the one before, which is overwritten next.
        __syncthreads();
        load(step + STAGES - 1);
        const Stage& s = stages[step % STAGES];
#pragma unroll
        for (int kk = 0; kk < BK; kk += 4) {
            f32 a[TM][4];
#pragma unroll
            for (int i = 0; i < TM; i++)
                *(float4*)a[i] = *(const float4*)&s.a[ty + i * DOWN][kk];
#pragma unroll
            for (int q = 0; q < 4; q++) {
                f32 b[TN];
#pragma unroll
                for (int j = 0; j < TN; j += 4)
                    *(float4*)&b[j] = *(const float4*)&s.b[kk + q][j * ACROSS + tx * 4];
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sum[i][j] = fmaf(a[i][q], b[j], sum[i][j]);
            }
        }
    }

    copy_async_wait<0>();
    __syncthreads();
    auto* sums = (f32(*)[BN + 4])shared;
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 4)
            *(float4*)&sums[ty + i * DOWN][j * ACROSS + tx * 4] =
                make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
    __syncthreads();
    put_tile<BM, BN, THREADS>(sums, end, tile.m, m, tile.n);
}

#define ENTRY(NAME, BM, BN, TM, TN, STAGES, ALIGNED)                                              \
    extern "C" __global__ void __launch_bounds__(BM / TM*(BN / TN))                               \
        NAME(const f32* x, const f32* w, const f32* up, Epilogue<f32> end, s64 m, int k) {        \
        product<BM, BN, TM, TN, STAGES, ALIGNED>(x, w, up, end, m, k);                            \
    }

ENTRY(tiled_big, 128, 64, 8, 8, 3, true)
ENTRY(tiled_mid, 64, 64, 4, 8, 4, true)
ENTRY(tiled_slim, 32, 32, 2, 4, 6, true)
ENTRY(tiled_odd, 64, 64, 4, 8, 4, false)
