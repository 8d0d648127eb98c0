//! Tensor cores' products and the loads that fill their fragments. Sums are f32, fused, in the order
//! of k: the hardware's own order and rounding are not told.

use super::access::{addresses, trouble};
use super::file::{ALL, File, LANES, Value, lanes};
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
    match kind {
        Product::Tf32 { k } => sums::<1>(file, k as usize, (d, ra, rb, rc), |x| [tf32(x), 0.]),
        Product::F16 { k } => {
            sums::<2>(file, k as usize, (d, ra, rb, rc), |x| {
                [half(x as u16), half((x >> 16) as u16)]
            });
        }
        Product::Bf16 { k } => sums::<2>(file, k as usize, (d, ra, rb, rc), |x| {
            [f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000)]
        }),
    }
}

/// `PER` numbers to a register. The columns of `b` and the sums stand in the order of the registers
/// that hold them, the even ones first.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn sums<const PER: usize>(
    file: &mut File,
    k: usize,
    (d, ra, rb, rc): (&[Reg; 4], &[Reg; 4], &[Reg; 2], &[Reg; 4]),
    split: impl Fn(u32) -> [f32; 2],
) {
    // Registers of `a`: rows in turn, then columns; of `b`: rows.
    let (of_a, of_b) = (k / (2 * PER), k / (4 * PER));
    let (mut a, mut b) = ([[[0f32; LANES]; 2]; 4], [[0f32; 8]; 16]);
    for (parts, &reg) in a.iter_mut().zip(ra).take(of_a) {
        let row = u32::row(file, reg);
        for lane in 0..LANES {
            [parts[0][lane], parts[1][lane]] = split(row[lane]);
        }
    }
    for (r, &reg) in rb.iter().enumerate().take(of_b) {
        let (row, mut parts) = (u32::row(file, reg), [[0f32; LANES]; 2]);
        for lane in 0..LANES {
            [parts[0][lane], parts[1][lane]] = split(row[lane]);
        }
        for t in 0..4 {
            for i in 0..PER {
                let to = &mut b[r * 4 * PER + t * PER + i];
                *to = std::array::from_fn(|j| parts[i][(j % 4 * 2 + j / 4) * 4 + t]);
            }
        }
    }
    let mut sums = [[[0f32; 8]; 8]; 2];
    for (half, sums) in sums.iter_mut().enumerate() {
        let from = [0, 1].map(|i| u32::row(file, rc[2 * half + i]));
        for (g, sums) in sums.iter_mut().enumerate() {
            *sums = std::array::from_fn(|j| f32::from_bits(from[j / 4][4 * g + j % 4]));
        }
        for (at, b) in b.iter().enumerate().take(k) {
            let (r, t, i) = (at / (4 * PER), at / PER % 4, at % PER);
            let a = &a[2 * r + half][i];
            for (g, sums) in sums.iter_mut().enumerate() {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum = a[4 * g + t].mul_add(b, *sum);
                }
            }
        }
    }
    for (r, &reg) in d.iter().enumerate() {
        let (row, sums) = (u32::row_mut(file, reg), &sums[r / 2]);
        for lane in 0..LANES {
            row[lane] = sums[lane / 4][4 * (r % 2) + lane % 4].to_bits();
        }
    }
}

/// An f16 as f32: its fraction and exponent where f32 has them, times what the exponents differ by.
#[inline(always)]
pub fn half(bits: u16) -> f32 {
    const BY: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(bits);
    let number = f32::from_bits((bits & 0x7fff) << 13) * BY;
    // Infinities and NaNs have all bits of the exponent.
    let odd = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(number.to_bits() | odd | (bits & 0x8000) << 16)
}

/// What a tensor core sees of an f32: ten bits of its fraction.
#[inline(always)]
fn tf32(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// 8×8 matrices of 16 bits: lanes 8·i to 8·i + 7 name the rows of matrix i, and lane 4·r + c gets
/// the two elements of row r from column 2·c on (transposed: of column r).
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn load(
    warp: &mut Warp,
    context: &mut Context<'_>,
    d: &[Reg],
    transposed: bool,
    at: Address,
) -> Result<(), Trouble> {
    let addresses = addresses(warp, at);
    let rows = u32::MAX >> (LANES - 8 * d.len());
    let all = match context.own_places(warp, &addresses, rows, 16) {
        Some(places) => context.read::<16>(warp, &places, rows)?,
        None => {
            let mut all = [[0; 16]; LANES];
            for lane in lanes(rows) {
                let place = context.shared_place(warp, lane, addresses[lane], 16)?;
                context.touch(warp, lane, place, 16, Access::Read, false)?;
                let (block, at) = place;
                all[lane].copy_from_slice(&context.blocks[block].shared.bytes[at..at + 16]);
            }
            all
        }
    };
    for (rows, &d) in all.chunks_exact(8).zip(d) {
        let matrix = std::array::from_fn(|r: usize| {
            std::array::from_fn(|c: usize| u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]))
        });
        warp.file.set_bits(d, &fragment(&matrix, transposed), ALL);
    }
    Ok(())
}

#[inline(always)]
fn fragment(matrix: &[[u16; 8]; 8], transposed: bool) -> [u64; LANES] {
    let pair = |a: u16, b: u16| u64::from(a) | u64::from(b) << 16;
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, lane % 4 * 2);
        match transposed {
            true => pair(matrix[c][r], matrix[c + 1][r]),
            false => pair(matrix[r][c], matrix[r][c + 1]),
        }
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

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
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
