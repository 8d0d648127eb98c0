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
constexpr int STILL = SIZE - 2 * PAIRS; // features of a head that do not turn
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

#include "attention/near.cuh"

typedef Columns<WIDTH, COLUMNS, 3, 2> Qkv;
typedef Columns<WIDTH, INNERS, 1, 2> Up;
typedef Sums<3 * COLUMNS, Qkv::PARTS, 3 * COLUMNS, MEMBERS, SPLIT> QkvSums;

// A block's keys or values of the ring, to shared memory: a thread has a pack of every so many of them.
struct Copy {
    static constexpr u32 AT_ONCE = THREADS / PACKS;
    u32 from, to, key;

    __device__ __forceinline__ Copy(u32 first_key, const T* to)
        : to(shared_address(to + threadIdx.x * VEC)) {
        key = threadIdx.x < AT_ONCE * PACKS ? threadIdx.x / PACKS : ~0u;
        from = (first_key + key * MEMBERS) * WIDTH + threadIdx.x % PACKS * VEC;
        ready(from);
        ready(this->to);
        ready(key);
    }
    // `ring` is where the head's first key lies, or its value.
    __device__ __forceinline__ void start(const T* ring, u32 keys) {
#pragma unroll 1
        for (; key < keys; key += AT_ONCE) {
            copy_async(to, ring + from, true);
            from += AT_ONCE * MEMBERS * WIDTH;
            to += AT_ONCE * PACKS * VEC * sizeof(T);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) block(const __grid_constant__ Block p) {
    extern __shared__ __align__(16) f32 shared[];
    __shared__ __align__(8) u64 barriers[4];
    const u32 tid = threadIdx.x, rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const u32 head = rank / MEMBERS, member = rank % MEMBERS;
    // Keys of this block, every MEMBERS-th: at most, and how many there are.
    const u32 keys = (p.context + MEMBERS - 1) / MEMBERS;
    const u32 own_keys = (p.context - member + MEMBERS - 1) / MEMBERS;
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
    f32* const seen = got + 3 * SIZE;       // [WIDTH], what the heads attend to
    f32* const hidden = seen + WIDTH;       // [INNER]
    f32* const found = hidden + INNER;      // [CLUSTER][FOUND]
    f32* const up_part = found + CLUSTER * FOUND;
    T* const near_keys = (T*)(up_part + Up::PARTS * INNERS); // [keys][SIZE]
    T* const near_values = near_keys + keys * SIZE;
    // Sums of groups of threads. Those of `up` have a place of their own: a thread that has all of the row
    // knows nothing of its block's others, who may still collect what they send to other blocks. At the
    // next barrier they have, and then the place of before is free again.
    f32* const part = (f32*)(near_values + keys * SIZE);

    // What the frame has no part in.
    const u32 column0 = rank * COLUMNS;
    const Qkv qkv(p.qkv, 3 * WIDTH, column0, WIDTH);
    const Columns<WIDTH, COLUMNS, 1, 2> out(p.out, WIDTH, column0);
    const Up up(p.up, INNER, rank * INNERS);
    const Columns<INNER, COLUMNS, 1, 2> down(p.down, WIDTH, column0);
    for (u32 i = tid; i < WIDTH; i += THREADS) {
        gamma[i] = to_f32(p.first.gamma[i]);
        gamma[WIDTH + i] = to_f32(p.second.gamma[i]);
        if (CENTRED) beta[i] = p.first.beta ? to_f32(p.first.beta[i]) : 0.f;
        if (SECOND_CENTRED) beta[WIDTH + i] = p.second.beta ? to_f32(p.second.beta[i]) : 0.f;
    }
    // Of the columns that a thread ends with.
    typedef Sums<COLUMNS, decltype(out)::PARTS, COLUMNS, CLUSTER, SPLIT> OutSums;
    typedef Sums<INNERS, Up::PARTS, INNERS, CLUSTER, SPLIT> UpSums;
    typedef Sums<COLUMNS, decltype(down)::PARTS, COLUMNS, 1, SPLIT> DownSums;
    f32 up_b[UpSums::KEPT] = {}, down_b[DownSums::KEPT] = {}, own[OutSums::KEPT];
#pragma unroll
    for (int i = 0; i < UpSums::KEPT; i++) {
        if (p.up_b) up_b[i] = to_f32(p.up_b[rank * INNERS + UpSums::column() + i]);
        if (p.down_b) down_b[i] = to_f32(p.down_b[column0 + DownSums::column() + i]);
    }
    // Turned are q, k and v by the last threads: the first have the norm's scale to find.
    constexpr u32 TURNERS = THREADS - 3 * PAIRS;
    const u32 which = tid < TURNERS ? 3 : (tid - TURNERS) / PAIRS, pair = (tid - TURNERS) % PAIRS;
    const u64 turn = which < 3 ? p.turn[pair] : 0;
    const u32 first_of = p.interleaved ? 2 * pair : pair;
    const u32 second_of = p.interleaved ? first_of + 1 : first_of + PAIRS;
    // Where what there is to read lies.
    const T* const x = p.x + batch * WIDTH;
    u32 x_early = qkv.row, x_first = Row<T, WIDTH>::first(), x_own = column0 + OutSums::column();
    const s64 values = (s64)p.rows * p.context * WIDTH; // from a key to its value
    T* const held = p.ring + batch * p.context * WIDTH + head * SIZE;
    Copy copy_keys(member, near_keys), copy_values(member, near_values);
    ready(x_early);
    ready(x_first);
    ready(x_own);
    cluster_wait(); // all have begun
    __syncthreads();

    await_previous();
    // All is asked for before any of it is waited for.
    f32 early[decltype(qkv)::AHEAD];
    qkv.early(x + x_early, early);
    const Row<T, WIDTH> x_row(x + x_first);
    const s32 number = *p.number;
    const s32 at_place = which < 3 ? p.places[which] : 0;
#pragma unroll
    for (int i = 0; i < OutSums::KEPT; i++) own[i] = to_f32(x[x_own + i]);
    copy_keys.start(held, own_keys);
    copy_values.start(held + values, own_keys);
    copy_async_commit();

    Scaling s = {0.f, 1.f};
    if (CENTRED) s = scaling<true>(p.first.epsilon, x_row);
    qkv.multiply(
        [&](int i, int r) {
            const f32 v = i >= 0 ? early[i] : to_f32(x[r]);
            return normed<CENTRED>(v, s, gamma, beta, r);
        },
        part);
    if (!CENTRED && QkvSums::takes_part()) s = scaling<false>(p.first.epsilon, x_row);
    f32 sin = 0.f, cos = 1.f;
    if (which < 3) {
        const s64 turned = (s64)((u64)(s64)at_place * turn); // of half turns · 2⁶³
        sincospif((f32)turned * 1.0842021724855044e-19f, &sin, &cos);
    }
    const int rest = number % p.context;
    const u32 place = rest < 0 ? rest + p.context : rest; // of the frame in the ring
    // Of the keys up to this frame's own, this block's.
    const int visible = number < 0 ? 0 : min(number, p.context - 1) + 1;
    u32 count = (visible + MEMBERS - 1 - member) / MEMBERS;
    ready(count);
    copy_async_wait<0>();
    __syncthreads();
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
    auto keep = [&](u32 of, u32 i, f32 value) { // of: 1 for the key, 2 for the value
        const T stored = from_f32<T>(value);
        (of == 1 ? near_keys : near_values)[place / MEMBERS * SIZE + i] = stored;
        held[(of - 1) * values + (u64)place * WIDTH + i] = stored;
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
    if (STILL > 0 && mine)
#pragma unroll 1
        for (u32 i = tid; i < 2 * STILL; i += THREADS) {
            const u32 of = 1 + i / (STILL > 0 ? STILL : 1), at = 2 * PAIRS + i % (STILL > 0 ? STILL : 1);
            keep(of, at, got[of * SIZE + at]);
        }
    __syncthreads();

    attend(got, near_keys, near_values, part, count, p.scale, found + rank * FOUND, of_heads);
    put_together(found, seen);
    __syncthreads();

    out.multiply([&](int, int r) { return seen[r]; }, part);
    __syncthreads();
    OutSums::collect(
        part, [&](int k, int, f32 sum) { return sum + own[k]; },
        [&](bool wanted, int to, int c, f32 (&four)[4]) {
            of_row.give(wanted, to, row + column0 + c, four);
        });
    of_row.wait();

    const Row<f32, WIDTH> z_row(row + Row<f32, WIDTH>::first());
    if (SECOND_CENTRED) s = scaling<true>(p.second.epsilon, z_row);
    up.multiply(
        [&](int, int r) { return normed<SECOND_CENTRED>(row[r], s, gamma + WIDTH, beta + WIDTH, r); },
        up_part);
    if (!SECOND_CENTRED && UpSums::takes_part()) s = scaling<false>(p.second.epsilon, z_row);
    __syncthreads();
    UpSums::collect(
        up_part,
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
            if (wanted) store_four(p.y + batch * WIDTH + column0 + c, four);
        });
    cluster_wait();
}
