// Rows of a table by their numbers. A number that names no row gives NaN.
#include "common/early.cuh"
#include "common/integer.cuh"
#include "common/walk.cuh"

// `width` is a row's length in packs of V.
template <int V>
__device__ __forceinline__ void embed(
    const T* table, const void* ids, T* y, u64 n, s64 vocabulary, const Divisor& width, u32 type) {
    let_next_begin();
    await_previous();
    u64 i = thread_index();
    if (i >= n) return;
    u64 row = divide(i, width);
    s64 id = integer_at(ids, row, type);
    Pack<T, V> p;
    if (id >= 0 && id < vocabulary) {
        p = *(const Pack<T, V>*)(table + ((u64)id * width.by + (i - row * width.by)) * V);
    } else {
#pragma unroll
        for (int v = 0; v < V; ++v) p.at[v] = from_f32<T>(__int_as_float(0x7fc00000));
    }
    *(Pack<T, V>*)(y + i * V) = p;
}

extern "C" __global__ void embed_packs(
    const T* table, const void* ids, T* y, u64 n, s64 vocabulary,
    const __grid_constant__ Divisor width, u32 type) {
    embed<16 / sizeof(T)>(table, ids, y, n, vocabulary, width, type);
}

extern "C" __global__ void embed_elements(
    const T* table, const void* ids, T* y, u64 n, s64 vocabulary,
    const __grid_constant__ Divisor width, u32 type) {
    embed<1>(table, ids, y, n, vocabulary, width, type);
}
