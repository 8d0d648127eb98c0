//! The shape and type rule of every op. Eager calls, traced programs and Nx templates all ask here.

pub(crate) mod attention;
pub(crate) mod index;
pub(crate) mod product;
pub(crate) mod sequence;
pub(crate) mod solve;
pub(crate) mod window;

use crate::error::{Error, Result};
use crate::op::*;
use crate::spec::{DType, Spec, shape_text};

/// The specs of an op's outputs for those of its inputs, or why they do not fit.
pub fn infer(op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Spec>> {
    let inputs = Inputs { op: op.name(), specs: inputs };
    match op {
        Op::Dense(attrs) => dense(&inputs, attrs),
        Op::LayerNorm(attrs) => norm(&inputs, attrs, true),
        Op::RmsNorm(attrs) => norm(&inputs, attrs, false),
        Op::Lstm(attrs) => lstm(&inputs, attrs),
        Op::Gru(attrs) => gru(&inputs, attrs),
        Op::FlashAttention(attrs) => attention::flash(&inputs, attrs),
        Op::CausalConv1d(_) => sequence::causal_conv1d(&inputs),
        Op::SelectiveScan(attrs) => sequence::selective_scan(&inputs, attrs),
        Op::MambaBlock(attrs) => sequence::mamba_block(&inputs, attrs),
        Op::AttentionBlock(attrs) => attention::block(&inputs, attrs),
        Op::RecurrentStack(attrs) => sequence::recurrent_stack(&inputs, attrs),
        Op::DenseStack(attrs) => dense_stack(&inputs, attrs),
        Op::Rope(attrs) => sequence::rope(&inputs, attrs),
        Op::GatedMlp(_) => sequence::gated_mlp(&inputs),
        Op::Embedding(_) => embedding(&inputs),
        Op::Softmax(attrs) => softmax(&inputs, attrs),
        Op::Argmax(attrs) => argmax(&inputs, attrs),
        Op::Sample(attrs) => sample(&inputs, attrs),
        Op::Unary(attrs) => unary(&inputs, attrs),
        Op::Binary(attrs) => binary(&inputs, attrs),
        Op::Select(_) => select(&inputs),
        Op::Cast(attrs) => {
            inputs.count(1, 1)?;
            Ok(vec![inputs.get(0, "x")?.with_dtype(attrs.r#type)?])
        }
        Op::Reshape(attrs) => reshape(&inputs, attrs),
        Op::Transpose(attrs) => transpose(&inputs, attrs),
        Op::Broadcast(attrs) => broadcast_to(&inputs, attrs),
        Op::Slice(attrs) => slice(&inputs, attrs),
        Op::PutSlice(attrs) => put_slice(&inputs, attrs),
        Op::Concatenate(attrs) => concatenate(&inputs, attrs),
        Op::Reduce(attrs) => reduce(&inputs, attrs),
        Op::Dot(attrs) => product::dot(&inputs, attrs),
        Op::TriangularSolve(attrs) => solve::triangular(&inputs, attrs),
        Op::Conv(attrs) => product::conv(&inputs, attrs),
        Op::Iota(attrs) => index::iota(&inputs, attrs),
        Op::Pad(attrs) => index::pad(&inputs, attrs),
        Op::Reverse(attrs) => index::reverse(&inputs, attrs),
        Op::Gather(attrs) => index::gather(&inputs, attrs),
        Op::IndexedAdd(attrs) | Op::IndexedPut(attrs) => index::indexed(&inputs, attrs),
        Op::Bitcast(attrs) => index::bitcast(&inputs, attrs),
        Op::Sort(attrs) => window::sort(&inputs, attrs),
        Op::Cumulative(attrs) => window::cumulative(&inputs, attrs),
        Op::WindowReduce(attrs) => window::reduce(&inputs, attrs),
        Op::WindowScatter(attrs) => window::scatter(&inputs, attrs),
    }
}

/// `axis`, where a negative one counts from the end, as an index below `rank`.
pub fn normalize_axis(op: &'static str, axis: i64, rank: usize) -> Result<usize> {
    let at = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    match at {
        Some(a) if a >= 0 && (a as usize) < rank => Ok(a as usize),
        _ => Err(Error::argument(op, format!("axis {axis} is out of range for {rank} axes"))),
    }
}

/// The reduced axes of a `Reduce`, sorted; all of them where none are named.
pub fn reduced_axes(attrs: &Reduce, rank: usize) -> Result<Vec<usize>> {
    if attrs.axes.is_empty() {
        return Ok((0..rank).collect());
    }
    let mut axes = distinct_axes("reduce", &attrs.axes, rank)?;
    axes.sort_unstable();
    Ok(axes)
}

/// Axes of which none is named twice, in the order given.
pub fn distinct_axes(op: &'static str, axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    let found = axes.iter().map(|&a| normalize_axis(op, a, rank)).collect::<Result<Vec<_>>>()?;
    if (1..found.len()).any(|i| found[..i].contains(&found[i])) {
        return Err(Error::argument(op, format!("axes {axes:?} repeat")));
    }
    Ok(found)
}

/// The shape two shapes broadcast to: aligned at the last axis, lengths equal or one of them 1.
pub fn broadcast(op: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| {
        (i + s.len()).checked_sub(rank).and_then(|i| s.get(i).copied()).unwrap_or(1)
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::argument(
                op,
                format!("shapes {} and {} do not broadcast", shape_text(a), shape_text(b)),
            )),
        })
        .collect()
}

/// An op's inputs, with the checks that all ops share.
struct Inputs<'a> {
    op: &'static str,
    specs: &'a [Option<&'a Spec>],
}

impl<'a> Inputs<'a> {
    fn count(&self, at_least: usize, at_most: usize) -> Result<()> {
        let n = self.specs.len();
        if n < at_least || n > at_most {
            let expected = if at_least == at_most {
                at_least.to_string()
            } else {
                format!("{at_least} to {at_most}")
            };
            return Err(Error::argument(self.op, format!("takes {expected} inputs, got {n}")));
        }
        Ok(())
    }

    fn optional(&self, i: usize) -> Option<&'a Spec> {
        self.specs.get(i).copied().flatten()
    }

    fn get(&self, i: usize, what: &str) -> Result<&'a Spec> {
        self.optional(i).ok_or_else(|| Error::argument(self.op, format!("{what} is missing")))
    }

    /// The input that gives the network type: f32, bf16 or f16, of at least `rank` axes.
    fn network(&self, i: usize, what: &str) -> Result<&'a Spec> {
        let spec = self.get(i, what)?;
        if !spec.dtype.is_network() {
            return Err(Error::dtype(self.op, what, "{:f, 32}, {:bf, 16} or {:f, 16}", spec.dtype));
        }
        Ok(spec)
    }

    fn expect(&self, spec: &Spec, what: &str, dtype: DType, shape: &[usize]) -> Result<()> {
        if spec.dtype != dtype {
            return Err(Error::dtype(self.op, what, dtype, spec.dtype));
        }
        self.expect_shape(spec, what, shape)
    }

    fn expect_shape(&self, spec: &Spec, what: &str, shape: &[usize]) -> Result<()> {
        if spec.shape() != shape {
            return Err(Error::shape(self.op, what, shape_text(shape), spec));
        }
        Ok(())
    }

    fn rank(&self, spec: &Spec, what: &str, rank: usize, axes: &str) -> Result<()> {
        if spec.rank() != rank {
            return Err(Error::shape(self.op, what, axes, spec));
        }
        Ok(())
    }

    fn at_least_one_axis(&self, spec: &Spec, what: &str) -> Result<()> {
        if spec.rank() == 0 {
            return Err(Error::shape(self.op, what, "of at least one axis", spec));
        }
        Ok(())
    }

    fn index(&self, i: usize, what: &str) -> Result<()> {
        match self.optional(i) {
            Some(spec) => self.expect(spec, what, DType::S32, &[]),
            None => Ok(()),
        }
    }
}

fn with_last(spec: &Spec, last: usize) -> Result<Spec> {
    let mut shape = spec.shape().to_vec();
    if let Some(l) = shape.last_mut() {
        *l = last;
    }
    spec.with_shape(shape)
}

/// Gamma, and a layer norm's beta, at `at` and behind it, where the op does a norm of x itself.
fn fused_norm(inputs: &Inputs, norm: Option<FusedNorm>, at: usize, x: &Spec) -> Result<()> {
    let Some(norm) = norm else { return Ok(()) };
    check_epsilon(inputs.op, norm.epsilon)?;
    inputs.expect(inputs.get(at, "gamma")?, "gamma", x.dtype, &[x.last()])?;
    match inputs.optional(at + 1) {
        Some(beta) => inputs.expect(beta, "beta", x.dtype, &[x.last()])?,
        None if norm.centred => return Err(Error::argument(inputs.op, "beta is missing")),
        None => {}
    }
    Ok(())
}

fn check_epsilon(op: &'static str, epsilon: f64) -> Result<()> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(
        op,
        format!("epsilon must be a finite number that is not negative, got {epsilon}"),
    ))
}

fn dense(inputs: &Inputs, attrs: &Dense) -> Result<Vec<Spec>> {
    inputs.count(2, if attrs.norm.is_some() { 6 } else { 4 })?;
    let x = inputs.network(0, "x")?;
    let w = inputs.get(1, "w")?;
    inputs.at_least_one_axis(x, "x")?;
    fused_norm(inputs, attrs.norm, 4, x)?;
    inputs.rank(w, "w", 2, "{in, out}")?;
    inputs.expect(w, "w", x.dtype, &[x.last(), w.last()])?;
    if let Some(b) = inputs.optional(2) {
        inputs.expect(b, "b", x.dtype, &[w.last()])?;
    }
    let out = with_last(x, w.last())?;
    if let Some(r) = inputs.optional(3) {
        inputs.expect(r, "residual", x.dtype, out.shape())?;
    }
    Ok(vec![out])
}

fn dense_stack(inputs: &Inputs, attrs: &DenseStack) -> Result<Vec<Spec>> {
    let layers = attrs.layers.len();
    let count = 1 + layers.saturating_mul(DenseStack::EACH);
    inputs.count(count, count)?;
    let mut x = inputs.network(0, "x")?.clone();
    for (i, layer) in attrs.layers.iter().enumerate() {
        let [w, b, residual, gamma, beta] = DenseStack::places(i).map(|at| inputs.optional(at));
        if residual.is_some() && i + 1 < layers {
            return Err(Error::argument(inputs.op, "a hidden layer has no residual"));
        }
        let mut own = vec![Some(&x), w, b, residual];
        if layer.norm.is_some() {
            own.extend([gamma, beta]);
        }
        x = infer(&Op::Dense(*layer), &own)?.swap_remove(0);
    }
    Ok(vec![x])
}

fn norm(inputs: &Inputs, attrs: &Norm, beta: bool) -> Result<Vec<Spec>> {
    let residual_at = if beta { 3 } else { 2 };
    inputs.count(residual_at, residual_at + 1)?;
    check_epsilon(inputs.op, attrs.epsilon)?;
    let x = inputs.network(0, "x")?;
    inputs.at_least_one_axis(x, "x")?;
    inputs.expect(inputs.get(1, "gamma")?, "gamma", x.dtype, &[x.last()])?;
    if beta {
        inputs.expect(inputs.get(2, "beta")?, "beta", x.dtype, &[x.last()])?;
    }
    match inputs.optional(residual_at) {
        Some(r) => {
            inputs.expect(r, "residual", x.dtype, x.shape())?;
            Ok(vec![x.clone(), x.clone()])
        }
        None => Ok(vec![x.clone()]),
    }
}

/// What LSTM and GRU share: x, the recurrent weights and the mask. Gives (x, B, T, H).
fn recurrent<'a>(
    inputs: &Inputs<'a>,
    attrs: &Recurrent,
    wi_at: usize,
    gates: usize,
) -> Result<(&'a Spec, usize, usize, usize)> {
    inputs.count(wi_at + 2, wi_at + if attrs.norm.is_some() { 6 } else { 4 })?;
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 3, "{batch, time, features}")?;
    fused_norm(inputs, attrs.norm, wi_at + 4, x)?;
    let (batch, time, features) = (x.shape()[0], x.shape()[1], x.shape()[2]);
    let wh = inputs.get(wi_at + 1, "wh")?;
    inputs.rank(wh, "wh", 2, &format!("{{hidden, {gates} * hidden}}"))?;
    let hidden = wh.shape()[0];
    let packed = hidden.saturating_mul(gates);
    inputs.expect(wh, "wh", x.dtype, &[hidden, packed])?;
    inputs.expect(inputs.get(wi_at, "wi")?, "wi", x.dtype, &[features, packed])?;
    if let Some(b) = inputs.optional(wi_at + 2) {
        inputs.expect(b, "b", x.dtype, &[hidden.saturating_mul(4)])?;
    }
    if let Some(mask) = inputs.optional(wi_at + 3) {
        inputs.expect(mask, "mask", DType::U8, &[batch, time])?;
    }
    Ok((x, batch, time, hidden))
}

/// A state keeps its own type: that of `x`, or f32 to carry it exactly from call to call.
fn state(inputs: &Inputs, i: usize, what: &str, x: &Spec, shape: &[usize]) -> Result<Spec> {
    match inputs.optional(i) {
        None => x.with_shape(shape),
        Some(s) => {
            inputs.expect_shape(s, what, shape)?;
            if s.dtype != x.dtype && s.dtype != DType::F32 {
                let expected = format!("{} or {}", x.dtype, DType::F32);
                return Err(Error::dtype(inputs.op, what, expected, s.dtype));
            }
            Ok(s.clone())
        }
    }
}

fn lstm(inputs: &Inputs, attrs: &Recurrent) -> Result<Vec<Spec>> {
    let (x, batch, time, hidden) = recurrent(inputs, attrs, 3, 4)?;
    let c = state(inputs, 1, "c0", x, &[batch, hidden])?;
    let h = state(inputs, 2, "h0", x, &[batch, hidden])?;
    if c.dtype != h.dtype {
        return Err(Error::dtype(inputs.op, "h0", c.dtype, h.dtype));
    }
    Ok(vec![x.with_shape([batch, time, hidden])?, c, h])
}

fn gru(inputs: &Inputs, attrs: &Recurrent) -> Result<Vec<Spec>> {
    let (x, batch, time, hidden) = recurrent(inputs, attrs, 2, 3)?;
    let h = state(inputs, 1, "h0", x, &[batch, hidden])?;
    Ok(vec![x.with_shape([batch, time, hidden])?, h])
}

fn embedding(inputs: &Inputs) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let table = inputs.network(0, "table")?;
    inputs.rank(table, "table", 2, "{vocabulary, features}")?;
    let ids = inputs.get(1, "ids")?;
    if ids.dtype.is_float() {
        return Err(Error::dtype(inputs.op, "ids", "an integer type", ids.dtype));
    }
    let mut shape = ids.shape().to_vec();
    shape.push(table.last());
    Ok(vec![table.with_shape(shape)?])
}

fn softmax(inputs: &Inputs, attrs: &Softmax) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.network(0, "x")?;
    normalize_axis(inputs.op, attrs.axis, x.rank())?;
    Ok(vec![x.clone()])
}

fn argmax(inputs: &Inputs, attrs: &Argmax) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let axis = normalize_axis(inputs.op, attrs.axis, x.rank())?;
    let mut shape = x.shape().to_vec();
    if shape[axis] == 0 {
        return Err(Error::shape(inputs.op, format!("axis {axis} of x"), "not empty", x));
    }
    if shape[axis] > i32::MAX as usize {
        return Err(Error::unsupported(inputs.op, "an axis is at most 2^31 - 1 long"));
    }
    if attrs.keep_axis {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    Ok(vec![Spec::new(DType::S32, shape)?])
}

fn sample(inputs: &Inputs, attrs: &Sample) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let logits = inputs.network(0, "logits")?;
    inputs.at_least_one_axis(logits, "logits")?;
    if logits.last() == 0 || logits.last() > i32::MAX as usize {
        return Err(Error::shape(
            inputs.op,
            "logits",
            "1 to 2^31 - 1 long on the last axis",
            logits,
        ));
    }
    inputs.expect(inputs.get(1, "counter")?, "counter", DType::S32, &[])?;
    let bad = |what: &str, expected: &str, got: String| {
        Err(Error::argument(inputs.op, format!("{what} must be {expected}, got {got}")))
    };
    if !(attrs.temperature.is_finite() && attrs.temperature >= 0.0) {
        return bad(
            "temperature",
            "a finite number that is not negative",
            attrs.temperature.to_string(),
        );
    }
    if attrs.top_k == Some(0) {
        return bad("top_k", "at least 1", "0".into());
    }
    if let Some(p) = attrs.top_p
        && !(p > 0.0 && p <= 1.0)
    {
        return bad("top_p", "above 0 and at most 1", p.to_string());
    }
    let ids = Spec::new(DType::S32, &logits.shape()[..logits.rank() - 1])?;
    Ok(vec![ids, Spec::scalar(DType::S32)])
}

fn unary(inputs: &Inputs, attrs: &Unary) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    match attrs.kind {
        kind if kind.is_predicate() => return Ok(vec![x.with_dtype(DType::U8)?]),
        UnaryKind::Negate | UnaryKind::Abs | UnaryKind::Sign | UnaryKind::Relu => {}
        kind if kind.is_bitwise() != x.dtype.is_float() => {}
        kind if kind.is_bitwise() => {
            return Err(Error::dtype(inputs.op, "x", "an integer type", x.dtype));
        }
        _ => return Err(Error::dtype(inputs.op, "x", "a float type", x.dtype)),
    }
    Ok(vec![x.clone()])
}

fn binary(inputs: &Inputs, attrs: &Binary) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let (a, b) = (inputs.get(0, "a")?, inputs.get(1, "b")?);
    if b.dtype != a.dtype {
        return Err(Error::dtype(inputs.op, "b", a.dtype, b.dtype));
    }
    match attrs.kind {
        BinaryKind::Divide if !a.dtype.is_float() => {
            return Err(Error::dtype(
                inputs.op,
                "a",
                "a float type (quotient divides integers)",
                a.dtype,
            ));
        }
        BinaryKind::Quotient if a.dtype.is_float() => {
            return Err(Error::dtype(
                inputs.op,
                "a",
                "an integer type (divide divides floats)",
                a.dtype,
            ));
        }
        BinaryKind::Atan2 if !a.dtype.is_float() => {
            return Err(Error::dtype(inputs.op, "a", "a float type", a.dtype));
        }
        kind if kind.is_bitwise() && a.dtype.is_float() => {
            return Err(Error::dtype(inputs.op, "a", "an integer type", a.dtype));
        }
        _ => {}
    }
    let shape = broadcast(inputs.op, a.shape(), b.shape())?;
    let dtype = if attrs.kind.is_predicate() { DType::U8 } else { a.dtype };
    Ok(vec![Spec::new(dtype, shape)?])
}

fn select(inputs: &Inputs) -> Result<Vec<Spec>> {
    inputs.count(3, 3)?;
    let predicate = inputs.get(0, "predicate")?;
    if predicate.dtype != DType::U8 {
        return Err(Error::dtype(inputs.op, "predicate", DType::U8, predicate.dtype));
    }
    let (a, b) = (inputs.get(1, "on_true")?, inputs.get(2, "on_false")?);
    if b.dtype != a.dtype {
        return Err(Error::dtype(inputs.op, "on_false", a.dtype, b.dtype));
    }
    let shape = broadcast(inputs.op, a.shape(), b.shape())?;
    let shape = broadcast(inputs.op, &shape, predicate.shape())?;
    Ok(vec![Spec::new(a.dtype, shape)?])
}

fn reshape(inputs: &Inputs, attrs: &Reshape) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let out = x.with_shape(attrs.shape.clone())?;
    if out.len() != x.len() {
        return Err(Error::argument(
            inputs.op,
            format!(
                "{} has {} elements, {} has {}",
                x.shape_text(),
                x.len(),
                out.shape_text(),
                out.len()
            ),
        ));
    }
    Ok(vec![out])
}

fn transpose(inputs: &Inputs, attrs: &Transpose) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let mut sorted = attrs.axes.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.rank()) {
        return Err(Error::argument(
            inputs.op,
            format!("axes must name each of 0..{} once, got {:?}", x.rank(), attrs.axes),
        ));
    }
    let shape: Vec<_> = attrs.axes.iter().map(|&a| x.shape()[a]).collect();
    Ok(vec![x.with_shape(shape)?])
}

fn broadcast_to(inputs: &Inputs, attrs: &Reshape) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    if broadcast(inputs.op, x.shape(), &attrs.shape)? != attrs.shape {
        return Err(Error::shape(
            inputs.op,
            "x",
            format!("a shape that broadcasts to {}", shape_text(&attrs.shape)),
            x,
        ));
    }
    Ok(vec![x.with_shape(attrs.shape.clone())?])
}

fn slice(inputs: &Inputs, attrs: &Slice) -> Result<Vec<Spec>> {
    inputs.count(1, 2)?;
    let x = inputs.get(0, "x")?;
    inputs.index(1, "position")?;
    let axis = normalize_axis(inputs.op, attrs.axis, x.rank())?;
    if [attrs.starts.len(), attrs.lengths.len(), attrs.strides.len()] != [x.rank(); 3] {
        return Err(Error::argument(
            inputs.op,
            format!("starts, lengths and strides need one number for each of {} axes", x.rank()),
        ));
    }
    for i in 0..x.rank() {
        let (dim, length, stride) = (x.shape()[i], attrs.lengths[i], attrs.strides[i]);
        if stride == 0 {
            return Err(Error::argument(inputs.op, "a stride must be at least 1"));
        }
        let reach = length.saturating_sub(1).checked_mul(stride).and_then(|r| r.checked_add(1));
        let wraps = attrs.wrap && i == axis;
        if length > 0 && !reach.is_some_and(|r| r <= dim || (wraps && dim > 0)) {
            return Err(Error::argument(
                inputs.op,
                format!(
                    "length {length} with stride {stride} does not fit axis {i} of {}",
                    x.shape_text()
                ),
            ));
        }
    }
    Ok(vec![x.with_shape(attrs.lengths.clone())?])
}

fn put_slice(inputs: &Inputs, attrs: &PutSlice) -> Result<Vec<Spec>> {
    inputs.count(2, 3)?;
    let (x, s) = (inputs.get(0, "x")?, inputs.get(1, "slice")?);
    inputs.index(2, "position")?;
    normalize_axis(inputs.op, attrs.axis, x.rank())?;
    if s.dtype != x.dtype {
        return Err(Error::dtype(inputs.op, "slice", x.dtype, s.dtype));
    }
    if attrs.starts.len() != x.rank() {
        return Err(Error::argument(
            inputs.op,
            format!("starts needs one number for each of {} axes", x.rank()),
        ));
    }
    if s.rank() != x.rank() || s.shape().iter().zip(x.shape()).any(|(s, x)| s > x) {
        return Err(Error::shape(inputs.op, "slice", format!("to fit into {}", x.shape_text()), s));
    }
    Ok(vec![x.clone()])
}

fn concatenate(inputs: &Inputs, attrs: &Concatenate) -> Result<Vec<Spec>> {
    let first = inputs.get(0, "the first tensor")?;
    let axis = normalize_axis(inputs.op, attrs.axis, first.rank())?;
    let mut shape = first.shape().to_vec();
    for i in 1..inputs.specs.len() {
        let next = inputs.get(i, "a tensor")?;
        if next.dtype != first.dtype {
            return Err(Error::dtype(inputs.op, format!("tensor {i}"), first.dtype, next.dtype));
        }
        let fits = next.rank() == first.rank()
            && (0..shape.len()).all(|a| a == axis || next.shape()[a] == shape[a]);
        if !fits {
            return Err(Error::shape(
                inputs.op,
                format!("tensor {i}"),
                format!("{} but for axis {axis}", first.shape_text()),
                next,
            ));
        }
        shape[axis] = shape[axis]
            .checked_add(next.shape()[axis])
            .ok_or_else(|| Error::argument(inputs.op, "the size overflows"))?;
    }
    Ok(vec![first.with_shape(shape)?])
}

fn reduce(inputs: &Inputs, attrs: &Reduce) -> Result<Vec<Spec>> {
    inputs.count(1, 1)?;
    let x = inputs.get(0, "x")?;
    let axes = reduced_axes(attrs, x.rank())?;
    let empty = axes.iter().any(|&a| x.shape()[a] == 0);
    match attrs.kind {
        ReduceKind::Mean if !x.dtype.is_float() => {
            return Err(Error::dtype(inputs.op, "x", "a float type", x.dtype));
        }
        ReduceKind::Max | ReduceKind::Min if empty => {
            return Err(Error::shape(inputs.op, "x", "not empty on the reduced axes", x));
        }
        _ => {}
    }
    let mut shape = Vec::with_capacity(x.rank());
    for (a, &dim) in x.shape().iter().enumerate() {
        if !axes.contains(&a) {
            shape.push(dim);
        } else if attrs.keep_axes {
            shape.push(1);
        }
    }
    let dtype = if attrs.kind.is_predicate() { DType::U8 } else { x.dtype };
    Ok(vec![Spec::new(dtype, shape)?])
}
