// One frame of a whole layer of attention in one launch:
//
//     q, k, v ← norm(x) · qkv                     each turned by its place
//     ring[number mod context] ← k, v
//     z ← x + attention(q, ring) · out
//     y ← z + f(norm(z) · up + up_b) · down + down_b
//
// A cluster of CLUSTER blocks takes a row of the batch. Each has an equal share of the columns of every
// matrix, which it asks for before the frame is there; CLUSTER / heads of them, neighbours, have a
// head, and each of these its share of the ring's keys. They meet four times, through distributed
// shared memory: a head's q, k and v go to its blocks; what these find in their keys, the row's next
// values and the inner layer's go to all. Sums are taken in one order, so that each run gives the
// same bits.

#define NORM 1
#include "common/async.cuh"
#include "common/cluster.cuh"
#include "common/early.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "dense/epilogue.cuh"
#include "norm/prologue.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int VEC = 16 / sizeof(T);
// Neighbouring threads that have a sum's parts, or a key.
constexpr int SHARE = 8;
// Pairs of a head that are turned, at most.
constexpr int PAIRS = 128;
#define NOTHING __int_as_float(0xff800000) // −∞

struct Block {
    const T* x;
    const T* qkv;
    const T* out;
    const T* up;
    const T* up_b; // or null, as down_b
    const T* down;
    const T* down_b;
    const s32* places; // of q, k and v
    const s32* number; // of the frame
    T* ring;           // {2, rows, context, heads, size}
    T* y;
    Prologue<T> first, second;
    int rows, width, inner, heads, size, context;
    int pairs; // that are turned, of a head
    int interleaved;
    int activation;
    f32 scale;
    u64 turn[PAIRS]; // as in rope/rope.cu
};

// From a row of sums to the next: SHARE threads read as many rows of WARP / SHARE columns at once,
// each from another bank.
__device__ __forceinline__ int pitch(int columns) { return (columns + 3) / 8 * 8 + 4; }

// The sum over SHARE neighbouring lanes, in each of them.
__device__ __forceinline__ f32 neighbours_sum(f32 x) {
#pragma unroll
    for (int m = 1; m < SHARE; m *= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// Calls f(column, sum) with the sum over `rows` rows of parts, in SHARE neighbours each.
template <class F>
__device__ __forceinline__ void columns_sum(const f32* part, int rows, int columns, F f) {
    const int lane = threadIdx.x % SHARE, next = pitch(columns);
#pragma unroll 1
    for (int base = 0; base < columns; base += THREADS / SHARE) {
        const int c = base + threadIdx.x / SHARE;
        f32 sum = 0.f;
        if (c < columns)
#pragma unroll 4
            for (int r = lane; r < rows; r += SHARE) sum += part[r * next + c];
        sum = neighbours_sum(sum);
        if (c < columns) f(c, sum);
    }
}

__device__ __forceinline__ void put(f32* to, const f32 (&sum)[VEC]) {
#pragma unroll
    for (int v = 0; v < VEC; v += 4)
        *(float4*)(to + v) = make_float4(sum[v], sum[v + 1], sum[v + 2], sum[v + 3]);
}

// A block's columns of a matrix {rows, stride} at w: from `first` on `count` in each of `runs`, which lie
// `apart`. A thread has a pack of every so many rows, of which the first DEPTH are asked for when it is
// made.
template <int DEPTH> struct Columns {
    Wide<T, VEC> ahead[DEPTH];
    const T* const& w; // in the kernel's parameters: no registers
    const int& rows;
    int from, hop, row, at_once, at, next;

    __device__ __forceinline__ Columns(const T* const& w, const int& rows, int stride, int first,
                                       int count, int runs = 1, int apart = 0)
        : w(w), rows(rows) {
        const int run = count / VEC, packs = runs * run;
        const int pack = threadIdx.x % packs;
        at_once = min(THREADS / packs, rows);
        row = threadIdx.x / packs;
        if (row >= at_once) row = rows; // nothing is left for it
        at = pack * VEC;
        next = pitch(packs * VEC);
        hop = at_once * stride;
        from = row * stride + first + pack / run * apart + pack % run * VEC;
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (row + i * at_once < rows) ahead[i].load(w + from + i * hop);
            else ahead[i].zero();
        }
    }
    // The sums of x[row] · w[row] over this thread's rows, into `part`.
    __device__ __forceinline__ void multiply(const f32* x, f32* part) const {
        f32 sum[VEC] = {};
        auto add = [&](const Wide<T, VEC>& w, f32 x) {
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[v] = fmaf(x, w.at(v), sum[v]);
        };
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int r = row + i * at_once;
            if (r < rows) add(ahead[i], x[r]);
        }
        int rest = from + DEPTH * hop;
#pragma unroll 4
        for (int r = row + DEPTH * at_once; r < rows; r += at_once, rest += hop) {
            Wide<T, VEC> more;
            more.load(w + rest);
            add(more, x[r]);
        }
        if (row < rows) put(part + row * next + at, sum);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) block(const __grid_constant__ Block p) {
    extern __shared__ __align__(16) f32 shared[];
    const int tid = threadIdx.x, lane = tid % SHARE;
    const int rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const int width = p.width, size = p.size;
    const int columns = width / CLUSTER, inner = p.inner / CLUSTER; // of this block
    const int own = tid / SHARE;            // of these, the one that this thread ends with
    const int members = CLUSTER / p.heads;  // blocks that have a head
    const int head = rank / members, member = rank % members;
    const int keys = (p.context + members - 1) / members; // of this block: every members-th
    cluster_arrive(); // no block writes to another that has not begun
    let_next_begin();

    const int found = (size + 2 + 3) / 4 * 4;
    f32* const row = shared;                // [width], the norm of x, then of z
    f32* const got = row + width;           // [3][size], the head's q, k and v
    f32* const parts = got + 3 * size;      // [CLUSTER][found]: values, their weight, the top score
    f32* const seen = parts + CLUSTER * found; // [width], what the heads attend to
    f32* const hidden = seen + width;       // [p.inner]
    f32* const scores = hidden + p.inner;   // [keys]
    T* const near_keys = (T*)(scores + (keys + 3) / 4 * 4); // [keys][size]
    T* const near_values = near_keys + keys * size;
    f32* const part = (f32*)(near_values + keys * size); // sums of groups of threads

    // What the frame has no part in.
    const int column0 = rank * columns;
    const Columns<7> qkv(p.qkv, p.width, 3 * width, column0, columns, 3, width);
    const Columns<2> out(p.out, p.width, width, column0, columns);
    const Columns<2> up(p.up, p.width, p.inner, rank * inner, inner);
    const Columns<2> down(p.down, p.inner, width, column0, columns);
    const Affine first = affine(p.first, tid, width), second = affine(p.second, tid, width);
    T up_b = {}, down_b = {};
    if (p.up_b && own < inner) up_b = p.up_b[rank * inner + own];
    if (p.down_b && own < columns) down_b = p.down_b[column0 + own];
    const int which = tid / p.pairs, pair = tid - which * p.pairs; // of q, k and v
    const u64 turn = which < 3 ? p.turn[pair] : 0;

    await_previous();
    const s64 result = batch * width + column0 + own;
    f32 z = own < columns ? to_f32(p.x[result]) : 0.f;
#pragma unroll 1
    for (int i = tid; i < width; i += THREADS) row[i] = to_f32(p.x[batch * width + i]);
    const s32 number = *p.number;
    const int packs = size / VEC;
    const s64 values = (s64)p.rows * p.context * width; // from a key to its value
    T* const kept = p.ring + batch * p.context * width + head * size;
#pragma unroll 1
    for (int i = tid; i < keys * packs; i += THREADS) {
        const int key = i / packs, at = i % packs * VEC, j = member + key * members;
        const bool there = j < p.context;
        const T* const from = kept + (there ? (s64)j * width + at : 0);
        copy_async(near_keys + key * size + at, from, there);
        copy_async(near_values + key * size + at, from + values, there);
    }
    copy_async_commit();
    f32 sin = 0.f, cos = 1.f;
    if (which < 3) {
        const s64 turned = (s64)((u64)(s64)p.places[which] * turn); // of half turns · 2⁶³
        sincospif((f32)turned * 1.0842021724855044e-19f, &sin, &cos);
    }
    __syncthreads();
    normalise<1, WARPS>(p.first, first, row, width, part);

    qkv.multiply(row, part);
    copy_async_wait<0>();
    __syncthreads();
    cluster_wait(); // all have begun
    columns_sum(part, qkv.at_once, 3 * columns, [&](int c, f32 sum) {
        f32* const to = got + c / columns * size + member * columns + c % columns;
        for (int m = lane; m < members; m += SHARE) hand(to, head * members + m, sum);
    });
    cluster_arrive();
    cluster_wait();

    // The new key takes its place in the ring, and among the keys of the block that has that place.
    int place = number % p.context;
    if (place < 0) place += p.context;
    const bool mine = place % members == member;
    auto keep = [&](int of, int i, f32 value) { // of: 1 for the key, 2 for the value
        const T stored = from_f32<T>(value);
        (of == 1 ? near_keys : near_values)[place / members * size + i] = stored;
        kept[(of - 1) * values + (s64)place * width + i] = stored;
    };
    if (which < 3) {
        const int j = p.interleaved ? 2 * pair : pair, k = p.interleaved ? j + 1 : j + p.pairs;
        f32* const from = got + which * size;
        const f32 a = from[j], b = from[k];
        const f32 turned_a = a * cos - b * sin, turned_b = a * sin + b * cos;
        if (which == 0) {
            from[j] = turned_a;
            from[k] = turned_b;
        } else if (mine) {
            keep(which, j, turned_a);
            keep(which, k, turned_b);
        }
    }
    const int still = size - 2 * p.pairs; // features of a head that do not turn
#pragma unroll 1
    for (int i = tid; mine && i < 2 * still; i += THREADS) {
        const int of = 1 + i / still, at = 2 * p.pairs + i % still;
        keep(of, at, got[of * size + at]);
    }
    __syncthreads();

    // Of the keys up to this frame's own, this block's.
    const int visible = number < 0 ? 0 : min(number, p.context - 1) + 1;
    const int count = (visible + members - 1 - member) / members;
#pragma unroll 1
    for (int base = 0; base < count; base += THREADS / SHARE) {
        const int key = base + own;
        f32 score = 0.f;
        if (key < count)
            for (int i = lane * VEC; i < size; i += SHARE * VEC) {
                Wide<T, VEC> k;
                k.load(near_keys + key * size + i);
#pragma unroll
                for (int v = 0; v < VEC; v++) score = fmaf(got[i + v], k.at(v), score);
            }
        score = neighbours_sum(score);
        if (lane == 0 && key < count) scores[key] = score * p.scale;
    }
    __syncthreads();
    // −∞ of no keys gives weights of 0, and not of NaN.
    auto finite = [](f32 top) { return top == NOTHING ? 0.f : top; };
    f32 top = NOTHING;
    for (int i = tid % WARP; i < count; i += WARP) top = fmaxf(top, scores[i]);
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    const int groups = min(THREADS / packs, count);
    {
        const int group = tid / packs, at = tid % packs * VEC;
        if (group < groups) {
            f32 sum[VEC] = {}, weight = 0.f;
#pragma unroll 1
            for (int key = group; key < count; key += groups) {
                const f32 e = expf(scores[key] - finite(top));
                weight += e;
                Wide<T, VEC> value;
                value.load(near_values + key * size + at);
#pragma unroll
                for (int v = 0; v < VEC; v++) sum[v] = fmaf(e, value.at(v), sum[v]);
            }
            f32* const to = part + group * pitch(size + 1);
            put(to + at, sum);
            if (at == 0) to[size] = weight;
        }
    }
    __syncthreads();
    columns_sum(part, groups, size + 1, [&](int c, f32 sum) {
        for (int r = lane; r < CLUSTER; r += SHARE) hand(&parts[rank * found + c], r, sum);
    });
    if (tid < CLUSTER) hand(&parts[rank * found + size + 1], tid, top);
    cluster_arrive();
    cluster_wait();
#pragma unroll 1
    for (int i = tid; i < width; i += THREADS) {
        const f32* const from = parts + i / size * members * found;
        f32 top = NOTHING, sum = 0.f, weight = 0.f;
        for (int m = 0; m < members; m++) top = fmaxf(top, from[m * found + size + 1]);
        for (int m = 0; m < members; m++) {
            const f32* const its = from + m * found;
            const f32 e = expf(its[size + 1] - finite(top));
            sum = fmaf(its[i % size], e, sum);
            weight = fmaf(its[size], e, weight);
        }
        seen[i] = weight == 0.f ? 0.f : sum / weight;
    }
    __syncthreads();

    out.multiply(seen, part);
    __syncthreads();
    columns_sum(part, out.at_once, columns, [&](int c, f32 sum) {
        z += sum;
        for (int r = lane; r < CLUSTER; r += SHARE) hand(&row[column0 + c], r, z);
    });
    cluster_arrive();
    cluster_wait();
    normalise<1, WARPS>(p.second, second, row, width, part);

    up.multiply(row, part);
    __syncthreads();
    columns_sum(part, up.at_once, inner, [&](int c, f32 sum) {
        f32 value[1] = {sum + to_f32(up_b)};
        activate<T>(value, p.activation);
        for (int r = lane; r < CLUSTER; r += SHARE) hand(&hidden[rank * inner + c], r, value[0]);
    });
    cluster_arrive();
    cluster_wait();

    down.multiply(hidden, part);
    __syncthreads();
    columns_sum(part, down.at_once, columns, [&](int, f32 sum) {
        if (lane == 0) p.y[result] = from_f32<T>(sum + to_f32(down_b) + z);
    });
}
