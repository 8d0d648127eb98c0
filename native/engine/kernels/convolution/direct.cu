// A convolution without a product of matrices, where groups leave little to multiply: a thread
// computes EACH neighbours along the last axis, of OUTS outputs of a group.

#include "convolution/windows.cuh"
#include "dot/product.cuh"

constexpr int THREADS = 256, EACH = 4;

struct Shape {
    Divisor packs, lines, outputs, group_outputs; // outputs in steps of OUTS
    s64 batch_stride, group_stride, channel_stride;
    u64 n;
    u32 channels, taps;
};

// SLIDE: strides and dilations along the last axis are 1, so that a tap sees one element that the
// tap before did not.
template <bool DILATED, bool SLIDE, int OUTS>
__device__ __forceinline__ void direct(const T* x, const T* kernel, T* y, const Windows& w,
                                       const Shape& shape) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= shape.n) return;
    const Window& last = w.axis[RANK - 1];
    const s32 width = (s32)last.out.by, across = (s32)last.taps.by;
    const u64 row = divide(i, shape.packs);
    const s32 begin = (s32)(i - row * shape.packs.by) * EACH;
    const u64 plane = divide(row, shape.lines), line = row - plane * shape.lines.by;
    const u64 entry = divide(plane, shape.outputs), output = plane - entry * shape.outputs.by;
    const u64 group = divide(output, shape.group_outputs);
    s32 out[RANK], tap[RANK] = {};
    coordinates<false>(w, (u32)line * width, out);
    const T* p = x + entry * shape.batch_stride + group * shape.group_stride;
    const u32 taps = shape.taps;
    const u64 filter = (u64)shape.channels * taps;
    const T* k = kernel + output * OUTS * filter;
    Sum sum[OUTS][EACH] = {};
    for (u32 t = 0; t < taps; t += across) {
        const s64 there = row_of<DILATED>(w, out, tap);
        const u32 length = there >= 0 ? (u32)last.length : 0;
        for (u32 c = 0; c < shape.channels; c++) {
            const T* here = p + c * shape.channel_stride + there;
            const T* weights = k + (u64)c * taps + t;
            // What is not there is a zero, which makes an infinity of the kernel a NaN.
            auto value = [&](s32 at) {
                if (DILATED) {
                    at = place<true>(last, at);
                    return there >= 0 && at >= 0 ? widen(here[at]) : Sum(0);
                }
                return (u32)at < length ? widen(here[at]) : Sum(0);
            };
            Sum seen[EACH];
            s32 at = begin * last.stride - last.low;
            if (SLIDE) {
#pragma unroll
                for (int e = 1; e < EACH; e++) seen[e] = value(at + e - 1);
            }
#pragma unroll 4
            for (s32 s = 0; s < across; s++) {
                if (SLIDE) {
#pragma unroll
                    for (int e = 1; e < EACH; e++) seen[e - 1] = seen[e];
                    seen[EACH - 1] = value(at + s + EACH - 1);
                } else {
#pragma unroll
                    for (int e = 0; e < EACH; e++)
                        seen[e] = value(at + s * last.dilation + e * last.stride);
                }
#pragma unroll
                for (int o = 0; o < OUTS; o++) {
                    const Sum weight = widen(weights[o * filter + s]);
#pragma unroll
                    for (int e = 0; e < EACH; e++)
                        sum[o][e] = multiply_add(seen[e], weight, sum[o][e]);
                }
            }
        }
        carry<true>(w, tap);
    }
    const u64 positions = shape.lines.by * (u64)width;
    y += plane * OUTS * positions + line * width + begin;
#pragma unroll
    for (int o = 0; o < OUTS; o++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (begin + e < width) y[o * positions + e] = narrow(sum[o][e]);
}

#define DIRECT(NAME, DILATED, SLIDE, OUTS)                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const T* x, const T* kernel, T* y, Windows w, Shape shape) {                         \
        direct<DILATED, SLIDE, OUTS>(x, kernel, y, w, shape);                                     \
    }

DIRECT(slide_1, false, true, 1)
DIRECT(slide_4, false, true, 4)
DIRECT(plain_1, false, false, 1)
DIRECT(plain_4, false, false, 4)
DIRECT(dilated_1, true, false, 1)
