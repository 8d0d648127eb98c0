//! The shared memory of a block, and who touched it: two threads at one place, of which one writes,
//! need a barrier between them.
//!
//! Time here is a count of the events that order threads: barriers of a block or a cluster, of a
//! warp and its collectives, and completed phases of an mbarrier. A touch is ordered before a thread
//! when it is older than the last such event of the thread's warp. That is lenient where an event
//! orders some warps only: what came before it is taken for ordered with respect to all.
//!
//! Not in the check: what `st.async` writes (its bytes wait for an mbarrier), and mbarriers
//! themselves. Two atomics do not race, nor do two writes of one and the same value.

use std::collections::BTreeMap;

use super::cluster::Mbarrier;
use crate::ptx::body::SHARED_BASE;

/// A thread among those of its cluster: the block's rank, the warp and the lane, so that it is seen
/// without a division what two of them have in common.
pub type Thread = u16;

/// Bits of a thread's number in its block, and of a lane's in its warp.
const IN_BLOCK: u32 = 10;
const IN_WARP: u32 = 5;

pub fn thread(rank: u32, index: usize) -> Thread {
    (rank << IN_BLOCK) as Thread | index as Thread
}

/// A thread's block, by its rank, and its number there.
pub fn place_of(thread: Thread) -> (u16, u16) {
    (thread >> IN_BLOCK, thread & ((1 << IN_BLOCK) - 1))
}

/// Since when a warp's threads are ordered: after all touches that are older.
#[derive(Clone, Copy, Debug, Default)]
pub struct Since {
    /// By a barrier of the block.
    pub block: u32,
    /// By one of the warp.
    pub warp: u32,
    /// By one of the cluster.
    pub cluster: u32,
}

impl Since {
    /// Whether `who`'s touch may be at the same time as what `me` does now.
    #[inline(always)]
    fn is_open(&self, when: u32, who: Thread, me: Thread) -> bool {
        if when <= self.cluster || who == me {
            return false;
        }
        let apart = who ^ me;
        let after = if apart >> IN_WARP == 0 {
            self.block.max(self.warp)
        } else if apart >> IN_BLOCK == 0 {
            self.block
        } else {
            self.cluster
        };
        when > after
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Touch {
    /// One more than when; 0 for never.
    written: u32,
    read: u32,
    writer: Thread,
    reader: Thread,
    atomic: bool,
    /// `reader` is one of several.
    many: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Atomic,
}

#[derive(Debug)]
pub struct Shared {
    pub bytes: Vec<u8>,
    touches: Vec<Touch>,
    /// Of a touch's place: bits to shift an offset by.
    shift: u32,
    pub barriers: BTreeMap<usize, Mbarrier>,
}

/// The first 1, 2, 4 or 8 bytes.
#[inline(always)]
pub fn word(bytes: &[u8], size: usize) -> u64 {
    match *bytes {
        [a, ..] if size == 1 => u64::from(a),
        [a, b, ..] if size == 2 => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d, ..] if size == 4 => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h, ..] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

impl Shared {
    pub fn new(bytes: usize, granule: usize) -> Self {
        let touches = vec![Touch::default(); bytes.div_ceil(granule)];
        let barriers = BTreeMap::new();
        Shared { bytes: vec![0xff; bytes], touches, shift: granule.trailing_zeros(), barriers }
    }

    /// For the next block: poison everywhere.
    pub fn reset(&mut self) {
        self.bytes.fill(0xff);
        self.touches.fill(Touch::default());
        self.barriers.clear();
    }

    /// Where an address of this block lies, for `size` bytes.
    pub fn place(&self, address: u64, size: usize) -> Option<usize> {
        let at = address.checked_sub(SHARED_BASE)? as usize;
        (at.checked_add(size)? <= self.bytes.len()).then_some(at)
    }

    #[inline(always)]
    pub fn load(&self, at: usize, size: usize) -> u64 {
        word(&self.bytes[at..], size)
    }

    #[inline(always)]
    pub fn store(&mut self, at: usize, size: usize, bits: u64) {
        let to = &mut self.bytes[at..at + size];
        match size {
            4 => to.copy_from_slice(&(bits as u32).to_le_bytes()),
            8 => to.copy_from_slice(&bits.to_le_bytes()),
            _ => to.copy_from_slice(&bits.to_le_bytes()[..size]),
        }
    }

    /// Notes a touch, before a write happens. The error is the other thread. `same`: the write
    /// changes nothing.
    #[inline(always)]
    pub fn touch(
        &mut self,
        at: usize,
        size: usize,
        me: Thread,
        since: &Since,
        now: u32,
        access: Access,
        same: bool,
    ) -> Result<(), Thread> {
        for touch in &mut self.touches[at >> self.shift..=(at + size - 1) >> self.shift] {
            match access {
                Access::Read => {
                    if since.is_open(touch.written, touch.writer, me) {
                        return Err(touch.writer);
                    }
                    touch.many = (touch.reader != me || touch.many)
                        && touch.read > since.block.max(since.cluster);
                    touch.read = now + 1;
                    touch.reader = me;
                }
                Access::Write | Access::Atomic => {
                    let atomic = access == Access::Atomic;
                    let harmless = same || (atomic && touch.atomic);
                    if !harmless && since.is_open(touch.written, touch.writer, me) {
                        return Err(touch.writer);
                    }
                    // Of several readers one at least is another thread.
                    let other = touch.reader ^ u16::from(touch.many && touch.reader == me);
                    if !same && since.is_open(touch.read, other, me) {
                        return Err(touch.reader);
                    }
                    touch.written = now + 1;
                    touch.writer = me;
                    touch.atomic = atomic;
                }
            }
        }
        Ok(())
    }

    /// Notes that several threads read one place: `by` are the first and the last of them, of one warp.
    pub fn read_by_all(
        &mut self,
        at: usize,
        size: usize,
        by: [Thread; 2],
        since: &Since,
        now: u32,
    ) -> Result<(), Thread> {
        // Of two readers one at least is another thread than the writer.
        by.into_iter().try_for_each(|me| self.touch(at, size, me, since, now, Access::Read, false))
    }

    /// Forgets who touched this: something else orders what comes.
    pub fn forget(&mut self, at: usize, size: usize) {
        let last = (at + size - 1) >> self.shift;
        self.touches[at >> self.shift..=last].fill(Touch::default());
    }
}
