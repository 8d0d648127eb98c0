// A whole window of an f32 LSTM or GRU layer by clusters: see cells_f32.cuh, and what it is compiled for.

#include "recurrent/cells_f32.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) window(const Layer p) {
    extern __shared__ __align__(128) unsigned char shared[];
    cells(p, Place(p), Alone(), shared);
}
