// Tiles in shared memory and the tensor cores' products on them.
//
// A tile is rows of HD elements, HD * size a power of two of at least 128 bytes, in chunks of 16
// bytes. Chunk c of row r lies at c ^ (r & 7), so that eight rows read at the same chunk touch
// all the banks: every access below is free of conflicts.
#pragma once
#include "common/mma.cuh"

// Elements and 16-byte chunks of a row.
template <class S> constexpr int PER_CHUNK = 16 / (int)sizeof(S);
template <class S, int HD> constexpr int CHUNKS = HD / PER_CHUNK<S>;

// The byte offset of a chunk in a tile.
template <class S, int HD> __device__ __forceinline__ u32 chunk_at(int row, int chunk) {
    return (u32)(row * CHUNKS<S, HD> + (chunk ^ (row & 7))) * 16;
}

// One chunk of a row of `d` elements that need not be aligned: zeros past its end, and all zeros
// where the row is not valid.
template <class S>
__device__ __forceinline__ void copy_elements(u32 to, const S* row, int chunk, int d, bool valid) {
    const int first = chunk * PER_CHUNK<S>;
#pragma unroll 1
    for (int i = first; i < first + PER_CHUNK<S>; ++i, to += sizeof(S)) {
        S x = from_f32<S>(0.0f);
        if (valid && i < d) x = row[i];
        if (sizeof(S) == 2)
            asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(*(u16*)&x) : "memory");
        else
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(*(u32*)&x) : "memory");
    }
}

// acc += a * b for 16 rows, 8 columns and one step: 32 bytes of the summed axis. Accumulators hold
// (row, 2t), (row, 2t + 1), (row + 8, 2t), (row + 8, 2t + 1) for row = lane / 4, t = lane % 4.
template <class S> struct Mma {
    struct A { u32 at[4]; };
    struct B { u32 at[2]; };
    static __device__ __forceinline__ A left(const u32 (&m)[4]) { return A{{m[0], m[1], m[2], m[3]}}; }
    static __device__ __forceinline__ B right(u32 x, u32 y) { return B{{x, y}}; }
    static __device__ __forceinline__ void multiply(f32 (&c)[4], const A& a, const B& b) {
        mma<S>(c, a.at, b.at[0], b.at[1]);
    }
};

// Two values of a 16-bit type in one register.
template <class S> __device__ __forceinline__ u32 pack(f32 low, f32 high);
template <> __device__ __forceinline__ u32 pack<bf16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <> __device__ __forceinline__ u32 pack<f16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// f32 as the sum of two TF32 numbers: three products give 21 bits and more of every factor.
template <> struct Mma<f32> {
    struct A { u32 high[4], low[4]; };
    struct B { u32 high[2], low[2]; };
    // Rounded to the 10 bits of a TF32 mantissa; the rest goes to `low`, whose own last bits the
    // tensor cores drop. An infinite factor gives NaN.
    static __device__ __forceinline__ void split(u32 x, u32& high, u32& low) {
        high = (x + 0x1000u) & 0xffffe000u;
        low = __float_as_uint(__uint_as_float(x) - __uint_as_float(high));
    }
    static __device__ __forceinline__ A left(const u32 (&m)[4]) {
        A a;
#pragma unroll
        for (int i = 0; i < 4; ++i) split(m[i], a.high[i], a.low[i]);
        return a;
    }
    static __device__ __forceinline__ B right(u32 x, u32 y) {
        B b;
        split(x, b.high[0], b.low[0]);
        split(y, b.high[1], b.low[1]);
        return b;
    }
    static __device__ __forceinline__ void product(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    static __device__ __forceinline__ void multiply(f32 (&c)[4], const A& a, const B& b) {
        product(c, a.low, b.high);
        product(c, a.high, b.low);
        product(c, a.high, b.high);
    }
};

// scores[rows][keys] += Q * Kᵀ over HD, for MT tiles of 16 rows from the tile `q` on and NT tiles
// of 8 keys. Tiles start at multiples of their rows' size, so that a step's chunks are found by an
// exclusive or on the address.
template <class S, int HD, int MT, int NT>
__device__ __forceinline__ void scores_of(f32 (&s)[MT][NT][4], u32 q, u32 k, int lane) {
    static_assert(NT % 2 == 0, "keys come in pairs of tiles");
    constexpr int ROW = HD * (int)sizeof(S);
    const u32 left = q + chunk_at<S, HD>(lane & 15, lane >> 4);
    const u32 right = k + chunk_at<S, HD>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
    for (int step = 0; step < CHUNKS<S, HD> / 2; ++step) {
        typename Mma<S>::A a[MT];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            u32 x[4];
            load_matrices(x, (left ^ (step * 32)) + m * 16 * ROW);
            a[m] = Mma<S>::left(x);
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 x[4];
            load_matrices(x, (right ^ (step * 32)) + n * 8 * ROW);
            const auto b0 = Mma<S>::right(x[0], x[1]), b1 = Mma<S>::right(x[2], x[3]);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                Mma<S>::multiply(s[m][n], a[m], b0);
                Mma<S>::multiply(s[m][n + 1], a[m], b1);
            }
        }
    }
}

// out[rows][HD] += P * V. The accumulators of the scores are the left operand as they are; for f32
// the keys of a step are taken in the order 0 2 4 6 1 3 5 7, which their sum does not mind.
template <class S, int HD, int MT, int NT> struct Values {
    static __device__ __forceinline__ void add(f32 (&o)[MT][HD / 8][4], const f32 (&p)[MT][NT][4],
                                               u32 v, int lane) {
        constexpr int ROW = HD * (int)sizeof(S);
        const u32 right = v + chunk_at<S, HD>(lane & 15, lane >> 4);
#pragma unroll
        for (int step = 0; step < NT / 2; ++step) {
            typename Mma<S>::A a[MT];
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                const f32(&x)[4] = p[m][step * 2];
                const f32(&y)[4] = p[m][step * 2 + 1];
                a[m] = typename Mma<S>::A{{pack<S>(x[0], x[1]), pack<S>(x[2], x[3]),
                                           pack<S>(y[0], y[1]), pack<S>(y[2], y[3])}};
            }
#pragma unroll
            for (int n = 0; n < HD / 8; n += 2) {
                u32 x[4];
                load_matrices_transposed(x, (right ^ (n * 16)) + step * 16 * ROW);
                const auto b0 = Mma<S>::right(x[0], x[1]), b1 = Mma<S>::right(x[2], x[3]);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    Mma<S>::multiply(o[m][n], a[m], b0);
                    Mma<S>::multiply(o[m][n + 1], a[m], b1);
                }
            }
        }
    }
};

template <int HD, int MT, int NT> struct Values<f32, HD, MT, NT> {
    static __device__ __forceinline__ u32 word(u32 address) {
        u32 x;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address));
        return x;
    }
    // Tensor cores cut off what they add to a sum where f32 arithmetic rounds. So the sums of a
    // tile start from zero, and are added to the others by the ordinary units: the error does not
    // grow with the number of keys.
    static __device__ __forceinline__ void add(f32 (&o)[MT][HD / 8][4], const f32 (&p)[MT][NT][4],
                                               u32 v, int lane) {
        constexpr int ROW = HD * 4, TOGETHER = 4;
        const int column = lane >> 2, row = (lane & 3) * 2;
        const u32 even = v + chunk_at<f32, HD>(row, column >> 2) + (column & 3) * 4;
        const u32 odd = v + chunk_at<f32, HD>(row + 1, column >> 2) + (column & 3) * 4;
        Mma<f32>::A a[MT][NT];
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int step = 0; step < NT; ++step) {
                const f32(&x)[4] = p[m][step];
                const u32 bits[4] = {__float_as_uint(x[0]), __float_as_uint(x[2]),
                                     __float_as_uint(x[1]), __float_as_uint(x[3])};
                a[m][step] = Mma<f32>::left(bits);
            }
#pragma unroll
        for (int first = 0; first < HD / 8; first += TOGETHER) {
            f32 sums[MT][TOGETHER][4] = {};
#pragma unroll
            for (int step = 0; step < NT; ++step)
#pragma unroll
                for (int n = 0; n < TOGETHER; ++n) {
                    const auto b =
                        Mma<f32>::right(word((even ^ ((first + n) * 32)) + step * 8 * ROW),
                                        word((odd ^ ((first + n) * 32)) + step * 8 * ROW));
#pragma unroll
                    for (int m = 0; m < MT; ++m) Mma<f32>::multiply(sums[m][n], a[m][step], b);
                }
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int n = 0; n < TOGETHER; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) o[m][first + n][c] += sums[m][n][c];
        }
    }
};
