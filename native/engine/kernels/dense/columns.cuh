// A block's share of the columns of a matrix, for kernels of a frame: in registers before the vector that
// it is multiplied with is there, and added up by way of shared memory, always in the same order.
//
// Who includes this says how many THREADS a block has, and the VEC values of a load.
#pragma once

#include "common/share.cuh"
#include "common/wide.cuh"

// Columns of RUNS matrices of ROWS rows, COUNT of each. A thread has a pack of every AT_ONCE-th row, of
// which the first DEPTH are asked for when it is made. Where packs divide a warp, its lanes add up first.
template <int ROWS, int COUNT, int RUNS, int DEPTH> struct Columns {
    static constexpr int PACKS = COUNT / VEC;
    static constexpr int AT_ONCE = THREADS / PACKS;
    static constexpr bool EVEN = WARP % PACKS == 0;
    static constexpr int LANES = EVEN ? WARP / PACKS : 1;
    static constexpr int PARTS = AT_ONCE / LANES; // sums of a column that are left
    static constexpr int EACH = (ROWS + AT_ONCE - 1) / AT_ONCE;
    static constexpr int AHEAD = EACH < DEPTH ? EACH : DEPTH;
    static constexpr int PITCH = RUNS * COUNT; // of the parts
    static constexpr int KEPT = kept<VEC, LANES>();

    Wide<T, VEC> ahead[AHEAD][RUNS];
    const T* from; // of the first that was not asked for
    int row, stride, apart;

    // From column `first` of each matrix on; they are parts of rows of `stride`, `apart` from each other.
    __device__ __forceinline__ Columns(const T* w, int stride, int first, int apart = 0)
        : row(threadIdx.x / PACKS), stride(stride), apart(apart) {
        from = w + row * stride + first + threadIdx.x % PACKS * VEC;
        if (AT_ONCE * PACKS < THREADS && row >= AT_ONCE) row = ROWS; // nothing is left for it
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int j = 0; j < RUNS; j++) {
                if (row + i * AT_ONCE < ROWS) ahead[i][j].load(from + i * AT_ONCE * stride + j * apart);
                else ahead[i][j].zero();
            }
    }
    // Of a vector that lies in memory, what is multiplied first; `at` is where its value at `row` lies.
    template <class S> __device__ __forceinline__ void early(const S* at, f32 (&early)[AHEAD]) const {
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            early[i] = row + i * AT_ONCE < ROWS ? to_f32(at[i * AT_ONCE]) : 0.f;
    }
    // Leaves the sums of x(i, r) · w[r] in PARTS rows of `part`; i counts the rows that were asked for early,
    // and is −1 behind them.
    template <class X> __device__ __forceinline__ void multiply(X x, f32* part) const {
        f32 sum[RUNS][VEC] = {};
        auto add = [&](const Wide<T, VEC> (&w)[RUNS], f32 x) {
#pragma unroll
            for (int j = 0; j < RUNS; j++)
#pragma unroll
                for (int v = 0; v < VEC; v++) sum[j][v] = fmaf(x, w[j].at(v), sum[j][v]);
        };
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int r = row + i * AT_ONCE;
            if (r < ROWS) add(ahead[i], x(i, r));
        }
        if constexpr (EACH > AHEAD) {
            const T* at = from + AHEAD * AT_ONCE * stride;
#pragma unroll 2
            for (int r = row + AHEAD * AT_ONCE; r < ROWS; r += AT_ONCE, at += AT_ONCE * stride) {
                Wide<T, VEC> more[RUNS];
#pragma unroll
                for (int j = 0; j < RUNS; j++) more[j].load(at + j * apart);
                add(more, x(-1, r));
            }
        }
        const int pack = threadIdx.x % PACKS * VEC;
        const int of = EVEN ? threadIdx.x / WARP : threadIdx.x / PACKS;
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
            const int first = fold<LANES, PACKS>(sum[j]);
            if (EVEN || of < AT_ONCE) {
                f32* const to = part + of * PITCH + j * COUNT + pack + first;
#pragma unroll
                for (int k = 0; k < KEPT; k++) to[k] = sum[j][k];
            }
        }
    }
};

__device__ __forceinline__ void store_four(T* to, const f32 (&four)[4]) {
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; i++) pack.at[i] = from_f32<T>(four[i]);
    *(Pack<T, 4>*)to = pack;
}

// The sums of COUNT columns over PARTS rows of parts, each of which goes to TO destinations: SPLIT
// neighbouring threads have four neighbouring columns, and of these every SPLIT-th part each, then a column
// or some of them, and in the end a destination each. `each(k, column, sum)` gives what becomes of a sum, of
// its thread's the k-th; `give(wanted, destination, column, four)` takes them.
template <int COUNT, int PARTS, int PITCH, int TO, int SPLIT> struct Sums {
    static constexpr int QUADS = COUNT / 4;
    static constexpr int KEPT = kept<4, SPLIT>();
    static constexpr int ALIKE = SPLIT * KEPT / 4; // threads that have the same column
    // Threads that collect, the first ones.
    static constexpr int USED = QUADS * ((TO + SPLIT - 1) / SPLIT) * SPLIT;

    // Whether a thread collects, or another of its warp.
    static __device__ __forceinline__ bool takes_part() { return threadIdx.x / WARP * WARP < USED; }
    // The first of the columns that this thread ends with.
    static __device__ __forceinline__ int column() {
        return threadIdx.x / SPLIT % QUADS * 4 + threadIdx.x % SPLIT / ALIKE * KEPT;
    }
    template <class E, class G>
    static __device__ __forceinline__ void collect(const f32* part, E each, G give) {
        const u32 lane = threadIdx.x % SPLIT;
#pragma unroll
        for (int base = 0; base < USED; base += THREADS) {
            const u32 item = base + threadIdx.x;
            // By whole warps, which is what shuffles ask for.
            if (item / WARP * WARP >= USED) break;
            const u32 quad = item / SPLIT % QUADS, to = item / SPLIT / QUADS * SPLIT + lane;
            f32 sum[4] = {};
#pragma unroll
            for (int r = 0; r < PARTS; r += SPLIT) {
                if (PARTS % SPLIT == 0 || r + lane < PARTS) {
                    const float4 p = *(const float4*)(part + (r + lane) * PITCH + quad * 4);
                    sum[0] += p.x;
                    sum[1] += p.y;
                    sum[2] += p.z;
                    sum[3] += p.w;
                }
            }
            const int first = quad * 4 + fold<SPLIT, 1>(sum);
#pragma unroll
            for (int k = 0; k < KEPT; k++) sum[k] = each(k, first + k, sum[k]);
            f32 four[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                four[i] = __shfl_sync(~0u, sum[i % KEPT], i / KEPT * ALIKE, SPLIT);
            give(item < USED && to < TO, min(to, TO - 1u), quad * 4, four);
        }
    }
};
