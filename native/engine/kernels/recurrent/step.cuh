// What a step's kernels are given.
#pragma once

#include "norm/prologue.cuh"
#include "recurrent/cell.cuh"

struct Step {
    const T* x; // {rows, input}, rows x_stride apart; unused where `projected` is given
    const T* wi;
    const T* wh;
    const T* b;
    const f32* projected; // x · wi + b of this step {rows, GATES · hidden}, rows projected_stride apart
    const void* c;
    const void* h;
    const u8* mask; // rows mask_stride apart
    T* seq;         // rows seq_stride apart
    void* c_out;
    void* h_out;
    s64 x_stride, projected_stride, mask_stride, seq_stride;
    int rows, input, hidden; // input is 0 where `projected` is given
    int in_f32, out_f32;     // the types of the state read and written
    int lanes;
    Prologue<T> norm; // of x, with -DNORM=1; only where x and h are within one span
};
