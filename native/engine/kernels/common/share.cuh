// Sums over some lanes of a warp that these share out among them.
#pragma once

#include "common/warp.cuh"

// The sums of v over LANES lanes that lie STEP apart, shared out among them: with each exchange a lane
// keeps half of the values and gives the other half away, as long as there are two. Returns the first of
// those that it is left with, KEPT in number, at the beginning of v.
template <int N, int LANES> constexpr int kept() {
    return LANES > 1 && N % 2 == 0 ? kept<N / 2, LANES / 2>() : N;
}
template <int LANES, int STEP, int N> __device__ __forceinline__ int fold(f32 (&v)[N]) {
    if constexpr (LANES == 1) {
        return 0;
    } else if constexpr (N % 2 == 0) {
        constexpr int M = LANES / 2 * STEP;
        const bool upper = threadIdx.x & M;
        f32 half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const f32 give = upper ? v[i] : v[i + N / 2];
            half[i] = (upper ? v[i + N / 2] : v[i]) + __shfl_xor_sync(~0u, give, M);
        }
        const int first = fold<LANES / 2, STEP>(half);
#pragma unroll
        for (int i = 0; i < N / 2; i++) v[i] = half[i];
        return (upper ? N / 2 : 0) + first;
    } else {
#pragma unroll
        for (int m = STEP; m < LANES * STEP; m *= 2)
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += __shfl_xor_sync(~0u, v[i], m);
        return 0;
    }
}
