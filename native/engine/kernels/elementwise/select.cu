// a where the predicate is non-zero, b elsewhere, all three broadcast. Elements are only moved, so
// there is one module an element size.
#include "common/walk.cuh"

typedef Raw<SIZE> E;

template <int V>
__device__ __forceinline__ void run(
    const u8* predicate, const E* a, const E* b, E* y, const Walk& w) {
    u64 i = thread_index();
    u64 at = i * V;
    if (at >= w.n) return;
    s64 from[3];
    locate(w, i, from);
    Pack<u8, V> p = fetch<u8, V>(predicate + from[0], w.spread & 1, w.n - at);
    Pack<E, V> pa = fetch<E, V>(a + from[1], w.spread & 2, w.n - at);
    Pack<E, V> pb = fetch<E, V>(b + from[2], w.spread & 4, w.n - at);
#pragma unroll
    for (int v = 0; v < V; ++v) pa.at[v] = p.at[v] ? pa.at[v] : pb.at[v];
    put<E, V>(y + at, pa, w.n - at);
}

extern "C" __global__ void select_packs(
    const u8* p, const E* a, const E* b, E* y, const __grid_constant__ Walk w) {
    run<16 / SIZE>(p, a, b, y, w);
}

extern "C" __global__ void select_elements(
    const u8* p, const E* a, const E* b, E* y, const __grid_constant__ Walk w) {
    run<1>(p, a, b, y, w);
}
