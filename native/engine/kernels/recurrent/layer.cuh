// A layer and a whole window of it, as the kernels take it whose weights stay in registers; and what
// a thread of theirs does with the units and rows it finishes.
#pragma once

#include "recurrent/cell.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

struct Layer {
    const T* wh;          // {hidden, GATES · hidden}
    const T* b;           // GRU: its last quarter is the recurrent n's bias; LSTM: unused
    const f32* projected; // {batch, steps, GATES · hidden}: x · wi + b; below 2³¹ values
    const void* c;
    const void* h;
    const u8* mask; // {batch, steps}
    T* seq;         // {batch, steps, hidden}
    void* c_out;
    void* h_out;
    int batch, steps, hidden;
    int state_f32, reverse;
    int share;     // rows of the batch that a cluster, or a part of the grid, has
    int low;       // tensor cores: the column of the first row's low part; 0 where h is rounded
    int first;     // row of the launch
    void* exchange; // of a grid: four buffers of h, zeroed before the launch
};

// Where the input part of a pair's sums comes from: the projection, which is there from the start.
struct Projected {
    // Of the pair j of a thread; `frame` is its row's, at the step.
    __device__ __forceinline__ void ask(f32 (&input)[GATES], const Layer& p, int frame, int unit, int,
                                        int) const {
        const f32* from = p.projected + (frame * GATES * p.hidden + unit);
#pragma unroll
        for (int g = 0; g < GATES; g++) input[g] = __ldg(from + g * p.hidden);
    }
    __device__ __forceinline__ void await(f32 (&)[GATES], int, int) const {}
};

// The pairs of a unit and a row that one thread finishes: their state, and what comes to them from
// a source, AHEAD steps before its use.
template <int PAIRS, int AHEAD> struct Pairs {
    int unit[PAIRS], frame[PAIRS]; // the row's first frame; -1 where there is no such pair
    State state[PAIRS];
    f32 input[AHEAD][PAIRS][GATES], bias[PAIRS];
    bool kept[AHEAD][PAIRS];

    __device__ __forceinline__ void start(const Layer& p, int j, int row, int u, bool live) {
        frame[j] = live ? row * p.steps : -1;
        unit[j] = u;
        state[j] = State{0.f, 0.f};
        bias[j] = 0.f;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            kept[a][j] = false;
#pragma unroll
            for (int g = 0; g < GATES; g++) input[a][j][g] = 0.f;
        }
        if (!live) return;
        const s64 at = (s64)row * p.hidden + u;
        if (GATES == 4) state[j].c = read_state(p.c, p.state_f32, at);
        state[j].h = read_state(p.h, p.state_f32, at);
        if (GATES == 3 && p.b) bias[j] = to_f32(p.b[3 * p.hidden + u]);
    }
    template <class Source = Projected>
    __device__ __forceinline__ void fetch_first(const Layer& p, const Source& source = Source()) {
        for (int step = 0; step < AHEAD; step++) fetch(p, step, source);
    }
    // Moves on to the next step, and fetches for the one that is AHEAD.
    template <class Source = Projected>
    __device__ __forceinline__ void fetch(const Layer& p, int step, const Source& source = Source()) {
        const int t = p.reverse ? p.steps - 1 - step : step;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
#pragma unroll
            for (int a = 1; a < AHEAD; a++) {
                kept[a - 1][j] = kept[a][j];
#pragma unroll
                for (int g = 0; g < GATES; g++) input[a - 1][j][g] = input[a][j][g];
            }
            if (frame[j] < 0 || step >= p.steps) continue;
            source.ask(input[AHEAD - 1][j], p, frame[j] + t, unit[j], step, j);
            if (p.mask) kept[AHEAD - 1][j] = p.mask[frame[j] + t];
        }
    }
    template <class Source = Projected>
    __device__ __forceinline__ Sums sums(int j, int step = 0, const Source& source = Source()) {
        f32(&x)[GATES] = input[0][j];
        if (frame[j] >= 0) source.await(x, step, j);
        return Sums{{x[0], x[1], x[2], GATES == 4 ? x[GATES - 1] : bias[j]}};
    }
    __device__ __forceinline__ void write_seq(const Layer& p, int step) const {
        const int t = p.reverse ? p.steps - 1 - step : step;
#pragma unroll
        for (int j = 0; j < PAIRS; j++)
            if (frame[j] >= 0)
                p.seq[(s64)(frame[j] + t) * p.hidden + unit[j]] = from_f32<T>(state[j].h);
    }
    __device__ __forceinline__ void write_states(const Layer& p) const {
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            if (frame[j] < 0) continue;
            const s64 at = (s64)(frame[j] / p.steps) * p.hidden + unit[j];
            if (GATES == 4) write_state(p.c_out, p.state_f32, at, state[j].c);
            write_state(p.h_out, p.state_f32, at, state[j].h);
        }
    }
};
