// dense on many rows in true f32: tiles in shared memory, TM × TN sums a thread in registers, the
// next tile on its way while one is multiplied.

#include "dense/epilogue.cuh"
#include "dense/raster.cuh"

constexpr int THREADS = 128;
constexpr int BK = 16;

// Four values of a row at `at`; zeros outside of `rows` × `width`.
template <bool ALIGNED>
__device__ __forceinline__ float4 quad(const f32* p, s64 row, s64 rows, int at, int width) {
    float4 q = make_float4(0.f, 0.f, 0.f, 0.f);
    if (row >= rows) return q;
    p += row * width;
    if (ALIGNED) {
        if (at < width) q = *(const float4*)(p + at);
    } else {
        if (at < width) q.x = p[at];
        if (at + 1 < width) q.y = p[at + 1];
        if (at + 2 < width) q.z = p[at + 2];
        if (at + 3 < width) q.w = p[at + 3];
    }
    return q;
}

template <int BM, int BN, int TM, int TN, bool ALIGNED>
__device__ __forceinline__ void product(const f32* x, const f32* w, Epilogue<f32> end, s64 m,
                                        int k) {
    static_assert((BM / TM) * (BN / TN) == THREADS, "one tile of sums a thread");
    constexpr int ACROSS = BN / TN;
    constexpr int A_QUADS = BM * BK / 4 / THREADS, B_QUADS = BK * BN / 4 / THREADS;
    // A is kept transposed; its rows are padded so that the stores spread over the banks.
    union Shared {
        struct {
            f32 a[2][BK][BM + 4];
            f32 b[2][BK][BN];
        };
        f32 sums[BM][BN + 4];
    };
    __shared__ __align__(16) Shared shared;
    auto& as = shared.a;
    auto& bs = shared.b;

    const int n = end.columns;
    const int tid = threadIdx.x;
    const int tx = tid % ACROSS, ty = tid / ACROSS;
    const Tile tile = tile_of_block<BM, BN>(m, n);

    float4 a[A_QUADS], b[B_QUADS];
    auto fetch = [&](int k0) {
#pragma unroll
        for (int i = 0; i < A_QUADS; i++) {
            const int q = tid + i * THREADS;
            a[i] = quad<ALIGNED>(x, tile.m + q / (BK / 4), m, k0 + q % (BK / 4) * 4, k);
        }
#pragma unroll
        for (int i = 0; i < B_QUADS; i++) {
            const int q = tid + i * THREADS;
            b[i] = quad<ALIGNED>(w, k0 + q / (BN / 4), k, tile.n + q % (BN / 4) * 4, n);
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < A_QUADS; i++) {
            const int q = tid + i * THREADS, row = q / (BK / 4), at = q % (BK / 4) * 4;
            as[buffer][at][row] = a[i].x;
            as[buffer][at + 1][row] = a[i].y;
            as[buffer][at + 2][row] = a[i].z;
            as[buffer][at + 3][row] = a[i].w;
        }
#pragma unroll
        for (int i = 0; i < B_QUADS; i++) {
            const int q = tid + i * THREADS;
            *(float4*)&bs[buffer][q / (BN / 4)][q % (BN / 4) * 4] = b[i];
        }
    };

    // A thread's rows and columns come in fours that lie apart, so that the lanes' reads of four
    // stand side by side.
    constexpr int M_APART = BM / (TM / 4), N_APART = BN / (TN / 4);
    f32 sum[TM][TN] = {};
    fetch(0);
    keep(0);
    __syncthreads();
    int buffer = 0;
    for (int k0 = 0; k0 < k; k0 += BK) {
        const bool more = k0 + BK < k;
        if (more) fetch(k0 + BK);
#pragma unroll
        for (int kk = 0; kk < BK; kk++) {
            f32 av[TM], bv[TN];
#pragma unroll
            for (int i = 0; i < TM; i += 4)
                *(float4*)&av[i] = *(const float4*)&as[buffer][kk][i / 4 * M_APART + ty * 4];
#pragma unroll
            for (int j = 0; j < TN; j += 4)
                *(float4*)&bv[j] = *(const float4*)&bs[buffer][kk][j / 4 * N_APART + tx * 4];
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
        }
        if (more) {
            keep(buffer ^ 1);
            __syncthreads();
            buffer ^= 1;
        }
    }

    __syncthreads();
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int row = i / 4 * M_APART + ty * 4 + i % 4;
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            *(float4*)&shared.sums[row][j / 4 * N_APART + tx * 4] =
                make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
        }
    }
    __syncthreads();
    put_tile<BM, BN, THREADS>(shared.sums, end, tile.m, m, tile.n);
}

#define ENTRY(NAME, BM, BN, TM, TN, ALIGNED)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const f32* x, const f32* w, Epilogue<f32> end, s64 m, int k) {                       \
        product<BM, BN, TM, TN, ALIGNED>(x, w, end, m, k);                                        \
    }

ENTRY(tiled_big, 128, 64, 8, 8, true)
ENTRY(tiled_slim, 64, 32, 4, 4, true)
ENTRY(tiled_odd, 64, 32, 4, 4, false)
