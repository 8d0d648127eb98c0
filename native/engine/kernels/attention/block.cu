// One frame of a whole layer of attention in one launch:
//
//     q, k, v ← norm(x) · qkv                     each turned by its place
//     ring[number mod context] ← k, v
//     z ← x + attention(q, ring) · out
//     y ← z + f(norm(z) · up + up_b) · down + down_b
//
// A cluster of CLUSTER blocks takes a row of the batch. Each has an equal share of the columns of every
// matrix, which it asks for before the frame is there; CLUSTER / HEADS of them, neighbours, have a
// head, and each of these its share of the ring's keys. They meet four times, through distributed
// shared memory: a head's q, k and v go to its blocks; what these find in their keys, the row's next
// values and the inner layer's go to all. Sums are taken in one order, so that each run gives the
// same bits.
//
// A module is for one size of a layer: WIDTH, INNER, HEADS, the PAIRS of a head that are turned, whether
// each norm is a LayerNorm (CENTRED, SECOND_CENTRED), and the ACTIVATION. A frame is a few thousand
// clocks, of which divisions by sizes that are not known would be a tenth.

#define NORM 1
#include "common/async.cuh"
#include "common/early.cuh"
#include "common/meeting.cuh"
#include "dense/epilogue.cuh"
#include "norm/prologue.cuh"
#include "norm/row.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int VEC = 16 / sizeof(T);
#include "dense/columns.cuh"

constexpr int COLUMNS = WIDTH / CLUSTER, INNERS = INNER / CLUSTER; // of a block
constexpr int SIZE = WIDTH / HEADS;                                // features of a head
constexpr int MEMBERS = CLUSTER / HEADS;                           // blocks that have a head
// What a block finds for its head: values, their weight, the top score, and nothing.
constexpr int FOUND = SIZE + 4;
// Neighbouring threads that share a key: as many as its packs divide among evenly, up to 8.
constexpr int PACKS = SIZE / VEC;
constexpr int SHARE = PACKS % 8 == 0 ? 8 : PACKS % 4 == 0 ? 4 : PACKS % 2 == 0 ? 2 : 1;
constexpr int EACH = PACKS / SHARE;
constexpr int GROUPS = THREADS / SHARE;
constexpr int AT_ONCE = WARP / SHARE; // keys of a warp
constexpr int SPLIT = 4; // threads that have four columns' sums
constexpr int MOST_PAIRS = 128;
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
    int rows, context;
    int interleaved;
    f32 scale;
    u64 turn[MOST_PAIRS]; // as in rope/rope.cu
};

// −∞ of no keys gives weights of 0, and not of NaN.
__device__ __forceinline__ f32 finite(f32 top) { return top == NOTHING ? 0.f : top; }

extern "C" __global__ void __launch_bounds__(THREADS, 1) block(const __grid_constant__ Block p) {
    extern __shared__ __align__(16) f32 shared[];
    __shared__ __align__(8) u64 barriers[4];
    const int tid = threadIdx.x;
    const int rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const int head = rank / MEMBERS, member = rank % MEMBERS;
    const int keys = (p.context + MEMBERS - 1) / MEMBERS; // of this block: every MEMBERS-th
    const Meeting of_head(&barriers[0]), of_heads(&barriers[1]), of_row(&barriers[2]),
        of_inner(&barriers[3]);
    if (tid == 0) {
        of_head.begin(3 * SIZE * 4);
        of_heads.begin(CLUSTER * FOUND * 4);
        of_row.begin(WIDTH * 4);
        of_inner.begin(INNER * 4);
    }
    cluster_arrive();
    let_next_begin();

    f32* const gamma = shared;              // [2][WIDTH], of both norms
    f32* const beta = gamma + 2 * WIDTH;    // [2][WIDTH]
    f32* const row = beta + 2 * WIDTH;      // [WIDTH], z
    f32* const got = row + WIDTH;           // [3][SIZE], the head's q, k and v
    f32* const found = got + 3 * SIZE;      // [CLUSTER][FOUND]
    f32* const seen = found + CLUSTER * FOUND; // [WIDTH], what the heads attend to
    f32* const hidden = seen + WIDTH;       // [INNER]
    T* const near_keys = (T*)(hidden + INNER); // [keys][SIZE]
    T* const near_values = near_keys + keys * SIZE;
    f32* const part = (f32*)(near_values + keys * SIZE); // sums of groups of threads

    // What the frame has no part in.
    const int column0 = rank * COLUMNS;
    const Columns<WIDTH, COLUMNS, 3, 2> qkv(p.qkv, 3 * WIDTH, column0, WIDTH);
    const Columns<WIDTH, COLUMNS, 1, 2> out(p.out, WIDTH, column0);
    const Columns<WIDTH, INNERS, 1, 2> up(p.up, INNER, rank * INNERS);
    const Columns<INNER, COLUMNS, 1, 2> down(p.down, WIDTH, column0);
    for (int i = tid; i < WIDTH; i += THREADS) {
        gamma[i] = to_f32(p.first.gamma[i]);
        gamma[WIDTH + i] = to_f32(p.second.gamma[i]);
        if (CENTRED) beta[i] = p.first.beta ? to_f32(p.first.beta[i]) : 0.f;
        if (SECOND_CENTRED) beta[WIDTH + i] = p.second.beta ? to_f32(p.second.beta[i]) : 0.f;
    }
    // Of the columns that a thread ends with.
    typedef Sums<3 * COLUMNS, decltype(qkv)::PARTS, 3 * COLUMNS, MEMBERS, SPLIT> QkvSums;
    typedef Sums<COLUMNS, decltype(out)::PARTS, COLUMNS, CLUSTER, SPLIT> OutSums;
    typedef Sums<INNERS, decltype(up)::PARTS, INNERS, CLUSTER, SPLIT> UpSums;
    typedef Sums<COLUMNS, decltype(down)::PARTS, COLUMNS, 1, SPLIT> DownSums;
    f32 up_b[UpSums::KEPT] = {}, down_b[DownSums::KEPT] = {}, own[OutSums::KEPT];
#pragma unroll
    for (int i = 0; i < UpSums::KEPT; i++) {
        if (p.up_b) up_b[i] = to_f32(p.up_b[rank * INNERS + UpSums::column() + i]);
        if (p.down_b) down_b[i] = to_f32(p.down_b[column0 + DownSums::column() + i]);
    }
    const int which = tid / PAIRS, pair = tid % PAIRS; // of q, k and v
    const u64 turn = which < 3 ? p.turn[pair] : 0;
    const int first_of = p.interleaved ? 2 * pair : pair;
    const int second_of = p.interleaved ? first_of + 1 : first_of + PAIRS;
    __syncthreads();

    await_previous();
    // All that there is to read is asked for, x first, before any of it is waited for.
    const T* const x = p.x + batch * WIDTH;
    f32 early[decltype(qkv)::AHEAD];
    qkv.early(x, early);
    const Row<T, WIDTH> x_row(x);
    const s32 number = *p.number;
    const s32 at_place = which < 3 ? p.places[which] : 0;
#pragma unroll
    for (int i = 0; i < OutSums::KEPT; i++) own[i] = to_f32(x[column0 + OutSums::column() + i]);
    const s64 values = (s64)p.rows * p.context * WIDTH; // from a key to its value
    T* const held = p.ring + batch * p.context * WIDTH + head * SIZE;
#pragma unroll 1
    for (int i = tid; i < keys * PACKS; i += THREADS) {
        const int key = i / PACKS, at = i % PACKS * VEC, j = member + key * MEMBERS;
        const bool there = j < p.context;
        const T* const from = held + (there ? (s64)j * WIDTH + at : 0);
        copy_async(near_keys + key * SIZE + at, from, there);
        copy_async(near_values + key * SIZE + at, from + values, there);
    }
    copy_async_commit();

    Scaling s = {0.f, 1.f};
    if (CENTRED) s = scaling<true>(p.first.epsilon, x_row);
    qkv.multiply(
        [&](int i, int r) {
            const f32 v = i >= 0 ? early[i] : to_f32(x[r]);
            return CENTRED ? fmaf((v - s.mean) * s.scale, gamma[r], beta[r]) : v * gamma[r];
        },
        part);
    if (!CENTRED) s = scaling<false>(p.first.epsilon, x_row);
    f32 sin = 0.f, cos = 1.f;
    if (which < 3) {
        const s64 turned = (s64)((u64)(s64)at_place * turn); // of half turns · 2⁶³
        sincospif((f32)turned * 1.0842021724855044e-19f, &sin, &cos);
    }
    int place = number % p.context;
    if (place < 0) place += p.context;
    copy_async_wait<0>();
    __syncthreads();
    cluster_wait(); // all have begun
    // The scale of an RMS norm is the row's, and so the sums'.
    QkvSums::collect(
        part, [&](int, int, f32 sum) { return CENTRED ? sum : sum * s.scale; },
        [&](bool wanted, int to, int c, f32 (&four)[4]) {
            of_head.give(wanted, head * MEMBERS + to,
                         got + c / COLUMNS * SIZE + member * COLUMNS + c % COLUMNS, four);
        });
    of_head.wait();

    // The new key takes its place in the ring, and among the keys of the block that has that place.
    const bool mine = place % MEMBERS == member;
    auto keep = [&](int of, int i, f32 value) { // of: 1 for the key, 2 for the value
        const T stored = from_f32<T>(value);
        (of == 1 ? near_keys : near_values)[place / MEMBERS * SIZE + i] = stored;
        held[(of - 1) * values + (s64)place * WIDTH + i] = stored;
    };
    if (which < 3) {
        f32* const from = got + which * SIZE;
        const f32 a = from[first_of], b = from[second_of];
        const f32 turned_a = a * cos - b * sin, turned_b = a * sin + b * cos;
        if (which == 0) {
            from[first_of] = turned_a;
            from[second_of] = turned_b;
        } else if (mine) {
            keep(which, first_of, turned_a);
            keep(which, second_of, turned_b);
        }
    }
    constexpr int STILL = SIZE - 2 * PAIRS; // features of a head that do not turn
    if (STILL > 0 && mine)
#pragma unroll 1
        for (int i = tid; i < 2 * STILL; i += THREADS) {
            const int of = 1 + i / (STILL > 0 ? STILL : 1), at = 2 * PAIRS + i % (STILL > 0 ? STILL : 1);
            keep(of, at, got[of * SIZE + at]);
        }
    __syncthreads();

    // Of the keys up to this frame's own, this block's. A warp takes AT_ONCE of them at a time, under the
    // top score that it has seen.
    const int visible = number < 0 ? 0 : min(number, p.context - 1) + 1;
    const int count = (visible + MEMBERS - 1 - member) / MEMBERS;
    const int warp = tid / WARP, lane = tid % SHARE;
    const int active = min((count + AT_ONCE - 1) / AT_ONCE, WARPS); // warps that have keys
    if (warp < active) {
        f32 sum[EACH * VEC] = {}, weight = 0.f, top = NOTHING;
#pragma unroll 1
        for (int base = warp * AT_ONCE; base < count; base += GROUPS) {
            const int key = base + tid % WARP / SHARE;
            const bool there = key < count;
            Wide<T, VEC> k[EACH], value[EACH];
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const int i = there ? key * SIZE + (lane + n * SHARE) * VEC : lane * VEC;
                k[n].load(near_keys + i);
                value[n].load(near_values + i);
            }
            f32 score = 0.f;
#pragma unroll
            for (int n = 0; n < EACH; n++)
#pragma unroll
                for (int v = 0; v < VEC; v++)
                    score = fmaf(got[(lane + n * SHARE) * VEC + v], k[n].at(v), score);
#pragma unroll
            for (int m = 1; m < SHARE; m *= 2) score += __shfl_xor_sync(~0u, score, m);
            score = there ? score * p.scale : NOTHING;
            f32 highest = fmaxf(top, score);
#pragma unroll
            for (int m = SHARE; m < WARP; m *= 2)
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, m));
            const f32 before = expf(top - finite(highest)), e = expf(score - finite(highest));
            top = highest;
            weight = fmaf(weight, before, e);
#pragma unroll
            for (int n = 0; n < EACH; n++)
#pragma unroll
                for (int v = 0; v < VEC; v++)
                    sum[n * VEC + v] =
                        fmaf(sum[n * VEC + v], before, there ? e * value[n].at(v) : 0.f);
        }
#pragma unroll
        for (int m = SHARE; m < WARP; m *= 2) weight += __shfl_xor_sync(~0u, weight, m);
        const int first = fold<AT_ONCE, SHARE>(sum);
        f32* const to = part + warp * FOUND;
#pragma unroll
        for (int k = 0; k < kept<EACH * VEC, AT_ONCE>(); k++) {
            const int i = first + k;
            to[(i / VEC * SHARE + lane) * VEC + i % VEC] = sum[k];
        }
        if (tid % WARP == 0) {
            to[SIZE] = weight;
            to[SIZE + 1] = top;
        }
    }
    __syncthreads();
    {
        // Four warps' at a time, so that nothing waits for each by itself.
        constexpr int FEW = 4, QUADS = FOUND / 4;
        f32 top = NOTHING;
#pragma unroll 1
        for (int w0 = 0; w0 < active; w0 += FEW)
#pragma unroll
            for (int w = 0; w < FEW; w++)
                if (w0 + w < active) top = fmaxf(top, part[(w0 + w) * FOUND + SIZE + 1]);
#pragma unroll 1
        for (int i = tid; i < QUADS * CLUSTER; i += THREADS) {
            const int quad = i % QUADS;
            f32 sum[4] = {};
#pragma unroll 1
            for (int w0 = 0; w0 < active; w0 += FEW)
#pragma unroll
                for (int w = 0; w < FEW; w++) {
                    const bool there = w0 + w < active;
                    const f32* const from = part + (there ? w0 + w : 0) * FOUND;
                    const float4 v = *(const float4*)(from + quad * 4);
                    const f32 e = there ? expf(from[SIZE + 1] - finite(top)) : 0.f;
                    sum[0] = there ? fmaf(v.x, e, sum[0]) : sum[0];
                    sum[1] = there ? fmaf(v.y, e, sum[1]) : sum[1];
                    sum[2] = there ? fmaf(v.z, e, sum[2]) : sum[2];
                    sum[3] = there ? fmaf(v.w, e, sum[3]) : sum[3];
                }
            if (quad == QUADS - 1) {
                sum[1] = top;
                sum[2] = sum[3] = 0.f;
            }
            of_heads.give(true, i / QUADS, found + rank * FOUND + quad * 4, sum);
        }
    }
    of_heads.wait();
#pragma unroll
    for (int i = tid; i < WIDTH; i += THREADS) {
        const f32* const from = found + i / SIZE * MEMBERS * FOUND;
        f32 top = NOTHING, sum = 0.f, weight = 0.f;
#pragma unroll
        for (int m = 0; m < MEMBERS; m++) top = fmaxf(top, from[m * FOUND + SIZE + 1]);
#pragma unroll
        for (int m = 0; m < MEMBERS; m++) {
            const f32* const its = from + m * FOUND;
            const f32 e = expf(its[SIZE + 1] - finite(top));
            sum = fmaf(its[i % SIZE], e, sum);
            weight = fmaf(its[SIZE], e, weight);
        }
        seen[i] = weight == 0.f ? 0.f : sum / weight;
    }
    __syncthreads();

    out.multiply([&](int, int r) { return seen[r]; }, part);
    __syncthreads();
    OutSums::collect(
        part, [&](int k, int, f32 sum) { return sum + own[k]; },
        [&](bool wanted, int to, int c, f32 (&four)[4]) {
            of_row.give(wanted, to, row + column0 + c, four);
        });
    of_row.wait();

    const f32 *const second_gamma = gamma + WIDTH, *const second_beta = beta + WIDTH;
    const Row<f32, WIDTH> z_row(row);
    if (SECOND_CENTRED) s = scaling<true>(p.second.epsilon, z_row);
    up.multiply(
        [&](int, int r) {
            const f32 g = second_gamma[r];
            return SECOND_CENTRED ? fmaf((row[r] - s.mean) * s.scale, g, second_beta[r]) : row[r] * g;
        },
        part);
    if (!SECOND_CENTRED) s = scaling<false>(p.second.epsilon, z_row);
    __syncthreads();
    UpSums::collect(
        part,
        [&](int k, int, f32 sum) {
            f32 value[1] = {SECOND_CENTRED ? sum + up_b[k] : fmaf(sum, s.scale, up_b[k])};
            activate<T>(value, ACTIVATION);
            return value[0];
        },
        [&](bool wanted, int to, int c, f32 (&four)[4]) {
            of_inner.give(wanted, to, hidden + rank * INNERS + c, four);
        });
    of_inner.wait();
    cluster_leave(); // all that was sent to this block is here

    down.multiply([&](int, int r) { return hidden[r]; }, part);
    __syncthreads();
    DownSums::collect(
        part, [&](int k, int c, f32 sum) { return sum + down_b[k] + row[column0 + c]; },
        [&](bool wanted, int, int c, f32 (&four)[4]) {
            Pack<T, 4> y;
#pragma unroll
            for (int i = 0; i < 4; i++) y.at[i] = from_f32<T>(four[i]);
            if (wanted) *(Pack<T, 4>*)(p.y + batch * WIDTH + column0 + c) = y;
        });
    cluster_wait();
}
