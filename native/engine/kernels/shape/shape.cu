// Ops that only move elements: one module an element size.
#include "common/early.cuh"
#include "common/walk.cuh"

typedef Raw<SIZE> E;
constexpr int PACK = 16 / SIZE;

// Where a window starts on the one axis whose start may be held on the device. `start` is the part
// the host knows; on a ring the axis has no end, elsewhere the window is moved to lie within it.
struct Place {
    const s32* position;  // or null
    s64 start;
    u64 length;  // of the axis
    u64 reach;   // of the window along it
    s64 unit;    // elements from one to the next
    u64 step;    // of the window
    s32 axis;    // of the walk; -1 where only the first element's place depends on the start
    s32 ring;
};

__device__ __forceinline__ u64 resolve(const Place& p) {
    s64 s = p.start + (p.position ? (s64)*p.position : 0);
    s64 length = (s64)p.length;
    if (p.ring) {
        s %= length;
        return (u64)(s < 0 ? s + length : s);
    }
    s64 last = length - (s64)p.reach;
    return (u64)(s > last ? last : s < 0 ? 0 : s);
}

// Where pack `i` of a window lies in the tensor it is cut from.
__device__ __forceinline__ s64 within(const Walk& w, const Place& p, u64 i) {
    u64 start = resolve(p);
    if (p.axis < 0) {
        s64 at[1];
        locate(w, i, at);
        return at[0] + (s64)start * p.unit;
    }
    s64 at = 0;
#pragma unroll 1
    for (int a = (int)w.rank - 1; a >= 0; --a) {
        u64 q = a ? divide(i, w.axis[a].length) : 0;
        u64 c = i - q * w.axis[a].length.by;
        // Only a ring comes here: it may begin again within the window.
        if (a == p.axis) at += (s64)((start + c * p.step) % p.length) * p.unit;
        else at += (s64)c * w.axis[a].stride[0];
        i = q;
    }
    return at;
}

// x by any strides, in order: transposed, broadcast or cut out.
template <int V>
__device__ __forceinline__ void gather(const E* x, E* y, const Walk& w, const Place& p) {
    let_next_begin();
    await_previous();
    u64 i = thread_index();
    u64 at = i * V;
    if (at >= w.n) return;
    put<E, V>(y + at, fetch<E, V>(x + within(w, p, i), w.spread & 1, w.n - at), w.n - at);
}

extern "C" __global__ void gather_packs(
    const E* x, E* y, const __grid_constant__ Walk w, const __grid_constant__ Place p) {
    gather<PACK>(x, y, w, p);
}

extern "C" __global__ void gather_elements(
    const E* x, E* y, const __grid_constant__ Walk w, const __grid_constant__ Place p) {
    gather<1>(x, y, w, p);
}

// A slice into the tensor it belongs to, which keeps the rest.
template <int V>
__device__ __forceinline__ void scatter(const E* slice, E* y, const Walk& w, const Place& p) {
    let_next_begin();
    await_previous();
    u64 i = thread_index();
    u64 at = i * V;
    if (at >= w.n) return;
    put<E, V>(y + within(w, p, i), fetch<E, V>(slice + at, false, w.n - at), w.n - at);
}

extern "C" __global__ void scatter_packs(
    const E* slice, E* y, const __grid_constant__ Walk w, const __grid_constant__ Place p) {
    scatter<PACK>(slice, y, w, p);
}

extern "C" __global__ void scatter_elements(
    const E* slice, E* y, const __grid_constant__ Walk w, const __grid_constant__ Place p) {
    scatter<1>(slice, y, w, p);
}

// The window that a slice covers, by axis of the walk over x; `Place` gives the start on its own.
struct Window {
    u64 start[8];
    u64 length[8];
};

// A new tensor: the slice inside of the window, x elsewhere. The walk is over x, its strides are
// those of the slice.
template <int V>
__device__ __forceinline__ void overlay(
    const E* x, const E* slice, E* y, const Walk& w, const Place& p, const Window& window) {
    let_next_begin();
    await_previous();
    u64 i = thread_index();
    u64 at = i * V;
    if (at >= w.n) return;
    u64 start = resolve(p) * (u64)p.unit;
    s64 from = 0;
    bool inside = true;
    u64 rest = i;
#pragma unroll 1
    for (int a = (int)w.rank - 1; a >= 0; --a) {
        u64 q = a ? divide(rest, w.axis[a].length) : 0;
        u64 c = rest - q * w.axis[a].length.by;
        u64 first = a == p.axis ? start : window.start[a];
        // Below the start this is huge, but for a ring, where it is the distance around it.
        u64 d = c - first;
        if (p.ring && a == p.axis && c < first) d += w.axis[a].length.by;
        inside &= d < window.length[a];
        from += (s64)d * w.axis[a].stride[0];
        rest = q;
    }
    put<E, V>(y + at, fetch<E, V>(inside ? slice + from : x + at, false, w.n - at), w.n - at);
}

extern "C" __global__ void overlay_packs(
    const E* x, const E* slice, E* y, const __grid_constant__ Walk w,
    const __grid_constant__ Place p, const __grid_constant__ Window window) {
    overlay<PACK>(x, slice, y, w, p, window);
}

extern "C" __global__ void overlay_elements(
    const E* x, const E* slice, E* y, const __grid_constant__ Walk w,
    const __grid_constant__ Place p, const __grid_constant__ Window window) {
    overlay<1>(x, slice, y, w, p, window);
}

// The two axes of a transpose that x and y have innermost, in tiles of 32 by 32.
struct Tiles {
    u64 rows, columns;       // lengths of the axis x has innermost, and of the one y has
    s64 x_pitch, y_pitch;    // x's stride along columns, y's along rows
    Divisor down, across;    // tiles along rows and along columns
};

// 32 by 8 threads, one tile a block; the walk is over the other axes, with x's and y's strides.
extern "C" __global__ void transpose(
    const E* x, E* y, const __grid_constant__ Tiles t, const __grid_constant__ Walk w) {
    __shared__ E tile[32][33];
    u64 i = blockIdx.x;
    u64 q = divide(i, t.across);
    u64 column = (i - q * t.across.by) * 32;
    u64 batch = divide(q, t.down);
    u64 row = (q - batch * t.down.by) * 32;
    s64 at[2];
    locate(w, batch, at);
    u32 tx = threadIdx.x % 32, ty = threadIdx.x / 32;
#pragma unroll
    for (u32 k = ty; k < 32; k += 8)
        if (row + tx < t.rows && column + k < t.columns)
            tile[k][tx] = x[at[0] + (s64)(row + tx) + (s64)(column + k) * t.x_pitch];
    __syncthreads();
#pragma unroll
    for (u32 k = ty; k < 32; k += 8)
        if (row + k < t.rows && column + tx < t.columns)
            y[at[1] + (s64)(row + k) * t.y_pitch + (s64)(column + tx)] = tile[tx][k];
}

// Up to 16 tensors side by side. Each is `rows` pieces of its own width; widths count packs.
struct Pieces {
    u64 n;          // packs that this launch writes
    Divisor width;  // of a row of all pieces of this launch
    u64 pitch;      // of a row of the output
    u32 count;
    u64 start[17];  // of each piece within the row, then the width
    const E* from[16];
};

template <int V> __device__ __forceinline__ void concatenate(E* y, const Pieces& p) {
    u64 i = thread_index();
    if (i >= p.n) return;
    u64 row = divide(i, p.width);
    u64 column = i - row * p.width.by;
    u32 k = 0;
    while (k + 1 < p.count && column >= p.start[k + 1]) ++k;
    u64 from = row * (p.start[k + 1] - p.start[k]) + column - p.start[k];
    put<E, V>(y + (row * p.pitch + column) * V, fetch<E, V>(p.from[k] + from * V, false, V), V);
}

extern "C" __global__ void concatenate_packs(E* y, const __grid_constant__ Pieces p) {
    concatenate<PACK>(y, p);
}

extern "C" __global__ void concatenate_elements(E* y, const __grid_constant__ Pieces p) {
    concatenate<1>(y, p);
}
