//! Atomics, on shared and global memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::access::{Done, addresses, resolve, trouble};
use super::file::lanes;
use super::shared::Access;
use super::warp::Warp;
use super::{Context, FaultKind};
use crate::ptx::instruction::{Address, AtomOp, Reg, Space, Ty};

/// What an atomic leaves.
fn result(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let float = |f: fn(f32, f32) -> f32| {
        u64::from(f(f32::from_bits(old as u32), f32::from_bits(b as u32)).to_bits())
    };
    let less = match ty {
        Ty::S32 => (b as i32) < old as i32,
        Ty::S64 => (b as i64) < old as i64,
        _ => b < old,
    };
    match (op, ty) {
        (AtomOp::Add, Ty::F32) => float(|a, b| a + b),
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomOp::Add, _) => old.wrapping_add(b),
        (AtomOp::Min, _) => {
            if less {
                b
            } else {
                old
            }
        }
        (AtomOp::Max, _) => {
            if less {
                old
            } else {
                b
            }
        }
        (AtomOp::And, _) => old & b,
        (AtomOp::Or, _) => old | b,
        (AtomOp::Xor, _) => old ^ b,
        (AtomOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (AtomOp::Exch, _) => b,
        (AtomOp::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}

/// Joins two values as `redux` does.
pub fn joined(op: AtomOp, ty: Ty, a: u64, b: u64) -> u64 {
    result(op, ty, a, b, 0)
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn atomic(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    (space, op, ty): (Space, AtomOp, Ty),
    d: Option<Reg>,
    at: Address,
    [b, c]: [Reg; 2],
) -> Done {
    let (mut addresses, size) = (addresses(warp, at), ty.bytes());
    let narrow = |x: u64| if size == 4 { x & u64::from(u32::MAX) } else { x };
    context.progress = true;
    for (space, mask) in resolve(space, &mut addresses, mask) {
        for lane in lanes(mask) {
            let (b, c) = (narrow(warp.file.lane(b, lane)), narrow(warp.file.lane(c, lane)));
            let old = match space {
                Space::Shared | Space::Cluster => {
                    let place = context.shared_place(warp, lane, addresses[lane], size)?;
                    context.touch(warp, lane, place, size, Access::Atomic, false)?;
                    let shared = &mut context.blocks[place.0].shared;
                    let old = shared.load(place.1, size);
                    shared.store(place.1, size, result(op, ty, old, b, c));
                    old
                }
                Space::Global | Space::Generic => {
                    context.check(&addresses, 1 << lane, size)?;
                    context.is_no_write_ahead(1 << lane)?;
                    let at = addresses[lane];
                    let update = |old: u64| Some(narrow(result(op, ty, old, b, c)));
                    let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
                    let old = if size == 4 {
                        // SAFETY: checked above: allocated and aligned.
                        let word = unsafe { AtomicU32::from_ptr(at as *mut u32) };
                        let update = |old| update(u64::from(old)).map(|x| x as u32);
                        word.fetch_update(set, get, update).map(u64::from).map_err(u64::from)
                    } else {
                        // SAFETY: as above.
                        let word = unsafe { AtomicU64::from_ptr(at as *mut u64) };
                        word.fetch_update(set, get, update)
                    };
                    old.unwrap_or_else(|old| old)
                }
                _ => {
                    let what = "an atomic on local memory or a parameter".to_owned();
                    return Err(trouble(FaultKind::Instruction, lane, what));
                }
            };
            if let Some(d) = d {
                warp.file.set_lane(d, lane, old);
            }
        }
    }
    Ok(())
}
