// Lower triangles, solved from the first row down. The host says where elements lie so that every form
// of the op is that one: what is transposed has its steps exchanged, what is upper goes backwards.
//
// Each sum is taken in the order of the unknowns, or in SPLIT parts that meet in the same order each
// time. Nothing is multiplied by an inverse: a right side is divided by its pivot.
#include "common/walk.cuh"

typedef Acc<T> N;

constexpr int ROWS = 32;  // of a block, one a lane
constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;

// Where a matrix begins, and how far it is to the next row and column.
struct Layout {
    s64 first, row, column;
    __device__ __forceinline__ s64 at(u64 r, u64 c) const {
        return first + (s64)r * row + (s64)c * column;
    }
};

// A thread's part of a tile: its first element, and how far it is to the next one.
struct Share {
    u32 row, column, rows, columns;
    __device__ __forceinline__ u32 row_of(int i) const { return row + i * rows; }
    __device__ __forceinline__ u32 column_of(int i) const { return column + i * columns; }
};

// The columns of each entry of the batch are dealt out in so many strips.
struct Systems {
    u64 batch, size, columns;
    Divisor strips;
    Layout a, x;
};

// Solves a block by a warp: its lane has V right sides of one row. Element (r, c) of the triangle is
// `a[r * row + c * column]`.
template <class S, int V>
__device__ __forceinline__ void substitute(const S* a, s64 row, s64 column, u32 rows, N (&x)[V]) {
    const u32 lane = threadIdx.x % 32;
    a += lane * row;
    const N pivot = lane < rows ? (N)load(a[lane * column]) : (N)1;
#pragma unroll 4
    for (u32 i = 0; i + 1 < rows; ++i) {
        const N factor = i < lane && lane < rows ? (N)load(a[i * column]) : (N)0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const N known = __shfl_sync(~0u, x[v] / pivot, i);
            // An infinity of a row above is no business of those above it.
            if (i < lane) x[v] -= factor * known;
        }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = x[v] / pivot;
}

// Triangles of up to 32 rows: a warp has V columns of one.
template <int V>
__device__ __forceinline__ void solve_tile(const T* a, const T* b, T* y, const Systems& s) {
    const u32 lane = threadIdx.x % 32, rows = (u32)s.size;
    const u64 at = (u64)blockIdx.x * WARPS + threadIdx.x / 32, entry = divide(at, s.strips);
    if (entry >= s.batch) return;
    const u64 column = (at - entry * s.strips.by) * V;
    a += entry * s.size * s.size + s.a.first;
    b += entry * s.size * s.columns;
    y += entry * s.size * s.columns;
    N x[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
        const bool mine = lane < rows && column + v < s.columns;
        x[v] = mine ? (N)load(b[s.x.at(lane, column + v)]) : (N)0;
    }
    substitute<T, V>(a, s.a.row, s.a.column, rows, x);
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (lane < rows && column + v < s.columns) y[s.x.at(lane, column + v)] = store<T>(x[v]);
}

// Larger ones: a block has COLUMNS columns of one, and goes down by ROWS. `known` is where the unknowns
// are kept in the type of arithmetic; for f32 and f64 that is y.
//
// The triangle comes in tiles of ROWS by DEPTH, from the left: the last one has the pivots in it. While a
// tile is multiplied the next one is on its way.
template <int COLUMNS, int DEPTH>
__device__ __forceinline__ void solve_rows(const T* a, const T* b, T* y, N* known,
                                           const Systems& s) {
    constexpr int GROUP = THREADS / ROWS;                  // threads of a row
    constexpr int ACROSS = COLUMNS < GROUP ? COLUMNS : GROUP;  // of which so many have other columns
    constexpr int SPLIT = GROUP / ACROSS;                  // and so many each a part of the sums
    constexpr int V = COLUMNS / ACROSS;
    constexpr int EACH = COLUMNS < WARPS ? 1 : COLUMNS / WARPS;  // columns of a warp that substitutes
    constexpr int LEFT = ROWS * DEPTH / THREADS;
    constexpr int RIGHT = (DEPTH * COLUMNS + THREADS - 1) / THREADS;
    __shared__ N left[ROWS][DEPTH + 1];
    __shared__ N right[DEPTH][COLUMNS + 1];
    __shared__ N sides[ROWS][COLUMNS + 1];

    const u64 entry = divide(blockIdx.x, s.strips);
    const u64 first = (blockIdx.x - entry * s.strips.by) * COLUMNS;
    a += entry * s.size * s.size;
    b += entry * s.size * s.columns;
    y += entry * s.size * s.columns;
    known += entry * s.size * s.columns;

    const u32 r = threadIdx.x / GROUP, g = threadIdx.x % GROUP % ACROSS;
    const u32 part = threadIdx.x % GROUP / ACROSS;
    // A thread's elements of the tiles, such that neighbouring threads read neighbours.
    const u32 t = threadIdx.x;
    const Share of_left = s.a.column == 1 || s.a.column == -1
                              ? Share{t / DEPTH, t % DEPTH, THREADS / DEPTH, 0}
                              : Share{t % ROWS, t / ROWS, 0, THREADS / ROWS};
    const Share of_right = s.x.column == 1
                               ? Share{t / COLUMNS, t % COLUMNS, THREADS / COLUMNS, 0}
                               : Share{t % DEPTH, t / DEPTH, 0, THREADS / DEPTH};

    for (u64 top = 0; top < s.size; top += ROWS) {
        N next_left[LEFT], next_right[RIGHT];
        auto fetch = [&](u64 from) {
            const T* l = a + s.a.at(top + of_left.row, from + of_left.column);
            const N* x = known + s.x.at(from + of_right.row, first + of_right.column);
            const s64 left_step = of_left.rows * s.a.row + of_left.columns * s.a.column;
            const s64 right_step = of_right.rows * s.x.row + of_right.columns * s.x.column;
#pragma unroll
            for (int i = 0; i < LEFT; ++i, l += left_step) {
                const u64 row = top + of_left.row_of(i), k = from + of_left.column_of(i);
                next_left[i] = row < s.size && k <= row ? (N)load(*l) : (N)0;
            }
#pragma unroll
            for (int i = 0; i < RIGHT; ++i, x += right_step) {
                const u64 k = from + of_right.row_of(i), c = first + of_right.column_of(i);
                next_right[i] = k < top && c < s.columns ? *x : (N)0;
            }
        };
        fetch(0);
        N side[V], sum[V] = {};
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const u64 c = first + g + ACROSS * v;
            side[v] = top + r < s.size && c < s.columns ? (N)load(b[s.x.at(top + r, c)]) : (N)0;
        }
        const u64 last = top / DEPTH * DEPTH;
        for (u64 from = 0; from <= last; from += DEPTH) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < LEFT; ++i)
                left[of_left.row_of(i)][of_left.column_of(i)] = next_left[i];
#pragma unroll
            for (int i = 0; i < RIGHT; ++i) {
                const u32 k = of_right.row_of(i), c = of_right.column_of(i);
                if (k < DEPTH && c < COLUMNS) right[k][c] = next_right[i];
            }
            __syncthreads();
            if (from < last) fetch(from + DEPTH);
            const u32 depth = from < last ? DEPTH : (u32)(top - last);
#pragma unroll 8
            for (u32 k = part; k < depth; k += SPLIT) {
                const N factor = left[r][k];
#pragma unroll
                for (int v = 0; v < V; ++v) sum[v] += factor * right[k][g + ACROSS * v];
            }
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
            for (int lane = ACROSS; lane < GROUP; lane *= 2)
                sum[v] += __shfl_xor_sync(~0u, sum[v], lane);
            if (part == 0) sides[r][g + ACROSS * v] = side[v] - sum[v];
        }
        __syncthreads();
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const u32 rows = s.size - top < ROWS ? (u32)(s.size - top) : ROWS;
        if (warp * EACH < COLUMNS) {
            N x[EACH];
#pragma unroll
            for (int v = 0; v < EACH; ++v) x[v] = sides[lane][warp * EACH + v];
            substitute<N, EACH>(&left[0][top - last], DEPTH + 1, 1, rows, x);
#pragma unroll
            for (int v = 0; v < EACH; ++v) sides[lane][warp * EACH + v] = x[v];
        }
        __syncthreads();
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const u64 c = first + g + ACROSS * v;
            if (part != 0 || top + r >= s.size || c >= s.columns) continue;
            const N x = sides[r][g + ACROSS * v];
            known[s.x.at(top + r, c)] = x;
            if (sizeof(T) == 2) y[s.x.at(top + r, c)] = store<T>(x);
        }
        // The next rows read these.
        __syncthreads();
    }
}

#define TILE(NAME, V)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const T* a, const T* b, T* y, Systems s) {                                           \
        solve_tile<V>(a, b, y, s);                                                                \
    }
#define BLOCKS(NAME, COLUMNS, DEPTH)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                      \
        NAME(const T* a, const T* b, T* y, N* known, Systems s) {                                 \
        solve_rows<COLUMNS, DEPTH>(a, b, y, known, s);                                            \
    }

TILE(tile_column, 1)
TILE(tile_columns, 4)
BLOCKS(blocks_column, 1, 128)
BLOCKS(blocks_columns, 16, 64)
