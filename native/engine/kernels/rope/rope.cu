// rope: pairs of features turned by an angle that grows with the position.
//
// The angle is the position times the pair's turn a position, as a fraction of a whole turn in
// 64 bits: the product wraps around as the angle does, so that any position is as exact as the
// first, with neither f64 nor a long division. A thread keeps the sine and cosine of one pair of
// one frame and goes through the heads.

#include "common/walk.cuh"
#include "common/wide.cuh"

constexpr int THREADS = 128;
constexpr int PAIRS = 256;

struct Rope {
    const T* x;
    const s32* positions;
    T* y;
    u64 items;         // frames · slots · splits
    u64 length;        // S
    s64 heads;
    s64 features;
    Divisor slots;     // pairs of this launch, and features that do not turn
    Divisor splits;    // threads that share the heads of a pair
    Divisor frames;    // S
    int first;         // the first pair of this launch
    int pairs;         // of this launch
    int dims;
    int interleaved;
    int rank;          // of the positions
    int padding;
    u64 turn[PAIRS];
};

// A thread's frame, the place of its pair or pack of pairs in it, and its share of the heads.
struct Place {
    s64 base, split;
    u64 frame;
    int slot;

    __device__ __forceinline__ Place(const Rope& p, u64 item) {
        const u64 outer = divide(item, p.slots);
        slot = (int)(item - outer * p.slots.by);
        frame = divide(outer, p.splits);
        split = outer - frame * p.splits.by;
        base = (s64)frame * p.heads * p.features;
    }
    __device__ __forceinline__ s32 position(const Rope& p) const {
        const u64 s = frame - divide(frame, p.frames) * p.frames.by;
        if (p.rank == 0) return (s32)((u32)p.positions[0] + (u32)s);
        return p.positions[p.rank == 1 ? s : frame];
    }
};

__device__ __forceinline__ void turned(s32 position, u64 turn, f32& sin, f32& cos) {
    // Of half turns, between −1 and 1.
    const s64 at = (s64)((u64)(s64)position * turn);
    sincospif((f32)at * 1.0842021724855044e-19f, &sin, &cos); // 2⁻⁶³
}

extern "C" __global__ void __launch_bounds__(THREADS) rope(const __grid_constant__ Rope p) {
    const u64 item = thread_index();
    if (item >= p.items) return;
    const Place place(p, item);
    const s64 base = place.base, splits = p.splits.by;
    const int slot = place.slot;
    if (slot >= p.pairs) {
        const s64 at = base + p.dims + slot - p.pairs;
        for (s64 h = place.split; h < p.heads; h += splits)
            p.y[at + h * p.features] = p.x[at + h * p.features];
        return;
    }
    f32 sin, cos;
    turned(place.position(p), p.turn[slot], sin, cos);
    const int pair = p.first + slot;
    const s64 j = base + (p.interleaved ? 2 * pair : pair);
    const s64 k = p.interleaved ? j + 1 : j + p.dims / 2;
    for (s64 h = place.split; h < p.heads; h += splits) {
        const f32 a = to_f32(p.x[j + h * p.features]), b = to_f32(p.x[k + h * p.features]);
        p.y[j + h * p.features] = from_f32<T>(a * cos - b * sin);
        p.y[k + h * p.features] = from_f32<T>(a * sin + b * cos);
    }
}

// The same by 16 bytes of V features: a thread has V pairs, which lie in two such packs, and DEEP heads of
// both under way. What does not turn goes by a pack a thread.
template <bool INTERLEAVED> __device__ __forceinline__ void packs(const Rope& p) {
    constexpr int V = 16 / sizeof(T), DEEP = 2;
    // Where the lanes of a warp read parameters at places of their own, they do so one after the other. So a
    // block does that once.
    __shared__ __align__(16) u64 turns[PAIRS];
    typedef Wide<T, V> Features;

    const u64 item = thread_index();
    const bool live = item < p.items;
    const Place place(p, live ? item : 0);
    const int pair = place.slot * V, first = p.first + pair;
    const bool still = pair >= p.pairs;
    const s64 splits = p.splits.by, step = splits * p.features;
    const s64 near = still ? p.dims + pair - p.pairs : INTERLEAVED ? 2 * first : first;
    const s64 apart = INTERLEAVED ? V : p.dims / 2;
    s64 left = live ? (s64)divide(p.heads - place.split + splits - 1, p.splits) : 0;
    const s64 at = place.base + place.split * p.features + near;
    const T* x = p.x + at;
    T* y = p.y + at;

    Features a[DEEP], b[DEEP];
#pragma unroll
    for (int u = 0; u < DEEP; u++, x += step) {
        if (left <= u) continue;
        a[u].load(x);
        if (!still) b[u].load(x + apart);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < p.pairs; i += THREADS) turns[i] = p.turn[i];
    const s32 position = live ? place.position(p) : 0;
    __syncthreads();
    f32 sin[V], cos[V];
    if (!still) {
#pragma unroll
        for (int i = 0; i < V; i++) turned(position, turns[pair + i], sin[i], cos[i]);
    }
#pragma unroll 1
    for (; left > 0; left -= DEEP) {
#pragma unroll
        for (int u = 0; u < DEEP; u++) {
            if (left <= u) break;
            Features near = a[u], far = b[u];
            if (left > u + DEEP) {
                a[u].load(x);
                if (!still) b[u].load(x + apart);
            }
            x += step;
            if (!still) {
                f32 to_near[V], to_far[V];
#pragma unroll
                for (int i = 0; i < V; i++) {
                    // Of neighbours the even one and the odd one.
                    const Features& of = INTERLEAVED && i >= V / 2 ? far : near;
                    const f32 v = of.at(INTERLEAVED ? 2 * i % V : i);
                    const f32 w = INTERLEAVED ? of.at(2 * i % V + 1) : far.at(i);
                    const f32 even = v * cos[i] - w * sin[i], odd = v * sin[i] + w * cos[i];
                    if (!INTERLEAVED) to_near[i] = even, to_far[i] = odd;
                    else if (i < V / 2) to_near[2 * i % V] = even, to_near[2 * i % V + 1] = odd;
                    else to_far[2 * i % V] = even, to_far[2 * i % V + 1] = odd;
                }
                near.set(to_near);
                far.set(to_far);
                far.store(y + apart);
            }
            near.store(y);
            y += step;
        }
    }
}

#define ENTRY(NAME, INTERLEAVED)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) NAME(const __grid_constant__ Rope p) { \
        packs<INTERLEAVED>(p);                                                                    \
    }

ENTRY(rope_halves, false)
ENTRY(rope_neighbours, true)
