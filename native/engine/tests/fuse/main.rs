//! Programs of which ops were fused, against the same ops run one by one, and that no others are. What
//! the passes do with a graph is tested where they are written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../program/eager.rs"]
mod eager;
#[allow(dead_code, unused_imports)] // what other tests take of it
#[path = "../oracle/mod.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "../ops/rng.rs"]
mod rng;

mod attention;
mod dense;
mod harness;
mod mamba;
mod norms;
mod stack;
