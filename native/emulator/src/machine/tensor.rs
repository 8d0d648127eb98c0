//! Tensor cores' products and the loads that fill their fragments. Sums are f32, fused, in the order
//! of k: the hardware's own order and rounding are not told.

use super::access::{addresses, trouble};
use super::file::{ALL, File, LANES, Value, lanes};
use super::shared::Access;
use super::warp::{Trouble, Warp};
use super::{Context, FaultKind};
use crate::ptx::instruction::{Address, Guard, Product, Reg};

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
        Product::Tf32 { k } => {
            let b = columns::<1>(file, k as usize, rb, tf32);
            sums::<1>(file, k as usize, (d, ra, Some(rc)), &b, tf32);
        }
        Product::F16 { k } => {
            let b = columns::<2>(file, k as usize, rb, halves);
            sums::<2>(file, k as usize, (d, ra, Some(rc)), &b, halves);
        }
        Product::Bf16 { k } => {
            let b = columns::<2>(file, k as usize, rb, brains);
            sums::<2>(file, k as usize, (d, ra, Some(rc)), &b, brains);
        }
    }
}

/// Rows of `b`, whose columns stand in the order of the registers that hold the sums, the even ones
/// first.
type Columns = [[f32; 8]; 16];

fn column(j: usize) -> usize {
    j % 4 * 2 + j / 4
}

/// `b` from the lanes' registers, `PER` numbers to a register.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn columns<const PER: usize>(
    file: &File,
    k: usize,
    rb: &[Reg; 2],
    split: impl Fn(u32) -> [f32; 2],
) -> Columns {
    let mut b = [[0f32; 8]; 16];
    for (r, &reg) in rb.iter().enumerate().take(k / (4 * PER)) {
        let (row, mut parts) = (u32::row(file, reg), [[0f32; LANES]; 2]);
        for lane in 0..LANES {
            [parts[0][lane], parts[1][lane]] = split(row[lane]);
        }
        for t in 0..4 {
            for i in 0..PER {
                let to = &mut b[r * 4 * PER + t * PER + i];
                *to = std::array::from_fn(|j| parts[i][column(j) * 4 + t]);
            }
        }
    }
    b
}

/// d = a · b + c, without `c` a · b alone.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn sums<const PER: usize>(
    file: &mut File,
    k: usize,
    (d, ra, rc): (&[Reg; 4], &[Reg; 4], Option<&[Reg; 4]>),
    b: &Columns,
    split: impl Fn(u32) -> [f32; 2],
) {
    // Registers of `a`: rows in turn, then columns.
    let mut a = [[[0f32; LANES]; 2]; 4];
    for (parts, &reg) in a.iter_mut().zip(ra).take(k / (2 * PER)) {
        let row = u32::row(file, reg);
        for lane in 0..LANES {
            [parts[0][lane], parts[1][lane]] = split(row[lane]);
        }
    }
    let mut sums = [[[0f32; 8]; 8]; 2];
    for (half, sums) in sums.iter_mut().enumerate() {
        if let Some(rc) = rc {
            let from = [0, 1].map(|i| u32::row(file, rc[2 * half + i]));
            for (g, sums) in sums.iter_mut().enumerate() {
                *sums = std::array::from_fn(|j| f32::from_bits(from[j / 4][4 * g + j % 4]));
            }
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

/// What a matrix descriptor may say here: where the matrix starts, and the two offsets, in 16 bytes.
const START: u64 = 0x3fff;
const DESCRIBED: u64 = START | START << 16 | START << 32;

/// Eight columns of a warpgroup's product, `eight` of them on: the warp's 16 rows, in fragments as
/// above, where `b` is in shared memory and a descriptor says where. `add`: to `c`.
///
/// It is done at once, and each warp does its part without the others: what needs them to have come is
/// not seen.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn multiply_described(
    warp: &mut Warp,
    context: &mut Context<'_>,
    kind: Product,
    (d, ra, rc): (&[Reg; 4], &[Reg; 4], &[Reg; 4]),
    (descriptor, eight): (Reg, u8),
    add: Guard,
) -> Result<(), Trouble> {
    let wrong = |lane: usize, what: String| Err(trouble(FaultKind::Instruction, lane, what));
    let (all, add) = (warp.file.bits(descriptor), warp.file.holds(add));
    let said = all[0];
    if let Some(lane) = all.iter().position(|&other| other != said) {
        return wrong(lane, "a descriptor that is not that of lane 0".into());
    }
    if add != 0 && add != ALL {
        // The first that is not as lane 0 is.
        let lane = add.trailing_ones().max(add.trailing_zeros()) as usize;
        return wrong(lane, "it adds in some lanes of the warp alone".into());
    }
    if said >> 62 != 0 {
        return wrong(0, format!("the swizzle mode {} of the descriptor {said:#x}", said >> 62));
    }
    if said & !DESCRIBED != 0 {
        return wrong(0, format!("the descriptor {said:#x} has bits that are not known"));
    }
    let [start, leading, stride] = [0, 16, 32].map(|from| (said >> from & START) << 4);
    let (mut b, first) = ([[0f32; 8]; 16], start + u64::from(eight) * stride);
    for (core, rows) in b.chunks_exact_mut(8).enumerate() {
        let bytes = read_core(warp, context, first + core as u64 * leading)?;
        for (k, row) in rows.iter_mut().enumerate() {
            *row = std::array::from_fn(|j| {
                let at = column(j) * 16 + k * 2;
                let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                match kind {
                    Product::Bf16 { .. } => brains(u32::from(bits))[0],
                    _ => half(bits),
                }
            });
        }
    }
    let (file, rc) = (&mut warp.file, (add == ALL).then_some(rc));
    match kind {
        Product::Bf16 { .. } => sums::<2>(file, 16, (d, ra, rc), &b, brains),
        _ => sums::<2>(file, 16, (d, ra, rc), &b, halves),
    }
    Ok(())
}

/// A core matrix: 16 bytes of each of eight columns. All lanes read all of it.
fn read_core(warp: &Warp, context: &mut Context<'_>, address: u64) -> Result<[u8; 128], Trouble> {
    let mut core = [0; 128];
    let now = context.clock;
    let by = [warp.thread(0), warp.thread(LANES - 1)];
    // Of 16 bytes, as a whole one need not be aligned to its size.
    for (column, bytes) in core.chunks_exact_mut(16).enumerate() {
        let (block, at) = context.shared_place(warp, 0, address + 16 * column as u64, 16)?;
        let shared = &mut context.blocks[block].shared;
        if let Err(other) = shared.read_by_all(at, 16, by, &warp.since, now) {
            return Err(context.race(0, Access::Read, 16, at, other));
        }
        bytes.copy_from_slice(&shared.bytes[at..at + 16]);
    }
    Ok(core)
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

/// A register's two numbers.
#[inline(always)]
fn halves(bits: u32) -> [f32; 2] {
    [half(bits as u16), half((bits >> 16) as u16)]
}

#[inline(always)]
fn brains(bits: u32) -> [f32; 2] {
    [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
}

/// What a tensor core sees of an f32: ten bits of its fraction. It is alone in its register.
#[inline(always)]
fn tf32(bits: u32) -> [f32; 2] {
    [f32::from_bits(bits & !0x1fff), 0.]
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
