//! Segments from the process's heap.

use std::alloc::{Layout, alloc, dealloc};

use crate::error::{Error, Result};
use crate::pool::Source;

/// Pages, so that no two segments share a cache line or a page.
const ALIGN: usize = 4096;

#[derive(Debug)]
pub(super) struct Heap;

fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes, ALIGN)
        .map_err(|_| Error::argument("allocate", "the size overflows"))
}

impl Source for Heap {
    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        let layout = layout(bytes)?;
        // SAFETY: pools never ask for zero bytes.
        let at = unsafe { alloc(layout) };
        Ok(if at.is_null() { None } else { Some(at as u64) })
    }

    fn free(&self, addr: u64, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: the pool gives back what `allocate` gave, under the same size.
            unsafe { dealloc(addr as *mut u8, layout) };
        }
    }
}
