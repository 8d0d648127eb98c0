//! Tensor cores' products and the loads that fill their fragments. Sums are f32, fused, in the order
//! of k: the hardware's own order and rounding are not told.

use half::{bf16, f16};

use super::access::{addresses, trouble};
use super::file::{ALL, LANES};
use super::shared::Access;
use super::warp::{Trouble, Warp};
use super::{Context, FaultKind};
use crate::ptx::instruction::{Address, Product, Reg};

/// d {16, 8} = a {16, k} · b {k, 8} + c, each spread over the lanes: lane 4·g + t holds of `a` the
/// rows g and g + 8 and of `b` the column g, from column or row t on.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn multiply(
    warp: &mut Warp,
    kind: Product,
    d: &[Reg; 4],
    ra: &[Reg; 4],
    rb: &[Reg; 2],
    rc: &[Reg; 4],
) {
    let file = &mut warp.file;
    let (mut a, mut b) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
    let (pairs, k, convert): (usize, u32, fn(u16) -> f32) = match kind {
        Product::Tf32 { k } => (1, k, |_| 0.),
        Product::F16 { k } => (2, k, |x| f16::from_bits(x).to_f32()),
        Product::Bf16 { k } => (2, k, |x| bf16::from_bits(x).to_f32()),
    };
    let k = k as usize;
    // Registers of `a`: rows in turn, then columns; of `b`: rows.
    let (of_a, of_b) = (k / (2 * pairs), k / (4 * pairs));
    for (r, &reg) in ra.iter().enumerate().take(of_a) {
        let row = file.bits(reg);
        for (lane, &bits) in row.iter().enumerate() {
            let (g, t) = (lane / 4 + r % 2 * 8, lane % 4 * pairs + r / 2 * 4 * pairs);
            match pairs {
                1 => a[g][t] = tf32(bits as u32),
                _ => (a[g][t], a[g][t + 1]) = (convert(bits as u16), convert((bits >> 16) as u16)),
            }
        }
    }
    for (r, &reg) in rb.iter().enumerate().take(of_b) {
        let row = file.bits(reg);
        for (lane, &bits) in row.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4 * pairs + r * 4 * pairs);
            match pairs {
                1 => b[t][g] = tf32(bits as u32),
                _ => (b[t][g], b[t + 1][g]) = (convert(bits as u16), convert((bits >> 16) as u16)),
            }
        }
    }
    let mut sums = [[0f32; 8]; 16];
    for (r, &reg) in rc.iter().enumerate() {
        let row = file.bits(reg);
        for (lane, &bits) in row.iter().enumerate() {
            sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] = f32::from_bits(bits as u32);
        }
    }
    for (a, sums) in a.iter().zip(&mut sums) {
        for (&a, b) in a.iter().zip(&b).take(k) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
    for (r, &reg) in d.iter().enumerate() {
        let out = std::array::from_fn(|lane| {
            u64::from(sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2].to_bits())
        });
        file.set_bits(reg, &out, ALL);
    }
}

/// What a tensor core sees of an f32: ten bits of its fraction.
fn tf32(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// 8×8 matrices of 16 bits: lanes 8·i to 8·i + 7 name the rows of matrix i, and lane 4·r + c gets
/// the two elements of row r from column 2·c on (transposed: of column r).
pub fn load(
    warp: &mut Warp,
    context: &mut Context<'_>,
    d: &[Reg],
    transposed: bool,
    at: Address,
) -> Result<(), Trouble> {
    let addresses = addresses(warp, at);
    for (i, &d) in d.iter().enumerate() {
        let mut matrix = [[0u16; 8]; 8];
        for (r, row) in matrix.iter_mut().enumerate() {
            let lane = i * 8 + r;
            let place = context.shared_place(warp, lane, addresses[lane], 16)?;
            context.touch(warp, lane, place, 16, Access::Read, false)?;
            let shared = &context.blocks[place.0].shared;
            for (c, x) in row.iter_mut().enumerate() {
                *x = shared.load(place.1 + 2 * c, 2) as u16;
            }
        }
        warp.file.set_bits(d, &fragment(&matrix, transposed), ALL);
    }
    Ok(())
}

fn fragment(matrix: &[[u16; 8]; 8], transposed: bool) -> [u64; LANES] {
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, lane % 4 * 2);
        let at = |c: usize| u64::from(if transposed { matrix[c][r] } else { matrix[r][c] });
        at(c) | at(c + 1) << 16
    })
}

fn matrix_of(bits: &[u64; LANES], transposed: bool) -> [[u16; 8]; 8] {
    let mut matrix = [[0; 8]; 8];
    for (lane, &bits) in bits.iter().enumerate() {
        for (c, x) in [(lane % 4 * 2, bits as u16), (lane % 4 * 2 + 1, (bits >> 16) as u16)] {
            let (r, c) = if transposed { (c, lane / 4) } else { (lane / 4, c) };
            matrix[r][c] = x;
        }
    }
    matrix
}

pub fn store(
    warp: &mut Warp,
    context: &mut Context<'_>,
    a: &[Reg],
    transposed: bool,
    at: Address,
) -> Result<(), Trouble> {
    let addresses = addresses(warp, at);
    context.progress = true;
    for (i, &a) in a.iter().enumerate() {
        for (r, row) in matrix_of(&warp.file.bits(a), transposed).iter().enumerate() {
            let lane = i * 8 + r;
            let place = context.shared_place(warp, lane, addresses[lane], 16)?;
            context.touch(warp, lane, place, 16, Access::Write, false)?;
            let shared = &mut context.blocks[place.0].shared;
            for (c, &x) in row.iter().enumerate() {
                shared.store(place.1 + 2 * c, 2, u64::from(x));
            }
        }
    }
    Ok(())
}

pub fn transpose(warp: &mut Warp, d: Reg, a: Reg) {
    let matrix = matrix_of(&warp.file.bits(a), false);
    warp.file.set_bits(d, &fragment(&matrix, true), ALL);
}

/// All 32 lanes take part in these.
pub fn whole(mask: u32) -> Result<(), Trouble> {
    match mask {
        ALL => Ok(()),
        _ => {
            let what = format!("only the lanes {mask:#010x} of a warp are there");
            Err(trouble(FaultKind::Instruction, mask.trailing_zeros() as usize % LANES, what))
        }
    }
}
