//! Every op on every device against the oracle. `NITROX_SEED` repeats a run, `NITROX_TEST_CUDA=1`
//! adds the first GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../oracle/mod.rs"]
mod oracle;

mod harness;
mod rng;

mod attention;
mod cast;
mod conv;
mod convolution;
mod dense;
mod dot;
mod elementwise;
mod embedding;
mod index;
mod large;
mod mlp;
mod norm;
mod order;
mod recurrent;
mod reduce;
mod rope;
mod sample;
mod scan;
mod selfcheck;
mod shape;
mod softmax;
mod solve;
mod torch;
mod window;
