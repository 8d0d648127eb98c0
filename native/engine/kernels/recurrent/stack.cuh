// Layers one upon the other, a window of all of them in one launch (sm_90): layer l is at frame t while
// the layer above is a few frames behind. What the f32 kernel and the tensor core kernel share.
//
//     stage 0   cells of layer 0     h of each frame ─┐
//     stage 1   input of layer 1     ◄────────────────┘  x · wi + b (x: h, or the norm of it) ─┐
//     stage 2   cells of layer 1     h ─┐  ◄───────────────────────────────────────────────────┘
//     stage 3   input of layer 2     ◄──┘  …
//
// A stage is a cluster, for some rows of the batch; its blocks own 32 units each and hold wh or wi of
// these in registers for all frames. Cells run as they do alone (cluster.cuh). What a stage has for the
// next one goes through global memory in packs that are polled (packs.cuh), each frame to a place of
// its own, so that nobody ever waits until something was read.
//
// None can hang, whatever else is on the GPU. A cluster becomes a stage by a ticket that it draws when
// it has begun. It waits for the stage before, and for nobody else; that one's ticket is the one before
// its own, drawn by a cluster that has begun, and stage 0 waits for nobody. So of the clusters that have
// begun and not ended the one with the lowest ticket can always go on, and those that have not begun are
// waited for by none. Were there room for a single cluster, the stages would run one after the other.
//
// Tickets and packs are zeroed by the stream, before the launch.
#pragma once

#include "norm/prologue.cuh"
#include "recurrent/cluster.cuh"
#include "recurrent/packs.cuh"

constexpr int LAYERS = 4;

struct Stage {
    Layer layer;       // of an input, wh is the layer's wi
    const uint4* from; // null: the layer's projection
    uint4* to;         // null: nobody is above
    Prologue<T> norm;  // of an input's x; gamma is null where there is none
    int taken, given;  // packs of a frame at `from` and `to`, of one cluster
};

struct Stack {
    Stage stage[2 * LAYERS - 1];
    u32* tickets;
    int stages, padding;
};

__device__ __forceinline__ u32 draw_ticket(u32* tickets) {
    __shared__ u32 ticket;
    u32 rank, ranks;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
    cluster_sync(); // no block writes to another that has not begun
    if (rank == 0 && threadIdx.x == 0) {
        u32 drawn;
        asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;"
                     : "=r"(drawn) : "l"(tickets) : "memory");
        const u32 at = shared_address(&ticket);
        for (u32 to = 0; to < ranks; to++)
            asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at + distance_to(to, at)),
                         "r"(drawn) : "memory");
    }
    cluster_sync();
    return ticket;
}

// How cells get their input and give their h.
struct Linked {
    const uint4* from; // of this block
    uint4* to;
    int taken, given;

    // `share` is what the block takes of a frame, a pack for each of its pairs.
    __device__ __forceinline__ Linked(const Stage& s, const Place& at, int cluster, int share)
        : from(s.from ? s.from + (s64)cluster * s.layer.steps * s.taken + at.rank * share : nullptr),
          to(s.to ? s.to + (s64)cluster * s.layer.steps * s.given : nullptr),
          taken(s.taken), given(s.given) {}

    __device__ __forceinline__ void look(f32 (&input)[GATES], int step, int j) const {
        const uint4 v = read_pack(from + step * taken + threadIdx.x + j * THREADS);
        const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int g = 0; g < GATES; g++) input[g] = __uint_as_float(word[g]);
    }
    __device__ __forceinline__ void ask(f32 (&input)[GATES], const Layer& p, int frame, int unit,
                                        int step, int j) const {
        if (from) look(input, step, j);
        else Projected().ask(input, p, frame, unit, step, j);
    }
    __device__ __forceinline__ void await(f32 (&input)[GATES], int step, int j) const {
        if (!from) return;
        while (true) {
            bool there = true;
#pragma unroll
            for (int g = 0; g < GATES; g++) there = there && __float_as_uint(input[g]);
            if (there) break;
            look(input, step, j);
        }
#pragma unroll
        for (int g = 0; g < GATES; g++) input[g] = __uint_as_float(~__float_as_uint(input[g]));
    }
    __device__ __forceinline__ bool gives() const { return to; }
    __device__ __forceinline__ void give(int step, int i, bool wanted, uint4 pack) const {
        if (to && wanted) write_pack(to + step * given + i, inverted_any(pack));
    }
};

// The frames that an input takes, of each the first `packs`, a thread every THREADS-th of them: at most
// PACKS. Those of the next frame are asked for under this one's product.
template <int PACKS> struct Frames {
    const uint4* from;
    int packs, stride, steps;
    uint4 ahead[PACKS];

    __device__ __forceinline__ Frames(const Stage& s, int cluster, int packs)
        : from(s.from + (s64)cluster * s.layer.steps * s.taken), packs(packs), stride(s.taken),
          steps(s.layer.steps) {
        ask(0);
    }
    __device__ __forceinline__ void ask(int step) {
        if (step >= steps) return;
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int n = threadIdx.x + i * THREADS;
            if (n < packs) ahead[i] = read_pack(from + step * stride + n);
        }
    }
    // `each(i)` is called for those that this thread takes.
    template <class Each> __device__ __forceinline__ void own(Each each) const {
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int n = threadIdx.x + i * THREADS;
            if (n < packs) each(i);
        }
    }
    // `keep(i, n, pack)` gets those of the step.
    template <class Keep> __device__ __forceinline__ void take(int step, Keep keep) {
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int n = threadIdx.x + i * THREADS;
            if (n >= packs) break;
            while (!is_there(ahead[i])) ahead[i] = read_pack(from + step * stride + n);
            keep(i, n, inverted(ahead[i]));
        }
    }
};

// The norm of a frame's rows, with the arithmetic of norm/norm.cu but for the divisions by the width: a
// warp finds what a row is shifted and scaled by, then all threads apply it to the packs they took. The
// stage is to keep pace with the cells, which leave it a thousand clocks.
struct Normed {
    const Prologue<T>& norm;
    f32 *gamma, *beta; // {units}, in shared memory; zero past the width
    float2* found;     // {rows}: the shift and the scale
    int width;
    f32 inverse;

    __device__ __forceinline__ Normed(const Stage& s, f32* shared, int units, int rows)
        : norm(s.norm), gamma(shared), beta(shared + units), found((float2*)(shared + 2 * units)),
          width(s.layer.hidden), inverse(1.f / (f32)s.layer.hidden) {
        if (!norm.gamma) return;
        for (int i = threadIdx.x; i < units; i += THREADS) {
            const Affine a = affine(norm, i, width);
            gamma[i] = a.gamma;
            beta[i] = a.beta;
        }
        for (int row = threadIdx.x; row < rows; row += THREADS) found[row] = make_float2(0.f, 0.f);
    }
    // `get(i)` is the unit `at(i)` of the row, i below N, all units in one lane or another; those past
    // the width are zero.
    template <int N, class At, class Get>
    __device__ __forceinline__ void find(int row, At at, Get get) const {
        f32 mean = 0.f, rest = 0.f, squares = 0.f;
        if (norm.centred) {
#pragma unroll
            for (int i = 0; i < N; i++) mean += get(i);
            mean = warp_sum(mean) * inverse;
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            const f32 d = at(i) < width ? get(i) - mean : 0.f;
            rest += d;
            squares = fmaf(d, d, squares);
        }
        const f32 shift = norm.centred ? warp_sum(rest) * inverse : 0.f;
        const f32 variance = warp_sum(squares) * inverse - shift * shift;
        if (threadIdx.x % WARP == 0)
            found[row] = make_float2(mean + shift, rsqrtf(variance + norm.epsilon));
    }
    __device__ __forceinline__ f32 apply(float2 by, int unit, f32 value) const {
        return fmaf((value - by.x) * by.y, gamma[unit], beta[unit]);
    }
    // Of four units from `unit` on.
    __device__ __forceinline__ void apply(float2 by, int unit, f32 (&value)[4]) const {
        const float4 a = *(const float4*)(gamma + unit), b = *(const float4*)(beta + unit);
        value[0] = fmaf((value[0] - by.x) * by.y, a.x, b.x);
        value[1] = fmaf((value[1] - by.x) * by.y, a.y, b.y);
        value[2] = fmaf((value[2] - by.x) * by.y, a.z, b.z);
        value[3] = fmaf((value[3] - by.x) * by.y, a.w, b.w);
    }
};

// The pairs of a thread in an input: the bias of each, and where its sums go.
template <int PAIRS> struct Given {
    uint4* to; // of this block
    int given;
    f32 bias[PAIRS][GATES];
    bool live[PAIRS];

    __device__ __forceinline__ Given(const Stage& s, const Place& at, int cluster, int share)
        : to(s.to + (s64)cluster * s.layer.steps * s.given + at.rank * share), given(s.given) {}
    __device__ __forceinline__ void start(const Layer& p, int j, int unit, bool is_live) {
        live[j] = is_live;
#pragma unroll
        for (int g = 0; g < GATES; g++)
            bias[j][g] = is_live && p.b ? to_f32(p.b[g * p.hidden + unit]) : 0.f;
    }
    __device__ __forceinline__ void give(int step, int j, const f32 (&sum)[4]) const {
        u32 word[4] = {};
#pragma unroll
        for (int g = 0; g < GATES; g++) word[g] = __float_as_uint(sum[g] + bias[j][g]);
        write_pack(to + step * given + threadIdx.x + j * THREADS,
                   inverted_any(make_uint4(word[0], word[1], word[2], word[3])));
    }
};
