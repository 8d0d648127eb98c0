// Where each row of indices leads to, as the keys of a sort.
#include "index/address.cuh"

extern "C" __global__ void places(u64* places, u64 k, const __grid_constant__ Index index) {
    u64 r = thread_index();
    if (r < k) places[r] = checked(index, r);
}
