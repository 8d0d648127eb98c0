// One step of an LSTM or GRU layer in one launch: gates, cell and output.
//
// A block owns `lanes · VEC` hidden units with all their gates, for up to ROWS rows of the batch,
// and the whole reduction over x and h. `4 · lanes` threads read one row of the weights, a gate
// each for a few neighbouring units; the block's threads take THREADS / (4 · lanes) rows at a time,
// DEPTH loads of 16 bytes in flight each. The weights of a step are read once for ROWS rows.
//
// What bounds it is the L1's rate of one line a clock: a load touches a line for each gate and row.
// So 512 threads were no quicker, nor are more units a block on fewer blocks.

#include "common/early.cuh"
#include "common/wide.cuh"
#include "norm/prologue.cuh"
#include "recurrent/step.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int MAX_UNITS = 16;

template <int ROWS, int VEC> __device__ __forceinline__ void step(const Step& p) {
    constexpr int DEPTH = ROWS >= 8 ? 4 : 8;
    constexpr int SPAN = 4096 / ROWS;
    __shared__ __align__(32) f32 xs[SPAN * ROWS];
    __shared__ f32 part[WARPS][4][ROWS][MAX_UNITS];
    typedef Wide<T, VEC> Row;

    const int tid = threadIdx.x;
    const int units = p.lanes * VEC;
    const int unit0 = blockIdx.x * units;
    const int row0 = blockIdx.y * ROWS;
    const int rows = min(ROWS, p.rows - row0);
    const int slot = tid / p.lanes % 4;
    const int unit = unit0 + tid % p.lanes * VEC;
    const int first = tid / (4 * p.lanes);
    const int stride = THREADS / (4 * p.lanes);
    const int total = p.input + p.hidden;
    // GRU's third sum takes the input part alone, its fourth the recurrent part of the same gate.
    const int gate = min(slot, GATES - 1);
    const int from = GATES == 3 && slot == 3 ? p.input : 0;
    const int to = unit >= p.hidden ? 0 : GATES == 3 && slot == 2 ? p.input : total;

    Row ahead[DEPTH];
    auto fetch = [&](int k) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int at = k + d * stride;
            if (at >= from && at < to) {
                const bool is_x = at < p.input;
                const T* w = is_x ? p.wi : p.wh;
                const s64 row = is_x ? at : at - p.input;
                ahead[d].load(w + (row * GATES + gate) * p.hidden + unit);
            } else {
                ahead[d].zero();
            }
        }
    };
    let_next_begin();
    fetch(first);
    const Affine mine = affine(p.norm, tid / ROWS, p.input);

    // A thread finishes one unit of one row. What it needs for that is under way from the start.
    const int my_row = tid / units, my_unit = unit0 + tid % units;
    const bool finishes = tid < rows * units && my_unit < p.hidden;
    const s64 b_row = row0 + my_row;
    const s64 at_state = b_row * p.hidden + my_unit;
    State old = {0.f, 0.f};
    Sums sums = {};
    bool kept = false;
    if (finishes && p.b) {
#pragma unroll
        for (int s = 0; s < 4; s++)
            if (!p.projected || (GATES == 3 && s == 3))
                sums.at[s] = to_f32(p.b[s * p.hidden + my_unit]);
    }
    await_previous();
    if (finishes) {
        if (GATES == 4) old.c = read_state(p.c, p.in_f32, at_state);
        old.h = read_state(p.h, p.in_f32, at_state);
        kept = p.mask && p.mask[b_row * p.mask_stride];
        if (p.projected) {
#pragma unroll
            for (int g = 0; g < GATES; g++)
                sums.at[g] = p.projected[b_row * p.projected_stride + g * p.hidden + my_unit];
        }
    }

    f32 sum[ROWS][VEC] = {};
    const int batch = DEPTH * stride;
    for (int base = 0; base < total; base += SPAN) {
        if (base) __syncthreads();
        // Zeros to the end of the last batch: what pads the weights is multiplied with these.
        const int width = min(SPAN, (total - base + batch - 1) / batch * batch);
        for (int i = tid; i < width; i += THREADS) {
            const int k = base + i;
            Pack<f32, ROWS> column;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                column.at[r] = 0.f;
                if (r < rows && k < p.input) {
                    column.at[r] = to_f32(p.x[(row0 + r) * p.x_stride + k]);
                } else if (r < rows && k < total) {
                    const s64 at = (s64)(row0 + r) * p.hidden + k - p.input;
                    column.at[r] = read_state(p.h, p.in_f32, at);
                }
            }
            *(Pack<f32, ROWS>*)(xs + i * ROWS) = column;
        }
        __syncthreads();
        if (NORM) normalise<ROWS, WARPS>(p.norm, mine, xs, p.input, (f32*)part);
        for (int at = 0; at < width; at += batch) {
            Row now[DEPTH];
#pragma unroll
            for (int d = 0; d < DEPTH; d++) now[d] = ahead[d];
            fetch(base + at + batch + first);
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                const int i = at + d * stride + first;
                // What a GRU's third and fourth sum leave out may be infinite.
                const bool taken = GATES == 4 || (base + i >= from && base + i < to);
                f32 xk[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) xk[r] = taken ? xs[i * ROWS + r] : 0.f;
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    const f32 w = now[d].at(v);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) sum[r][v] = fmaf(xk[r], w, sum[r][v]);
                }
            }
        }
    }

    for (int apart = 4 * p.lanes; apart < WARP; apart <<= 1) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int v = 0; v < VEC; v++) sum[r][v] += __shfl_xor_sync(~0u, sum[r][v], apart);
    }
    if (tid % WARP < 4 * p.lanes) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int v = 0; v < VEC; v++)
                part[tid / WARP][slot][r][tid % p.lanes * VEC + v] = sum[r][v];
    }
    __syncthreads();
    if (!finishes) return;
#pragma unroll
    for (int s = 0; s < 4; s++) {
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            sums.at[s] += part[warp][s][my_row][tid % units];
    }
    const State next = kept ? old : advance(old, sums);
    p.seq[b_row * p.seq_stride + my_unit] = from_f32<T>(next.h);
    if (GATES == 4) write_state(p.c_out, p.out_f32, at_state, next.c);
    write_state(p.h_out, p.out_f32, at_state, next.h);
}

constexpr int WIDE = 16 / sizeof(T);

extern "C" __global__ void __launch_bounds__(THREADS) step_1(const Step p) { step<1, WIDE>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) step_8(const Step p) { step<8, WIDE>(p); }
// Where a gate's rows are not whole 16-byte packs.
extern "C" __global__ void __launch_bounds__(THREADS) step_odd_1(const Step p) { step<1, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) step_odd_8(const Step p) { step<8, 1>(p); }
