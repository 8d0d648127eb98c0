//! A warp's registers: a row of 32 lanes for each.

use crate::ptx::instruction::{Guard, Pred, Reg};

pub const LANES: usize = 32;
pub const ALL: u32 = u32::MAX;

/// Registers of up to 32 bits, of 64 bits, and predicates, of which a word holds all lanes. What
/// lies above a register's own bits is of no meaning: who reads it cuts it off.
#[derive(Debug, Default)]
pub struct File {
    narrow: Vec<[u32; LANES]>,
    wide: Vec<[u64; LANES]>,
    preds: Vec<u32>,
}

/// What a register may hold: how it is taken from a cell of a row, and put into it.
pub trait Value: Copy + Default {
    type Cell: Copy + Default;

    fn row(file: &File, reg: Reg) -> &[Self::Cell; LANES];
    fn row_mut(file: &mut File, reg: Reg) -> &mut [Self::Cell; LANES];
    fn get(cell: Self::Cell) -> Self;
    fn put(self) -> Self::Cell;
}

macro_rules! value {
    ($ty:ty, $cell:ty, $rows:ident, $get:expr, $put:expr) => {
        impl Value for $ty {
            type Cell = $cell;

            #[inline(always)]
            fn row(file: &File, reg: Reg) -> &[$cell; LANES] {
                &file.$rows[reg.index()]
            }
            #[inline(always)]
            fn row_mut(file: &mut File, reg: Reg) -> &mut [$cell; LANES] {
                &mut file.$rows[reg.index()]
            }
            #[inline(always)]
            fn get(cell: $cell) -> Self {
                $get(cell)
            }
            #[inline(always)]
            fn put(self) -> $cell {
                $put(self)
            }
        }
    };
}

value!(u8, u32, narrow, |c| c as u8, u32::from);
value!(i8, u32, narrow, |c| c as i8, |v| v as u32);
value!(u16, u32, narrow, |c| c as u16, u32::from);
value!(i16, u32, narrow, |c| c as i16, |v| v as u32);
value!(u32, u32, narrow, |c| c, |v| v);
value!(i32, u32, narrow, |c| c as i32, |v| v as u32);
value!(f32, u32, narrow, f32::from_bits, f32::to_bits);
value!(u64, u64, wide, |c| c, |v| v);
value!(i64, u64, wide, |c| c as i64, |v| v as u64);
value!(f64, u64, wide, f64::from_bits, f64::to_bits);

impl File {
    /// Of so many narrow and wide registers and predicates.
    pub fn new([narrow, wide, preds]: [usize; 3]) -> Self {
        let mut preds = vec![0; preds];
        if let Some(yes) = preds.get_mut(Pred::TRUE.0 as usize) {
            *yes = ALL;
        }
        File { narrow: vec![[0; LANES]; narrow], wide: vec![[0; LANES]; wide], preds }
    }

    #[inline(always)]
    pub fn pred(&self, pred: Pred) -> u32 {
        self.preds[pred.0 as usize]
    }

    /// The lanes where a guard holds.
    #[inline(always)]
    pub fn holds(&self, guard: Guard) -> u32 {
        let bits = self.pred(guard.pred);
        if guard.negated { !bits } else { bits }
    }

    #[inline(always)]
    pub fn set_pred(&mut self, pred: Pred, bits: u32, mask: u32) {
        let word = &mut self.preds[pred.0 as usize];
        *word = *word & !mask | bits & mask;
    }

    /// A row in 64 bits, whatever its width.
    #[inline(always)]
    pub fn bits(&self, reg: Reg) -> [u64; LANES] {
        match reg.is_wide() {
            true => self.wide[reg.index()],
            false => self.narrow[reg.index()].map(u64::from),
        }
    }

    #[inline(always)]
    pub fn lane(&self, reg: Reg, lane: usize) -> u64 {
        match reg.is_wide() {
            true => self.wide[reg.index()][lane],
            false => u64::from(self.narrow[reg.index()][lane]),
        }
    }

    #[inline(always)]
    pub fn set_bits(&mut self, reg: Reg, bits: &[u64; LANES], mask: u32) {
        match reg.is_wide() {
            true => blend(&mut self.wide[reg.index()], bits, mask),
            false => blend(&mut self.narrow[reg.index()], &bits.map(|b| b as u32), mask),
        }
    }

    pub fn set_lane(&mut self, reg: Reg, lane: usize, bits: u64) {
        match reg.is_wide() {
            true => self.wide[reg.index()][lane] = bits,
            false => self.narrow[reg.index()][lane] = bits as u32,
        }
    }

    /// The same in all lanes.
    pub fn fill(&mut self, reg: Reg, bits: u64) {
        self.set_bits(reg, &[bits; LANES], ALL);
    }
}

/// Writes the lanes of a mask.
#[inline(always)]
pub fn blend<C: Copy>(row: &mut [C; LANES], new: &[C; LANES], mask: u32) {
    if mask == ALL {
        *row = *new;
        return;
    }
    for lane in 0..LANES {
        row[lane] = if mask >> lane & 1 != 0 { new[lane] } else { row[lane] };
    }
}

/// The lanes of a mask, from the lowest.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// Calls `f` with each lane of a mask, from the lowest.
#[inline(always)]
pub fn each(mask: u32, f: impl FnMut(usize)) {
    match mask {
        ALL => (0..LANES).for_each(f),
        _ => lanes(mask).for_each(f),
    }
}

/// `d = f(a)` in the lanes of a mask.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn map<A: Value, D: Value>(file: &mut File, mask: u32, d: Reg, a: Reg, f: impl Fn(A) -> D) {
    let mut out = [D::Cell::default(); LANES];
    let row = A::row(file, a);
    for lane in 0..LANES {
        out[lane] = f(A::get(row[lane])).put();
    }
    blend(D::row_mut(file, d), &out, mask);
}

/// `d = f(a, b)`
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn map2<A: Value, B: Value, D: Value>(
    file: &mut File,
    mask: u32,
    [d, a, b]: [Reg; 3],
    f: impl Fn(A, B) -> D,
) {
    let mut out = [D::Cell::default(); LANES];
    let (a, b) = (A::row(file, a), B::row(file, b));
    for lane in 0..LANES {
        out[lane] = f(A::get(a[lane]), B::get(b[lane])).put();
    }
    blend(D::row_mut(file, d), &out, mask);
}

/// `d = f(a, b, c)`
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn map3<A: Value, B: Value, C: Value, D: Value>(
    file: &mut File,
    mask: u32,
    [d, a, b, c]: [Reg; 4],
    f: impl Fn(A, B, C) -> D,
) {
    let mut out = [D::Cell::default(); LANES];
    let (a, b, c) = (A::row(file, a), B::row(file, b), C::row(file, c));
    for lane in 0..LANES {
        out[lane] = f(A::get(a[lane]), B::get(b[lane]), C::get(c[lane])).put();
    }
    blend(D::row_mut(file, d), &out, mask);
}

/// The lanes where `f(a, b)` holds.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn test<A: Value>(file: &File, a: Reg, b: Reg, f: impl Fn(A, A) -> bool) -> u32 {
    let (a, b) = (A::row(file, a), A::row(file, b));
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(f(A::get(a[lane]), A::get(b[lane]))) << lane;
    }
    bits
}
