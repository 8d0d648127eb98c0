// The norm over D in the launch of a window's scan: what the blocks of a row tell each other.
//
// A block has HELPERS warps more than scan; each has frames of its own of every span. Of these it finds
// what the block's channels have, their mean and the squares about it, and hands that out in device
// memory. For every span another of the row's blocks puts together what all have handed out, and hands
// out the row's mean and scale. By these each block norms its frames, which have waited in shared memory.
//
//     the warps that scan   span s │ s + 1           │ s + 2             │ s + 3
//     the helpers                  │ s: shares → all │ one block: s → all │ s: normed → memory
//
// So the frames of RING spans are there at a time, and no block waits for another that is not a whole
// span behind. In device memory are SLOTS of spans: when a block hands out span s it has normed s − 3,
// of which all blocks had handed out their shares, so that all were done with s − 5 as a whole.
//
// A mean is found first and the squares about it second; the parts of a row are put together as means of
// means, with what these are off theirs on top of the squares. All is added up in an order that depends
// on nothing but the shape. All blocks of the grid are on the card at once, and a row is whole blocks.
#pragma once

#include "common/types.cuh"
#include "common/warp.cuh"
#include "common/wide.cuh"
#include "common/word.cuh"

struct Norm {
    const T* gamma;
    const T* beta; // or null
    T* normed;
    u64* shares; // {B, SLOTS, blocks, SPAN}: a block's mean and squares of a frame; zeros at first
    u64* rows; // {B, SLOTS, 2, SPAN}: a frame's mean, in two parts, and scale; zeros at first
    f32 epsilon;
    f32 whole; // 1 / channels
    int centred;
    int padding;
};

// Of a block of W warps that scan, whose lanes finish K frames of a tile each and share a channel by M.
template <int W, int K, int M> struct Normed {
    static constexpr int HELPERS = 2; // and lanes that share a frame
    static constexpr int THREADS = (W + HELPERS) * WARP;
    static constexpr int OF_WARP = WARP / M; // channels
    static constexpr int WIDTH = W * OF_WARP; // of a block
    static constexpr int TILE = K * M; // frames
    static constexpr int SPAN = WARP;
    static constexpr int OWN_FRAMES = SPAN / HELPERS; // of a helper
    static constexpr int TILES = SPAN / TILE;
    static constexpr int RING = 4;
    static constexpr int SLOTS = 8;
    static constexpr int MOST = 8; // shares that a lane asks for at once
    // Barriers, beside that of all threads.
    static constexpr int SCANNING = 1, FULL = 2, FREE = FULL + RING;
    static constexpr int PITCH = OF_WARP + 4; // eight lanes read 16 bytes of a frame each at once
    static constexpr int OF_SPAN = W * SPAN * PITCH;
    static constexpr int BYTES = 4 * (RING * OF_SPAN + 4 * SPAN); // of shared memory
    static_assert(SPAN % TILE == 0 && WIDTH == 2 * WARP && OF_WARP % 4 == 0);

    const Norm& n;
    f32* s; // {RING, W, SPAN, PITCH}, and a frame's mean and scale, {SPAN, 4}
    s64 row, length;
    int channels, block, blocks, warp, lane;

    // For the warps that scan.

    static __device__ __forceinline__ void meet_scanning() {
        asm volatile("bar.sync %0, %1;" ::"n"(SCANNING), "n"(W * WARP) : "memory");
    }
    // Before a tile: there is room for its span.
    static __device__ __forceinline__ void await_room(int turn) {
        const int span = turn / TILES;
        if (MEETS_FREE && turn % TILES == 0 && span >= RING) await(FREE + span % RING);
    }
    // After it: its frames, and whether it is the last.
    __device__ __forceinline__ void keep(const f32 (&y)[K], int turn, bool last) const {
        const int span = turn / TILES, first = turn % TILES * TILE + lane / OF_WARP;
        f32* const at = s + span % RING * OF_SPAN + (warp * SPAN + first) * PITCH + lane % OF_WARP;
#pragma unroll
        for (int o = 0; o < K; o++) at[o * M * PITCH] = y[o];
        if (last || turn % TILES == TILES - 1) tell(FULL + span % RING);
    }

    // For the helpers.

    __device__ __forceinline__ void serve() const {
        const int c = block * WIDTH + 2 * lane, spans = (int)((length + SPAN - 1) / SPAN);
        Wide<T, 2> gamma, beta;
        gamma.load(n.gamma + c);
        beta.zero();
        if (n.beta) beta.load(n.beta + c);
        int next = block; // the next span whose shares this block puts together
#pragma unroll 1
        for (int span = 0; span < spans + 2; span++) {
            if (span < spans) {
                await(FULL + span % RING);
                hand_out(span);
            }
            if (span - 1 == next && next < spans) {
                gather(next);
                next += blocks;
            }
            const int done = span - 2;
            if (done < 0) continue;
            write(done, n.normed + (row * length + (s64)done * SPAN) * channels + c, gamma, beta);
            if (MEETS_FREE && done + RING < spans) tell(FREE + done % RING);
        }
    }

  private:
    // The one half of a block tells the other, which waits. racecheck takes the textbook's producers and
    // consumers of a ring for a race, so for it all wait where a span is full. That is order enough by itself: when
    // the helpers come to a span, they have written the third one before.
#ifdef RACECHECK
    static constexpr bool MEETS_FREE = false;
    static __device__ __forceinline__ void tell(int barrier) { await(barrier); }
#else
    static constexpr bool MEETS_FREE = true;
    static __device__ __forceinline__ void tell(int barrier) {
        asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
    }
#endif
    static __device__ __forceinline__ void await(int barrier) {
        asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
    }

    // A word of a slot is of this or of the time before: the last bit of its upper half tells.
    static __device__ __forceinline__ u32 turn_of(int span) { return ~(u32)(span / SLOTS) & 1; }
    static __device__ __forceinline__ bool is_of(u64 word, u32 turn) {
        return ((u32)(word >> 32) & 1) == turn;
    }
    static __device__ __forceinline__ void put(u64* at, f32 lower, f32 upper, u32 turn) {
        const u64 word = (u64)((__float_as_uint(upper) & ~1u) | turn) << 32 | __float_as_uint(lower);
        write_word(at, word);
    }
    static __device__ __forceinline__ f32 lower(u64 word) { return __uint_as_float((u32)word); }
    static __device__ __forceinline__ f32 upper(u64 word) { return __uint_as_float((u32)(word >> 32)); }

    __device__ __forceinline__ int first_frame() const { return (warp - W) * OWN_FRAMES; }
    __device__ __forceinline__ int frame() const { return first_frame() + lane / HELPERS; }
    __device__ __forceinline__ int part() const { return lane % HELPERS; }

    __device__ __forceinline__ u64* shares(int span) const {
        return n.shares + (row * SLOTS + span % SLOTS) * blocks * SPAN + frame();
    }
    __device__ __forceinline__ u64* rows(int span) const {
        return n.rows + (row * SLOTS + span % SLOTS) * 2 * SPAN + frame();
    }

    __device__ __forceinline__ void hand_out(int span) const {
        constexpr int EACH = WIDTH / HELPERS; // channels of a lane
        const f32* const at = s + span % RING * OF_SPAN + frame() * PITCH;
        f32 y[EACH], sum[4] = {}, squares[4] = {};
#pragma unroll
        for (int j = 0; j < EACH; j += 4) {
            const int c = part() * EACH + j;
            *(float4*)&y[j] = *(const float4*)(at + c / OF_WARP * SPAN * PITCH + c % OF_WARP);
        }
        if (n.centred) {
#pragma unroll
            for (int j = 0; j < EACH; j++) sum[j % 4] += y[j];
        }
        f32 mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.f / EACH);
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const f32 off = y[j] - mean;
            squares[j % 4] = fmaf(off, off, squares[j % 4]);
        }
        f32 all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
#pragma unroll
        for (int m = 1; m < HELPERS; m *= 2) {
            const f32 off = __shfl_xor_sync(~0u, mean, m) - mean;
            all += __shfl_xor_sync(~0u, all, m);
            all = fmaf(off * off, 0.5f * EACH * m, all);
            mean = fmaf(off, 0.5f, mean);
        }
        if (part() == 0) put(shares(span) + block * SPAN, mean, all, turn_of(span));
    }

    __device__ __forceinline__ void gather(int span) const {
        const u64* const from = shares(span);
        const u32 turn = turn_of(span);
        // Of the blocks that this lane has.
        f32 pivot = 0.f, mean = 0.f, squares = 0.f, all = 0.f;
#pragma unroll 1
        for (int first = 0; first < blocks; first += MOST * HELPERS) {
            const int left = blocks - first - part(); // one in HELPERS is this lane's
            u64 word[MOST];
            bool there;
            do { // all lanes as long as one, so that the warp is known not to part
                there = true;
#pragma unroll
                for (int i = 0; i < MOST; i++)
                    if (i * HELPERS < left)
                        word[i] = read_word(from + (first + part() + i * HELPERS) * SPAN);
#pragma unroll
                for (int i = 0; i < MOST; i++)
                    if (i * HELPERS < left) there = there && is_of(word[i], turn);
            } while (!__all_sync(~0u, there));
            // The first block's mean is the pivot: means are as exact as what they are off it.
            if (first == 0) pivot = __shfl_sync(~0u, lower(word[0]), lane - part());
            f32 sum = 0.f, q = 0.f, here = 0.f;
#pragma unroll
            for (int i = 0; i < MOST; i++)
                if (i * HELPERS < left) {
                    sum += lower(word[i]) - pivot;
                    here += 1.f;
                }
            const f32 about = sum / fmaxf(here, 1.f);
#pragma unroll
            for (int i = 0; i < MOST; i++)
                if (i * HELPERS < left) {
                    const f32 off = lower(word[i]) - pivot - about;
                    q += fmaf(off * off, (f32)WIDTH, upper(word[i]));
                }
            join(mean, squares, all, about, q, here);
        }
#pragma unroll
        for (int m = 1; m < HELPERS; m *= 2) {
            const f32 about = __shfl_xor_sync(~0u, mean, m), q = __shfl_xor_sync(~0u, squares, m);
            join(mean, squares, all, about, q, __shfl_xor_sync(~0u, all, m));
        }
        if (part() == 0) {
            put(rows(span), pivot, root(fmaf(squares, n.whole, n.epsilon)), turn);
            put(rows(span) + SPAN, 0.f, mean, turn);
        }
    }

    // Mean and squares of `all` blocks, and those of `here` more.
    static __device__ __forceinline__ void join(f32& mean, f32& squares, f32& all, f32 about, f32 q,
                                                f32 here) {
        const f32 off = about - mean, share = here / fmaxf(all + here, 1.f);
        squares += fmaf(off * off, all * share * (f32)WIDTH, q);
        mean = fmaf(off, share, mean);
        all += here;
    }

    __device__ __forceinline__ void write(int span, T* to, const Wide<T, 2>& gamma,
                                          const Wide<T, 2>& beta) const {
        const u32 turn = turn_of(span);
        u64 word[2];
        do {
            word[0] = read_word(rows(span));
            word[1] = read_word(rows(span) + SPAN);
        } while (!__all_sync(~0u, is_of(word[0], turn) && is_of(word[1], turn)));
        float4* const by = (float4*)(s + RING * OF_SPAN);
        __syncwarp(); // what the span before left has been read
        if (part() == 0) by[frame()] = float4{lower(word[0]), upper(word[1]), upper(word[0]), 0.f};
        __syncwarp();
        const int first = first_frame();
        const int end = (int)min((s64)(first + OWN_FRAMES), length - (s64)span * SPAN);
        // A lane has two channels.
        const int c = 2 * lane;
        const f32* const from = s + span % RING * OF_SPAN + c / OF_WARP * SPAN * PITCH + c % OF_WARP;
        to += (s64)first * channels;
#pragma unroll 8
        for (int f = first; f < end; f++) {
            const float2 y = *(const float2*)(from + f * PITCH);
            const float4 row = by[f];
            Pack<T, 2> pair;
            pair.at[0] = from_f32<T>(fmaf((y.x - row.x - row.y) * row.z, gamma.at(0), beta.at(0)));
            pair.at[1] = from_f32<T>(fmaf((y.y - row.x - row.y) * row.z, gamma.at(1), beta.at(1)));
            *(Pack<T, 2>*)to = pair;
            to += channels;
        }
    }

    // 1/√x: the special function unit's, put right; what is no number stays as that found it.
    static __device__ __forceinline__ f32 root(f32 x) {
        f32 y;
        asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        const f32 rest = fmaf(-x * y, y, 1.f);
        return rest == rest ? fmaf(0.5f * y, rest, y) : y;
    }
};
