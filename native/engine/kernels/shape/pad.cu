// A tensor with a value around its elements and between them: one module an element size.
#include "common/walk.cuh"

typedef Raw<SIZE> E;
constexpr int PACK = 16 / SIZE;

// One axis of the result; counts packs along the last one.
struct Padded {
    Divisor length;  // of the result
    Divisor step;    // from one element of x to the next
    s64 low;
    u64 count;       // elements of x
    s64 stride;      // of x
};

struct Pad {
    u64 n;
    u32 rank;
    Padded axis[8];
};

template <int V>
__device__ __forceinline__ void pad(const E* x, const E* value, E* y, const Pad& p) {
    u64 i = thread_index();
    if (i >= p.n) return;
    s64 at = 0;
    bool inside = true;
    u64 rest = i;
#pragma unroll 1
    for (int a = (int)p.rank - 1; a >= 0; --a) {
        const Padded& axis = p.axis[a];
        u64 q = a ? divide(rest, axis.length) : 0;
        s64 place = (s64)(rest - q * axis.length.by) - axis.low;
        rest = q;
        u64 k = divide((u64)(place < 0 ? 0 : place), axis.step);
        inside &= place >= 0 && k * axis.step.by == (u64)place && k < axis.count;
        at += (s64)k * axis.stride;
    }
    Pack<E, V> out = fetch<E, V>(inside ? x + at * V : value, !inside, V);
    *(Pack<E, V>*)(y + i * V) = out;
}

extern "C" __global__ void pad_packs(
    const E* x, const E* value, E* y, const __grid_constant__ Pad p) {
    pad<PACK>(x, value, y, p);
}

extern "C" __global__ void pad_elements(
    const E* x, const E* value, E* y, const __grid_constant__ Pad p) {
    pad<1>(x, value, y, p);
}
