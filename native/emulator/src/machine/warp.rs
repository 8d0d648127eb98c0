//! A warp: 32 lanes that run together where they can. Lanes that part at a branch are groups of
//! their own; the one that is furthest behind runs, so that they meet again where their ways do.

use std::time::{SystemTime, UNIX_EPOCH};

use super::access::{self, Copy, LOCAL_WINDOW, SHARED_WINDOW, trouble};
use super::file::{ALL, File, LANES, lanes};
use super::shared::{self, Since, Thread};
use super::{Context, FaultKind, atomic, collective, tensor};
use crate::ptx::Kernel;
use crate::ptx::instruction::{Op, Space, Special};

/// What is wrong in a lane, before it is known which kernel and line it is.
#[derive(Debug)]
pub struct Trouble {
    pub kind: FaultKind,
    pub lane: usize,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// At a collective, for the lanes that its mask names.
    Lanes,
    /// At a barrier of the block.
    Barrier(usize),
    /// At the cluster's barrier.
    Cluster,
}

/// Lanes at one place.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub pc: usize,
    pub mask: u32,
    pub state: State,
}

/// Why a warp stopped running for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its turn is over.
    Turn,
    /// It looks at memory that it has looked at before, or sleeps.
    Looks,
    /// It looks at an mbarrier.
    Polls,
    /// All its lanes wait, or some have arrived where others may wait.
    Waits,
    Done,
}

#[derive(Debug)]
pub struct Warp {
    pub file: File,
    /// The block, among those that run, and the warp's number in it.
    pub block: usize,
    pub index: usize,
    /// The block's place in its cluster and the threads of a block.
    rank: u32,
    threads: u32,
    pub groups: Vec<Group>,
    pub live: u32,
    pub since: Since,
    pub copies: Vec<Copy>,
    pub committed: [u32; LANES],
    local: Vec<u8>,
    local_bytes: usize,
    /// The phase of the cluster's barrier that it arrived in.
    pub arrived: Option<u64>,
    /// Where the last fault was.
    pub pc: usize,
}

impl Warp {
    pub fn new(
        kernel: &Kernel,
        block: usize,
        index: usize,
        rank: u32,
        [x, y, z]: [u32; 3],
    ) -> Self {
        let mut file = File::new(kernel.registers);
        for &(reg, bits) in &kernel.constants {
            file.fill(reg, bits);
        }
        for &(special, reg) in &kernel.specials {
            let of_lane = |lane: usize| {
                let thread = (index * LANES + lane) as u32;
                match special {
                    Special::Tid(axis) => {
                        [thread % x, thread / x % y, thread / x / y][usize::from(axis)]
                    }
                    Special::LaneId => lane as u32,
                    Special::LaneMaskEq => 1 << lane,
                    Special::LaneMaskLt => (1 << lane) - 1,
                    Special::LaneMaskLe => (1 << lane) | ((1 << lane) - 1),
                    Special::LaneMaskGe => !((1 << lane) - 1),
                    Special::LaneMaskGt => !((1 << lane) | ((1 << lane) - 1)),
                    // Set when a block starts.
                    _ => 0,
                }
            };
            file.set_bits(reg, &std::array::from_fn(|lane| u64::from(of_lane(lane))), ALL);
        }
        Warp {
            file,
            block,
            index,
            rank,
            threads: x * y * z,
            groups: Vec::with_capacity(4),
            live: 0,
            since: Since::default(),
            copies: Vec::new(),
            committed: [0; LANES],
            local: vec![0xff; kernel.local * LANES],
            local_bytes: kernel.local,
            arrived: None,
            pc: 0,
        }
    }

    /// Readies it for a block.
    pub fn start(&mut self, context: &Context<'_>) {
        let left = self.threads as usize - self.index * LANES;
        self.live = if left >= LANES { ALL } else { (1 << left) - 1 };
        self.groups.clear();
        let pc = context.kernel.entry;
        self.groups.push(Group { pc, mask: self.live, state: State::Ready });
        self.since = Since::default();
        self.copies.clear();
        self.committed = [0; LANES];
        self.local.fill(0xff);
        self.arrived = None;
        for &(special, reg) in &context.kernel.specials {
            if let Some(value) = self.of_block(context, special) {
                self.file.fill(reg, u64::from(value));
            }
        }
    }

    /// A special register that is the same in all lanes, or `None`.
    fn of_block(&self, context: &Context<'_>, special: Special) -> Option<u32> {
        let (launch, block) = (context.launch, &context.blocks[self.block]);
        let three = |all: &[u32; 3], axis: u8| all[usize::from(axis)];
        let size = |axis: u8| three(&launch.cluster, axis);
        Some(match special {
            Special::Ntid(axis) => three(&launch.threads, axis),
            Special::Ctaid(axis) => three(&block.id, axis),
            Special::Nctaid(axis) => three(&launch.blocks, axis),
            Special::ClusterId(axis) => three(&block.id, axis) / size(axis),
            Special::ClusterCount(axis) => three(&launch.blocks, axis) / size(axis),
            Special::ClusterCtaid(axis) => three(&block.id, axis) % size(axis),
            Special::ClusterNctaid(axis) => size(axis),
            Special::ClusterRank => self.rank,
            Special::ClusterSize => launch.cluster.iter().product(),
            Special::WarpId => self.index as u32,
            Special::WarpCount => self.threads.div_ceil(LANES as u32),
            Special::SmId => self.block as u32,
            Special::SmCount => context.blocks.len() as u32,
            Special::GridId => 1,
            Special::DynamicShared => launch.shared,
            Special::TotalShared => block.shared.bytes.len() as u32,
            _ => return None,
        })
    }

    pub fn thread(&self, lane: usize) -> Thread {
        shared::thread(self.rank, self.index * LANES + lane)
    }

    /// A lane's local memory.
    pub fn local(&mut self, lane: usize, at: u64, bytes: usize) -> Result<&mut [u8], Trouble> {
        let all = self.local_bytes;
        if at.checked_add(bytes as u64).is_none_or(|end| end > all as u64) {
            let what = format!("{bytes} bytes at {at:#x} of local memory, which has {all}");
            return Err(trouble(FaultKind::Address, lane, what));
        }
        if !at.is_multiple_of(bytes as u64) {
            let what = format!("{bytes} bytes at {at:#x} of local memory: not aligned");
            return Err(trouble(FaultKind::Alignment, lane, what));
        }
        let at = lane * all + at as usize;
        Ok(&mut self.local[at..at + bytes])
    }

    /// The group that is furthest behind, with all that are at the same place, and how far it may go
    /// until it meets another.
    fn pick(&mut self, last: bool) -> Option<(usize, u32, usize)> {
        let ready = self.groups.iter().filter(|g| g.state == State::Ready).map(|g| g.pc);
        // Where a group polls what another of the warp will do, that one must have its turn.
        let pc = if last { ready.max()? } else { ready.min()? };
        let (mut mask, mut meets) = (0, usize::MAX);
        self.groups.retain(|g| {
            let here = g.pc == pc && g.state == State::Ready;
            if here {
                mask |= g.mask;
            } else if g.state == State::Ready && g.pc > pc {
                meets = meets.min(g.pc);
            }
            !here
        });
        Some((pc, mask, meets))
    }

    fn park(&mut self, pc: usize, mask: u32, state: State) {
        if mask != 0 {
            self.groups.push(Group { pc, mask, state });
        }
    }

    /// Runs for some instructions. `last`: the group that is furthest ahead has the turn.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn run(
        &mut self,
        context: &mut Context<'_>,
        turn: usize,
        last: bool,
    ) -> Result<Stop, Trouble> {
        let (code, runs) = (&context.kernel.code[..], &context.kernel.runs[..]);
        let Some((mut pc, mut active, mut meets)) = self.pick(last) else {
            return Ok(if self.live == 0 { Stop::Done } else { Stop::Waits });
        };
        // Ends the run of the present group; the next one goes on.
        macro_rules! switch {
            () => {{
                match self.pick(false) {
                    Some(next) => (pc, active, meets) = next,
                    None => return Ok(if self.live == 0 { Stop::Done } else { Stop::Waits }),
                }
                continue;
            }};
        }
        // What was looked at in this turn: the instructions and where its first lane looks.
        let (mut seen, mut looks) = ([(0, 0); 32], 0);
        for _ in 0..turn {
            if pc >= meets {
                self.park(pc, active, State::Ready);
                switch!();
            }
            self.pc = pc;
            let instruction = &code[pc];
            let mask = match instruction.guard {
                None => active,
                Some(guard) => active & self.file.holds(guard),
            };
            if let Some(run) = runs[pc] {
                run(&mut self.file, mask, &instruction.op);
                pc += 1;
                continue;
            }
            match instruction.op {
                Op::Bra { target } => {
                    let target = target as usize;
                    if mask == active {
                        pc = target;
                    } else if mask == 0 {
                        pc += 1;
                    } else {
                        let (ahead, behind) = ((target, mask), (pc + 1, active & !mask));
                        let (ahead, behind) =
                            if ahead.0 > behind.0 { (ahead, behind) } else { (behind, ahead) };
                        self.park(ahead.0, ahead.1, State::Ready);
                        (pc, active) = behind;
                        meets = meets.min(ahead.0);
                    }
                    if pc <= self.pc
                        && meets != usize::MAX
                        && self.groups.iter().any(|g| g.pc <= pc)
                    {
                        self.park(pc, active, State::Ready);
                        switch!();
                    }
                }
                Op::Call { target, back } => {
                    self.file.set_bits(back, &[pc as u64 + 1; LANES], mask);
                    self.park(pc + 1, active & !mask, State::Ready);
                    self.park(target as usize, mask, State::Ready);
                    switch!();
                }
                Op::Return { back } => {
                    let to = self.file.bits(back);
                    for lane in lanes(mask) {
                        self.park(to[lane] as usize, 1 << lane, State::Ready);
                    }
                    self.park(pc + 1, active & !mask, State::Ready);
                    switch!();
                }
                Op::AwaitPrevious if context.ahead.is_none() => pc += 1,
                Op::Exit | Op::AwaitPrevious => {
                    self.live &= !mask;
                    context.blocks[self.block].live -= mask.count_ones();
                    context.progress = true;
                    context.unsettled = true;
                    self.park(pc + 1, active & !mask, State::Ready);
                    // Who waits for lanes waits for one less.
                    for group in &mut self.groups {
                        if group.state == State::Lanes {
                            group.state = State::Ready;
                        }
                    }
                    switch!();
                }
                Op::Bar { id, count, wait } if mask != 0 => {
                    let lane = mask.trailing_zeros() as usize;
                    let id = self.file.lane(id, lane) as usize;
                    let count = count.map(|reg| self.file.lane(reg, lane) as u32);
                    context.arrive(self.block, id, count, mask, lane)?;
                    self.park(pc + 1, active & !mask, State::Ready);
                    match wait {
                        true => self.park(pc, mask, State::Barrier(id)),
                        false => self.park(pc + 1, mask, State::Ready),
                    }
                    return Ok(Stop::Waits);
                }
                Op::ClusterArrive if mask != 0 => {
                    self.arrived = Some(context.cluster_arrive(self.block, mask));
                    self.park(pc + 1, active, State::Ready);
                    return Ok(Stop::Waits);
                }
                Op::ClusterWait if mask != 0 => {
                    let Some(phase) = self.arrived else {
                        let what = "a wait at the cluster's barrier without an arrival".to_owned();
                        let lane = mask.trailing_zeros() as usize;
                        return Err(trouble(FaultKind::Instruction, lane, what));
                    };
                    if let Some(ended) = context.cluster_ended(self.block, phase) {
                        self.since.cluster = ended;
                        pc += 1;
                    } else {
                        self.park(pc + 1, active & !mask, State::Ready);
                        self.park(pc, mask, State::Cluster);
                        switch!();
                    }
                }
                Op::MbarWait { d, at, state, parity } => {
                    let done = context.wait(self, mask, at, state, parity)?;
                    self.file.set_pred(d, done, mask);
                    pc += 1;
                    if done != mask {
                        self.park(pc, active, State::Ready);
                        return Ok(Stop::Polls);
                    }
                }
                // Others are to write what this asks for: when it asks again they have their turn.
                ref op @ Op::Ld { polls: true, at, .. } => {
                    if mask != 0 {
                        let lane = mask.trailing_zeros() as usize;
                        let look = (pc, access::addresses(self, at)[lane]);
                        if seen[..looks].contains(&look) || looks == seen.len() {
                            self.park(pc, active, State::Ready);
                            return Ok(Stop::Looks);
                        }
                        seen[looks] = look;
                        looks += 1;
                        self.step(context, op, mask)?;
                    }
                    pc += 1;
                }
                Op::Nanosleep => {
                    self.park(pc + 1, active, State::Ready);
                    return Ok(Stop::Looks);
                }
                ref op if is_collective(op) && mask != 0 => {
                    if mask == active && mask == self.live && self.needs(op, mask) == mask {
                        self.together(context, op, mask)?;
                        pc += 1;
                    } else {
                        self.park(pc + 1, active & !mask, State::Ready);
                        self.gather(context, op, pc, mask)?;
                        switch!();
                    }
                }
                ref op => {
                    if mask != 0 {
                        self.step(context, op, mask)?;
                    }
                    pc += 1;
                }
            }
        }
        self.park(pc, active, State::Ready);
        Ok(Stop::Turn)
    }

    /// The lanes that a lane's collective waits for.
    fn needs(&self, op: &Op, mask: u32) -> u32 {
        let lane = mask.trailing_zeros() as usize;
        match *op {
            Op::Shfl { mask, .. }
            | Op::Ballot { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Redux { mask, .. }
            | Op::Elect { mask, .. }
            | Op::BarWarp { mask } => self.file.lane(mask, lane) as u32 & self.live,
            _ => self.live,
        }
    }

    /// Lanes come to a collective: those whose mask is complete go through it.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    fn gather(
        &mut self,
        context: &mut Context<'_>,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Result<(), Trouble> {
        let mut here = mask;
        self.groups.retain(|g| {
            let waits = g.pc == pc && g.state == State::Lanes;
            here |= if waits { g.mask } else { 0 };
            !waits
        });
        let mut left = here;
        while left != 0 {
            let needs = self.needs(op, left);
            let first = left.trailing_zeros() as usize;
            if needs >> first & 1 == 0 {
                let what = format!("its mask {needs:#010x} leaves out the lane itself");
                return Err(trouble(FaultKind::Instruction, first, what));
            }
            let same = lanes(left).filter(|&l| self.needs(op, 1 << l) == needs);
            let same = same.fold(0, |bits, l| bits | 1 << l);
            left &= !same;
            if needs & !here == 0 {
                self.together(context, op, same)?;
                self.park(pc + 1, same, State::Ready);
            } else {
                self.park(pc, same, State::Lanes);
            }
        }
        Ok(())
    }

    /// What lanes do together.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    fn together(&mut self, context: &mut Context<'_>, op: &Op, mask: u32) -> Result<(), Trouble> {
        match *op {
            Op::Shfl { mode, d, p, a, b, c, .. } => {
                collective::shuffle(self, mask, mode, [d, a, b, c], p);
            }
            Op::Ballot { d, p, .. } => {
                let bits = u64::from(self.file.holds(p) & mask);
                self.file.set_bits(d, &[bits; LANES], mask);
            }
            Op::Vote { mode, d, p, .. } => {
                let bits = self.file.holds(p);
                collective::vote(self, mask, mode, d, bits);
            }
            Op::Match { all, d, p, a, .. } => collective::matching(self, mask, all, d, p, a),
            Op::Redux { op, ty, d, a, .. } => collective::reduce(self, mask, op, ty, d, a),
            Op::Elect { d, p, .. } => {
                let leader = mask.trailing_zeros();
                self.file.set_pred(p, 1 << leader, mask);
                if let Some(d) = d {
                    self.file.set_bits(d, &[u64::from(leader); LANES], mask);
                }
            }
            Op::Mma { kind, d, a, b, c } => {
                tensor::whole(mask)?;
                tensor::multiply(self, kind, &d, &a, &b, &c);
            }
            Op::GroupMma { kind, d, a, b, c, eight, add } => {
                tensor::whole(mask)?;
                self.is_in_warpgroup()?;
                let (regs, b) = ((&d, &a, &c), (b, eight));
                tensor::multiply_described(self, context, kind, regs, b, add)?;
            }
            Op::LdMatrix { count, transposed, d, at } => {
                tensor::whole(mask)?;
                tensor::load(self, context, &d[..usize::from(count)], transposed, at)?;
            }
            Op::StMatrix { count, transposed, a, at } => {
                tensor::whole(mask)?;
                tensor::store(self, context, &a[..usize::from(count)], transposed, at)?;
            }
            Op::MovMatrix { d, a } => {
                tensor::whole(mask)?;
                tensor::transpose(self, d, a);
            }
            _ => {}
        }
        context.clock += 1;
        self.since.warp = context.clock;
        Ok(())
    }

    /// Whether the block has all four warps of this one's warpgroup.
    fn is_in_warpgroup(&self) -> Result<(), Trouble> {
        let (all, end) = (self.threads, (self.index as u32 / 4 + 1) * 4 * LANES as u32);
        if end <= all {
            return Ok(());
        }
        let what = format!("a warpgroup that ends with thread {}, of {all} threads", end - 1);
        Err(trouble(FaultKind::Instruction, 0, what))
    }

    /// What touches memory, and what is left.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    fn step(&mut self, context: &mut Context<'_>, op: &Op, mask: u32) -> Result<(), Trouble> {
        match *op {
            Op::Ld { space, ty, count, d, at, .. } => {
                access::load(self, context, mask, space, ty, &d[..usize::from(count)], at)
            }
            Op::St { space, ty, count, a, at } => {
                access::store(self, context, mask, space, ty, &a[..usize::from(count)], at)
            }
            Op::Atom { space, op, ty, d, at, b, c } => {
                atomic::atomic(self, context, mask, (space, op, ty), d, at, [b, c])
            }
            Op::CpAsync { bytes, to, from, size } => {
                access::copy(self, context, mask, usize::from(bytes), [to, from], size)
            }
            Op::CpCommit => {
                lanes(mask).for_each(|lane| self.committed[lane] += 1);
                Ok(())
            }
            Op::CpWait { pending, all } => access::land(self, context, mask, pending, all),
            Op::Cvta { space, to_space, d, a } => {
                let window = match space {
                    Space::Shared | Space::Cluster => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    _ => 0,
                };
                let move_by = if to_space { window.wrapping_neg() } else { window };
                let out = self.file.bits(a).map(|x| x.wrapping_add(move_by));
                self.file.set_bits(d, &out, mask);
                Ok(())
            }
            Op::IsSpace { space, d, a } => {
                let inside = |x: u64| match space {
                    Space::Shared | Space::Cluster => x & SHARED_WINDOW != 0,
                    Space::Local => x & LOCAL_WINDOW != 0,
                    _ => x < SHARED_WINDOW,
                };
                let row = self.file.bits(a);
                let bits = lanes(mask).fold(0, |b, l| b | u32::from(inside(row[l])) << l);
                self.file.set_pred(d, bits, mask);
                Ok(())
            }
            Op::Mapa { d, a, b, .. } => {
                let (from, rank) = (self.file.bits(a), self.file.bits(b));
                let out = std::array::from_fn(|lane| {
                    (from[lane] & SHARED_WINDOW)
                        | (from[lane] % access::BLOCK_WINDOW)
                        | ((rank[lane] + 1) * access::BLOCK_WINDOW)
                });
                self.file.set_bits(d, &out, mask);
                Ok(())
            }
            Op::ActiveMask { d } => {
                self.file.set_bits(d, &[u64::from(mask); LANES], mask);
                Ok(())
            }
            Op::Time { d, .. } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.file.set_bits(d, &[now.as_nanos() as u64; LANES], mask);
                Ok(())
            }
            Op::MbarInit { .. }
            | Op::MbarInval { .. }
            | Op::MbarArrive { .. }
            | Op::StAsync { .. } => context.mbarrier(self, op, mask),
            Op::Trap => {
                let lane = mask.trailing_zeros() as usize;
                Err(trouble(FaultKind::Instruction, lane, "a trap".into()))
            }
            _ => Ok(()),
        }
    }
}

fn is_collective(op: &Op) -> bool {
    matches!(
        op,
        Op::Shfl { .. }
            | Op::Ballot { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::BarWarp { .. }
            | Op::Mma { .. }
            | Op::GroupMma { .. }
            | Op::LdMatrix { .. }
            | Op::StMatrix { .. }
            | Op::MovMatrix { .. }
    )
}
