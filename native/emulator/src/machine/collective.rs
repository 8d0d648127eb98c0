//! What the lanes of a warp do together: shuffles, votes, matches, reductions.

use super::access::joined;
use super::file::{LANES, lanes};
use super::warp::Warp;
use crate::ptx::instruction::{AtomOp, Pred, Reg, Shuffle, Ty, Vote};

/// `c` holds a clamp in its lower five bits and from the eighth on the mask of a segment.
pub fn shuffle(warp: &mut Warp, mask: u32, mode: Shuffle, [d, a, b, c]: [Reg; 4], p: Option<Pred>) {
    let (from, by, how) = (warp.file.bits(a), warp.file.bits(b), warp.file.bits(c));
    let (mut out, mut inside) = ([0; LANES], 0u32);
    for lane in lanes(mask) {
        let me = lane as i32;
        let (by, clamp) = ((by[lane] & 31) as i32, (how[lane] & 31) as i32);
        let segment = (how[lane] >> 8 & 31) as i32;
        let (low, high) = (me & segment, (me & segment) | (clamp & !segment));
        let from_lane = match mode {
            Shuffle::Up => me - by,
            Shuffle::Down => me + by,
            Shuffle::Butterfly => me ^ by,
            Shuffle::Index => low | (by & !segment),
        };
        let there = if mode == Shuffle::Up { from_lane >= high } else { from_lane <= high };
        out[lane] = from[if there { from_lane as usize & 31 } else { lane }];
        inside |= u32::from(there) << lane;
    }
    warp.file.set_bits(d, &out, mask);
    if let Some(p) = p {
        warp.file.set_pred(p, inside, mask);
    }
}

pub fn vote(warp: &mut Warp, mask: u32, mode: Vote, d: Pred, bits: u32) {
    let yes = match mode {
        Vote::All => bits & mask == mask,
        Vote::Any => bits & mask != 0,
        Vote::Uniform | Vote::Ballot => bits & mask == mask || bits & mask == 0,
    };
    warp.file.set_pred(d, if yes { u32::MAX } else { 0 }, mask);
}

/// The lanes that have the same value; with `all`, none where not all have it.
pub fn matching(warp: &mut Warp, mask: u32, all: bool, d: Reg, p: Option<Pred>, a: Reg) {
    let values = warp.file.bits(a);
    let mut same = 0;
    for lane in lanes(mask) {
        let equal = lanes(mask).filter(|&l| values[l] == values[lane]);
        let mut found = equal.fold(0u32, |bits, l| bits | 1 << l);
        same |= u32::from(found == mask) << lane;
        if all && found != mask {
            found = 0;
        }
        warp.file.set_lane(d, lane, u64::from(found));
    }
    if let Some(p) = p {
        warp.file.set_pred(p, same, mask);
    }
}

pub fn reduce(warp: &mut Warp, mask: u32, op: AtomOp, ty: Ty, d: Reg, a: Reg) {
    let values = warp.file.bits(a);
    let all = lanes(mask).map(|lane| values[lane]).reduce(|x, y| joined(op, ty, x, y));
    if let Some(all) = all {
        warp.file.set_bits(d, &[all; LANES], mask);
    }
}
