//! Decoding of loads and stores.

use super::body::Builder;
use super::decode::{elements, expect, space, ty, vector};
use super::instruction::{Op, Reg, Space, Ty};
use super::operand::{Modifiers, Operand};

type Result<T> = std::result::Result<T, String>;

/// How caches and other threads see an access: there are no caches here.
const HINTS: &[&str] = &[
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "weak",
    "gpu",
    "cta",
    "sys",
    "cluster",
    "mmio",
    "L1::evict_last",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "entry",
    "func",
];

pub fn load<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<()> {
    let ([to, from], space) = (expect(operands)?, space(mods));
    let polls = ["volatile", "relaxed", "acquire"].iter().any(|name| mods.take(name));
    mods.ignore(HINTS);
    let (count, ty) = (vector(mods), ty(mods)?);
    let to = elements(to);
    if to.len() != count {
        return Err(format!("{} registers for {count} values", to.len()));
    }
    if space == Space::Param
        && let Some((slot, offset)) = b.slot_at(from)?
    {
        for (i, to) in to.iter().enumerate() {
            let a = b.slot_register((slot, offset + (i * ty.bytes()) as i64), ty.is_wide())?;
            let d = b.target(to)?;
            b.emit(Op::Mov { d, a });
        }
        return Ok(());
    }
    let mut d = [Reg::narrow(0); 4];
    for (d, to) in d.iter_mut().zip(to) {
        *d = b.target(to)?;
    }
    let at = b.address(from)?;
    touches(b, space, ty);
    b.emit(Op::Ld { polls, space, ty, count: count as u8, d, at });
    Ok(())
}

pub fn store<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<()> {
    let ([to, from], space) = (expect(operands)?, space(mods));
    mods.ignore(HINTS);
    let (count, ty) = (vector(mods), ty(mods)?);
    let from = elements(from);
    if from.len() != count {
        return Err(format!("{} registers for {count} values", from.len()));
    }
    if let Some((slot, offset)) = b.slot_at(to)? {
        for (i, from) in from.iter().enumerate() {
            let a = b.source(from, ty)?;
            let d = b.slot_register((slot, offset + (i * ty.bytes()) as i64), ty.is_wide())?;
            b.emit(Op::Mov { d, a });
        }
        return Ok(());
    }
    let mut a = [Reg::narrow(0); 4];
    for (a, from) in a.iter_mut().zip(from) {
        *a = b.wider(from, ty)?;
    }
    let at = b.address(to)?;
    touches(b, space, ty);
    b.emit(Op::St { space, ty, count: count as u8, a, at });
    Ok(())
}

/// Notes the smallest access to shared memory.
fn touches(b: &mut Builder<'_, '_, '_>, space: Space, ty: Ty) {
    if matches!(space, Space::Shared | Space::Cluster | Space::Generic) {
        b.granule = b.granule.min(ty.bytes());
    }
}
