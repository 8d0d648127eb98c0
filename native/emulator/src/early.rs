//! Kernels that may begin before those ahead of them have ended (programmatic dependent launch).
//!
//! A GPU may run what such a kernel does before `griddepcontrol.wait` at any time after the first kernel
//! of a row of them began. Here it is run at the worst of these: once by itself, before the first one.
//! It may not write, and what it read must be the same when all that is ahead has ended. Then the
//! kernel is run in its turn.

use std::collections::VecDeque;
use std::ptr;

use crate::device::Device;
use crate::machine::{self, Fault, FaultKind};
use crate::stream::Work;

/// What a kernel read before it waited: first bytes, and what was there.
#[derive(Debug)]
pub struct Seen {
    kernel: String,
    reads: Vec<(u64, Vec<u8>)>,
}

/// What the kernels that may begin early read, of those that follow right upon the first of `all`.
pub fn look(device: &Device, all: &[Work]) -> Result<VecDeque<Seen>, Fault> {
    let row = all.iter().skip(1).map_while(|work| match work {
        Work::Kernel { kernel, launch, early: true } => Some((kernel, launch)),
        _ => None,
    });
    row.map(|(kernel, launch)| {
        let ranges = machine::run_ahead(kernel, launch, &device.memory)?;
        let reads = ranges.into_iter().map(|(first, end)| (first, bytes(first, end - first)));
        Ok(Seen { kernel: kernel.name.clone(), reads: reads.collect() })
    })
    .collect()
}

impl Seen {
    /// A fault where what was read has changed since.
    pub fn check(&self) -> Result<(), Fault> {
        for (first, before) in &self.reads {
            let now = bytes(*first, before.len() as u64);
            if let Some(at) = before.iter().zip(&now).position(|(a, b)| a != b) {
                let message = format!(
                    "{}: what it reads at {:#x}, before it waits, a kernel ahead of it writes",
                    self.kernel,
                    first + at as u64
                );
                return Err(Fault { kind: FaultKind::Race, message });
            }
        }
        Ok(())
    }
}

fn bytes(first: u64, count: u64) -> Vec<u8> {
    let from = ptr::with_exposed_provenance::<u8>(first as usize);
    // SAFETY: the machine has just read there; memory is freed after the work that is queued.
    (0..count as usize).map(|i| unsafe { from.add(i).read_volatile() }).collect()
}
