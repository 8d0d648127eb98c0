// Which tile of the result a block computes.
#pragma once

#include "common/types.cuh"

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
