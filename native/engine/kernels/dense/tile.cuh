// What the tiled products share: which tile a block computes, and how tiles come in.
#pragma once

#include "common/async.cuh"

struct Tile {
    s64 m;
    int n;
};

// Blocks that run together take a patch of GROUP tile rows, so that they share what they read of x
// and of w in L2.
template <int BM, int BN> __device__ __forceinline__ Tile tile_of_block(s64 m, int n) {
    constexpr s64 GROUP = 8;
    const s64 down = (m + BM - 1) / BM, across = (n + BN - 1) / BN;
    const s64 group = blockIdx.x / (GROUP * across);
    const s64 rest = blockIdx.x - group * GROUP * across;
    const s64 height = min(GROUP, down - group * GROUP);
    return Tile{(group * GROUP + rest % height) * BM, (int)(rest / height) * BN};
}

// Copies the H × W values at (`row`, `column`) of p {rows, columns} to shared memory, 16 bytes at a
// time and `shift` columns to the right; zeros outside of p. Asynchronous where p's rows are whole
// 16-byte packs (ALIGNED).
template <int H, int W, int THREADS, bool ALIGNED, class S, int PITCH>
__device__ __forceinline__ void fetch(S (&to)[H][PITCH], const S* p, s64 row, s64 rows, int column,
                                      int columns, int shift = 0) {
    constexpr int N = 16 / sizeof(S), PACKS = H * W / N;
#pragma unroll
    for (int i = 0; i < (PACKS + THREADS - 1) / THREADS; i++) {
        const int at = threadIdx.x + i * THREADS;
        if (PACKS % THREADS != 0 && at >= PACKS) break;
        const int r = at / (W / N), c = at % (W / N) * N;
        const S* from = p + (row + r) * columns + column + c;
        S* into = &to[r][c + shift];
        if (ALIGNED) {
            const bool in = row + r < rows && column + c < columns;
            copy_async(into, in ? from : p, in);
        } else {
            Pack<S, N> pack;
#pragma unroll
            for (int j = 0; j < N; j++) {
                const bool in = row + r < rows && column + c + j < columns;
                pack.at[j] = in ? from[j] : from_f32<S>(0.f);
            }
            *(Pack<S, N>*)into = pack;
        }
    }
}
