// What the tensor core kernels for whole windows share: h as an operand, and its cell.
//
// h lies as lanes take it: for each 32 of its entries and each 8 columns, lane l has entries
// 8 · (l % 4) to + 7 of column l / 4, which are four operands of two products. The weights, staged in
// shared memory a row of wh after the other, are taken in the same order.
#pragma once

#include "common/mma.cuh"
#include "recurrent/gates.cuh"

// Where row k of wh is staged, so that eight rows that are read together lie in a row.
__device__ __forceinline__ int slot_of(int k) {
    return k / 32 * 32 + k % 8 / 2 * 8 + k % 32 / 8 * 2 + k % 2;
}

// value as high + low; an infinite one has no rest.
__device__ __forceinline__ void split(f32 value, u16& high, u16& low) {
    const T h = from_f32<T>(value);
    const f32 rest = value - to_f32(h);
    high = h.bits;
    low = from_f32<T>(rest == rest ? rest : 0.f).bits;
}

template <class S> constexpr bool COARSE = false;
template <> constexpr bool COARSE<bf16> = true;
__device__ __forceinline__ State advance_16(const State& old, const Sums& s, bool exact) {
    if (exact) return advance_by<Quick>(old, s);
    return COARSE<T> ? advance_by<Coarse>(old, s) : advance_by<Quick>(old, s);
}
