//! The rules of the ops that make, move and address elements by their place.

use super::{Inputs, distinct_axes, normalize_axis};
use crate::error::{Error, Result};
use crate::op::{Cast, Indexed, Iota, Pad, Reverse};
use crate::spec::{DType, Spec};

pub(super) fn iota(inputs: &Inputs, attrs: &Iota) -> Result<Vec<Spec>> {
    inputs.count(0, 0)?;
    let out = Spec::new(attrs.r#type, attrs.shape.clone())?;
    if let Some(axis) = attrs.axis {
        normalize_axis(inputs.op, axis, out.rank())?;
    }
    Ok(vec![out])
}

pub(super) fn pad(inputs: &Inputs, attrs: &Pad) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let x = inputs.get(0, "x")?;
    inputs.expect(inputs.get(1, "value")?, "value", x.dtype, &[])?;
    if [attrs.low.len(), attrs.high.len(), attrs.interior.len()] != [x.rank(); 3] {
        return Err(Error::argument(
            inputs.op,
            format!("low, high and interior need one number for each of {} axes", x.rank()),
        ));
    }
    if let Some(i) = attrs.interior.iter().find(|&&i| i < 0) {
        let message = format!("interior must not be negative, got {i}");
        return Err(Error::argument(inputs.op, message));
    }
    let shape = (0..x.rank())
        .map(|a| {
            let lengths = attrs.lengths(a, x.shape()[a]);
            lengths.map(|(_, out)| out).ok_or_else(|| {
                let (low, high, dim) = (attrs.low[a], attrs.high[a], x.shape()[a]);
                let message = format!(
                    "axis {a} of length {dim} with {low} before, {high} behind and {} between has \
                     no length",
                    attrs.interior[a]
                );
                Error::argument(inputs.op, message)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![x.with_shape(shape)?])
}

pub(super) fn reverse(inputs: &Inputs, attrs: &Reverse) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    distinct_axes(inputs.op, &attrs.axes, x.rank())?;
    Ok(vec![x.clone()])
}

/// The indexed axes of x, and the lengths of the others; `n` numbers make an index.
fn addressed(
    inputs: &Inputs,
    attrs: &Indexed,
    x: &Spec,
    indices: &Spec,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let axes = distinct_axes(inputs.op, &attrs.axes, x.rank())?;
    if indices.dtype.is_float() {
        return Err(Error::dtype(inputs.op, "indices", "an integer type", indices.dtype));
    }
    if indices.rank() == 0 || indices.last() != axes.len() {
        let expected = format!("{} long on the last axis, one for each of axes", axes.len());
        return Err(Error::shape(inputs.op, "indices", expected, indices));
    }
    let rest = (0..x.rank()).filter(|a| !axes.contains(a)).map(|a| x.shape()[a]).collect();
    Ok((axes, rest))
}

pub(super) fn gather(inputs: &Inputs, attrs: &Indexed) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let (x, indices) = (inputs.get(0, "x")?, inputs.get(1, "indices")?);
    let (axes, rest) = addressed(inputs, attrs, x, indices)?;
    let mut shape = indices.shape()[..indices.rank() - 1].to_vec();
    shape.extend(rest);
    let out = x.with_shape(shape)?;
    if !out.is_empty() && axes.iter().any(|&a| x.shape()[a] == 0) {
        return Err(Error::shape(inputs.op, "x", "not empty along axes", x));
    }
    Ok(vec![out])
}

pub(super) fn indexed(inputs: &Inputs, attrs: &Indexed) -> Result<Vec<Spec>> {
    inputs.count(3, 3)?;
    let (x, indices) = (inputs.get(0, "x")?, inputs.get(1, "indices")?);
    inputs.rank(indices, "indices", 2, "{rows, numbers of an index}")?;
    let (_, rest) = addressed(inputs, attrs, x, indices)?;
    let mut shape = vec![indices.rows()];
    shape.extend(rest);
    inputs.expect(inputs.get(2, "updates")?, "updates", x.dtype, &shape)?;
    // A row's number is an s32 in the kernels.
    if indices.rows() > i32::MAX as usize {
        return Err(Error::unsupported(inputs.op, "at most 2^31 - 1 rows of indices"));
    }
    Ok(vec![x.clone()])
}

pub(super) fn bitcast(inputs: &Inputs, attrs: &Cast) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    if x.dtype.size() != attrs.r#type.size() {
        let bytes = |t: DType| format!("{t} of {} bytes", t.size());
        let message = format!("{} is not of the size of {}", bytes(attrs.r#type), bytes(x.dtype));
        return Err(Error::argument(inputs.op, message));
    }
    Ok(vec![x.with_dtype(attrs.r#type)?])
}

/// What an axis of a gather or an indexed op does: its place among the numbers of an index, or
/// among the axes that are moved whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Address {
    /// Length and stride, in elements of x, of each number of an index.
    pub indexed: Vec<(usize, usize)>,
    /// Length and stride of each axis that is moved whole.
    pub whole: Vec<(usize, usize)>,
}

impl Address {
    pub fn new(op: &'static str, attrs: &Indexed, x: &Spec) -> Result<Self> {
        let axes = distinct_axes(op, &attrs.axes, x.rank())?;
        let strides = x.strides();
        let both = |a: usize| (x.shape()[a], strides[a]);
        Ok(Address {
            indexed: axes.iter().map(|&a| both(a)).collect(),
            whole: (0..x.rank()).filter(|a| !axes.contains(a)).map(both).collect(),
        })
    }

    /// Elements that one index brings.
    pub fn row(&self) -> usize {
        self.whole.iter().map(|a| a.0).product()
    }
}
