// A stable sort along an axis: tiles are sorted in shared memory, then pairs of sorted runs merged
// until one is left. Within a tile it is the same: a thread sorts 8 elements, then runs are merged.
#include "common/walk.cuh"
#include "order/key.cuh"

typedef decltype(key_of(T())) K;
constexpr u32 TILE = 2048;
constexpr u32 ITEMS = 8;
constexpr u32 THREADS = TILE / ITEMS;

// Rows of `n` along the axis, `inner` of them side by side.
struct Rows {
    u64 rows, n;
    Divisor inner;
    Divisor tiles;    // of a row
    u32 padded;       // elements that a row, or a tile, has in shared memory: a power of two
    u32 together;     // rows of a block
    u32 descending;
};

// Where element 0 of a row lies.
__device__ __forceinline__ u64 corner(const Rows& r, u64 row) {
    u64 outer = divide(row, r.inner);
    return outer * r.n * r.inner.by + (row - outer * r.inner.by);
}

// What is asked for of the sorted element that stood at `at`: itself, its place, or both.
struct Results {
    const T* x;
    T* y;
    s32* places;
    __device__ __forceinline__ void write(const Rows& r, u64 base, u64 j, u32 at) const {
        u64 to = base + j * r.inner.by;
        if (y) y[to] = x[base + (u64)at * r.inner.by];
        if (places) places[to] = (s32)at;
    }
};

// Sorted runs on their way.
struct Runs {
    K* key;
    u32* at;
};

// How many of the first `diagonal` elements of a merge come from `a`, whose go before equals in `b`.
__device__ __forceinline__ u32 split(const K* a, u32 na, const K* b, u32 nb, u32 diagonal) {
    u32 low = diagonal > nb ? diagonal - nb : 0, high = diagonal < na ? diagonal : na;
    while (low < high) {
        u32 mid = (low + high) / 2;
        if (a[mid] > b[diagonal - 1 - mid]) high = mid;
        else low = mid + 1;
    }
    return low;
}

// The same in global memory, where a look takes long: the lanes of a warp look at 32 places at once.
__device__ __forceinline__ u64 split_by_warp(
    const K* a, u64 na, const K* b, u64 nb, u64 diagonal) {
    u64 low = diagonal > nb ? diagonal - nb : 0, high = diagonal < na ? diagonal : na;
    u64 lane = threadIdx.x % 32;
    while (low < high) {
        u64 length = high - low;
        bool few = length <= 32;
        u64 mid = few ? low + lane : low + (lane + 1) * length / 33;
        bool before = mid < high && a[mid] <= b[diagonal - 1 - mid];
        u32 count = (u32)__popc(__ballot_sync(~0u, before));
        if (few) return low + count;
        u64 next = low + ((u64)count + 1) * length / 33;
        if (count > 0) low = low + (u64)count * length / 33 + 1;
        if (count < 32) high = next;
    }
    return low;
}

// A thread's share of a merge: from element i of `a` and j of `b` on, `count` of them.
__device__ __forceinline__ void merge(
    const K* key, const u32* at, u32 i, u32 end_i, u32 j, u32 end_j, u32 count, K (&mine)[ITEMS],
    u32 (&place)[ITEMS]) {
    u32 from[ITEMS];
    K ka = i < end_i ? key[i] : (K)0, kb = j < end_j ? key[j] : (K)0;
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) {
        from[v] = 0;
        if (v < count) {
            bool a = j >= end_j || (i < end_i && ka <= kb);
            mine[v] = a ? ka : kb;
            from[v] = a ? i : j;
            if (a) {
                if (++i < end_i) ka = key[i];
            } else {
                if (++j < end_j) kb = key[j];
            }
        }
    }
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) place[v] = at[from[v]];
}

// Rows of up to a tile, several of them in a block where they are short, or the tiles of longer ones.
extern "C" __global__ void __launch_bounds__(THREADS) sort_tiles(
    Results out, Runs runs, const __grid_constant__ Rows r) {
    __shared__ __align__(16) K key[TILE];
    __shared__ __align__(16) u32 at[TILE];
    u64 first = divide(blockIdx.x, r.tiles);
    u64 start = (blockIdx.x - first * r.tiles.by) * TILE;
    first *= r.together;
    u32 total = blockDim.x * ITEMS;
    K flip = r.descending ? ~(K)0 : (K)0;
    // Rows side by side are read across, so that neighbours are read together.
    bool across = r.inner.by > 1;
    u32 held = r.together * r.padded;
    for (u32 e = threadIdx.x; e < total; e += blockDim.x) {
        u32 row = across ? e % r.together : e / r.padded;
        u32 j = across ? e / r.together : e % r.padded;
        u64 place = start + j;
        bool live = e < held && first + row < r.rows && place < r.n;
        u32 to = e < held ? row * r.padded + j : e;
        // What there is none of comes after all there is: it stands behind it, and its key is the
        // largest.
        key[to] = live ? key_of(out.x[corner(r, first + row) + place * r.inner.by]) ^ flip : ~(K)0;
        at[to] = (u32)place;
    }
    __syncthreads();
    K mine[ITEMS];
    u32 place[ITEMS];
    u32 base = threadIdx.x * ITEMS;
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) {
        mine[v] = key[base + v];
        place[v] = at[base + v];
    }
    // Neighbours change places until all are in order, those of different rows never.
#pragma unroll
    for (u32 round = 0; round < ITEMS; ++round) {
#pragma unroll
        for (u32 v = round % 2; v + 1 < ITEMS; v += 2) {
            if (mine[v] > mine[v + 1] && (v + 1) % r.padded != 0) {
                K k = mine[v];
                mine[v] = mine[v + 1], mine[v + 1] = k;
                u32 p = place[v];
                place[v] = place[v + 1], place[v + 1] = p;
            }
        }
    }
    for (u32 run = ITEMS;; run *= 2) {
        __syncthreads();
#pragma unroll
        for (u32 v = 0; v < ITEMS; ++v) {
            key[base + v] = mine[v];
            at[base + v] = place[v];
        }
        __syncthreads();
        if (run >= r.padded) break;
        u32 begin = base & ~(2 * run - 1), diagonal = base - begin;
        u32 i = split(key + begin, run, key + begin + run, run, diagonal);
        merge(
            key, at, begin + i, begin + run, begin + run + diagonal - i, begin + 2 * run, ITEMS,
            mine, place);
    }
    for (u32 e = threadIdx.x; e < held; e += blockDim.x) {
        u32 row = across ? e % r.together : e / r.padded;
        u32 j = across ? e / r.together : e % r.padded;
        u64 to = start + j;
        if (first + row >= r.rows || to >= r.n) continue;
        u32 from = row * r.padded + j;
        if (r.tiles.by == 1) {
            out.write(r, corner(r, first + row), to, at[from]);
        } else {
            runs.key[(first + row) * r.n + to] = key[from];
            runs.at[(first + row) * r.n + to] = at[from];
        }
    }
}

// Pairs of runs of `run` elements made one; a block makes a tile of the result. `last` writes what
// was asked for.
extern "C" __global__ void __launch_bounds__(THREADS) sort_merge(
    Results out, Runs from, Runs to, const __grid_constant__ Rows r, u64 run, u32 last) {
    __shared__ __align__(16) K key[TILE];
    __shared__ __align__(16) u32 at[TILE];
    __shared__ u64 cut[2];
    u64 row = divide(blockIdx.x, r.tiles);
    u64 start = (blockIdx.x - row * r.tiles.by) * TILE;
    u64 begin = start / (2 * run) * (2 * run);
    u64 na = r.n - begin < run ? r.n - begin : run;
    u64 nb = r.n - begin - na < run ? r.n - begin - na : run;
    u64 d0 = start - begin;
    u64 d1 = d0 + TILE < na + nb ? d0 + TILE : na + nb;
    const K* keys = from.key + row * r.n + begin;
    const u32* ats = from.at + row * r.n + begin;
    u32 warp = threadIdx.x / 32;
    if (warp < 2) {
        u64 found = split_by_warp(keys, na, keys + na, nb, warp ? d1 : d0);
        if (threadIdx.x % 32 == 0) cut[warp] = found;
    }
    __syncthreads();
    u64 a0 = cut[0], b0 = d0 - a0;
    u32 count = (u32)(d1 - d0), ca = (u32)(cut[1] - a0);
    for (u32 e = threadIdx.x; e < count; e += THREADS) {
        u64 source = e < ca ? a0 + e : na + b0 + (e - ca);
        key[e] = keys[source];
        at[e] = ats[source];
    }
    __syncthreads();
    K mine[ITEMS];
    u32 place[ITEMS];
    u32 d = threadIdx.x * ITEMS < count ? threadIdx.x * ITEMS : count;
    u32 i = split(key, ca, key + ca, count - ca, d);
    merge(key, at, i, ca, ca + d - i, count, count - d, mine, place);
    __syncthreads();
#pragma unroll
    for (u32 v = 0; v < ITEMS; ++v) {
        if (d + v < count) {
            key[d + v] = mine[v];
            at[d + v] = place[v];
        }
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < count; e += THREADS) {
        if (last) {
            out.write(r, corner(r, row), start + e, at[e]);
        } else {
            to.key[row * r.n + start + e] = key[e];
            to.at[row * r.n + start + e] = at[e];
        }
    }
}
