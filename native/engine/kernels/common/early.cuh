// Programmatic dependent launch: a kernel that may begin before the ones queued ahead of it have
// ended (`Grid::early`), so that its launch and the weights it asks for are hidden behind them. From
// sm_90 on; elsewhere, and in a kernel that was launched as ever, both calls do nothing.
#pragma once

#include "common/types.cuh"

// The kernel queued behind may begin once every block has called this or ended.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Returns once all that was queued ahead has ended and what it wrote is to be seen. A kernel reads
// nothing but its program's parameters before this, and writes nothing.
__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Has a value be there now, so that what it is made of is not counted where time is short: the compiler
// puts that off until the value is used. An offset and no pointer, which would not be known to be one into
// the card's memory any more.
__device__ __forceinline__ void ready(u32& value) { asm volatile("" : "+r"(value)); }
