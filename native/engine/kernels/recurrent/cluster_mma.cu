// A whole window of a bf16 or f16 LSTM or GRU layer by clusters: see cells_mma.cuh, and what it is
// compiled for.

#include "recurrent/cells_mma.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) window(const Layer p) {
    extern __shared__ __align__(128) unsigned char shared[];
    cells(p, Place(p), Alone(), shared);
}
