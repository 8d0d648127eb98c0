// Dense layers one upon the other, of one row each of the batch, in one launch:
//
//     h₁ ← f₁(norm(x) · w₁ + b₁)      …      y ← f(hₙ · w + b) + residual
//
// A cluster of CLUSTER blocks takes a row. Of the hidden layers each block has an equal share of the
// columns, and what it makes of them goes to all. Of the last layer it has the rows that belong to its
// share of the last hidden one, so that this one goes nowhere, and the layer may have any number of
// columns: what a block gives to an output goes to the block that has it. So n hidden layers are n
// meetings (common/meeting.cuh). All weights that the registers hold are asked for before x is there. The
// sums are taken in one order, and what lies between the layers is never rounded to a 16-bit type.
//
// A module is for one size: WIDTH_0 (of x), WIDTH_1 up to WIDTH_3 of HIDDEN layers, and OUTPUTS; of each layer
// but the last NORM_i of what it is given, none, an RMS norm or a LayerNorm, and F_i, its activation; F_OUT
// is the last one's. PART values are the most that the threads of a block leave to be added up.

#include "common/early.cuh"
#include "common/meeting.cuh"
#include "dense/epilogue.cuh"
#include "norm/row.cuh"

constexpr int THREADS = 512;
constexpr int VEC = 16 / sizeof(T);
#include "dense/columns.cuh"

constexpr int WIDTHS[] = {WIDTH_0, WIDTH_1, WIDTH_2, WIDTH_3};
constexpr int ACTIVATIONS[] = {F_0, F_1, F_2};
enum Kind { PLAIN, RMS, LAYER };
constexpr int KINDS[] = {NORM_0, NORM_1, NORM_2};
constexpr int SPLIT = 4; // threads that have four columns' sums

constexpr int share(int i) { return WIDTHS[i] / CLUSTER; }
constexpr int LAST = share(HIDDEN); // values of the last hidden layer that a block has

// Packs of the hidden layers' weights that a thread has, and those that it asks for at first: of each layer
// as many, where registers do not hold all.
constexpr int packs(int i) {
    constexpr int PACK = VEC;
    const int at_once = THREADS / (share(i + 1) / PACK);
    return (WIDTHS[i] + at_once - 1) / at_once;
}
constexpr int all_packs(int i = 0) { return i < HIDDEN ? packs(i) + all_packs(i + 1) : 0; }
constexpr int MOST_PACKS = 18;
constexpr int DEPTH = all_packs() <= MOST_PACKS ? MOST_PACKS : MOST_PACKS / HIDDEN;

// Threads that have a row of the last layer's share, and rows that are multiplied at once.
constexpr int PADDED = (OUTPUTS + 3) / 4 * 4;
constexpr int DOWN = THREADS / PADDED;
constexpr int ROWS = (LAST + DOWN - 1) / DOWN;
constexpr int MOST_ROWS = 16; // that a thread asks for at first
constexpr int AHEAD = ROWS < MOST_ROWS ? ROWS : MOST_ROWS;
// Outputs of a block: the last blocks have fewer, or none.
constexpr int OWN = (PADDED / 4 + CLUSTER - 1) / CLUSTER * 4;

struct Layer {
    const T* w;
    const T* b;     // or null
    const T* gamma; // with a norm
    const T* beta;  // or null
    f32 epsilon;
    int padding;
};

struct Stack {
    const T* x;
    const T* residual; // or null
    T* y;
    Layer layers[4];
};

// Where things lie in shared memory, in f32.
constexpr int values_of(int i) { // what layer i is given; x itself stays where it is
    return i == 0 ? 0 : i < HIDDEN ? WIDTHS[i] : 0;
}
constexpr int norms_of(int i) { return i < HIDDEN && KINDS[i] != PLAIN ? 2 * WIDTHS[i] : 0; }
template <int I> struct Place {
    static constexpr int VALUES = I == 0 ? 0 : Place<I - 1>::NEXT, NORM = VALUES + values_of(I),
                         NEXT = NORM + norms_of(I);
};
template <> struct Place<-1> {
    static constexpr int NEXT = 0;
};
constexpr int OF_LAST = Place<HIDDEN - 1>::NEXT;      // [LAST]
constexpr int OUTPUT_SHARES = OF_LAST + LAST;         // [CLUSTER][OWN]
constexpr int PARTS = OUTPUT_SHARES + CLUSTER * OWN;  // twice

// Layer I and those behind it up to the last hidden one.
template <int I> struct Hidden {
    static constexpr int IN = WIDTHS[I], MINE = share(I + 1), KIND = KINDS[I];
    static constexpr bool IS_LAST = I + 1 == HIDDEN;
    typedef Columns<IN, MINE, 1, DEPTH> Weights;
    typedef Sums<MINE, Weights::PARTS, MINE, IS_LAST ? 1 : CLUSTER, SPLIT> Own;
    static_assert(Weights::PARTS * MINE <= PART, "the sums of a layer");
    Weights w;
    Hidden<I + 1> next;
    f32 b[Own::KEPT] = {};

    __device__ __forceinline__ Hidden(const Stack& p, u32 rank, f32* shared)
        : w(p.layers[I].w, WIDTHS[I + 1], rank * MINE), next(p, rank, shared) {
        const Layer& own = p.layers[I];
        if (own.b)
#pragma unroll
            for (int k = 0; k < Own::KEPT; k++) b[k] = to_f32(own.b[rank * MINE + Own::column() + k]);
        if (KIND != PLAIN)
            for (u32 i = threadIdx.x; i < IN; i += THREADS) {
                f32* const to = shared + Place<I>::NORM + i;
                to[0] = to_f32(own.gamma[i]);
                if (KIND == LAYER) to[IN] = own.beta ? to_f32(own.beta[i]) : 0.f;
            }
    }
    // `value(i, r)` is value r of what the layer is given, as `Columns::multiply` asks for it; `row` all of it.
    template <class X, class R>
    __device__ __forceinline__ void run(X value, R row, const Stack& p, u32 rank, const u64* barriers,
                                        f32* shared) const {
        f32* const part = shared + PARTS + I % 2 * PART;
        const f32 *const gamma = shared + Place<I>::NORM, *const beta = gamma + IN;
        Scaling s = {0.f, 1.f};
        if constexpr (KIND == LAYER) s = scaling<true>(p.layers[I].epsilon, row());
        w.multiply(
            [&](int i, int r) {
                const f32 x = value(i, r);
                return KIND == PLAIN ? x : normed<KIND == LAYER>(x, s, gamma, beta, r);
            },
            part);
        // The scale of an RMS norm is the row's, and so the sums'.
        if constexpr (KIND == RMS)
            if (Own::takes_part()) s = scaling<false>(p.layers[I].epsilon, row());
        __syncthreads();
        const Meeting met(barriers + I);
        f32* const to = shared + (IS_LAST ? OF_LAST : Place<I + 1>::VALUES);
        Own::collect(
            part,
            [&](int k, int, f32 sum) {
                f32 y[1] = {KIND == RMS ? fmaf(sum, s.scale, b[k]) : sum + b[k]};
                activate<T>(y, ACTIVATIONS[I]);
                return y[0];
            },
            [&](bool wanted, int block, int c, f32 (&four)[4]) {
                if (!IS_LAST) met.give(wanted, block, to + rank * MINE + c, four);
                else if (wanted) *(float4*)(to + c) = make_float4(four[0], four[1], four[2], four[3]);
            });
        if constexpr (IS_LAST) {
            __syncthreads();
        } else {
            met.wait();
            next.run([&](int, int r) { return to[r]; },
                     [&] {
                         typedef Row<f32, WIDTHS[I + 1]> Whole;
                         return Whole(to + Whole::first());
                     },
                     p, rank, barriers, shared);
        }
    }
};
template <> struct Hidden<HIDDEN> {
    __device__ __forceinline__ Hidden(const Stack&, u32, f32*) {}
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) stack(const __grid_constant__ Stack p) {
    extern __shared__ __align__(16) f32 shared[];
    __shared__ __align__(8) u64 barriers[HIDDEN];
    const u32 tid = threadIdx.x, rank = blockIdx.x % CLUSTER;
    const s64 batch = blockIdx.x / CLUSTER;
    const int owned = max(0, min(PADDED - (int)rank * OWN, OWN)); // outputs of this block
    const Meeting of_outputs(barriers + HIDDEN - 1);
    if (tid == 0) {
#pragma unroll
        for (int i = 1; i < HIDDEN; i++) Meeting(barriers + i - 1).begin(WIDTHS[i] * 4);
        of_outputs.begin(CLUSTER * owned * 4);
    }
    cluster_arrive();
    let_next_begin();

    // What x has no part in.
    const Hidden<0> hidden(p, rank, shared);
    typedef Sums<PADDED, DOWN, PADDED, 1, SPLIT> Outputs;
    typedef Sums<OWN, CLUSTER, OWN, 1, SPLIT> Whole;
    static_assert(DOWN * PADDED <= PART, "the sums of the last layer");
    const Layer& last = p.layers[HIDDEN];
    const u32 group = tid / PADDED, column = tid % PADDED;
    const bool multiplies = group < DOWN && column < OUTPUTS;
    const T* const w = last.w + (s64)(rank * LAST + group) * OUTPUTS + column;
    T ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        ahead[i] = multiplies && group + i * DOWN < LAST ? w[i * DOWN * OUTPUTS] : T{};
    const int output = rank * OWN + Whole::column();
    f32 b[Whole::KEPT] = {};
#pragma unroll
    for (int k = 0; k < Whole::KEPT; k++)
        if (last.b && output + k < OUTPUTS) b[k] = to_f32(last.b[output + k]);
    // Where what there is to read lies.
    const T* const x = p.x + batch * WIDTH_0;
    typedef decltype(hidden.w) First;
    u32 x_early = hidden.w.row, x_first = Row<T, WIDTH_0>::first();
    ready(x_early);
    ready(x_first);
    cluster_wait(); // all have begun
    __syncthreads();

    await_previous();
    // All is asked for before any of it is waited for.
    f32 early[First::AHEAD];
    hidden.w.early(x + x_early, early);
    T residual[Whole::KEPT] = {};
    if (p.residual)
#pragma unroll
        for (int k = 0; k < Whole::KEPT; k++)
            if (output + k < OUTPUTS) residual[k] = p.residual[batch * OUTPUTS + output + k];
    auto value = [&](int i, int r) { return i >= 0 ? early[i] : to_f32(x[r]); };
    if constexpr (NORM_0 == PLAIN) {
        hidden.run(value, [] { return 0; }, p, rank, barriers, shared);
    } else {
        const Row<T, WIDTH_0> row(x + x_first);
        hidden.run(value, [&] { return row; }, p, rank, barriers, shared);
    }

    // This block's part of the outputs, each to the block that has it.
    const f32* const h = shared + OF_LAST;
    f32* const part = shared + PARTS + HIDDEN % 2 * PART;
    f32* const shares = shared + OUTPUT_SHARES;
    f32 sum = 0.f;
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (group + i * DOWN < LAST) sum = fmaf(to_f32(ahead[i]), h[group + i * DOWN], sum);
    if (multiplies)
        for (u32 r = group + AHEAD * DOWN; r < LAST; r += DOWN)
            sum = fmaf(to_f32(w[(s64)(r - group) * OUTPUTS]), h[r], sum);
    if (group < DOWN) part[tid] = sum;
    __syncthreads();
    Outputs::collect(
        part, [&](int, int, f32 sum) { return sum; },
        [&](bool wanted, int, int c, f32 (&four)[4]) {
            of_outputs.give(wanted, c / OWN, shares + rank * OWN + c % OWN, four);
        });
    of_outputs.wait();
    cluster_leave(); // all that was sent to this block is here
    if (owned > 0)
        Whole::collect(
            shares,
            [&](int k, int, f32 sum) {
                f32 y[1] = {sum + b[k]};
                activate<T>(y, F_OUT);
                return y[0] + to_f32(residual[k]);
            },
            [&](bool wanted, int, int c, f32 (&four)[4]) {
                T* const to = p.y + batch * OUTPUTS + rank * OWN + c;
                const int left = OUTPUTS - (int)(rank * OWN + c);
                if (!wanted || left <= 0) return;
                if (OUTPUTS % 4 == 0) return store_four(to, four);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (i < left) to[i] = from_f32<T>(four[i]);
            });
    cluster_wait();
}
