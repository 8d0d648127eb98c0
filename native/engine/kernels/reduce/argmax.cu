// Where the largest element lies along an axis, or the least.
#include "reduce/best.cuh"
#include "reduce/lanes.cuh"

typedef Acc<T> A;
constexpr int V = 16 / sizeof(T);

// In the order that is looked for: the other way round for the least. ~x does that for integers of
// any sign, and a NaN stays one. A template, so that no float meets the ~.
template <class N> __device__ __forceinline__ N ranked(N x, bool min) {
    if constexpr ((N)0.5 != (N)0) return min ? -x : x;
    else return min ? ~x : x;
}
__device__ __forceinline__ A rank(T x, bool min) { return ranked<A>(load(x), min); }

// Rows that lie in one piece, a group of lanes a row.
extern "C" __global__ void __launch_bounds__(512, 2) argmax_rows(
    const T* x, s32* y, u64 rows, u64 n, u32 lanes, u32 min, u32 last) {
    __shared__ Best<A> shared[MAX_THREADS / 32];
    Lanes l(lanes);
    u64 row = (u64)blockIdx.x * l.groups + l.group;
    bool live = row < rows;
    x += live ? row * n : 0;
    n = live ? n : 0;
    Best<A> best = {0, -1};
    Better better{last != 0};
    sweep(
        x, n, l.lane, l.lanes,
        [&](auto& p, u64 at, u32 gap) {
            constexpr int K = sizeof(p) / 16;
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int i = 0; i < V; ++i)
                    best = better(best, Best<A>{rank(p[k].at[i], min), (s32)(at + k * gap + i)});
        },
        [&](u64 i) { best = better(best, Best<A>{rank(x[i], min), (s32)i}); });
    best = join_lanes(l, best, shared, better);
    if (live && l.lane == 0) y[row] = best.at;
}

// Along another axis than the last.
extern "C" __global__ void argmax_columns(
    const T* x, s32* y, const __grid_constant__ Columns c, u32 min, u32 last) {
    __shared__ Best<A> shared[MAX_THREADS];
    Column l(c);
    Best<A> best = {0, -1};
    Better better{last != 0};
    if (l.column < c.inner) {
        const T* p = x + l.outer * c.n * c.inner + l.column;
#pragma unroll 4
        for (u64 k = l.ty; k < c.n; k += l.down)
            best = better(best, Best<A>{rank(p[k * c.inner], min), (s32)k});
    }
    best = join_column(l, best, shared, better);
    if (l.ty == 0 && l.column < c.inner) y[l.outer * c.inner + l.column] = best.at;
}
