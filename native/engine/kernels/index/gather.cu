// Slices of x by indices, and slices that take the place of others: one module an element size.
#include "index/address.cuh"

typedef Raw<SIZE> E;
constexpr int PACK = 16 / SIZE;

// `row` is the length of what one index brings, in packs of V; the walk goes over it in x.
template <int V>
__device__ __forceinline__ void gather(
    const E* x, E* y, u64 n, const Index& index, const Divisor& row, const Walk& w) {
    u64 i = thread_index();
    if (i >= n) return;
    u64 r = divide(i, row);
    s64 at[1];
    locate(w, i - r * row.by, at);
    *(Pack<E, V>*)(y + i * V) = *(const Pack<E, V>*)(x + clamped(index, r) + at[0]);
}

extern "C" __global__ void gather_packs(
    const E* x, E* y, u64 n, const __grid_constant__ Index index,
    const __grid_constant__ Divisor row, const __grid_constant__ Walk w) {
    gather<PACK>(x, y, n, index, row, w);
}

extern "C" __global__ void gather_elements(
    const E* x, E* y, u64 n, const __grid_constant__ Index index,
    const __grid_constant__ Divisor row, const __grid_constant__ Walk w) {
    gather<1>(x, y, n, index, row, w);
}

// The last of the rows for each place, over what is in y. Rows are sorted by place, those for one
// place by their number.
template <int V>
__device__ __forceinline__ void put_rows(
    const E* updates, const u64* places, const u32* rows, E* y, u64 k, u64 n, const Divisor& row,
    const Walk& w) {
    u64 i = thread_index();
    if (i >= n) return;
    u64 r = divide(i, row);
    u64 place = places[r];
    if (place == NOWHERE || (r + 1 < k && places[r + 1] == place)) return;
    u64 column = i - r * row.by;
    s64 at[1];
    locate(w, column, at);
    const E* from = updates + ((u64)rows[r] * row.by + column) * V;
    *(Pack<E, V>*)(y + (s64)place + at[0]) = *(const Pack<E, V>*)from;
}

extern "C" __global__ void put_packs(
    const E* updates, const u64* places, const u32* rows, E* y, u64 k, u64 n,
    const __grid_constant__ Divisor row, const __grid_constant__ Walk w) {
    put_rows<PACK>(updates, places, rows, y, k, n, row, w);
}

extern "C" __global__ void put_elements(
    const E* updates, const u64* places, const u32* rows, E* y, u64 k, u64 n,
    const __grid_constant__ Divisor row, const __grid_constant__ Walk w) {
    put_rows<1>(updates, places, rows, y, k, n, row, w);
}
