// Softmax and its logarithm. The maximum and the sum come from one pass that rescales the sum
// where the maximum grows; the second pass writes.
#include "reduce/lanes.cuh"

constexpr int V = 16 / sizeof(T);

// A maximum, and the sum of the exponentials below it.
struct Soft {
    f32 max, sum;
    __device__ __forceinline__ Soft shuffle(u32 d) const {
        return {__shfl_xor_sync(~0u, max, d), __shfl_xor_sync(~0u, sum, d)};
    }
};

__device__ __forceinline__ f32 minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ Soft nothing() { return {minus_infinity(), 0}; }

// What is subtracted before exp. A part that is all −∞, a mask say, sums to 0, not to NaN; fmaxf
// passes over NaN, which then comes in by the sum.
__device__ __forceinline__ f32 shift(f32 max) { return max == minus_infinity() ? 0 : max; }

__device__ __forceinline__ Soft join(Soft a, Soft b) {
    f32 max = fmaxf(a.max, b.max), m = shift(max);
    return {max, a.sum * expf(a.max - m) + b.sum * expf(b.max - m)};
}

template <int N> __device__ __forceinline__ void add(Soft& s, const f32 (&x)[N]) {
    f32 max = s.max;
#pragma unroll
    for (int i = 0; i < N; ++i) max = fmaxf(max, x[i]);
    f32 m = shift(max), sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += expf(x[i] - m);
    s = {max, s.sum * expf(s.max - m) + sum};
}

// The last step. A row of −∞ gives NaN, as −∞ less −∞ does.
struct Finish {
    f32 max, factor, log_sum;
    bool log;
    __device__ __forceinline__ Finish(Soft s, bool log)
        : max(s.max), factor(1 / s.sum), log_sum(log ? logf(s.sum) : 0), log(log) {}
    __device__ __forceinline__ T operator()(T x) const {
        f32 d = load(x) - max;
        return store<T>(log ? d - log_sum : expf(d) * factor);
    }
};

// Rows that lie in one piece, a group of lanes a row.
extern "C" __global__ void __launch_bounds__(512, 2) softmax_rows(
    const T* x, T* y, u64 rows, u64 n, u32 lanes, u32 log) {
    __shared__ Soft shared[MAX_THREADS / 32];
    Lanes l(lanes);
    u64 row = (u64)blockIdx.x * l.groups + l.group;
    bool live = row < rows;
    x += live ? row * n : 0;
    y += live ? row * n : 0;
    n = live ? n : 0;
    Soft s = nothing();
    sweep(
        x, n, l.lane, l.lanes,
        [&](auto& p, u64, u32) {
            constexpr int K = sizeof(p) / 16;
            f32 v[K * V];
#pragma unroll
            for (int i = 0; i < K * V; ++i) v[i] = load(p[i / V].at[i % V]);
            add(s, v);
        },
        [&](u64 i) {
            f32 v[1] = {load(x[i])};
            add(s, v);
        });
    s = join_lanes(l, s, shared, join);
    Finish finish(s, log);
    sweep(
        x, n, l.lane, l.lanes,
        [&](auto& p, u64 at, u32 gap) {
            constexpr int K = sizeof(p) / 16;
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
                for (int i = 0; i < V; ++i) p[k].at[i] = finish(p[k].at[i]);
                *(Pack<T, V>*)(y + at + (u64)k * gap) = p[k];
            }
        },
        [&](u64 i) { y[i] = finish(x[i]); });
}

// Along another axis than the last.
extern "C" __global__ void softmax_columns(
    const T* x, T* y, const __grid_constant__ Columns c, u32 log) {
    __shared__ Soft shared[MAX_THREADS];
    Column l(c);
    bool live = l.column < c.inner;
    u64 base = l.outer * c.n * c.inner + l.column;
    Soft s = nothing();
    if (live) {
        u64 k = l.ty;
        for (; 3 * (u64)l.down + k < c.n; k += 4 * (u64)l.down) {
            f32 v[4];
#pragma unroll
            for (int u = 0; u < 4; ++u) v[u] = load(x[base + (k + u * l.down) * c.inner]);
            add(s, v);
        }
        for (; k < c.n; k += l.down) {
            f32 v[1] = {load(x[base + k * c.inner])};
            add(s, v);
        }
    }
    s = join_column(l, s, shared, join);
    Finish finish(s, log);
    if (!live) return;
    for (u64 k = l.ty; k < c.n; k += l.down) {
        u64 at = base + k * c.inner;
        y[at] = finish(x[at]);
    }
}
