//! What the lanes of a warp do together: shuffles, votes, matches, reductions.

use super::atomic::joined;
use super::file::{LANES, Value, blend, lanes};
use super::warp::Warp;
use crate::ptx::instruction::{AtomOp, Pred, Reg, Shuffle, Ty, Vote};

/// `c` holds a clamp in its lower five bits and from the eighth on the mask of a segment.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn shuffle(warp: &mut Warp, mask: u32, mode: Shuffle, r: [Reg; 4], p: Option<Pred>) {
    let inside = match mode {
        Shuffle::Up => exchange(warp, mask, r, |me, by, _, end| (me - by, me - by >= end)),
        Shuffle::Down => exchange(warp, mask, r, |me, by, _, end| (me + by, me + by <= end)),
        Shuffle::Butterfly => exchange(warp, mask, r, |me, by, _, end| (me ^ by, me ^ by <= end)),
        Shuffle::Index => exchange(warp, mask, r, |me, by, segment, end| {
            let from = me & segment | by & !segment;
            (from, from <= end)
        }),
    };
    if let Some(p) = p {
        warp.file.set_pred(p, inside, mask);
    }
}

/// `from`, of a lane, `b`, the segment's mask and its end: the lane to read and whether it is inside,
/// which is given for all.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn exchange(
    warp: &mut Warp,
    mask: u32,
    [d, a, b, c]: [Reg; 4],
    from: impl Fn(i32, i32, i32, i32) -> (i32, bool),
) -> u32 {
    let file = &mut warp.file;
    let (values, by, how) = (u32::row(file, a), u32::row(file, b), u32::row(file, c));
    let (mut lanes, mut out, mut inside) = ([0; LANES], [0; LANES], 0);
    for lane in 0..LANES {
        let (me, clamp) = (lane as i32, (how[lane] & 31) as i32);
        let segment = (how[lane] >> 8 & 31) as i32;
        let end = me & segment | clamp & !segment;
        let (from, there) = from(me, (by[lane] & 31) as i32, segment, end);
        lanes[lane] = if there { from & 31 } else { me };
        inside |= u32::from(there) << lane;
    }
    for lane in 0..LANES {
        out[lane] = values[lanes[lane] as usize & 31];
    }
    blend(u32::row_mut(file, d), &out, mask);
    inside
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
