// rope: pairs of features turned by an angle that grows with the position.
//
// The angle is the position times the pair's turn a position, as a fraction of a whole turn in
// 64 bits: the product wraps around as the angle does, so that any position is as exact as the
// first, with neither f64 nor a long division. A thread keeps the sine and cosine of one pair of
// one frame and goes through the heads.

#include "common/walk.cuh"

constexpr int PAIRS = 256;

struct Rope {
    const T* x;
    const s32* positions;
    T* y;
    u64 items;         // frames · slots · splits
    u64 length;        // S
    s64 heads;
    s64 features;
    Divisor slots;     // pairs of this launch, and features that do not turn
    Divisor splits;    // threads that share the heads of a pair
    Divisor frames;    // S
    int first;         // the first pair of this launch
    int pairs;         // of this launch
    int dims;
    int interleaved;
    int rank;          // of the positions
    int padding;
    u64 turn[PAIRS];
};

extern "C" __global__ void __launch_bounds__(128) rope(const __grid_constant__ Rope p) {
    u64 item = thread_index();
    if (item >= p.items) return;
    const u64 outer = divide(item, p.slots);
    const int slot = (int)(item - outer * p.slots.by);
    const u64 frame = divide(outer, p.splits);
    const s64 split = outer - frame * p.splits.by;
    const s64 splits = p.splits.by;
    const s64 base = (s64)frame * p.heads * p.features;
    if (slot >= p.pairs) {
        const s64 at = base + p.dims + slot - p.pairs;
        for (s64 h = split; h < p.heads; h += splits) p.y[at + h * p.features] = p.x[at + h * p.features];
        return;
    }
    const u64 s = frame - divide(frame, p.frames) * p.frames.by;
    s32 position;
    if (p.rank == 0) position = (s32)((u32)p.positions[0] + (u32)s);
    else position = p.positions[p.rank == 1 ? s : frame];
    // Of half turns, between −1 and 1.
    const s64 turned = (s64)((u64)(s64)position * p.turn[slot]);
    f32 sin, cos;
    sincospif((f32)turned * 1.0842021724855044e-19f, &sin, &cos); // 2⁻⁶³
    const int pair = p.first + slot;
    const s64 j = base + (p.interleaved ? 2 * pair : pair);
    const s64 k = p.interleaved ? j + 1 : j + p.dims / 2;
    for (s64 h = split; h < p.heads; h += splits) {
        const f32 a = to_f32(p.x[j + h * p.features]), b = to_f32(p.x[k + h * p.features]);
        p.y[j + h * p.features] = from_f32<T>(a * cos - b * sin);
        p.y[k + h * p.features] = from_f32<T>(a * sin + b * cos);
    }
}
