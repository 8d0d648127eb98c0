// dense on few rows in true f32, more than vector.cu takes and fewer than fill a card with large tiles:
// y {M, N} = act(norm(x) {M, K} · w {K, N} + b) + residual, in little more than one trip to memory.
//
// A cluster of blocks has a tile of y, and each of its blocks a share of K: of w, copied to shared memory
// before x is there, and of x, asked for all at once. Within a warp LK lanes share K once more, and add up
// by shuffles. Every block finishes an equal share of the tile's rows from what all of them give it
// (meeting.cuh), added up in the order of the blocks. Without clusters a tile has one block.
//
// With -DNORM=1 x is normalised on the way. γ is multiplied into w before x is there. What else a norm does
// is the same for all of a row, so that it is done to the sums: with a value c near the mean of the row,
//
//     norm(x) · w = scale · (Σ (x − c)·γw − (mean − c) · Σ γw) + Σ βw
//
// where mean and scale are made of sums over K as well, which meet as the product's do.

#include "common/early.cuh"
#include "common/meeting.cuh"
#include "common/share.cuh"
#include "dense/epilogue.cuh"
#include "norm/prologue.cuh"

// A thread's sums, and how a warp's lanes share a tile: LN along its columns, LM along its rows.
constexpr int TM = 8, TN = 4;
constexpr int LN = 4, LK = 4, LM = WARP / (LN * LK);
// The warps stand side by side.
constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int BM = TM * LM, BN = WARPS * TN * LN, QUADS = BN / 4;
constexpr int WIDTH = GATED ? BN / 2 : BN; // of a tile of y
constexpr int ACROSS = WIDTH / 4;
constexpr int STEP = LK * 4; // of K at once
// What the lanes of a quarter of a warp read together lies in different banks: of w by this pitch, of x by
// one that is an odd number of sixteens.
constexpr int PITCH = BN + 4;
__device__ __forceinline__ int pitch_of(int slice) { return (slice + 15) / 32 * 32 + 16; }

typedef Pack<f32, 4> Four;
static_assert(THREADS % QUADS == 0, "a thread would change columns");
static_assert(BM == THREADS / 8, "eight lanes copy a row of x");

// What the blocks of a tile hand to each other; a single one hands it to itself.
struct Exchange {
    Meeting meeting;
    bool several;

    __device__ __forceinline__ Exchange(const u64* barrier, u32 blocks)
        : meeting(barrier), several(blocks > 1) {}
    // This block is ready for so many bytes. The barrier has a fence of its own, and it is all that the
    // others are to see of what came before: the arrival need not order anything.
    __device__ __forceinline__ void begin(u32 bytes) const {
#if __CUDA_ARCH__ >= 900
        if (!several) return;
        if (threadIdx.x == 0) meeting.begin(bytes);
        cluster_leave();
#endif
    }
    // All are.
    __device__ __forceinline__ void begun() const {
#if __CUDA_ARCH__ >= 900
        if (several) cluster_wait();
#endif
    }
    __device__ __forceinline__ void give(u32 rank, f32* to, const f32 (&v)[4]) const {
#if __CUDA_ARCH__ >= 900
        if (several) return meeting.give(true, rank, to, v);
#endif
        *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
    }
    // All that is given to this block is here.
    __device__ __forceinline__ void wait() const {
#if __CUDA_ARCH__ >= 900
        if (several) {
            meeting.wait();
            return cluster_leave();
        }
#endif
        __syncthreads();
    }
    // And what this block gave is there.
    __device__ __forceinline__ void end() const {
#if __CUDA_ARCH__ >= 900
        if (several) cluster_wait();
#endif
    }
};

// γ into what this thread copied of w, and of its four columns the sums of γw and βw.
__device__ __forceinline__ void scale_weights(const Prologue<f32>& norm, f32* ws, int k0, int limit,
                                              f32 (&sum)[2][4]) {
#pragma unroll 4
    for (int r = threadIdx.x / QUADS; r < limit; r += THREADS / QUADS) {
        Four& at = *(Four*)&ws[r * PITCH + threadIdx.x % QUADS * 4];
        Four four = at;
        const f32 gamma = norm.gamma[k0 + r], beta = norm.beta ? norm.beta[k0 + r] : 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[1][i] = fmaf(four.at[i], beta, sum[1][i]);
            four.at[i] *= gamma;
            sum[0][i] += four.at[i];
        }
        at = four;
    }
}

// The sums of x · w that a thread has. A thread's rows lie LM apart, and its values of K in fours, so that
// what the lanes read together stands side by side.
__device__ __forceinline__ void multiply(const f32* a, const f32* b, int pitch, int slice,
                                         f32 (&sum)[TM * TN]) {
#pragma unroll 2
    for (int at = 0; at < slice; at += STEP, a += STEP, b += STEP * PITCH) {
        Four left[TM];
#pragma unroll
        for (int i = 0; i < TM; i++) left[i] = *(const Four*)(a + i * LM * pitch);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const Four right = *(const Four*)(b + q * PITCH);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    sum[i * TN + j] = fmaf(left[i].at[q], right.at[j], sum[i * TN + j]);
        }
    }
}

// `slice` is a block's share of K, a multiple of STEP; `blocks` of a cluster, a power of two.
extern "C" __global__ void __launch_bounds__(THREADS)
    few(const f32* x, const f32* w, const f32* up, Epilogue<f32> end, int m, int k, int slice, u32 blocks,
        const Prologue<f32> norm) {
    extern __shared__ __align__(16) f32 shared[];
    __shared__ __align__(8) u64 barrier;

    const int n = end.columns, tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const u32 rank = blockIdx.x % blocks, tile = blockIdx.x / blocks;
    const int down = (m + BM - 1) / BM;
    const int m0 = tile % down * BM, n0 = tile / down * WIDTH;
    const int k0 = rank * slice, limit = min(k - k0, slice);
    const int share = BM / blocks, shift = 31 - __clz(share); // rows that a block finishes
    const bool centred = NORM && norm.centred;

    const int pitch = pitch_of(slice);
    f32* const xs = shared;                                    // [BM][pitch]
    f32* const ws = xs + max(BM * pitch, WARPS * 2 * BN);      // [slice][PITCH]
    f32* const sums = ws + slice * PITCH;                      // [blocks][share][BN]
    f32* const stats = sums + BM * BN;                         // [blocks][share][4]
    f32* const shifts = stats + BM * 4;                        // [blocks][2][BN]

    let_next_begin();
    const Exchange exchange(&barrier, blocks);
    exchange.begin(4 * (BM * BN + (NORM ? BM * 4 : 0) + (centred ? blocks * 2 * BN : 0)));

    const int quad = tid % QUADS * 4;
    {
        const bool upper = GATED && quad >= WIDTH;
        const int column = n0 + (upper ? quad - WIDTH : quad);
        const f32* const from = (upper ? up : w) + column;
        for (int r = tid / QUADS; r < slice; r += THREADS / QUADS) {
            const bool in = r < limit && column < n;
            copy_async(&ws[r * PITCH + quad], in ? from + (s64)(k0 + r) * n : w, in);
        }
    }
    copy_async_commit();
    if (NORM) {
        copy_async_wait<0>();
        f32 sum[2][4] = {};
        scale_weights(norm, ws, k0, limit, sum);
        if (centred) {
            f32* const part = xs; // [WARPS][2][BN], where x is not yet
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int step = QUADS; step < WARP; step *= 2)
                        sum[j][i] += __shfl_xor_sync(~0u, sum[j][i], step);
                if (lane < QUADS)
                    *(float4*)&part[(warp * 2 + j) * BN + quad] =
                        make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
            }
            __syncthreads();
        }
    }
    exchange.begun();
    if (centred) {
        if (tid < 2 * QUADS) {
            f32 total[4] = {};
#pragma unroll
            for (int p = 0; p < WARPS; p++)
#pragma unroll
                for (int i = 0; i < 4; i++) total[i] += xs[p * 2 * BN + tid * 4 + i];
            for (u32 to = 0; to < blocks; to++) exchange.give(to, &shifts[rank * 2 * BN + tid * 4], total);
        }
        __syncthreads();
    }
    const int row = tid / 8, along = tid % 8 * 4; // of x, whose next 128 bytes eight lanes have
    const bool live = m0 + row < m;
    const f32* const x_row = x + (s64)(m0 + row) * k;

    await_previous();
    {
        const f32* from = x_row + k0 + along;
#pragma unroll 4
        for (int c = along; c < slice; c += 32, from += 32) {
            const bool in = live && c < limit;
            copy_async(&xs[row * pitch + c], in ? from : x, in);
        }
    }
    copy_async_commit();
    // What is near the row's mean: that of its first sixteen values. All blocks take the same.
    f32 near = 0.f;
    if (centred && live && lane % 4 * 4 < k) {
        const Four v = *(const Four*)(x_row + lane % 4 * 4);
        near = (v.at[0] + v.at[1]) + (v.at[2] + v.at[3]);
    }
    // What is added to the first four results that this thread finishes.
    const int result = m0 + rank * share + tid / ACROSS, column = n0 + tid % ACROSS * 4;
    const bool finishes = tid < share * ACROSS && result < m && column < n;
    Four bias = {}, residual = {};
    if (finishes && end.bias) bias = *(const Four*)(end.bias + column);
    if (finishes && end.residual) residual = *(const Four*)(end.residual + (s64)result * n + column);

    copy_async_wait<0>();
    if (NORM) {
        f32 v[4] = {0.f, 0.f, near, 0.f}; // Σ (x − c), Σ (x − c)², c
        if (centred) {
            v[2] += __shfl_xor_sync(~0u, v[2], 1);
            v[2] += __shfl_xor_sync(~0u, v[2], 2);
            v[2] /= (f32)min(k, 16);
        }
        for (int c = along; c < limit; c += 32) {
            Four& at = *(Four*)&xs[row * pitch + c];
            Four four = at;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                four.at[j] -= v[2];
                v[0] += four.at[j];
                v[1] = fmaf(four.at[j], four.at[j], v[1]);
            }
            if (centred) at = four;
        }
#pragma unroll
        for (int step = 1; step < 8; step *= 2) {
            v[0] += __shfl_xor_sync(~0u, v[0], step);
            v[1] += __shfl_xor_sync(~0u, v[1], step);
        }
        const int to = row >> shift;
        if (lane % 8 == 0) exchange.give(to, &stats[(rank * share + row - to * share) * 4], v);
    }
    __syncthreads();

    const int tx = lane % LN, lk = lane / LN % LK, lm = lane / (LN * LK);
    const int column0 = warp * TN * LN + tx * 4;
    f32 sum[TM * TN] = {};
    multiply(xs + lm * pitch + lk * 4, ws + lk * 4 * PITCH + column0, pitch, slice, sum);

    const int first = fold<LK, LN>(sum) / TN;
    constexpr int KEPT = kept<TM * TN, LK>() / TN;
    static_assert(kept<TM * TN, LK>() % TN == 0, "a lane would keep part of a row");
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const int row = lm + (first + i) * LM, to = row >> shift;
        f32* const at = &sums[(rank * share + row - to * share) * BN + column0];
        exchange.give(to, at, {sum[i * TN], sum[i * TN + 1], sum[i * TN + 2], sum[i * TN + 3]});
    }
    exchange.wait();

    const f32 width = (f32)k;
    for (int i = tid; i < share * ACROSS; i += THREADS) {
        const int r = i / ACROSS, c = i % ACROSS * 4, row = m0 + rank * share + r, column = n0 + c;
        if (row >= m || column >= n) continue;
        const s64 at = (s64)row * n + column;
        f32 scale = 1.f, off = 0.f; // off: mean − c
        if (NORM) {
            f32 rest = 0.f, squares = 0.f;
#pragma unroll 4
            for (u32 p = 0; p < blocks; p++) {
                const Four part = *(const Four*)&stats[(p * share + r) * 4];
                rest += part.at[0];
                squares += part.at[1];
            }
            off = centred ? rest / width : 0.f;
            scale = 1.f / sqrtf(squares / width - off * off + norm.epsilon);
        }
        // What all blocks gave, `apart` from each other.
        auto collect = [&](const f32* from, int apart, f32 (&v)[4]) {
#pragma unroll 4
            for (u32 p = 0; p < blocks; p++) {
                const Four part = *(const Four*)(from + p * apart);
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] += part.at[j];
            }
        };
        auto total = [&](int c, f32 (&v)[4]) {
            f32 gammas[4] = {}, betas[4] = {};
            collect(sums + r * BN + c, share * BN, v);
            if (centred) {
                collect(shifts + c, 2 * BN, gammas);
                collect(shifts + BN + c, 2 * BN, betas);
            }
            if (NORM)
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = fmaf(fmaf(-off, gammas[j], v[j]), scale, betas[j]);
        };
        f32 y[4] = {};
        total(c, y);
        if (i != tid) {
            if (end.bias) bias = *(const Four*)(end.bias + column);
            if (end.residual) residual = *(const Four*)(end.residual + at);
        }
        f32 upper[4] = {};
        if (GATED) total(c + WIDTH, upper);
#pragma unroll
        for (int j = 0; j < 4; j++) y[j] += bias.at[j];
        if (end.activation != NONE) activate<f32>(y, end.activation);
#pragma unroll
        for (int j = 0; j < 4; j++) y[j] = GATED ? y[j] * upper[j] : y[j] + residual.at[j];
        *(float4*)((f32*)end.y + at) = make_float4(y[0], y[1], y[2], y[3]);
    }
    exchange.end();
}
