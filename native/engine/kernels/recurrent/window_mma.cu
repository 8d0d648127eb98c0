// A whole window of a bf16 or f16 LSTM or GRU layer in one launch, on tensor cores (see window.cuh).
//
// A pass takes 16 rows. The block's recurrent weights lie in shared memory in the order in which
// lanes hold them for the product; a warp takes every eighth 16 of the reduction. h is f32 and is
// multiplied as the sum of two 16-bit numbers, so that the recurrent state is not rounded to the
// storage type on its way round.
//
// Compiled for -DUNITS=2, 4, 8 or 16, and -DROWS=1 (a share has two at most) or 16.

#include "common/mma.cuh"
#include "recurrent/window.cuh"

constexpr int TILE = 16; // rows of a pass
constexpr int PAD = 8;   // keeps the eight rows that ldmatrix reads in different banks

// value as high + low; an infinite one has no rest.
__device__ __forceinline__ void split(f32 value, T& high, T& low) {
    high = from_f32<T>(value);
    const f32 rest = value - to_f32(high);
    low = from_f32<T>(rest == rest ? rest : 0.f);
}

extern "C" __global__ void __launch_bounds__(THREADS) window(const Window p) {
    constexpr int COLUMNS = UNITS * 4;
    constexpr int NT = COLUMNS / 8;
    static_assert(TILE * UNITS <= THREADS, "one unit of one row a thread");
    extern __shared__ __align__(16) unsigned char shared[];
    const int hidden = p.hidden;
    const int chunks = (hidden + 15) / 16, width = chunks * 16 + PAD;
    auto* w = (uint2*)shared;                   // [chunks][NT][WARP]
    auto* high = (T*)(w + (s64)chunks * NT * WARP); // [TILE][width]
    auto* low = high + TILE * width;            // [TILE][width]
    auto* part = (f32*)(low + TILE * width);    // [WARPS][TILE][COLUMNS + 4]
    auto* states = (State*)(part + WARPS * TILE * (COLUMNS + 4)); // [share][UNITS]

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int unit0 = blockIdx.x * UNITS;
    const int row0 = blockIdx.y * p.share;
    const int rows = min(p.share, p.batch - row0);
    const int passes = (rows + TILE - 1) / TILE;
    const Exchange exchange(p);

    const T zero = from_f32<T>(0.f);
    // Columns are units, each with its four sums side by side. In the product, lane l holds rows
    // k = l % 4 · 2 and the next, and both plus 8, of column l / 4.
#pragma unroll 8
    for (int i = tid; i < chunks * 16 * COLUMNS; i += THREADS) {
        const int u = i % UNITS, slot = i / UNITS % 4, k = i / COLUMNS;
        const int gate = GATES == 3 && slot == 3 ? 2 : slot;
        const bool in = k < hidden && unit0 + u < hidden && !(GATES == 3 && slot == 2);
        const T value = in ? p.wh[((s64)k * GATES + gate) * hidden + unit0 + u] : zero;
        const int column = u * 4 + slot, kk = k % 16;
        const int owner = column % 8 * 4 + kk % 8 / 2;
        const int at = ((k / 16 * NT + column / 8) * WARP + owner) * 4 + kk / 8 * 2 + kk % 2;
        ((T*)w)[at] = value;
    }
    // Rows past the batch and columns past h stay zero: 0 · NaN must not reach a sum.
    for (int i = tid; i < 2 * TILE * width; i += THREADS) high[i] = zero;
    auto pair_of = [&](int pass) {
        const int row = pass * TILE + tid / UNITS, unit = unit0 + tid % UNITS;
        return Pair{tid < TILE * UNITS && row < rows && unit < hidden, row0 + row, unit};
    };
    for (int pass = 0; pass < passes; pass++) {
        const Pair pair = pair_of(pass);
        if (pair.live) states[pass * TILE * UNITS + tid] = pair.start(p);
    }
    __syncthreads();

    for (int step = 0; step < p.steps; step++) {
        const int t = p.reverse ? p.steps - 1 - step : step;
        // Read under the wait for h.
        Pair pair = pair_of(0);
        Pair::Ahead ahead = pair.ahead(p, t);
        if (step > 0) exchange.wait(step - 1);
        for (int pass = 0; pass < passes; pass++) {
            if (pass > 0) {
                pair = pair_of(pass);
                ahead = pair.ahead(p, t);
            }
            const int live = min(TILE, rows - pass * TILE);
            const s64 pass_at = (s64)pass * TILE * hidden;
            auto keep = [&](int row, int k, f32 value) {
                split(value, high[row * width + k], low[row * width + k]);
            };
            if (step == 0) {
                const s64 at = (s64)(row0 + pass * TILE) * hidden;
                for (int row = 0; row < live; row++)
                    for (int k = tid; k < hidden; k += THREADS)
                        keep(row, k, read_state(p.h, p.state_f32, at + row * hidden + k));
            } else if (WORDS) {
                receive(exchange.words(step - 1), live * hidden, step - 1, [&](int i, f32 value) {
                    const int row = i >= hidden; // of two at most
                    keep(row, i - row * hidden, value);
                });
            } else if (hidden % 4 == 0) {
                const f32* from = exchange.values(step - 1) + pass_at;
                const int quads = hidden / 4;
                int row = 0, quad = tid;
                read_quads(from, live * quads, [&](int, float4 q) {
                    for (; quad >= quads; quad -= quads) row++;
                    const f32 values[4] = {q.x, q.y, q.z, q.w};
                    Pack<T, 4> h, l;
#pragma unroll
                    for (int j = 0; j < 4; j++) split(values[j], h.at[j], l.at[j]);
                    *(Pack<T, 4>*)(high + row * width + quad * 4) = h;
                    *(Pack<T, 4>*)(low + row * width + quad * 4) = l;
                    quad += THREADS;
                });
            } else {
                const f32* from = exchange.values(step - 1) + pass_at;
                for (int row = 0; row < live; row++)
                    for (int k = tid; k < hidden; k += THREADS)
                        keep(row, k, read_value(from + row * hidden + k));
            }
            __syncthreads();

            f32 sum[NT][4] = {};
#pragma unroll 2
            for (int chunk = warp; chunk < chunks; chunk += WARPS) {
                const int at = lane % 16 * width + chunk * 16 + lane / 16 * 8;
                u32 a_high[4], a_low[4];
                load_matrices(a_high, high + at);
                load_matrices(a_low, low + at);
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    const uint2 b = w[(chunk * NT + j) * WARP + lane];
                    mma<T>(sum[j], a_high, b.x, b.y);
                    mma<T>(sum[j], a_low, b.x, b.y);
                }
            }
            f32* mine = part + warp * TILE * (COLUMNS + 4);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const int at = lane / 4 * (COLUMNS + 4) + j * 8 + lane % 4 * 2;
                *(float2*)&mine[at] = make_float2(sum[j][0], sum[j][1]);
                *(float2*)&mine[at + 8 * (COLUMNS + 4)] = make_float2(sum[j][2], sum[j][3]);
            }
            __syncthreads();

            if (pair.live) {
                const f32* from = part + tid / UNITS * (COLUMNS + 4) + tid % UNITS * 4;
#pragma unroll
                for (int i = 0; i < WARPS; i++) {
                    const float4 s = *(const float4*)(from + i * TILE * (COLUMNS + 4));
                    ahead.sums.at[0] += s.x;
                    ahead.sums.at[1] += s.y;
                    if (GATES == 4) ahead.sums.at[2] += s.z;
                    ahead.sums.at[3] += s.w;
                }
                const s64 to = pass_at + (s64)(tid / UNITS) * hidden + pair.unit;
                pair.finish(p, exchange, step, to, ahead, states[pass * TILE * UNITS + tid]);
            }
        }
        if (step + 1 < p.steps) exchange.arrive();
        for (int pass = 0; pass < passes; pass++)
            pair_of(pass).write_seq(p, t, states[pass * TILE * UNITS + tid]);
    }
}
