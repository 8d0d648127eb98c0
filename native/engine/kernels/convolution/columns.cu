// What goes around the product of a convolution: the input as the windows see it, laid out as the
// columns of a matrix, the kernel with rows of whole packs, and the sums to where they belong. All of
// it only moves elements: `-DBYTES` is their size.

#include "convolution/windows.cuh"

typedef Raw<BYTES> Element;
constexpr int THREADS = 256, VEC = 16 / BYTES;
constexpr u32 ROWS = 8;
// A place that no step of a pack brings into a line.
constexpr s32 NOWHERE = -(1 << 30);

// to {rows, pitch}: row `c · taps + k` is what tap k sees of channel c, from position `first` of all
// positions of the batch on. Rows from `rows_filled` on are zeros, and so is what is beyond `most`
// positions. A thread writes 16 bytes of ROWS rows.
template <bool DILATED>
__device__ __forceinline__ void columns(const Element* x, Element* to, const Windows& w,
                                        const Divisor& positions, const Divisor& taps,
                                        s64 batch_stride, s64 channel_stride, u64 first, u64 most,
                                        u64 pitch, u32 rows, u32 rows_filled) {
    const u64 column = ((u64)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (column >= pitch) return;
    const u64 from = first + column;
    const int filled = from < most ? (int)min(most - from, (u64)VEC) : 0;
    const u64 entry = divide(from, positions);
    const Window& last = w.axis[RANK - 1];
    const s32 width = (s32)last.out.by;
    s32 begin[RANK], tap[RANK];
    coordinates<false>(w, (u32)(from - entry * positions.by), begin);
    const s32 turn = width - begin[RANK - 1];
    u32 row = blockIdx.y * ROWS;
    const u32 channel = divide_short(row, taps);
    coordinates<true>(w, row - channel * (u32)taps.by, tap);
    x += entry * batch_stride + channel * channel_stride;
    to += row * pitch + column;
#pragma unroll 1
    for (const u32 end = min(row + ROWS, rows); row < end; row++) {
        Pack<Element, VEC> pack;
        const int n = row < rows_filled ? filled : 0;
        s32 out[RANK];
#pragma unroll
        for (int a = 0; a < RANK; a++) out[a] = begin[a];
        const Element* p = x;
        const Element* q = p + row_of<DILATED>(w, out, tap);
        s32 at = meeting(last, out[RANK - 1], tap[RANK - 1]);
        // Far outside, and it stays there.
        if (q < p) at = NOWHERE;
        if (!DILATED && width >= VEC) {
            // At most two lines: elements from `turn` on are of the next one.
            const Element* next = q;
            s32 next_at = at;
            if (turn < VEC) {
                out[RANK - 1] = 0;
                if (carry<false>(w, out)) p += batch_stride;
                next = p + row_of<false>(w, out, tap);
                next_at = meeting(last, 0, tap[RANK - 1]) - turn * last.stride;
                if (next < p) next_at = NOWHERE;
            }
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                const s32 there = (v < turn ? at : next_at) + v * last.stride;
                const bool in = v < n && (u32)there < (u32)last.length;
                pack.at[v] = in ? (v < turn ? q : next)[there] : Element(0);
            }
        } else {
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                const s32 there = at == NOWHERE ? -1 : place<DILATED>(last, at);
                pack.at[v] = v < n && there >= 0 ? q[there] : Element(0);
                if (at != NOWHERE) at += last.stride;
                if (++out[RANK - 1] == width) {
                    out[RANK - 1] = 0;
                    if (carry<false>(w, out)) p += batch_stride;
                    q = p + row_of<DILATED>(w, out, tap);
                    at = q < p ? NOWHERE : meeting(last, 0, tap[RANK - 1]);
                }
            }
        }
        *(Pack<Element, VEC>*)to = pack;
        to += pitch;
        if (++tap[RANK - 1] == (s32)last.taps.by) {
            tap[RANK - 1] = 0;
            if (carry<true>(w, tap)) x += channel_stride;
        }
    }
}

#define COLUMNS(NAME, DILATED)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
        NAME(const Element* x, Element* to, Windows w, Divisor positions, Divisor taps,           \
             s64 batch_stride, s64 channel_stride, u64 first, u64 most, u64 pitch, u32 rows,      \
             u32 rows_filled) {                                                                   \
        columns<DILATED>(x, to, w, positions, taps, batch_stride, channel_stride, first, most,    \
                         pitch, rows, rows_filled);                                               \
    }

COLUMNS(columns_plain, false)
COLUMNS(columns_dilated, true)

// Rows of `width` to rows of `pitch`, zeros behind.
extern "C" __global__ void __launch_bounds__(THREADS)
    widen_rows(const Element* from, Element* to, u64 rows, Divisor pitch, u64 width) {
    const u64 at = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (at >= rows * pitch.by) return;
    const u64 row = divide(at, pitch), column = at - row * pitch.by;
    to[at] = column < width ? from[row * width + column] : Element(0);
}

// Sums {outputs, pitch} of the positions from `first` on to y {batch, all outputs, positions}.
extern "C" __global__ void __launch_bounds__(THREADS)
    spread(const Element* sums, Element* y, Divisor positions, u64 first, u64 count, u64 pitch,
           u32 outputs, u64 all_outputs) {
    const u64 column = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (column >= count) return;
    const u64 entry = divide(first + column, positions);
    const u64 position = first + column - entry * positions.by;
    for (u32 o = blockIdx.y; o < outputs; o += gridDim.y)
        y[(entry * all_outputs + o) * positions.by + position] = sums[o * pitch + column];
}
