//! Runs a kernel: its blocks, their warps, and the lanes of these.
//!
//! ```text
//! warp.rs                 lanes that run together, part and meet again
//! file.rs                 their registers
//! alu.rs, float.rs, convert.rs   what touches nothing but registers
//! access.rs, atomic.rs     memory
//! together.rs, shared.rs   shared memory, and who touched it
//! collective.rs, tensor.rs   what the lanes of a warp do together
//! cluster.rs              mbarriers and the memory of other blocks
//! ```
//!
//! The warps of a block take turns. Blocks run one after the other, or cluster after cluster, where a
//! launch takes long on all cores; those of a cooperative launch are all in progress. Where all that runs polls, the thread is given up
//! for a while: what is waited for may be another stream's or the host's to do.

mod access;
mod alu;
mod atomic;
mod cluster;
mod collective;
mod convert;
mod file;
mod float;
mod shared;
mod tensor;
#[cfg(test)]
mod tests;
mod together;
mod warp;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::memory::Memory;
use crate::ptx::Kernel;
use crate::ptx::instruction::Instruction;
use access::trouble;
pub(crate) use alu::Run;
use shared::Shared;
use warp::{State, Stop, Trouble, Warp};

/// One launch.
#[derive(Debug, Clone)]
pub struct Launch {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    /// Blocks of a cluster; ones where there are no clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks are in progress together.
    pub cooperative: bool,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: Vec<u8>,
}

/// What ended a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// The kernel, the block, the thread, the line of PTX and what happened there.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// An address that is not allocated: CUDA_ERROR_ILLEGAL_ADDRESS.
    Address,
    /// CUDA_ERROR_MISALIGNED_ADDRESS.
    Alignment,
    /// Two threads at one place of shared memory without a barrier between them.
    Race,
    /// No warp can go on: a barrier that not all reach.
    Deadlock,
    /// An instruction that the machine does not know, or that traps.
    Instruction,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Instructions of a warp's turn.
const TURN: usize = 4096;
/// Rounds that a block has in a row while it gets on.
const STAY: usize = 64;
/// How long a launch runs on its own thread before it takes others.
const ALONE: Duration = Duration::from_millis(1);
/// Rounds in which all only polled mbarriers, after which nothing is to come.
const PATIENCE: usize = 1000;

#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    arrived: u32,
    count: Option<u32>,
}

/// A block in progress.
#[derive(Debug)]
struct Block {
    id: [u32; 3],
    /// The first block of its cluster, among those that run.
    first: usize,
    shared: Shared,
    /// Threads that have not ended.
    live: u32,
    barriers: [Barrier; 16],
    /// Of its cluster's barrier, in the cluster's first block: arrivals, phases that have ended, and
    /// when the last one did.
    arrived: u32,
    phase: u64,
    ended: u32,
}

/// What the warps of a launch share.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch,
    memory: &'a Memory,
    blocks: Vec<Block>,
    /// Ranges of memory that were found last; the first is the module's own.
    ranges: [(u64, u64); 8],
    next_range: usize,
    /// Events that order threads.
    clock: u32,
    /// What was read so far, where each thread ends as it waits for the kernels ahead of it.
    ahead: Option<Vec<(u64, u64)>>,
    /// Something was written or ended.
    progress: bool,
    /// Arrivals that may end a wait.
    unsettled: bool,
}

impl Context<'_> {
    fn size(&self) -> usize {
        self.launch.cluster.iter().product::<u32>() as usize
    }

    fn in_cluster(&self, block: &Block, rank: usize) -> Option<usize> {
        (rank < self.size()).then_some(block.first + rank)
    }

    fn arrive(
        &mut self,
        block: usize,
        id: usize,
        count: Option<u32>,
        mask: u32,
        lane: usize,
    ) -> Result<(), Trouble> {
        let wrong = |what| Err(trouble(FaultKind::Instruction, lane, what));
        let Some(barrier) = self.blocks[block].barriers.get_mut(id) else {
            return wrong(format!("the barrier {id}"));
        };
        if barrier.arrived > 0 && barrier.count != count {
            return wrong(format!("barrier {id} with {count:?} and {:?} threads", barrier.count));
        }
        barrier.count = count;
        barrier.arrived += mask.count_ones();
        self.unsettled = true;
        self.progress = true;
        Ok(())
    }

    /// The phase of the cluster's barrier that the lanes arrive in.
    fn cluster_arrive(&mut self, block: usize, mask: u32) -> u64 {
        let first = self.blocks[block].first;
        self.blocks[first].arrived += mask.count_ones();
        self.unsettled = true;
        self.progress = true;
        self.blocks[first].phase
    }

    /// When that phase ended.
    fn cluster_ended(&self, block: usize, phase: u64) -> Option<u32> {
        let first = &self.blocks[self.blocks[block].first];
        (first.phase > phase).then_some(first.ended)
    }
}

/// Of some warps: how many have not ended, and of these how many ended their turn because it was over,
/// or were looking at memory or at an mbarrier.
#[derive(Debug, Default)]
struct Round {
    running: usize,
    turns: usize,
    looks: usize,
    polls: usize,
}

impl Round {
    fn add(&mut self, other: Round) {
        self.running += other.running;
        self.turns += other.turns;
        self.looks += other.looks;
        self.polls += other.polls;
    }
}

struct Machine<'a> {
    context: Context<'a>,
    warps: Vec<Warp>,
    /// Warps of a block.
    each: usize,
    /// A fault has ended the launch: what only polls need not go on.
    ended: &'a AtomicBool,
}

/// Runs a kernel to its end.
pub fn run(kernel: &Kernel, launch: &Launch, memory: &Memory) -> Result<(), Fault> {
    perform(kernel, launch, memory, None).map(|_| ())
}

/// Runs each thread of a kernel until it waits for the kernels ahead of it (`griddepcontrol.wait`),
/// and gives the ranges of memory that were read: first byte and end. A write is a fault.
pub fn run_ahead(
    kernel: &Kernel,
    launch: &Launch,
    memory: &Memory,
) -> Result<Vec<(u64, u64)>, Fault> {
    let mut reads = perform(kernel, launch, memory, Some(Vec::new()))?.unwrap_or_default();
    reads.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (first, end) in reads {
        match ranges.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => ranges.push((first, end)),
        }
    }
    Ok(ranges)
}

/// The function of each instruction that touches nothing but registers.
pub(crate) fn functions(code: &[Instruction]) -> Vec<Option<Run>> {
    match has_instructions() {
        // SAFETY: the CPU has the instructions.
        true => code.iter().map(|i| unsafe { alu::function(&i.op) }).collect(),
        false => vec![None; code.len()],
    }
}

/// Whether the CPU has what the machine is compiled for.
fn has_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

fn perform(
    kernel: &Kernel,
    launch: &Launch,
    memory: &Memory,
    ahead: Option<Vec<(u64, u64)>>,
) -> Result<Option<Vec<(u64, u64)>>, Fault> {
    let refuse = |what: String| {
        let message = format!("{}: {what}", kernel.name);
        Err(Fault { kind: FaultKind::Instruction, message })
    };
    if !has_instructions() {
        return refuse("the emulator needs a CPU with AVX2 and FMA".into());
    }
    let threads = launch.threads.iter().product::<u32>();
    let size = launch.cluster.iter().product::<u32>() as usize;
    let most = kernel.max_threads.unwrap_or(1024).min(1024);
    if threads == 0 || threads > most {
        return refuse(format!("{threads} threads of at most {most}"));
    }
    let fits = |axis: usize| launch.blocks[axis].is_multiple_of(launch.cluster[axis]);
    if size > 16 || launch.blocks.contains(&0) || !(0..3).all(fits) {
        let (blocks, cluster) = (launch.blocks, launch.cluster);
        return refuse(format!("{blocks:?} blocks in clusters of {cluster:?}"));
    }
    if launch.params.len() < kernel.param_bytes {
        let (given, all) = (launch.params.len(), kernel.param_bytes);
        return refuse(format!("{given} of {all} bytes of parameters"));
    }
    let clusters: [u32; 3] = std::array::from_fn(|i| launch.blocks[i] / launch.cluster[i]);
    let count = clusters.iter().map(|&n| u64::from(n)).product::<u64>();
    let resident = if launch.cooperative { count } else { 1 };
    let next = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    let machine = || {
        let blocks = resident as usize * size;
        Machine::new(kernel, launch, memory, blocks, threads, &ended)
    };
    // Clusters are taken in their order, so that the first fault is that of the lowest.
    let rest = |machine: &mut Machine<'_>, until: Option<Instant>| {
        while until.is_none_or(|until| Instant::now() < until) && !ended.load(Ordering::Relaxed) {
            let first = next.fetch_add(resident, Ordering::Relaxed);
            if first >= count {
                break;
            }
            machine.start(first, resident, clusters);
            if let Err(fault) = machine.finish() {
                ended.store(true, Ordering::Relaxed);
                return Err((first, fault));
            }
        }
        Ok(())
    };
    let mut first = machine();
    first.context.ahead = ahead;
    let alone = first.context.ahead.is_some();
    let mut done = rest(&mut first, (!alone).then(|| Instant::now() + ALONE));
    let helpers = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
    let left = count.saturating_sub(next.load(Ordering::Relaxed)).saturating_sub(1);
    if done.is_ok() {
        done = std::thread::scope(|scope| {
            let helpers = left.min(helpers as u64);
            let helpers: Vec<_> =
                (0..helpers).map(|_| scope.spawn(|| rest(&mut machine(), None))).collect();
            let ours = rest(&mut first, None);
            let theirs = helpers.into_iter().map(|h| h.join().unwrap_or_else(|e| resume_unwind(e)));
            let faults = theirs.chain([ours]).filter_map(Result::err);
            faults.min_by_key(|(first, _)| *first).map_or(Ok(()), Err)
        });
    }
    done.map_err(|(_, fault)| fault)?;
    Ok(first.context.ahead)
}

impl<'a> Machine<'a> {
    fn new(
        kernel: &'a Kernel,
        launch: &'a Launch,
        memory: &'a Memory,
        blocks: usize,
        threads: u32,
        ended: &'a AtomicBool,
    ) -> Self {
        let size = launch.cluster.iter().product::<u32>() as usize;
        let bytes = kernel.shared + launch.shared as usize;
        let each = threads.div_ceil(file::LANES as u32) as usize;
        let warps = (0..blocks * each).map(|i| {
            let block = i / each;
            Warp::new(kernel, block, i % each, (block % size) as u32, launch.threads)
        });
        let warps = warps.collect();
        let block = |i: usize| Block {
            id: [0; 3],
            first: i / size * size,
            shared: Shared::new(bytes, kernel.granule),
            live: 0,
            barriers: Default::default(),
            arrived: 0,
            phase: 0,
            ended: 0,
        };
        let mut ranges = [(1, 0); 8];
        ranges[0] = kernel.globals.range();
        let context = Context {
            kernel,
            launch,
            memory,
            blocks: (0..blocks).map(block).collect(),
            ranges,
            next_range: 1,
            clock: 0,
            ahead: None,
            progress: false,
            unsettled: false,
        };
        Machine { context, warps, each, ended }
    }

    /// Readies the blocks of `count` clusters from number `first` on.
    fn start(&mut self, first: u64, count: u64, clusters: [u32; 3]) {
        let context = &mut self.context;
        let (launch, size) = (context.launch, context.size());
        let threads = launch.threads.iter().product::<u32>();
        let split = |i: u64, all: [u32; 3]| {
            let (x, y) = (u64::from(all[0]), u64::from(all[1]));
            [(i % x) as u32, (i / x % y) as u32, (i / x / y) as u32]
        };
        context.clock = 0;
        for i in 0..count as usize * size {
            let cluster = split(first + (i / size) as u64, clusters);
            let inside = split((i % size) as u64, launch.cluster);
            let block = &mut context.blocks[i];
            block.id = std::array::from_fn(|a| cluster[a] * launch.cluster[a] + inside[a]);
            block.shared.reset();
            block.live = threads;
            block.barriers = Default::default();
            (block.arrived, block.phase, block.ended) = (0, 0, 0);
        }
        for warp in &mut self.warps {
            warp.start(&self.context);
        }
    }

    /// Runs what is ready until all has ended.
    fn finish(&mut self) -> Result<(), Fault> {
        let (mut polls, mut idle) = (0, 0u32);
        loop {
            let (mut all, mut moved) = (Round::default(), false);
            for block in 0..self.context.blocks.len() {
                // A block goes on while it gets on, so that its registers and memory stay in the cache.
                for _ in 0..STAY {
                    let before = self.context.clock;
                    self.context.progress = false;
                    let round = self.round(block, idle)?;
                    let moves = self.context.progress || self.context.clock != before;
                    moved |= moves;
                    if !moves || round.running == 0 {
                        all.add(round);
                        break;
                    }
                }
            }
            if moved {
                (polls, idle) = (0, 0);
                continue;
            }
            if all.running == 0 || self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            idle = idle.wrapping_add(1);
            match all {
                Round { turns: 1.., .. } => {}
                Round { looks: 1.., .. } if idle < 100 => std::thread::yield_now(),
                Round { looks: 1.., .. } => std::thread::sleep(Duration::from_micros(50)),
                Round { polls: 1.., .. } if polls < PATIENCE => polls += 1,
                _ => return Err(self.deadlock()),
            }
        }
    }

    /// A turn of each warp of a block.
    fn round(&mut self, block: usize, idle: u32) -> Result<Round, Fault> {
        let mut round = Round::default();
        for i in block * self.each..(block + 1) * self.each {
            let warp = &mut self.warps[i];
            if warp.groups.is_empty() {
                continue;
            }
            // After a while of nothing but polling, the other groups of a warp have their turn.
            let last = idle % 2 == 1;
            // SAFETY: `run` has seen that the CPU has these instructions.
            let stop = unsafe { warp.run(&mut self.context, TURN, last) };
            round.running += 1;
            match stop {
                Ok(Stop::Done) => {
                    self.context.progress = true;
                    round.running -= 1;
                }
                Ok(Stop::Turn) => round.turns += 1,
                Ok(Stop::Looks) => round.looks += 1,
                Ok(Stop::Polls) => round.polls += 1,
                Ok(Stop::Waits) => {}
                Err(trouble) => return Err(self.fault(i, trouble)),
            }
            if self.context.unsettled {
                self.settle(block);
            }
        }
        Ok(round)
    }

    /// Lets those go whose barrier is complete.
    fn settle(&mut self, block: usize) {
        let context = &mut self.context;
        context.unsettled = false;
        let this = &mut context.blocks[block];
        for (id, barrier) in this.barriers.iter_mut().enumerate() {
            if barrier.arrived == 0 || barrier.arrived < barrier.count.unwrap_or(this.live) {
                continue;
            }
            *barrier = Barrier::default();
            context.clock += 1;
            for warp in &mut self.warps[block * self.each..(block + 1) * self.each] {
                for group in &mut warp.groups {
                    if group.state == State::Barrier(id) {
                        (group.pc, group.state) = (group.pc + 1, State::Ready);
                        warp.since.block = context.clock;
                    }
                }
            }
        }
        let (first, size) = (context.blocks[block].first, context.size());
        let live: u32 = context.blocks[first..first + size].iter().map(|b| b.live).sum();
        let cluster = &mut context.blocks[first];
        if cluster.arrived == 0 || cluster.arrived < live {
            return;
        }
        context.clock += 1;
        (cluster.arrived, cluster.phase, cluster.ended) = (0, cluster.phase + 1, context.clock);
        for warp in &mut self.warps[first * self.each..(first + size) * self.each] {
            for group in &mut warp.groups {
                if group.state == State::Cluster {
                    group.state = State::Ready;
                }
            }
        }
    }

    fn fault(&self, warp: usize, trouble: Trouble) -> Fault {
        let Trouble { kind, lane, what } = trouble;
        let message = format!("{}: {what}", self.place(warp, lane, self.warps[warp].pc));
        Fault { kind, message }
    }

    /// The kernel, the block, the thread and the instruction.
    fn place(&self, warp: usize, lane: usize, pc: usize) -> String {
        let (kernel, launch) = (self.context.kernel, self.context.launch);
        let thread = (self.warps[warp].index * file::LANES + lane) as u32;
        let [x, y, _] = launch.threads;
        let thread = [thread % x, thread / x % y, thread / x / y];
        let block = self.context.blocks[self.warps[warp].block].id;
        let line = kernel.code.get(pc).map_or(0, |i| i.line);
        format!(
            "{}, block {block:?}, thread {thread:?}, line {line} `{}`",
            kernel.name,
            kernel.line(line)
        )
    }

    fn deadlock(&self) -> Fault {
        let mut waiting = Vec::new();
        for (i, warp) in self.warps.iter().enumerate() {
            for group in &warp.groups {
                let lane = group.mask.trailing_zeros() as usize;
                let place = self.place(i, lane, group.pc);
                waiting.push(format!("{place}, lanes {:#010x}", group.mask));
            }
        }
        let count = waiting.len();
        waiting.truncate(8);
        let message = format!(
            "{}: nothing can go on; {count} groups of threads wait: {}",
            self.context.kernel.name,
            waiting.join("; ")
        );
        Fault { kind: FaultKind::Deadlock, message }
    }
}
