//! Ops that move elements and compute nothing: exact to the bit.

use nitrox_engine::op::{PutSlice, Slice};

use super::array::spec;
use super::{Array, Expected};

/// All indices of a shape, last axis fastest.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let count: usize = shape.iter().product();
    (0..count)
        .map(|mut i| {
            let mut index = vec![0; shape.len()];
            for a in (0..shape.len()).rev() {
                index[a] = i % shape[a];
                i /= shape[a];
            }
            index
        })
        .collect()
}

/// The place of an index in a row-major tensor.
pub fn offset(shape: &[usize], index: &[usize]) -> usize {
    shape.iter().zip(index).fold(0, |at, (&length, &i)| at * length + i)
}

/// A tensor whose element at each index is the one of `x` that `from` names.
pub fn gather(x: &Array, shape: &[usize], from: impl Fn(&[usize]) -> Vec<usize>) -> Expected {
    let mut bytes = Vec::new();
    for index in indices(shape) {
        bytes.extend_from_slice(x.element(offset(x.shape(), &from(&index))));
    }
    Expected::Bits(Array::new(spec(x.dtype(), shape), bytes))
}

/// Where the element that broadcasts to `index` lies in a tensor of `shape`.
pub fn broadcast_offset(shape: &[usize], index: &[usize]) -> usize {
    let skipped = index.len() - shape.len();
    let own: Vec<_> =
        shape.iter().zip(&index[skipped..]).map(|(&d, &i)| if d == 1 { 0 } else { i }).collect();
    offset(shape, &own)
}

pub fn reshape(x: &Array, shape: &[usize]) -> Expected {
    Expected::Bits(Array::new(spec(x.dtype(), shape), x.bytes.clone()))
}

pub fn transpose(x: &Array, axes: &[usize]) -> Expected {
    let shape: Vec<_> = axes.iter().map(|&a| x.shape()[a]).collect();
    gather(x, &shape, |index| {
        let mut from = vec![0; axes.len()];
        for (i, &a) in index.iter().zip(axes) {
            from[a] = *i;
        }
        from
    })
}

pub fn broadcast(x: &Array, shape: &[usize]) -> Expected {
    let mut bytes = Vec::new();
    for index in indices(shape) {
        bytes.extend_from_slice(x.element(broadcast_offset(x.shape(), &index)));
    }
    Expected::Bits(Array::new(spec(x.dtype(), shape), bytes))
}

/// The index on each axis of step `i` from the start, where a start that would run over the end is
/// moved back, or before the beginning moved up, until `lengths` steps fit.
struct Window<'a> {
    shape: &'a [usize],
    starts: Vec<i128>,
    lengths: &'a [usize],
    strides: &'a [usize],
    /// The axis that is a ring.
    ring: Option<usize>,
}

impl<'a> Window<'a> {
    fn new(
        x: &'a Array,
        starts: &[i64],
        position: Option<&Array>,
        axis: i64,
        wrap: bool,
        lengths: &'a [usize],
        strides: &'a [usize],
    ) -> Self {
        let shape = x.shape();
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis } as usize;
        let mut starts: Vec<i128> = starts.iter().map(|&s| s.into()).collect();
        if let Some(p) = position {
            starts[axis] += i128::from(p.to_i64()[0]);
        }
        Window { shape, starts, lengths, strides, ring: wrap.then_some(axis) }
    }

    fn at(&self, index: &[usize]) -> Vec<usize> {
        (0..index.len())
            .map(|a| {
                let dim = self.shape[a] as i128;
                let step = (index[a] * self.strides[a]) as i128;
                if self.ring == Some(a) {
                    return (self.starts[a] + step).rem_euclid(dim) as usize;
                }
                let reach = ((self.lengths[a] - 1) * self.strides[a] + 1) as i128;
                (self.starts[a].clamp(0, dim - reach) + step) as usize
            })
            .collect()
    }
}

pub fn slice(attrs: &Slice, x: &Array, position: Option<&Array>) -> Expected {
    let window = Window::new(
        x,
        &attrs.starts,
        position,
        attrs.axis,
        attrs.wrap,
        &attrs.lengths,
        &attrs.strides,
    );
    gather(x, &attrs.lengths, |index| window.at(index))
}

pub fn put_slice(attrs: &PutSlice, x: &Array, s: &Array, position: Option<&Array>) -> Expected {
    let ones = vec![1; s.shape().len()];
    let window = Window::new(x, &attrs.starts, position, attrs.axis, attrs.wrap, s.shape(), &ones);
    let mut bytes = x.bytes.clone();
    let size = x.dtype().size();
    for (i, index) in indices(s.shape()).iter().enumerate() {
        let at = offset(x.shape(), &window.at(index)) * size;
        bytes[at..at + size].copy_from_slice(s.element(i));
    }
    Expected::Bits(Array::new(x.spec.clone(), bytes))
}

pub fn concatenate(axis: i64, all: &[&Array]) -> Expected {
    let rank = all[0].shape().len();
    let axis = if axis < 0 { axis + rank as i64 } else { axis } as usize;
    let mut shape = all[0].shape().to_vec();
    shape[axis] = all.iter().map(|a| a.shape()[axis]).sum();
    let mut bytes = Vec::new();
    for mut index in indices(&shape) {
        let part = all
            .iter()
            .find(|part| {
                let inside = index[axis] < part.shape()[axis];
                if !inside {
                    index[axis] -= part.shape()[axis];
                }
                inside
            })
            .unwrap();
        bytes.extend_from_slice(part.element(offset(part.shape(), &index)));
    }
    Expected::Bits(Array::new(spec(all[0].dtype(), &shape), bytes))
}
