// dense on few rows: y {M, N} = act(x {M, K} · w {K, N} + b) + residual, at the speed of reading w.
//
// A block owns `lanes · VEC` columns, so that enough blocks fill the card, and all of K. Its
// threads take `THREADS / lanes` rows of w at a time, DEPTH loads of 16 bytes in flight each; the
// first are under way before x is there. x lies in shared memory as f32. The partial sums meet by
// shuffles, then across warps, always in the same order. With -DNORM=1 x is normalised where it
// lies.

#include "common/early.cuh"
#include "common/wide.cuh"
#include "dense/epilogue.cuh"
#include "norm/prologue.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int MAX_COLUMNS = 64;

template <int ROWS, int VEC, int DEPTH = 4>
__device__ __forceinline__ void product(const T* x, const T* w, const T* up, Epilogue<T> end,
                                        int rows, int k, int lanes, const Prologue<T>& norm) {
    // A span holds whole batches of DEPTH · THREADS / lanes rows of w, for lanes of at least 2.
    constexpr int SPAN = 4096 / ROWS;
    static_assert(SPAN % (DEPTH * THREADS / 2) == 0, "a batch would straddle spans");
    __shared__ __align__(32) f32 xs[SPAN * ROWS];
    __shared__ f32 part[WARPS][ROWS][MAX_COLUMNS];
    typedef Wide<T, VEC> Row;

    const int n = end.columns;
    const int tid = threadIdx.x;
    const int lane = tid % lanes;
    const int first = tid / lanes;
    const int stride = THREADS / lanes;
    const int across = GATED ? lanes / 2 : lanes; // lanes side by side along y
    const int column = (blockIdx.x * across + lane % across) * VEC;
    if (GATED && lane >= across) w = up;
    const bool live = column < n; // VEC divides n

    Row ahead[DEPTH];
    auto fetch = [&](int row) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int at = row + d * stride;
            if (live && at < k) {
                ahead[d].load(w + (s64)at * n + column);
            } else {
                ahead[d].zero();
            }
        }
    };

    f32 sum[ROWS][VEC] = {};
    let_next_begin();
    fetch(first);
    const Affine mine = affine(norm, tid / ROWS, k);
    await_previous();
    for (int base = 0; base < k; base += SPAN) {
        if (base) __syncthreads();
        // Zeros to the end of the last batch: what pads w is multiplied with what pads x.
        const int batch = DEPTH * stride;
        const int width = min(SPAN, (k - base + batch - 1) / batch * batch);
        for (int i = tid; i < width; i += THREADS) {
            Pack<f32, ROWS> column;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const bool in = r < rows && base + i < k;
                column.at[r] = in ? to_f32(x[(s64)r * k + base + i]) : 0.f;
            }
            *(Pack<f32, ROWS>*)(xs + i * ROWS) = column;
        }
        __syncthreads();
        // Only where k is within one span.
        if (NORM) normalise<ROWS, WARPS>(norm, mine, xs, k, (f32*)part);
        for (int at = 0; at < width; at += batch) {
            Row now[DEPTH];
#pragma unroll
            for (int d = 0; d < DEPTH; d++) now[d] = ahead[d];
            fetch(base + at + batch + first);
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                const f32* xk = xs + (at + d * stride + first) * ROWS;
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    const f32 wv = now[d].at(v);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) sum[r][v] = fmaf(xk[r], wv, sum[r][v]);
                }
            }
        }
    }

    for (int step = lanes; step < WARP; step <<= 1) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[r][v] += __shfl_xor_sync(~0u, sum[r][v], step);
    }
    if (tid % WARP < lanes) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int v = 0; v < VEC; v++) part[tid / WARP][r][lane * VEC + v] = sum[r][v];
    }
    __syncthreads();
    const int width = across * VEC;
#pragma unroll 1
    for (int i = tid; i < rows * width; i += THREADS) {
        const int r = i / width, c = i % width, column = blockIdx.x * width + c;
        if (column >= n) continue;
        f32 total[1] = {}, upper = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            total[0] += part[warp][r][c];
            if (GATED) upper += part[warp][r][c + width];
        }
        if (GATED) {
            activate<T>(total, end.activation);
            total[0] *= upper;
        } else {
            end.finish(total, r, column);
        }
        end.store(total[0], (s64)r * n + column);
    }
}

#define ENTRY(NAME, ROWS, ...)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const T* x, const T* w, const T* up, Epilogue<T> end, int rows, int k, int lanes,    \
             const Prologue<T> norm) {                                                            \
        product<ROWS, __VA_ARGS__>(x, w, up, end, rows, k, lanes, norm);                                  \
    }

ENTRY(vector_1, 1, 16 / sizeof(T))
// Where w is long: half the blocks, of rows twice as wide, ask for as much.
ENTRY(vector_long, 1, 16 / sizeof(T), 8)
ENTRY(vector_2, 2, 16 / sizeof(T))
ENTRY(vector_4, 4, 16 / sizeof(T))
ENTRY(vector_8, 8, 16 / sizeof(T))
// Where rows of w are not whole 16-byte packs.
ENTRY(odd_1, 1, 1)
ENTRY(odd_8, 8, 1)
