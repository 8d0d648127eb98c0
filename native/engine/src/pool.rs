//! A device's memory: large segments taken from the system once and sub-allocated here, so that
//! an allocation makes no driver call and the pool knows its own fragmentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::events::{self, Event};

/// Every block starts and ends on this: enough for any vector load and for a tensor map.
pub const ALIGNMENT: usize = 256;

/// Where a pool's segments come from.
pub trait Source: Send + Sync {
    /// `bytes` of memory aligned to [`ALIGNMENT`], or `None` where there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>>;

    /// Gives a segment back. Waits for work that may still use it.
    fn free(&self, addr: u64, bytes: usize);
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes that the segments may take together; `None` for what the device has.
    pub limit: Option<usize>,
    /// The least size of a segment.
    pub segment: usize,
}

/// Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// In blocks handed out, rounded up to [`ALIGNMENT`].
    pub in_use: usize,
    /// The most that `in_use` ever was.
    pub peak: usize,
    /// Taken from the system.
    pub reserved: usize,
    /// Live blocks.
    pub allocations: usize,
    /// Blocks handed out since the start.
    pub total_allocations: u64,
    pub segments: usize,
    pub largest_free: usize,
    /// 1 − largest free block ÷ all free bytes; 0 where nothing is free.
    pub fragmentation: f64,
    pub limit: Option<usize>,
}

pub struct Pool {
    device: String,
    source: Box<dyn Source>,
    options: Options,
    state: Mutex<State>,
    /// Blocks dropped since the last allocation. A destructor only enqueues: it may run on a
    /// scheduler thread of the VM, in the middle of a collection.
    dropped: Mutex<Vec<(u64, usize)>>,
}

#[derive(Default)]
struct State {
    /// Segment address → size.
    segments: BTreeMap<u64, usize>,
    /// Free blocks by address, and the same by size for the best fit.
    free: BTreeMap<u64, usize>,
    by_size: BTreeSet<(usize, u64)>,
    in_use: usize,
    peak: usize,
    reserved: usize,
    live: usize,
    total: u64,
}

impl Pool {
    pub fn new(device: impl Into<String>, source: Box<dyn Source>, options: Options) -> Arc<Self> {
        Arc::new(Pool {
            device: device.into(),
            source,
            options,
            state: Mutex::default(),
            dropped: Mutex::default(),
        })
    }

    /// A block of at least `bytes`. Where memory is short it gives back idle segments and tries
    /// once more before it fails; nothing that is held is touched.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let size = round_up(bytes.max(1), ALIGNMENT)
            .ok_or_else(|| Error::argument("allocate", "the size overflows"))?;
        let mut state = self.settle();
        let addr = match state.take(size) {
            Some(addr) => addr,
            None => {
                if !self.grow(&mut state, size)? {
                    self.trim_locked(&mut state);
                    if !self.grow(&mut state, size)? {
                        return Err(self.out_of_memory(&state, bytes));
                    }
                }
                state.take(size).ok_or_else(|| self.out_of_memory(&state, bytes))?
            }
        };
        state.in_use += size;
        state.peak = state.peak.max(state.in_use);
        state.live += 1;
        state.total += 1;
        Ok(Block { pool: Arc::clone(self), addr, size })
    }

    /// Gives segments with nothing in them back to the system.
    pub fn trim(&self) {
        let mut state = self.settle();
        self.trim_locked(&mut state);
    }

    pub fn stats(&self) -> Stats {
        self.stats_locked(&self.settle())
    }

    fn stats_locked(&self, state: &State) -> Stats {
        let free = state.reserved - state.in_use;
        let largest_free = state.by_size.last().map_or(0, |&(size, _)| size);
        Stats {
            in_use: state.in_use,
            peak: state.peak,
            reserved: state.reserved,
            allocations: state.live,
            total_allocations: state.total,
            segments: state.segments.len(),
            largest_free,
            fragmentation: if free == 0 { 0.0 } else { 1.0 - largest_free as f64 / free as f64 },
            limit: self.options.limit,
        }
    }

    fn out_of_memory(&self, state: &State, requested: usize) -> Error {
        let (device, stats) = (self.device.clone(), Box::new(self.stats_locked(state)));
        events::tell(|| Event::OutOfMemory {
            device: device.clone(),
            requested,
            stats: stats.clone(),
        });
        Error::OutOfMemory { device, requested, stats }
    }

    /// The state, after the dropped blocks have gone back into it.
    fn settle(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        for (addr, size) in std::mem::take(&mut *lock(&self.dropped)) {
            state.in_use -= size;
            state.live -= 1;
            state.give(addr, size);
        }
        state
    }

    /// Adds a segment that `size` fits into; `false` where the limit or the device forbids it.
    fn grow(&self, state: &mut State, size: usize) -> Result<bool> {
        let room = self.options.limit.map_or(usize::MAX, |l| l.saturating_sub(state.reserved));
        if size > room {
            return Ok(false);
        }
        let mut want = size.max(self.options.segment).min(room) / ALIGNMENT * ALIGNMENT;
        loop {
            if let Some(addr) = self.source.allocate(want)? {
                state.segments.insert(addr, want);
                state.reserved += want;
                state.give(addr, want);
                return Ok(true);
            }
            if want <= size {
                return Ok(false);
            }
            want = size;
        }
    }

    fn trim_locked(&self, state: &mut State) {
        let idle: Vec<_> = state
            .segments
            .iter()
            .map(|(&addr, &size)| (addr, size))
            .filter(|(addr, size)| state.free.get(addr) == Some(size))
            .collect();
        let (before, segments) = (state.reserved, idle.len());
        for (addr, size) in idle {
            state.forget(addr, size);
            state.segments.remove(&addr);
            state.reserved -= size;
            self.source.free(addr, size);
        }
        if segments > 0 {
            events::tell(|| Event::Trimmed {
                device: self.device.clone(),
                bytes: before - state.reserved,
                segments,
            });
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Every block holds the pool, so here nothing is in use.
        for (&addr, &size) in &lock(&self.state).segments {
            self.source.free(addr, size);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("device", &self.device).finish_non_exhaustive()
    }
}

impl State {
    /// Takes `size` from the smallest free block that holds it.
    fn take(&mut self, size: usize) -> Option<u64> {
        let (have, addr) = *self.by_size.range((size, 0)..).next()?;
        self.forget(addr, have);
        if have > size {
            self.remember(addr + size as u64, have - size);
        }
        Some(addr)
    }

    /// Puts a block back, merged with its free neighbours of the same segment.
    fn give(&mut self, mut addr: u64, mut size: usize) {
        if let Some((&before, &length)) = self.free.range(..addr).next_back()
            && before + length as u64 == addr
            && !self.segments.contains_key(&addr)
        {
            self.forget(before, length);
            addr = before;
            size += length;
        }
        let end = addr + size as u64;
        if let Some(&length) = self.free.get(&end)
            && !self.segments.contains_key(&end)
        {
            self.forget(end, length);
            size += length;
        }
        self.remember(addr, size);
    }

    fn remember(&mut self, addr: u64, size: usize) {
        self.free.insert(addr, size);
        self.by_size.insert((size, addr));
    }

    fn forget(&mut self, addr: u64, size: usize) {
        self.free.remove(&addr);
        self.by_size.remove(&(size, addr));
    }
}

/// A piece of a pool. Dropping it returns the memory.
pub struct Block {
    pool: Arc<Pool>,
    addr: u64,
    size: usize,
}

impl Block {
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes, at least what was asked for.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.pool.dropped).push((self.addr, self.size));
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:#x}, {} bytes)", self.addr, self.size)
    }
}

pub fn round_up(n: usize, to: usize) -> Option<usize> {
    n.checked_next_multiple_of(to)
}

/// A panic elsewhere leaves no half-made state behind in our mutexes: each update is complete
/// before anything can fail.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
