//! NVIDIA's driver without a GPU, for tests.
//!
//! The shared library stands in for two of NVIDIA's: for the driver (as `libcuda.so`, found by
//! `LD_LIBRARY_PATH`) and for NVRTC (`NITROX_NVRTC_PATH`); `.ci/emulate` gives it those names. The compiler is the real one, of which PTX
//! is asked instead of a cubin; the driver's functions are those that the engine calls; and kernels
//! are run by a machine that reads PTX, warp by warp, on the CPU. So what is tested is the engine as
//! it is, its launches, graphs and kernels, on a machine that has no GPU, and slowly.
//!
//! What a GPU would let pass in silence is a fault here: an access outside of what was allocated,
//! one that is not aligned, a barrier that not all threads reach, two threads at one place of shared
//! memory with no barrier between. What it cannot show: times, the order of memory operations that
//! a real memory system makes visible, and the limits of a real chip.
//!
//! ```text
//! driver.rs, nvrtc.rs   the C functions; code.rs their results, handle.rs their handles
//! card.rs, device.rs    the card that is shown, and the settings; its memory and its streams
//! launch.rs, early.rs   what a launch may ask for; kernels that begin before their turn
//! stream.rs, graph.rs   what is queued, and what a capture wrote down
//! ptx/                  text → Module
//! machine/              a kernel's blocks, warps and lanes
//! memory.rs             what is allocated
//! ```

// Each function of the driver's and NVRTC's has the name that it is looked up by.
#![allow(non_snake_case)]

pub mod card;
pub mod code;
pub mod device;
pub mod driver;
pub mod early;
pub mod graph;
pub mod handle;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod nvrtc;
pub mod ptx;
pub mod stream;
