//! The rules of `sort`, `cumulative` and the ops with a window.

use super::{Inputs, normalize_axis};
use crate::error::{Error, Result};
use crate::op::{Cumulative, Sort, WindowReduce, WindowScatter};
use crate::spec::{DType, Spec};

pub(super) fn sort(inputs: &Inputs, attrs: &Sort) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let axis = normalize_axis(inputs.op, attrs.axis, x.rank())?;
    if x.shape()[axis] > i32::MAX as usize {
        return Err(Error::unsupported(inputs.op, "an axis is at most 2^31 - 1 long"));
    }
    Ok(vec![if attrs.indices { x.with_dtype(DType::S32)? } else { x.clone() }])
}

pub(super) fn cumulative(inputs: &Inputs, attrs: &Cumulative) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    normalize_axis(inputs.op, attrs.axis, x.rank())?;
    Ok(vec![x.clone()])
}

pub(super) fn reduce(inputs: &Inputs, attrs: &WindowReduce) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let along = frame_of(inputs.op, attrs, x)?;
    Ok(vec![x.with_shape(along.iter().map(|a| a.places).collect::<Vec<_>>())?])
}

pub(super) fn scatter(inputs: &Inputs, attrs: &WindowScatter) -> Result<Vec<Spec>> {
    inputs.count(3, 3)?;
    let x = inputs.get(0, "x")?;
    let shape: Vec<_> = scatter_frame(inputs.op, attrs, x)?.iter().map(|a| a.places).collect();
    inputs.expect(inputs.get(1, "source")?, "source", x.dtype, &shape)?;
    inputs.expect(inputs.get(2, "init")?, "init", x.dtype, &[])?;
    Ok(vec![x.clone()])
}

/// How a window goes along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Along {
    /// Of x.
    pub length: usize,
    /// Where the window can stand.
    pub places: usize,
    pub window: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Elements before the first; negative where some take no part.
    pub low: i64,
    /// The first element behind those that take part.
    pub end: usize,
}

impl Along {
    /// Whether the window does nothing along it.
    fn is_still(&self) -> bool {
        self.window == 1 && self.stride == 1 && self.low == 0 && self.end == self.length
    }

    /// The first element that takes part.
    pub fn begin(&self) -> usize {
        self.low.min(0).unsigned_abs() as usize
    }
}

pub(crate) fn frame_of(op: &'static str, attrs: &WindowReduce, x: &Spec) -> Result<Vec<Along>> {
    frame(op, x, &attrs.window, &attrs.strides, &attrs.padding, &attrs.dilations)
}

pub(crate) fn scatter_frame(
    op: &'static str,
    attrs: &WindowScatter,
    x: &Spec,
) -> Result<Vec<Along>> {
    let dilations = vec![1; attrs.window.len()];
    frame(op, x, &attrs.window, &attrs.strides, &attrs.padding, &dilations)
}

fn frame(
    op: &'static str,
    x: &Spec,
    window: &[usize],
    strides: &[usize],
    padding: &[(i64, i64)],
    dilations: &[usize],
) -> Result<Vec<Along>> {
    if [window.len(), strides.len(), padding.len(), dilations.len()] != [x.rank(); 4] {
        let message = format!(
            "window, strides, padding and dilations need an entry for each of {} axes",
            x.rank()
        );
        return Err(Error::argument(op, message));
    }
    let along = |a: usize| {
        let (length, (low, high)) = (x.shape()[a], padding[a]);
        let (window, stride, dilation) = (window[a], strides[a], dilations[a]);
        if window == 0 || stride == 0 || dilation == 0 {
            let message = "windows, strides and dilations are at least 1";
            return Err(Error::argument(op, message));
        }
        let padded = length as i128 + i128::from(low) + i128::from(high);
        let reach = (window as i128 - 1) * dilation as i128 + 1;
        // Both bounds keep every index within an i64.
        const FAR: i128 = 1 << 62;
        if padded < reach || padded > FAR || i128::from(low) < -FAR || i128::from(low) > FAR {
            let message = format!(
                "a window of {window}, {dilation} apart, does not fit axis {a} of {} with {low} \
                 before and {high} behind",
                x.shape_text()
            );
            return Err(Error::argument(op, message));
        }
        let end = (length as i128 + i128::from(high.min(0))).max(0);
        Ok(Along {
            length,
            places: ((padded - reach) / stride as i128 + 1) as usize,
            window,
            stride,
            dilation,
            low,
            end: end as usize,
        })
    };
    // So that a kernel can count them.
    let elements = window.iter().try_fold(1i64, |n, &w| n.checked_mul(i64::try_from(w).ok()?));
    if elements.is_none() {
        return Err(Error::unsupported(op, "a window has at most 2^63 - 1 elements"));
    }
    (0..x.rank()).map(along).collect()
}

/// Without axes of length 1 along which the window does nothing, and with neighbours of that kind
/// joined.
pub(crate) fn collapse(along: Vec<Along>) -> Vec<Along> {
    let mut out: Vec<Along> = Vec::with_capacity(along.len());
    for next in along {
        match out.last_mut() {
            _ if next.is_still() && next.length == 1 => {}
            Some(last) if last.is_still() && next.is_still() => {
                let length = last.length * next.length;
                *last = Along { length, places: length, end: length, ..*last };
            }
            _ => out.push(next),
        }
    }
    out
}
