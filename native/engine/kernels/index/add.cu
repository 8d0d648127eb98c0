// Rows added to the places that they are for. They come sorted by place, those for one place by
// their number, so that a place has all of its rows together, always in the same order.
#include "index/address.cuh"

typedef Acc<T> A;
template <class N> struct WrapOf { typedef N type; };
template <> struct WrapOf<s64> { typedef u64 type; };
typedef WrapOf<A>::type W;

__device__ __forceinline__ A plus(A a, A b) { return (A)((W)a + (W)b); }

// A warp a row: `across` neighbouring columns (a power of two), the lanes besides go down the rows
// of one place. Only the first row of a place does anything.
extern "C" __global__ void add_rows(
    const T* updates, const u64* places, const u32* rows, const T* x, T* y, u64 k, u64 width,
    u32 across, const __grid_constant__ Walk w) {
    u64 first = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32, down = 32 / across, ty = lane / across;
    if (first >= k) return;
    u64 place = places[first];
    if (place == NOWHERE || (first > 0 && places[first - 1] == place)) return;
    // How many rows there are for it.
    u64 count = 1;
    for (bool more = true; more;) {
        u64 at = first + count + lane;
        u32 same = __ballot_sync(~0u, at < k && places[at] == place);
        u32 run = same == ~0u ? 32 : __ffs(~same) - 1;
        count += run;
        more = run == 32;
    }
    for (u64 from = (u64)blockIdx.y * across; from < width; from += (u64)gridDim.y * across) {
        u64 column = from + lane % across;
        A sum = 0;
        if (column < width) {
#pragma unroll 4
            for (u64 r = ty; r < count; r += down)
                sum = plus(sum, load(updates[(u64)rows[first + r] * width + column]));
        }
        for (u32 d = across; d < 32; d *= 2) sum = plus(sum, __shfl_xor_sync(~0u, sum, d));
        if (ty == 0 && column < width) {
            s64 at[1];
            locate(w, column, at);
            s64 to = (s64)place + at[0];
            y[to] = store<T>(plus(load(x[to]), sum));
        }
    }
}
