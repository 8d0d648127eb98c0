//! Fewer registers: NVRTC names one for each value, thousands of them, of which few are live at once. A
//! warp's register file is what the machine touches most, and in a few rows it stays in the cache.
//!
//! A register's row is taken from the first to the last instruction at which it is live, by the order
//! in the code. That is safe where lanes part, as each lane has its own place in every row.

use std::collections::BTreeSet;

use super::body::Built;
use super::instruction::{Address, Instruction, Op, Reg};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// A number for each register.
#[derive(Clone, Copy)]
struct Numbers {
    narrow: usize,
    all: usize,
}

impl Numbers {
    fn of(self, reg: Reg) -> usize {
        reg.index() + if reg.is_wide() { self.narrow } else { 0 }
    }

    fn reg(self, number: usize) -> Reg {
        match number.checked_sub(self.narrow) {
            Some(index) => Reg::wide(index),
            None => Reg::narrow(number),
        }
    }
}

/// Rows of one width.
#[derive(Default)]
struct Rows {
    count: usize,
    free: BTreeSet<usize>,
}

impl Rows {
    fn take(&mut self) -> usize {
        self.free.pop_first().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        })
    }
}

/// Gives registers that are never live together one row. Constants and what says where a thread is
/// keep theirs. Kernels that call functions stay as they are.
pub fn compact(built: &mut Built) {
    if built.code.iter().any(|i| matches!(i.op, Op::Call { .. } | Op::Return { .. })) {
        return;
    }
    let [narrow, wide, _] = built.registers;
    let numbers = Numbers { narrow, all: narrow + wide };
    let fixed: Vec<Reg> = built.constants.iter().map(|c| c.0).collect();
    let fixed = fixed.into_iter().chain(built.specials.iter().map(|s| s.1));
    let (mut places, mut rows) = (vec![None; numbers.all], [Rows::default(), Rows::default()]);
    let mut take = |reg: Reg, rows: &mut [Rows; 2]| {
        let index = rows[usize::from(reg.is_wide())].take();
        let place = if reg.is_wide() { Reg::wide(index) } else { Reg::narrow(index) };
        places[numbers.of(reg)] = Some(place);
        index
    };
    let mut is_fixed = vec![false; numbers.all];
    for reg in fixed {
        is_fixed[numbers.of(reg)] = true;
        take(reg, &mut rows);
    }
    let spans = spans(&built.code, numbers);
    let mut spans: Vec<_> = spans
        .into_iter()
        .enumerate()
        .filter(|(number, _)| !is_fixed[*number])
        .filter_map(|(number, span)| span.map(|(first, last)| (first, last, number)))
        .collect();
    spans.sort_unstable();
    // Rows that are taken: until which instruction.
    let mut held: BTreeSet<(usize, usize, usize)> = BTreeSet::new();
    for (first, last, number) in spans {
        while let Some(&ended) = held.first().filter(|held| held.0 < first) {
            held.remove(&ended);
            rows[ended.1].free.insert(ended.2);
        }
        let reg = numbers.reg(number);
        let row = take(reg, &mut rows);
        held.insert((last, usize::from(reg.is_wide()), row));
    }
    let moved = |reg: &mut Reg| *reg = places[numbers.of(*reg)].unwrap_or(*reg);
    built.code.iter_mut().for_each(|i| each(&mut i.op, &mut |reg, _| moved(reg)));
    built.constants.iter_mut().for_each(|(reg, _)| moved(reg));
    built.specials.iter_mut().for_each(|(_, reg)| moved(reg));
    built.registers[0] = rows[0].count;
    built.registers[1] = rows[1].count;
}

/// Of each register the first and the last instruction at which it is live.
fn spans(code: &[Instruction], numbers: Numbers) -> Vec<Option<(usize, usize)>> {
    let words = numbers.all.div_ceil(64);
    let starts = starts(code);
    let ends = |i: usize| starts.get(i + 1).copied().unwrap_or(code.len());
    let block_of = |at: usize| starts.partition_point(|&s| s <= at) - 1;
    let mut spans = vec![None; numbers.all];
    let mut touch = |number: usize, at: usize| {
        let (first, last) = spans[number].unwrap_or((at, at));
        spans[number] = Some((first.min(at), last.max(at)));
    };
    // What a block reads before it writes it, and what it writes for certain.
    let mut live = vec![vec![0u64; words]; starts.len()];
    let mut writes = live.clone();
    for (i, &start) in starts.iter().enumerate() {
        let (reads, writes) = (&mut live[i], &mut writes[i]);
        for (at, instruction) in code[start..ends(i)].iter().enumerate() {
            let (mut op, guarded) = (instruction.op, instruction.guard.is_some());
            // Reads come first.
            each(&mut op, &mut |reg, how| {
                let number = numbers.of(*reg);
                touch(number, start + at);
                let (word, bit) = (number / 64, 1 << (number % 64));
                // A write that is guarded leaves the old value in some lanes.
                if (how == Use::Read || guarded) && writes[word] & bit == 0 {
                    reads[word] |= bit;
                }
                if how == Use::Write && !guarded {
                    writes[word] |= bit;
                }
            });
        }
    }
    // What is live where a block begins: to a fixed point, backwards.
    let after: Vec<Vec<usize>> = (0..starts.len())
        .map(|i| followers(code, ends(i) - 1).into_iter().flatten().map(block_of).collect())
        .collect();
    let out = |live: &[Vec<u64>], i: usize, word: usize| {
        after[i].iter().fold(0, |bits, &next| bits | live[next][word])
    };
    let mut changed = true;
    while changed {
        changed = false;
        for i in (0..starts.len()).rev() {
            for word in 0..words {
                let new = live[i][word] | out(&live, i, word) & !writes[i][word];
                changed |= new != live[i][word];
                live[i][word] = new;
            }
        }
    }
    for (i, &start) in starts.iter().enumerate() {
        for word in 0..words {
            for (bits, at) in [(live[i][word], start), (out(&live, i, word), ends(i) - 1)] {
                let set = (0..64).filter(|bit| bits >> bit & 1 != 0);
                set.for_each(|bit| touch(word * 64 + bit, at));
            }
        }
    }
    spans
}

/// The first instructions of the basic blocks.
fn starts(code: &[Instruction]) -> Vec<usize> {
    let mut starts = BTreeSet::from([0]);
    for (at, instruction) in code.iter().enumerate() {
        if let Op::Bra { target } = instruction.op {
            starts.insert(target as usize);
        }
        if matches!(instruction.op, Op::Bra { .. } | Op::Exit) {
            starts.insert(at + 1);
        }
    }
    starts.into_iter().filter(|&at| at < code.len()).collect()
}

/// Where a lane may be after an instruction.
fn followers(code: &[Instruction], at: usize) -> [Option<usize>; 2] {
    let Instruction { op, guard, .. } = code[at];
    let next = (at + 1 < code.len()).then_some(at + 1);
    match op {
        Op::Bra { target } => [Some(target as usize), next.filter(|_| guard.is_some())],
        Op::Exit => [None, next.filter(|_| guard.is_some())],
        _ => [next, None],
    }
}

/// Calls `f` with each register that an instruction reads or writes.
fn each(op: &mut Op, f: &mut impl FnMut(&mut Reg, Use)) {
    use Use::{Read, Write};
    macro_rules! uses {
        ([$($write:expr),*] [$($read:expr),*]) => {{
            $(f($read, Read);)*
            $(f($write, Write);)*
        }};
    }
    let base = |at: &mut Address, f: &mut dyn FnMut(&mut Reg, Use)| {
        if let Some(reg) = &mut at.base {
            f(reg, Read);
        }
    };
    match op {
        Op::Mov { d, a }
        | Op::IntOne { d, a, .. }
        | Op::FloatOne { d, a, .. }
        | Op::Cvt { d, a, .. }
        | Op::Cvta { d, a, .. }
        | Op::MovMatrix { d, a } => uses!([d][a]),
        Op::Int { d, a, b, .. }
        | Op::MulWide { d, a, b, .. }
        | Op::Set { d, a, b, .. }
        | Op::Selp { d, a, b, .. }
        | Op::Float { d, a, b, .. }
        | Op::CvtPair { d, a, b, .. }
        | Op::Mapa { d, a, b, .. } => uses!([d] [a, b]),
        Op::Mad { d, a, b, c, .. }
        | Op::MadWide { d, a, b, c, .. }
        | Op::Sad { d, a, b, c, .. }
        | Op::Carry { d, a, b, c, .. }
        | Op::Funnel { d, a, b, c, .. }
        | Op::Extract { d, a, b, c, .. }
        | Op::Permute { d, a, b, c }
        | Op::Lop3 { d, a, b, c, .. }
        | Op::Dot { d, a, b, c, .. }
        | Op::Slct { d, a, b, c, .. }
        | Op::Fma { d, a, b, c, .. } => uses!([d] [a, b, c]),
        Op::Insert { d, a, b, c, e, .. } => uses!([d] [a, b, c, e]),
        Op::Pack { d, parts, count } => {
            parts[..usize::from(*count)].iter_mut().for_each(|part| f(part, Read));
            f(d, Write);
        }
        Op::Unpack { parts, count, a } => {
            f(a, Read);
            parts[..usize::from(*count)].iter_mut().flatten().for_each(|part| f(part, Write));
        }
        Op::Setp { a, b, .. } => uses!([] [a, b]),
        Op::IsSpace { a, .. } => uses!([][a]),
        Op::Ld { count, d, at, .. } | Op::LdMatrix { count, d, at, .. } => {
            base(at, f);
            d[..usize::from(*count)].iter_mut().for_each(|d| f(d, Write));
        }
        Op::St { count, a, at, .. } | Op::StMatrix { count, a, at, .. } => {
            base(at, f);
            a[..usize::from(*count)].iter_mut().for_each(|a| f(a, Read));
        }
        Op::Atom { d, at, b, c, .. } => {
            base(at, f);
            uses!([] [b, c]);
            d.iter_mut().for_each(|d| f(d, Write));
        }
        Op::CpAsync { to, from, size, .. } => {
            base(to, f);
            base(from, f);
            size.iter_mut().for_each(|size| f(size, Read));
        }
        Op::Mma { d, a, b, c, .. } => {
            a.iter_mut().chain(b).chain(c).for_each(|reg| f(reg, Read));
            d.iter_mut().for_each(|d| f(d, Write));
        }
        Op::GroupMma { d, a, b, c, .. } => {
            f(b, Read);
            a.iter_mut().chain(c).for_each(|reg| f(reg, Read));
            d.iter_mut().for_each(|d| f(d, Write));
        }
        Op::Shfl { d, a, b, c, mask, .. } => uses!([d] [a, b, c, mask]),
        Op::Ballot { d, mask, .. } => uses!([d][mask]),
        Op::Vote { mask, .. } | Op::BarWarp { mask } => uses!([][mask]),
        Op::Match { d, a, mask, .. } | Op::Redux { d, a, mask, .. } => uses!([d] [a, mask]),
        Op::Elect { d, mask, .. } => {
            f(mask, Read);
            d.iter_mut().for_each(|d| f(d, Write));
        }
        Op::ActiveMask { d } | Op::Time { d, .. } => uses!([d] []),
        Op::Bar { id, count, .. } => {
            f(id, Read);
            count.iter_mut().for_each(|count| f(count, Read));
        }
        Op::MbarInit { at, count } => {
            base(at, f);
            f(count, Read);
        }
        Op::MbarInval { at } => base(at, f),
        Op::MbarArrive { d, at, count, expect, .. } => {
            base(at, f);
            count.iter_mut().chain(expect).for_each(|reg| f(reg, Read));
            d.iter_mut().for_each(|d| f(d, Write));
        }
        Op::MbarWait { at, state, .. } => {
            base(at, f);
            f(state, Read);
        }
        Op::StAsync { count, a, at, barrier, .. } => {
            base(at, f);
            base(barrier, f);
            a[..usize::from(*count)].iter_mut().for_each(|a| f(a, Read));
        }
        Op::Call { back, .. } | Op::Return { back } => uses!([][back]),
        Op::Pred { .. }
        | Op::CpCommit
        | Op::CpWait { .. }
        | Op::ClusterArrive
        | Op::ClusterWait
        | Op::AwaitPrevious
        | Op::Nanosleep
        | Op::Nop
        | Op::Bra { .. }
        | Op::Exit
        | Op::Trap => {}
    }
}
