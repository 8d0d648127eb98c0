// Where the windows of a convolution lie. `cuda/convolution.rs` lays the structs out.
#pragma once

#include "common/walk.cuh"

// `-DRANK`: the axes, those that a convolution has not being 1 long.

// One spatial axis: output i meets tap k at i · stride + k · dilation − low of the dilated input.
struct Window {
    Divisor out, taps, input_dilation;
    s64 pitch; // elements of the input from one place to the next
    s32 length, stride, low, dilation;
};

struct Windows {
    Window axis[RANK];
};

// Below 2^31, as are all lengths here.
__device__ __forceinline__ u32 divide_short(u32 n, const Divisor& d) {
    return (__umulhi(n, d.magic) + n) >> d.shift;
}

// The place on an axis, or −1 in the padding and between the elements, of which there are none
// unless DILATED.
template <bool DILATED> __device__ __forceinline__ s32 place(const Window& w, s32 at) {
    if (!DILATED) return (u32)at < (u32)w.length ? at : -1;
    if (at < 0) return -1;
    const u32 q = divide_short((u32)at, w.input_dilation);
    return q * (u32)w.input_dilation.by == (u32)at && q < (u32)w.length ? (s32)q : -1;
}

// Where output and tap meet, in the dilated input.
__device__ __forceinline__ s32 meeting(const Window& w, s32 out, s32 tap) {
    return out * w.stride + tap * w.dilation - w.low;
}

// The coordinates of a place among outputs, or among taps, the last axis fastest.
template <bool TAPS>
__device__ __forceinline__ void coordinates(const Windows& w, u32 i, s32 (&at)[RANK]) {
#pragma unroll
    for (int a = RANK - 1; a >= 0; a--) {
        const Divisor& length = TAPS ? w.axis[a].taps : w.axis[a].out;
        const u32 q = divide_short(i, length);
        at[a] = (s32)(i - q * (u32)length.by);
        i = q;
    }
}

// One step on along the axes before the last; whether they were at their end.
template <bool TAPS> __device__ __forceinline__ bool carry(const Windows& w, s32 (&at)[RANK]) {
#pragma unroll
    for (int a = RANK - 2; a >= 0; a--) {
        if (++at[a] < (s32)(TAPS ? w.axis[a].taps.by : w.axis[a].out.by)) return false;
        at[a] = 0;
    }
    return true;
}

// The row of a channel that a window has under a tap, by the axes before the last, or −1.
template <bool DILATED>
__device__ __forceinline__ s64 row_of(const Windows& w, const s32 (&out)[RANK],
                                      const s32 (&tap)[RANK]) {
    s64 at = 0;
#pragma unroll
    for (int a = 0; a < RANK - 1; a++) {
        const s32 p = place<DILATED>(w.axis[a], meeting(w.axis[a], out[a], tap[a]));
        if (p < 0) return -1;
        at += p * w.axis[a].pitch;
    }
    return at;
}
