// A whole window of a bf16 or f16 LSTM or GRU layer by a grid whose blocks are all there at once
// (sm_90a), by warpgroups: for many rows.
//
// The grid is (units, parts): a block owns UNITS hidden units with all their gates for a part of the
// batch's rows, and keeps their recurrent weights in registers: 64 rows of a product a warpgroup, which
// are the gates of 16 units. Up to 512 hidden units (-DSPLIT=1) each of a block's two warpgroups has 16
// units; above (-DSPLIT=2) both have the same, and half of the reduction each.
//
//     h of the part's rows ── polled, 16 bytes at a time ──► shared memory, as the tensor cores take it
//     products (weights in registers × h) ──► sums, by shuffles all four of a unit to one lane
//     gates, c, h ──► 4 units of a row from 4 lanes ──► to all blocks
//     while it is on its way: the next step's x · wi is asked for, the seq of the step before written
//
// How h goes round is said in ring.cuh. A pack there lies where it lies in shared memory, so
// that fetching it is a copy, in order.
//
// Compiled for -DSPLIT=1 or 2, -DDEPTH=16s of h a warpgroup multiplies, -DCOLUMNS=8s of columns.

#include "common/wgmma.cuh"
#include "recurrent/layer.cuh"
#include "recurrent/operands.cuh"
#include "recurrent/ring.cuh"

constexpr int GROUP = 4 * WARP; // threads of a warpgroup
constexpr int TILE = 16;        // units whose gates are 64 rows of a product
constexpr int UNITS = 2 * TILE / SPLIT;
constexpr int REACH = DEPTH * 16;   // of h that a warpgroup multiplies
constexpr int STAGED = 64 * 2 + 16; // bytes of a row of wh in shared memory
// 16-byte packs of h: of a step, and those that a thread fetches.
constexpr int ROW = 8 * COLUMNS;
constexpr int PACKS = SPLIT * DEPTH * 2 * ROW;
constexpr int OWN = UNITS / 8; // packs of a block's units, in a row
constexpr int SHARERS = THREADS / SPLIT; // threads that fetch what a warpgroup multiplies
constexpr int EACH = PACKS / SPLIT / SHARERS;
constexpr int BATCH = EACH <= 8 ? EACH : EACH / 2;
static_assert(EACH % BATCH == 0 && PACKS % (SPLIT * SHARERS) == 0, "all fetch as much");
static_assert(OWN * ROW <= SHARERS, "a thread writes at most one pack of seq");
// 8s of columns whose sums a warpgroup finishes, and their x · wi in shared memory.
constexpr int PAIRS = COLUMNS / SPLIT;
constexpr int INPUT = GATES * UNITS + 4; // of a row: eight lanes' fours are in different banks
constexpr int INPUTS = PAIRS * 8 * INPUT;

// The threads that fetch what this one multiplies.
__device__ __forceinline__ void meet(int group) {
    if (SPLIT == 1) __syncthreads();
    else asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(GROUP) : "memory");
}

// This warpgroup's weights. Rows m of the left operand are, for each four units, their gates 0 and 1, and
// then 2 and 3.
__device__ __forceinline__ void hold_weights(u32 (&w)[DEPTH][4], const Layer& p, unsigned char* staged,
                                             int unit0, int k0) {
    const int t = threadIdx.x % GROUP, lane = t % WARP;
    if (p.hidden % 4 == 0) {
        for (int i = t; i < REACH * 16; i += GROUP) {
            const int k = i / 16, four = i % 16 / 4, gate = i % 4, unit = unit0 + four * 4;
            const bool in = k0 + k < p.hidden && unit < p.hidden && gate < GATES;
            const T* from = in ? p.wh + ((s64)(k0 + k) * GATES + gate) * p.hidden + unit : p.wh;
            const u32 to = shared_address(staged + k * STAGED + (four * 16 + gate * 4) * 2);
            copy_async_few<8>(to, from, in);
        }
        copy_async_commit();
        copy_async_wait<0>();
    } else {
        for (int i = t; i < REACH * 64; i += GROUP) {
            const int k = i / 64, gate = i % 16 / 4, unit = unit0 + i % 64 / 16 * 4 + i % 4;
            const bool in = k0 + k < p.hidden && unit < p.hidden && gate < GATES;
            *(T*)(staged + k * STAGED + i % 64 * 2) =
                in ? p.wh[((s64)(k0 + k) * GATES + gate) * p.hidden + unit] : from_f32<T>(0.f);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        const int matrix = lane / 8;
        const int k = i * 16 + matrix / 2 * 8 + lane % 8, m = t / WARP * 16 + matrix % 2 * 8;
        load_matrices_transposed(w[i], staged + k * STAGED + m * 2);
    }
    __syncthreads();
}

// The product with what lies at `h`. Two warpgroups with products of their own take turns: the gates of the
// first are computed under the product of the second.
__device__ __forceinline__ void multiply(f32 (&sum)[COLUMNS][4], const u32 (&w)[DEPTH][4],
                                         const uint4* h, int group) {
    const u64 columns = describe_columns(shared_address(h), ROW * 16); // counts in packs
    if (SPLIT == 1 && group == 1) asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
    products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH; i++) product<T, COLUMNS>(sum, w[i], columns + i * 2 * ROW, i > 0);
    products_asked();
    if (SPLIT == 1 && group == 0) asm volatile("bar.arrive 1, %0;" ::"n"(THREADS) : "memory");
    products_end();
}

// Of the pair `lane / 4 % 4` the values of its four units, inverted, from the four lanes that have them.
__device__ __forceinline__ uint2 gather(const u32 (&mine)[PAIRS]) {
    const bool a = threadIdx.x & 4, b = threadIdx.x & 8;
    u32 keep = mine[0], send = mine[0];
    if constexpr (PAIRS == 4) {
        const u32 even = mine[0] | mine[2] << 16, odd = mine[1] | mine[3] << 16;
        keep = a ? odd : even;
        send = a ? even : odd;
    } else if constexpr (PAIRS == 2) {
        keep = a ? mine[1] : mine[0];
        send = a ? mine[0] : mine[1];
    }
    // Two units of this pair, and of the one two further.
    const u32 other = __shfl_xor_sync(~0u, send, 4);
    const u32 low = a ? other : keep, high = a ? keep : other;
    const u32 near = __byte_perm(low, high, 0x5410);
    const u32 far = PAIRS == 4 ? __byte_perm(low, high, 0x7632) : near;
    const u32 rest = __shfl_xor_sync(~0u, b ? near : far, 8);
    return b ? make_uint2(~rest, ~far) : make_uint2(~near, ~rest);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) window(const Layer p) {
    extern __shared__ __align__(128) unsigned char shared[];
    auto* const h = (uint4*)shared;             // [2][PACKS]
    auto* const inputs = (f32*)(h + 2 * PACKS); // [SPLIT][2][INPUTS]
    auto* const part = (float4*)(inputs + 2 * SPLIT * INPUTS); // [2][COLUMNS][GROUP], for SPLIT == 2

    const int tid = threadIdx.x, lane = tid % WARP;
    const int group = tid / GROUP, t = tid % GROUP, warp = t / WARP;
    const int row0 = p.first + blockIdx.y * p.share;
    const int rows = min(p.share, p.batch - row0);
    const int units = gridDim.x * UNITS; // of all blocks
    const int unit0 = blockIdx.x * UNITS + (SPLIT == 1 ? group * TILE : 0);
    const int four0 = unit0 + warp * 4; // of a warp's units

    u32 w[DEPTH][4];
    hold_weights(w, p, shared + group * REACH * STAGED, unit0, SPLIT == 1 ? 0 : group * REACH);

    // The lanes with gates 0 and 2 finish the even columns, those with 1 and 3 the odd ones.
    const bool odd = lane >= 16;
    const int unit = four0 + lane / 4 % 4;
    auto eight_of = [&](int j) { return SPLIT * j + (SPLIT == 1 ? 0 : group); };
    auto column_of = [&](int j) { return eight_of(j) * 8 + lane % 4 * 2 + odd; };
    Pairs<PAIRS, 1> pairs;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        const int row = column_of(j);
        pairs.start(p, j, row0 + row, unit, row < rows && unit < p.hidden);
    }

    // x · wi of a step, for the pairs of those who meet: a thread asks for the same four units and gate of
    // every eighth row.
    constexpr int FOURS = UNITS / 4;
    f32* const input = inputs + (SPLIT == 1 ? 0 : group * 2 * INPUTS);
    const int sharer = tid % SHARERS;
    const int fetched = blockIdx.x * UNITS + sharer % FOURS * 4, gate = sharer / FOURS % 4;
    const int fetched_at = sharer / (FOURS * 4), fetched_row = eight_of(0) * 8 + fetched_at;
    const s64 frame = GATES * p.hidden, onward = p.reverse ? -frame : frame;
    const s64 row_frames = p.steps * frame;
    const f32* asked = p.projected + (s64)(row0 + fetched_row) * row_frames +
                       (p.reverse ? p.steps - 1 : 0) * frame + gate * p.hidden + fetched;
    const u32 landing =
        shared_address(input + fetched_at * INPUT + gate * UNITS + sharer % FOURS * 4);
    auto fetch = [&](int step) {
        const u32 to = landing + step % 2 * INPUTS * 4;
        if (step < p.steps && gate < GATES) {
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                const int row = 8 * SPLIT * j;
                const bool in = fetched_row + row < rows && fetched < p.hidden;
                const f32* from = in ? asked + row * row_frames : p.projected;
                if (p.hidden % 4 == 0) {
                    copy_async(to + j * 8 * INPUT * 4, from, in);
                } else {
#pragma unroll
                    for (int u = 0; u < 4; u++) {
                        const bool there = in && fetched + u < p.hidden;
                        copy_async_few<4>(to + (j * 8 * INPUT + u) * 4, from + u, there);
                    }
                }
            }
        }
        asked += onward;
        copy_async_commit();
    };
    fetch(0);

    // A thread's packs are all of one column.
    const Ring<32> ring(p, blockIdx.y, gridDim.y, PACKS);
    const int start = SPLIT == 1 ? 0 : group * (PACKS / SPLIT), first = start + sharer;
    const int column = first % ROW;
    const bool high = column < rows, low = p.low && column >= p.low && column < p.low + rows;
    // The first ones of them are given by somebody.
    constexpr int APART = SHARERS / ROW;
    const int count = high || low ? (units / 8 - first / ROW + APART - 1) / APART : 0;
    // What nobody gives stays zero.
#pragma unroll
    for (int i = 0; i < EACH; i++)
        h[first + i * SHARERS] = h[PACKS + first + i * SHARERS] = make_uint4(0, 0, 0, 0);

    const int given_row = column_of(lane / 4 % 4);
    const int given = (four0 / 8 * ROW + given_row) * 2 + warp % 2;
    auto give = [&](int step) {
        u32 bits[PAIRS], rest[PAIRS];
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            u16 coarse, fine;
            split(pairs.state[j].h, coarse, fine);
            bits[j] = coarse;
            rest[j] = fine;
        }
        const uint2 coarse = gather(bits), fine = p.low ? gather(rest) : make_uint2(0, 0);
        if (lane / 4 % 4 >= PAIRS || given_row >= rows) return;
        uint2* const to = (uint2*)ring.at(step) + given;
        write_half(to, coarse);
        if (p.low) write_half(to + p.low * 2, fine);
    };
    // h of a step lies where it is multiplied in the next.
    const bool whole = p.hidden % 8 == 0;
    const int own = blockIdx.x * OWN, seq_pack = own + sharer % OWN, seq_row = sharer / OWN;
    const bool writes = whole && seq_row < rows && seq_pack * 8 < p.hidden &&
                        (SPLIT == 1 || own * 8 / REACH == group);
    const s64 back = p.reverse ? -p.hidden : p.hidden;
    T* seq = p.seq + ((s64)(row0 + seq_row) * p.steps + (p.reverse ? p.steps - 1 : 0)) * p.hidden +
             seq_pack * 8;
    give(-1); // the state before the first step
    __syncthreads();

    for (int step = 0; step < p.steps; step++) {
        const int now = step % 2; // of what there are two of
        uint4* const to = h + now * PACKS;
        const uint4* from = ring.at(step - 1) + first;
#pragma unroll
        for (int i0 = 0; i0 < EACH; i0 += BATCH) {
            uint4 x[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) x[i] = make_uint4(0, 0, 0, 0);
            // Whatever is missing is asked for again together: one after the other would cost a
            // trip through L2 each.
            bool all;
            do {
                all = true;
#pragma unroll
                for (int i = 0; i < BATCH; i++)
                    if (i0 + i < count && !is_there(x[i]))
                        x[i] = read_pack(from + (i0 + i) * SHARERS);
#pragma unroll
                for (int i = 0; i < BATCH; i++) all &= i0 + i >= count || is_there(x[i]);
            } while (!all);
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (i0 + i < count) to[first + (i0 + i) * SHARERS] = inverted(x[i]);
        }
        copy_async_wait<0>();
        publish_to_products();
        meet(group);

        f32 sum[COLUMNS][4] = {};
        multiply(sum, w, to + start, group);
        if (SPLIT == 2) {
            // Eights of columns that the other warpgroup finishes.
            float4* const mine = part + now * COLUMNS * GROUP + t;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                const f32(&q)[4] = sum[n];
                if (n % 2 != group) mine[n * GROUP] = make_float4(q[0], q[1], q[2], q[3]);
            }
            __syncthreads();
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                if (n % 2 != group) continue;
                const float4 q = mine[n * GROUP];
                f32(&all)[4] = sum[n];
                all[0] += q.x;
                all[1] += q.y;
                all[2] += q.z;
                all[3] += q.w;
            }
        }
        Sums sums[PAIRS];
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            // Two columns of one gate, and of the one two further.
            f32 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                auto of = [&](int n) {
                    return SPLIT == 1 || !group ? sum[SPLIT * n % COLUMNS][i]
                                                : sum[(SPLIT * n + 1) % COLUMNS][i];
                };
                v[i] = of(j);
                if (p.low && j + PAIRS / 2 < PAIRS) v[i] += of(j + PAIRS / 2);
            }
            const f32 a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 16);
            const f32 b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 16);
            const f32* x = input + now * INPUTS +
                           (j * 8 + lane % 4 * 2 + odd) * INPUT + unit - blockIdx.x * UNITS;
            f32(&s)[4] = sums[j].at;
            s[0] = x[0] + (odd ? a : v[0]);
            s[1] = x[UNITS] + (odd ? v[1] : a);
            s[2] = x[2 * UNITS] + (GATES == 4 ? odd ? b : v[2] : 0.f);
            s[3] = GATES == 4 ? x[(GATES - 1) * UNITS] + (odd ? v[3] : b)
                              : pairs.bias[j] + (odd ? b : v[2]);
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            State& state = pairs.state[j];
            const int row = pairs.frame[j];
            const State next = advance_16(state, sums[j], p.low);
            const bool kept =
                p.mask && row >= 0 && p.mask[row + (p.reverse ? p.steps - 1 - step : step)];
            if (row >= 0 && !kept) state = next;
        }
        // What nobody waits for comes after h is on its way.
        if (step + 1 < p.steps) give(step);
        if (!whole || step + 1 == p.steps) pairs.write_seq(p, step);
        fetch(step + 1);
        if (writes && step > 0) {
            *(uint4*)seq = to[seq_pack * ROW + seq_row];
            seq += back;
        }
        if (tid / WARP == WARPS - 1)
            ring.empty(step, OWN * ROW, [&](int i) { return own * ROW + i; });
    }
    pairs.write_states(p);
}
