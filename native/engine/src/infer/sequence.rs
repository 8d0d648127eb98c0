//! The rules of `causal_conv1d`, `selective_scan`, the block around them, `rope` and `gated_mlp`.

use super::{Inputs, fused_norm, infer};
use crate::error::{Error, Result};
use crate::op::{MambaBlock, RecurrentStack, Rope, SelectiveScan};
use crate::spec::{DType, Spec};

/// The most frames that a convolution looks at.
pub const MAX_TAPS: usize = 16;
/// The most states that a channel has.
pub const MAX_STATES: usize = 256;

pub(super) fn causal_conv1d(inputs: &Inputs) -> Result<Vec<Spec>> {
    inputs.count(2, 4)?;
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 3, "{batch, length, channels}")?;
    let (batch, channels) = (x.shape()[0], x.shape()[2]);
    let w = inputs.get(1, "w")?;
    inputs.rank(w, "w", 2, "{taps, channels}")?;
    let taps = w.shape()[0];
    if taps == 0 || taps > MAX_TAPS {
        return Err(Error::unsupported(
            inputs.op,
            format!("w has 1 to {MAX_TAPS} taps (its first axis), got {taps}"),
        ));
    }
    inputs.expect(w, "w", x.dtype, &[taps, channels])?;
    if let Some(b) = inputs.optional(2) {
        inputs.expect(b, "b", x.dtype, &[channels])?;
    }
    let state = [batch, taps - 1, channels];
    if let Some(s) = inputs.optional(3) {
        inputs.expect(s, "state", x.dtype, &state)?;
    }
    Ok(vec![x.clone(), x.with_shape(state)?])
}

pub(super) fn selective_scan(inputs: &Inputs, attrs: &SelectiveScan) -> Result<Vec<Spec>> {
    inputs.count(5, 12)?;
    if let Some((low, high)) = attrs.dt_clamp
        && !(low.is_finite() && high.is_finite() && low <= high)
    {
        return Err(Error::argument(
            inputs.op,
            format!("dt_clamp must be two finite numbers in order, got {low} and {high}"),
        ));
    }
    if !(attrs.epsilon.is_finite() && attrs.epsilon >= 0.0) {
        return Err(Error::argument(
            inputs.op,
            format!("epsilon must be a finite number that is not negative, got {}", attrs.epsilon),
        ));
    }
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 3, "{batch, length, channels}")?;
    let &[batch, length, channels] = x.shape() else {
        return Err(Error::Internal("x of another rank".into()));
    };
    inputs.expect(inputs.get(1, "dt")?, "dt", x.dtype, x.shape())?;
    let a = inputs.get(2, "a")?;
    inputs.rank(a, "a", 2, "{channels, states}")?;
    let states = a.last();
    if states > MAX_STATES {
        return Err(Error::unsupported(
            inputs.op,
            format!("a channel has at most {MAX_STATES} states, got {states}"),
        ));
    }
    parameter(inputs, 2, "a", x, &[channels, states])?;
    for (i, what) in [(3, "b"), (4, "c")] {
        inputs.expect(inputs.get(i, what)?, what, x.dtype, &[batch, length, states])?;
    }
    parameter(inputs, 5, "d", x, &[channels])?;
    parameter(inputs, 7, "dt_bias", x, &[channels])?;
    for (i, what) in [(6, "z"), (9, "residual")] {
        if let Some(spec) = inputs.optional(i) {
            inputs.expect(spec, what, x.dtype, x.shape())?;
        }
    }
    let h = Spec::new(DType::F32, [batch, channels, states])?;
    if let Some(state) = inputs.optional(8) {
        inputs.expect(state, "state", DType::F32, h.shape())?;
    }
    for (i, what) in [(10, "gamma"), (11, "beta")] {
        match (inputs.optional(i), attrs.norm) {
            (Some(spec), Some(_)) => inputs.expect(spec, what, x.dtype, &[channels])?,
            (Some(_), None) => {
                return Err(Error::argument(inputs.op, format!("{what} without a norm")));
            }
            (None, Some(crate::op::NormKind::LayerNorm)) => {
                return Err(Error::argument(inputs.op, format!("{what} is missing")));
            }
            (None, Some(_)) if i == 10 => {
                return Err(Error::argument(inputs.op, "gamma is missing"));
            }
            (None, _) => {}
        }
    }
    Ok(match attrs.norm {
        None => vec![x.clone(), h],
        Some(_) => vec![x.clone(), x.clone(), h],
    })
}

/// An optional parameter of the layer: of the type of `x`, or f32 as such are often kept.
fn parameter(inputs: &Inputs, i: usize, what: &str, x: &Spec, shape: &[usize]) -> Result<()> {
    let Some(spec) = inputs.optional(i) else { return Ok(()) };
    inputs.expect_shape(spec, what, shape)?;
    if spec.dtype != x.dtype && spec.dtype != DType::F32 {
        let expected = match x.dtype {
            DType::F32 => DType::F32.to_string(),
            other => format!("{other} or {}", DType::F32),
        };
        return Err(Error::dtype(inputs.op, what, expected, spec.dtype));
    }
    Ok(())
}

pub(super) fn mamba_block(inputs: &Inputs, attrs: &MambaBlock) -> Result<Vec<Spec>> {
    inputs.count(14, 15)?;
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 3, "{batch, 1, width}")?;
    let (batch, width) = (x.shape()[0], x.last());
    fused_norm(inputs, Some(attrs.norm), 13, x)?;
    let a = inputs.get(7, "a")?;
    inputs.rank(a, "a", 2, "{channels, states}")?;
    let (inner, states) = (a.rows(), a.last());
    let (conv, dt) = (inputs.get(2, "conv")?, inputs.get(5, "dt_proj")?);
    inputs.rank(conv, "conv", 2, "{taps, channels}")?;
    inputs.rank(dt, "dt_proj", 2, "{rank, channels}")?;
    let (taps, rank) = (conv.shape()[0], dt.shape()[0]);
    let overflow = || Error::argument(inputs.op, "sizes overflow");
    let double = inner.checked_mul(2).ok_or_else(overflow)?;
    let wide = states.checked_mul(2).and_then(|n| n.checked_add(rank)).ok_or_else(overflow)?;
    if taps == 0 || taps > MAX_TAPS || states > MAX_STATES {
        return Err(Error::unsupported(inputs.op, "1 to 16 taps and at most 256 states"));
    }
    let frames = x.with_shape([batch, taps - 1, inner])?;
    let h = Spec::new(DType::F32, [batch, inner, states])?;
    let row = [batch, 1, width];
    inputs.expect(x, "x", x.dtype, &row)?;
    for (i, what, shape) in [
        (1, "in", &[width, double][..]),
        (2, "conv", &[taps, inner]),
        (3, "conv_b", &[inner]),
        (4, "x_proj", &[inner, wide]),
        (5, "dt_proj", &[rank, inner]),
        (9, "out", &[inner, width]),
        (10, "residual", &row),
        (11, "frames", frames.shape()),
    ] {
        match inputs.optional(i) {
            Some(spec) => inputs.expect(spec, what, x.dtype, shape)?,
            None if [3, 10, 11].contains(&i) => {}
            None => return Err(Error::argument(inputs.op, format!("{what} is missing"))),
        }
    }
    parameter(inputs, 6, "dt_bias", x, &[inner])?;
    parameter(inputs, 7, "a", x, &[inner, states])?;
    parameter(inputs, 8, "d", x, &[inner])?;
    if let Some(state) = inputs.optional(12) {
        inputs.expect(state, "state", DType::F32, h.shape())?;
    }
    Ok(vec![x.clone(), frames, h])
}

pub(super) fn recurrent_stack(inputs: &Inputs, attrs: &RecurrentStack) -> Result<Vec<Spec>> {
    let layers = attrs.norms.len();
    let count = 1 + layers.saturating_mul(RecurrentStack::EACH);
    inputs.count(count, count)?;
    let (mut x, mut states) = (inputs.get(0, "x")?.clone(), Vec::new());
    for layer in 0..layers {
        let own = attrs.inputs_of(layer, Some(&x), inputs.specs);
        let mut made = infer(&attrs.layer(layer), &own)?;
        states.extend(made.drain(1..));
        x = made.swap_remove(0);
    }
    states.insert(0, x);
    Ok(states)
}

pub(super) fn rope(inputs: &Inputs, attrs: &Rope) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 4, "{batch, length, heads, features}")?;
    let (batch, length, features) = (x.shape()[0], x.shape()[1], x.shape()[3]);
    let dims = attrs.dims.unwrap_or(features);
    if !dims.is_multiple_of(2) || dims > features {
        return Err(Error::argument(
            inputs.op,
            format!("dims must be even and at most the {features} features of x, got {dims}"),
        ));
    }
    if !(attrs.base.is_finite() && attrs.base > 0.0) {
        return Err(Error::argument(
            inputs.op,
            format!("base must be a finite number above 0, got {}", attrs.base),
        ));
    }
    if !attrs.scale.is_finite() {
        return Err(Error::argument(
            inputs.op,
            format!("scale must be a finite number, got {}", attrs.scale),
        ));
    }
    let positions = inputs.get(1, "positions")?;
    if positions.dtype != DType::S32 {
        return Err(Error::dtype(inputs.op, "positions", DType::S32, positions.dtype));
    }
    let shape = positions.shape();
    if !shape.is_empty() && shape != [length] && shape != [batch, length] {
        let expected = format!("{{{batch}, {length}}}, {{{length}}} or {{}}");
        return Err(Error::shape(inputs.op, "positions", expected, positions));
    }
    Ok(vec![x.clone()])
}

pub(super) fn gated_mlp(inputs: &Inputs) -> Result<Vec<Spec>> {
    inputs.count(4, 5)?;
    let x = inputs.network(0, "x")?;
    inputs.at_least_one_axis(x, "x")?;
    let gate = inputs.get(1, "gate")?;
    inputs.rank(gate, "gate", 2, "{in, hidden}")?;
    let (width, hidden) = (x.last(), gate.last());
    inputs.expect(gate, "gate", x.dtype, &[width, hidden])?;
    inputs.expect(inputs.get(2, "up")?, "up", x.dtype, &[width, hidden])?;
    inputs.expect(inputs.get(3, "down")?, "down", x.dtype, &[hidden, width])?;
    if let Some(r) = inputs.optional(4) {
        inputs.expect(r, "residual", x.dtype, x.shape())?;
    }
    // What lies between the products has to have a size too.
    let mut between = x.shape().to_vec();
    between.pop();
    between.push(hidden);
    x.with_shape(between)?;
    Ok(vec![x.clone()])
}
