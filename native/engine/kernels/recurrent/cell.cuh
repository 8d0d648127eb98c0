// What the LSTM and GRU kernels share: a cell's pointwise part and the forms its state comes in.
//
// A module is compiled for one cell: -DGATES=4 for LSTM (gates i f g o), -DGATES=3 for GRU (r z n).
#pragma once

#include "common/warp.cuh"

// Four sums make a unit: LSTM's i f g o; GRU's r z, then n's input part and n's recurrent part,
// which the reset gate keeps apart.
struct Sums {
    f32 at[4];
};

struct State {
    f32 c; // LSTM only
    f32 h;
};

__device__ __forceinline__ State advance(const State& old, const Sums& s) {
#if GATES == 4
    const f32 c = sigmoid(s.at[1]) * old.c + sigmoid(s.at[0]) * tanhf(s.at[2]);
    return State{c, sigmoid(s.at[3]) * tanhf(c)};
#else
    const f32 z = sigmoid(s.at[1]);
    const f32 n = tanhf(fmaf(sigmoid(s.at[0]), s.at[3], s.at[2]));
    return State{0.f, (1.f - z) * n + z * old.h};
#endif
}

// A state tensor is f32 or of the storage type; none is zeros.
__device__ __forceinline__ f32 read_state(const void* p, int is_f32, s64 i) {
    if (!p) return 0.f;
    return is_f32 ? ((const f32*)p)[i] : to_f32(((const T*)p)[i]);
}
__device__ __forceinline__ void write_state(void* p, int is_f32, s64 i, f32 value) {
    if (is_f32) ((f32*)p)[i] = value;
    else ((T*)p)[i] = from_f32<T>(value);
}
