//! What the blocks of a cluster share: mbarriers and stores that one of them counts.

use super::access::{addresses, trouble};
use super::file::lanes;
use super::warp::{Trouble, Warp};
use super::{Context, FaultKind};
use crate::ptx::instruction::{Address, Op, Reg};

/// An mbarrier: a phase ends when all arrivals and all bytes that were announced are there.
#[derive(Clone, Copy, Debug)]
pub struct Mbarrier {
    /// Arrivals of a phase.
    count: i64,
    /// Arrivals that this phase still waits for.
    pending: i64,
    /// Bytes that were announced less those that came.
    bytes: i64,
    /// Phases that have ended.
    pub phase: u64,
    /// When the last one ended.
    pub ended: u32,
}

impl Mbarrier {
    pub fn new(count: u32) -> Self {
        let count = i64::from(count);
        Mbarrier { count, pending: count, bytes: 0, phase: 0, ended: 0 }
    }

    pub fn expect(&mut self, bytes: u32) {
        self.bytes += i64::from(bytes);
    }

    pub fn arrive(&mut self, count: u32) {
        self.pending -= i64::from(count);
    }

    pub fn complete(&mut self, bytes: u32) {
        self.bytes -= i64::from(bytes);
    }

    /// Whether this ends the phase.
    pub fn turn(&mut self, clock: &mut u32) -> bool {
        let ends = self.pending == 0 && self.bytes == 0;
        if ends {
            self.pending = self.count;
            self.phase += 1;
            *clock += 1;
            self.ended = *clock;
        }
        ends
    }

    /// More arrivals than it waits for.
    pub fn is_overrun(&self) -> bool {
        self.pending < 0
    }

    /// Whether the phase of this parity has ended: it is the one before the present one.
    pub fn has_ended(&self, parity: bool) -> bool {
        (self.phase & 1 != 0) != parity
    }
}

fn none_at(lane: usize, at: usize) -> Trouble {
    let what = format!("no mbarrier is initialised {at:#x} bytes into shared memory");
    trouble(FaultKind::Instruction, lane, what)
}

impl Context<'_> {
    /// Of an instruction's address: the block, among those that run, and the place in it.
    fn barrier_at(&self, warp: &Warp, lane: usize, at: u64) -> Result<(usize, usize), Trouble> {
        self.shared_place(warp, lane, at, 8)
    }

    fn mbar(
        &mut self,
        (block, at): (usize, usize),
        lane: usize,
        change: impl FnOnce(&mut Mbarrier),
    ) -> Result<u64, Trouble> {
        let barrier = self.blocks[block].shared.barriers.get_mut(&at);
        let barrier = barrier.ok_or_else(|| none_at(lane, at))?;
        let phase = barrier.phase;
        change(barrier);
        if barrier.is_overrun() {
            let what = "more arrivals at an mbarrier than it waits for".to_owned();
            return Err(trouble(FaultKind::Instruction, lane, what));
        }
        barrier.turn(&mut self.clock);
        self.progress = true;
        Ok(phase)
    }

    /// Initialises an mbarrier, arrives at it, or stores with it.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn mbarrier(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Trouble> {
        let all = |warp: &Warp, reg: Option<Reg>, lane: usize| {
            reg.map_or(1, |reg| warp.file.lane(reg, lane) as u32)
        };
        match *op {
            Op::MbarInit { at, count } => {
                let addresses = addresses(warp, at);
                for lane in lanes(mask) {
                    let (block, at) = self.barrier_at(warp, lane, addresses[lane])?;
                    let barrier = Mbarrier::new(all(warp, Some(count), lane));
                    self.blocks[block].shared.barriers.insert(at, barrier);
                }
            }
            Op::MbarInval { at } => {
                let addresses = addresses(warp, at);
                for lane in lanes(mask) {
                    let (block, at) = self.barrier_at(warp, lane, addresses[lane])?;
                    self.blocks[block].shared.barriers.remove(&at);
                }
            }
            Op::MbarArrive { d, at, count, expect, arrive, .. } => {
                let addresses = addresses(warp, at);
                for lane in lanes(mask) {
                    let place = self.barrier_at(warp, lane, addresses[lane])?;
                    let bytes = expect.map(|reg| warp.file.lane(reg, lane) as u32);
                    let count = all(warp, count, lane);
                    let phase = self.mbar(place, lane, |barrier| {
                        barrier.expect(bytes.unwrap_or(0));
                        if arrive {
                            barrier.arrive(count);
                        }
                    })?;
                    if let Some(d) = d {
                        warp.file.set_lane(d, lane, phase);
                    }
                }
            }
            Op::StAsync { ty, count, a, at, barrier } => {
                let (to, barriers) = (addresses(warp, at), addresses(warp, barrier));
                let (size, count) = (ty.bytes(), usize::from(count));
                for lane in lanes(mask) {
                    let (block, at) = self.shared_place(warp, lane, to[lane], size * count)?;
                    let place = self.barrier_at(warp, lane, barriers[lane])?;
                    if place.0 != block {
                        let what = "the mbarrier of st.async is in another block".to_owned();
                        return Err(trouble(FaultKind::Address, lane, what));
                    }
                    let shared = &mut self.blocks[block].shared;
                    for (k, &a) in a.iter().enumerate().take(count) {
                        shared.store(at + k * size, size, warp.file.lane(a, lane));
                    }
                    shared.forget(at, size * count);
                    self.mbar(place, lane, |barrier| barrier.complete((size * count) as u32))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The lanes whose phase has ended.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn wait(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        at: Address,
        state: Reg,
        parity: bool,
    ) -> Result<u32, Trouble> {
        let (addresses, mut done) = (addresses(warp, at), 0);
        let mut last: Option<(u64, Mbarrier)> = None;
        for lane in lanes(mask) {
            // Mostly all wait for the same one.
            let barrier = match last {
                Some((at, barrier)) if at == addresses[lane] => barrier,
                _ => {
                    let (block, at) = self.barrier_at(warp, lane, addresses[lane])?;
                    let barrier = self.blocks[block].shared.barriers.get(&at);
                    *barrier.ok_or_else(|| none_at(lane, at))?
                }
            };
            last = Some((addresses[lane], barrier));
            let state = warp.file.lane(state, lane);
            let ended = match parity {
                true => barrier.has_ended(state & 1 != 0),
                false => barrier.phase > state,
            };
            if ended {
                done |= 1 << lane;
                warp.since.cluster = warp.since.cluster.max(barrier.ended);
            }
        }
        Ok(done)
    }
}
