// A whole window in one launch: what the f32 kernel and the tensor core kernel share.
//
// Blocks stay for all steps. The grid is (units, rows): a block owns `units` hidden units with all
// their gates, whose recurrent weights it keeps in shared memory, for a share of the batch. Each
// step needs the whole h of those rows, so the blocks of one share hand each other their part
// through global memory. Every value travels with the number of its step in one 8-byte word, so
// that a reader who sees the number has the value: no fence, no barrier, one trip through L2 a
// step. Two buffers take turns; nobody writes one before all have read what it held two steps ago,
// since to write step s + 2 a block needs all of step s + 1, which each writes after reading s.
// The words are zeroed before the launch, and the launch is cooperative: blocks wait for others.
#pragma once

#include "recurrent/cell.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

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
    u64* exchange; // [2][rows padded to passes of all shares][hidden]
    s64 exchange_words; // of one of the two buffers
    int batch, steps, hidden;
    int state_f32, reverse;
    int share; // rows of the batch a share has
    int row_groups; // f32 only: lanes of a warp along the rows
};

__device__ __forceinline__ u64 read_word(const u64* p) {
    u64 word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
    return word;
}
__device__ __forceinline__ void publish(u64* p, f32 value, u32 step) {
    const u64 word = (u64)step << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}

// Waits for `count` words of `step` and gives each to `take(index, value)`, in ascending order.
// All words of a batch are asked for again together: one after the other would cost a trip through
// L2 each.
template <int DEPTH, class Take>
__device__ __forceinline__ void receive_by(const u64* words, int count, u32 step, Take take) {
    for (int base = threadIdx.x; base < count; base += DEPTH * THREADS) {
        u64 word[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) word[d] = 0;
        bool all;
        do {
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                const int i = base + d * THREADS;
                if (i < count && (u32)(word[d] >> 32) != step) word[d] = read_word(words + i);
            }
            all = true;
#pragma unroll
            for (int d = 0; d < DEPTH; d++)
                all &= base + d * THREADS >= count || (u32)(word[d] >> 32) == step;
        } while (!all);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int i = base + d * THREADS;
            if (i < count) take(i, __uint_as_float((u32)word[d]));
        }
    }
}

template <class Take>
__device__ __forceinline__ void receive(const u64* words, int count, u32 step, Take take) {
    if (count <= 4 * THREADS) receive_by<4>(words, count, step, take);
    else receive_by<16>(words, count, step, take);
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

    // The new state goes to `word` for the other blocks, unless this is the last step.
    __device__ __forceinline__ void finish(const Window& p, int t, int step, u64* word,
                                           const Ahead& a, State& state) const {
        if (!a.kept) state = advance(state, a.sums);
        if (step + 1 < p.steps) {
            publish(word, state.h, step + 1);
        } else {
            const s64 at = row * p.hidden + unit;
            if (GATES == 4) write_state(p.c_out, p.state_f32, at, state.c);
            write_state(p.h_out, p.state_f32, at, state.h);
        }
        p.seq[(row * p.steps + t) * p.hidden + unit] = from_f32<T>(state.h);
    }
};
