//! How a dense output walks over inputs that are read by strides of their own: what
//! `kernels/common/walk.cuh` takes by value, and the host's part of it.

use super::launch::Grid;
use crate::error::{Error, Result};
use crate::spec::MAX_RANK;

/// A division by `by` as a product and a shift, exact for dividends below 2³¹.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Divisor {
    by: u64,
    magic: u32,
    shift: u32,
}

impl Divisor {
    pub fn new(by: usize) -> Self {
        let by = by.max(1) as u64;
        if by > 1 << 31 {
            // Of a dividend below 2³¹ nothing is left.
            return Divisor { by, magic: 0, shift: 31 };
        }
        let shift = by.next_power_of_two().trailing_zeros();
        let magic = (((1 << shift) - by) << 32) / by + 1;
        Divisor { by, magic: magic as u32, shift }
    }
}

/// One axis of a walk on the host: its length, and the strides of N operands in elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dim<const N: usize> {
    pub length: usize,
    pub strides: [usize; N],
}

/// Without the axes of length 1, and with neighbours joined that lie as one in every operand.
pub fn collapse<const N: usize>(dims: impl IntoIterator<Item = Dim<N>>) -> Vec<Dim<N>> {
    let mut out: Vec<Dim<N>> = Vec::with_capacity(MAX_RANK);
    for dim in dims.into_iter().filter(|d| d.length != 1) {
        match out.last_mut() {
            Some(last) if (0..N).all(|k| last.strides[k] == dim.strides[k] * dim.length) => {
                *last = Dim { length: last.length * dim.length, strides: dim.strides };
            }
            _ => out.push(dim),
        }
    }
    out
}

/// The strides of a dense `shape` along the axes of the `rank` it is broadcast to.
pub fn broadcast_strides(shape: &[usize], rank: usize) -> Vec<usize> {
    let mut strides = vec![0; rank];
    let mut stride = 1;
    for (to, &length) in strides.iter_mut().rev().zip(shape.iter().rev()) {
        if length != 1 {
            *to = stride;
        }
        stride *= length;
    }
    strides
}

/// Whether a walk can go by packs: along the last axis every operand stands still or is dense,
/// rows are whole packs, and each begins at one. A single row may end in a part of a pack, since
/// tensors begin aligned.
pub fn packable<const N: usize>(dims: &[Dim<N>], pack: usize) -> bool {
    let Some((last, outer)) = dims.split_last() else { return true };
    last.strides.iter().all(|&s| s <= 1)
        && (outer.is_empty() || last.length % pack == 0)
        && (0..N).all(|k| last.strides[k] == 0 || outer.iter().all(|d| d.strides[k] % pack == 0))
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Axis {
    length: Divisor,
    stride: [i64; 3],
}

/// A walk as the kernels take it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Walk {
    n: u64,
    rank: u32,
    spread: u32,
    axis: [Axis; MAX_RANK],
}

impl Walk {
    /// Over `dims`, by packs of `pack` elements along the last.
    pub fn new<const N: usize>(dims: &[Dim<N>], pack: usize) -> Self {
        const { assert!(N <= 3) };
        let mut walk = Walk { n: 1, rank: 1, spread: 0, axis: Default::default() };
        // A single element is an axis of length 1, along which nothing moves.
        walk.axis[0].length = Divisor::new(1);
        walk.rank = dims.len().max(1) as u32;
        walk.n = dims.iter().map(|d| d.length as u64).product();
        for (i, (axis, dim)) in walk.axis.iter_mut().zip(dims).enumerate() {
            let by = if i + 1 == dims.len() { pack } else { 1 };
            axis.length = Divisor::new(dim.length.div_ceil(by));
            for (k, &stride) in dim.strides.iter().enumerate() {
                axis.stride[k] = (stride * by) as i64;
            }
        }
        let last = dims.last().map_or([0; N], |d| d.strides);
        for (k, &stride) in last.iter().enumerate() {
            walk.spread |= u32::from(stride == 0) << k;
        }
        walk
    }

    /// The first operand backwards along axis `i`; it then begins at the other end.
    pub fn reverse(&mut self, i: usize) {
        self.axis[i].stride[0] = -self.axis[i].stride[0];
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.n as usize
    }
}

/// A thread for each of `items`. Small work goes out as small blocks: more of them start at once.
pub fn cover(items: usize) -> Result<Grid> {
    let threads = if items > 1 << 14 { 256 } else { items.next_multiple_of(32).clamp(32, 128) };
    Grid::new(items.div_ceil(threads), threads as u32)
}

/// That a family was asked for an op of another: a bug of ours.
pub fn stray<T>(op: &'static str) -> Result<T> {
    Err(Error::Internal(format!("{op} came to the wrong family of kernels")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divide(n: u64, d: Divisor) -> u64 {
        if n >> 31 != 0 {
            return n / d.by;
        }
        (((n * u64::from(d.magic)) >> 32) + n) >> d.shift
    }

    #[test]
    fn divisors_divide() {
        let top = (1 << 31) - 1;
        for by in (1..200).chain([255, 1000, 65_537, top - 1, top, top + 1, top + 2, 1 << 40]) {
            for n in (0..500).chain([by - 1, by, by + 1, 7 * by - 1, 7 * by, top - 1, top, top + 1])
            {
                let (n, d) = (n as u64, Divisor::new(by));
                assert_eq!(divide(n, d), n / by as u64, "{n} / {by}");
            }
        }
    }

    fn dims<const N: usize>(list: &[(usize, [usize; N])]) -> Vec<Dim<N>> {
        list.iter().map(|&(length, strides)| Dim { length, strides }).collect()
    }

    #[test]
    fn neighbours_that_lie_as_one_are_joined() {
        let dense = dims(&[(2, [12, 12]), (1, [0, 0]), (3, [4, 4]), (4, [1, 1])]);
        assert_eq!(collapse(dense), dims(&[(24, [1, 1])]));
        let row = dims(&[(2, [12, 0]), (3, [4, 0]), (4, [1, 1])]);
        assert_eq!(collapse(row), dims(&[(6, [4, 0]), (4, [1, 1])]));
        let scalar = dims(&[(2, [12, 0]), (12, [1, 0])]);
        assert_eq!(collapse(scalar), dims(&[(24, [1, 0])]));
        assert_eq!(collapse(dims(&[(1, [7])])), dims(&[]));
    }

    #[test]
    fn packs_need_whole_rows() {
        assert!(packable(&dims(&[(7, [1, 0])]), 4));
        assert!(packable(&dims(&[(6, [4, 0]), (4, [1, 1])]), 4));
        assert!(!packable(&dims(&[(6, [3, 0]), (3, [1, 1])]), 4));
        assert!(!packable(&dims(&[(6, [5, 0]), (4, [1, 1])]), 4));
        assert!(packable(&dims(&[(6, [5, 4]), (4, [0, 1])]), 4));
        assert!(!packable(&dims(&[(6, [1, 4]), (4, [6, 1])]), 4));
    }

    #[test]
    fn broadcasting_stands_still_along_ones() {
        assert_eq!(broadcast_strides(&[3, 1, 4], 4), [0, 4, 0, 1]);
        assert_eq!(broadcast_strides(&[], 2), [0, 0]);
    }
}
