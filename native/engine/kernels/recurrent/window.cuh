// A whole window in one launch: what the f32 kernel and the tensor core kernel share.
//
// Blocks stay for all steps. The grid is (units, shares): a block owns UNITS hidden units with all
// their gates, whose recurrent weights it keeps in shared memory, for a share of the batch's rows.
// Each step needs the whole h of those rows, so the blocks of a share hand each other their part
// through global memory, in two buffers that take turns. The launch is cooperative: blocks wait
// for others.
//
// For one or two rows (-DROWS=1) every value travels with the number of its step in one 8-byte
// word, so that a reader who sees the number has the value: no fence, no barrier, one trip through
// L2 a step. Nobody overwrites a word that someone has yet to read: to write step s + 2 a block
// needs all of step s + 1, which each block writes after reading s. The words are zeroed before the
// launch. With more rows so much polling would hold up the writers, so the values go plainly and
// the blocks of a share meet at a counter once a step.
#pragma once

#include "common/word.cuh"
#include "recurrent/cell.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int COUNTER_PITCH = 32;
constexpr bool WORDS = ROWS == 1;

struct Window {
    const T* wh;          // {hidden, GATES · hidden}
    const T* b;           // GRU: its last quarter is the recurrent n's bias; LSTM: unused
    const f32* projected; // {batch, steps, GATES · hidden}: x · wi + b
    const void* c;
    const void* h;
    const u8* mask; // {batch, steps}
    T* seq;         // {batch, steps, hidden}
    void* c_out;
    void* h_out;
    void* exchange;   // two buffers, and in each a region for every share
    u32* arrived;     // a counter every COUNTER_PITCH, one a share; zeroed before the launch
    s64 share_values; // values of h in a share's region
    int batch, steps, hidden;
    int state_f32, reverse;
    int share; // rows of the batch a share has
    int row_groups; // f32 only: lanes of a warp along the rows
};

// Values that other blocks wrote in this launch: past L1, which does not see them.
__device__ __forceinline__ float4 read_quad(const f32* p) {
    float4 q;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(q.x), "=f"(q.y), "=f"(q.z), "=f"(q.w) : "l"(p) : "memory");
    return q;
}
__device__ __forceinline__ f32 read_value(const f32* p) {
    f32 value;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(p) : "memory");
    return value;
}

// The h that a share's blocks hand to each other after `step`, as seen by one of them.
struct Exchange {
    char* mine; // this share's region of the first buffer
    s64 buffer; // bytes from one buffer to the other
    u32* arrived;

    __device__ __forceinline__ explicit Exchange(const Window& p) {
        constexpr int SIZE = WORDS ? sizeof(u64) : sizeof(f32);
        mine = (char*)p.exchange + blockIdx.y * p.share_values * SIZE;
        buffer = gridDim.y * p.share_values * SIZE;
        arrived = p.arrived + blockIdx.y * COUNTER_PITCH;
    }
    __device__ __forceinline__ u64* words(int step) const {
        return (u64*)(mine + (step & 1) * buffer);
    }
    __device__ __forceinline__ f32* values(int step) const {
        return (f32*)(mine + (step & 1) * buffer);
    }
    __device__ __forceinline__ void put(s64 at, int step, f32 value) const {
        if (WORDS) {
            const u64 word = (u64)(step + 1) << 32 | __float_as_uint(value);
            write_word(words(step) + at, word);
        } else {
            values(step)[at] = value;
        }
    }
    // This block has put all its values of a step.
    __device__ __forceinline__ void arrive() const {
        if (WORDS) return;
        __syncthreads();
        if (threadIdx.x == 0) // its release covers what the block wrote before the barrier
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
    }
    // All blocks of the share have put theirs of `step`.
    __device__ __forceinline__ void wait(int step) const {
        if (WORDS) return;
        if (threadIdx.x == 0) {
            const u32 all = gridDim.x * (u32)(step + 1);
            u32 seen;
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                             : "=r"(seen) : "l"(arrived) : "memory");
            } while ((s32)(seen - all) < 0);
        }
        __syncthreads();
    }
};

// Waits for `count` words of `step` and gives each to `take(index, value)`, in ascending order.
// All words of a batch are asked for again together: one after the other would cost a trip through
// L2 each.
template <class Take>
__device__ __forceinline__ void receive(const u64* words, int count, int step, Take take) {
    constexpr int DEPTH = 4;
    for (int base = threadIdx.x; base < count; base += DEPTH * THREADS) {
        u64 word[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) word[d] = 0;
        bool all;
        do {
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                const int i = base + d * THREADS;
                if (i < count && (u32)(word[d] >> 32) != step + 1u) word[d] = read_word(words + i);
            }
            all = true;
#pragma unroll
            for (int d = 0; d < DEPTH; d++)
                all &= base + d * THREADS >= count || (u32)(word[d] >> 32) == step + 1u;
        } while (!all);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int i = base + d * THREADS;
            if (i < count) take(i, __uint_as_float((u32)word[d]));
        }
    }
}

// Gives each of `count` fours of values to `take(index, four)`, in ascending order. The loads of a
// batch are under way together.
template <class Take>
__device__ __forceinline__ void read_quads(const f32* values, int count, Take take) {
    constexpr int DEPTH = 8;
    for (int base = threadIdx.x; base < count; base += DEPTH * THREADS) {
        float4 q[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (base + d * THREADS < count) q[d] = read_quad(values + (s64)(base + d * THREADS) * 4);
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (base + d * THREADS < count) take(base + d * THREADS, q[d]);
    }
}

// What one thread finishes in a pass: a unit of a row, in every step.
struct Pair {
    bool live;
    s64 row;
    int unit;

    // Fetched before the wait for h, so that it is there when the sums are.
    struct Ahead {
        Sums sums;
        bool kept;
    };
    __device__ __forceinline__ Ahead ahead(const Window& p, int t) const {
        Ahead a = {};
        if (!live) return a;
        const f32* from = p.projected + (row * p.steps + t) * GATES * p.hidden + unit;
#pragma unroll
        for (int g = 0; g < GATES; g++) a.sums.at[g] = from[(s64)g * p.hidden];
        if (GATES == 3 && p.b) a.sums.at[3] = to_f32(p.b[3 * p.hidden + unit]);
        a.kept = p.mask && p.mask[row * p.steps + t];
        return a;
    }

    __device__ __forceinline__ State start(const Window& p) const {
        State s = {0.f, 0.f};
        if (!live) return s;
        const s64 at = row * p.hidden + unit;
        if (GATES == 4) s.c = read_state(p.c, p.state_f32, at);
        s.h = read_state(p.h, p.state_f32, at);
        return s;
    }

    // The new state goes to `to` in the exchange, unless this is the last step.
    __device__ __forceinline__ void finish(const Window& p, const Exchange& exchange, int step,
                                           s64 to, const Ahead& a, State& state) const {
        if (!a.kept) state = advance(state, a.sums);
        if (step + 1 < p.steps) {
            exchange.put(to, step, state.h);
        } else {
            const s64 at = row * p.hidden + unit;
            if (GATES == 4) write_state(p.c_out, p.state_f32, at, state.c);
            write_state(p.h_out, p.state_f32, at, state.h);
        }
    }
    // Apart from `finish`, so that nobody waits for it.
    __device__ __forceinline__ void write_seq(const Window& p, int t, const State& state) const {
        if (live) p.seq[(row * p.steps + t) * p.hidden + unit] = from_f32<T>(state.h);
    }
};
