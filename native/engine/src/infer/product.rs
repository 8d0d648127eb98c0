//! The rules of `dot` and `conv`, and what they come to: matrices, and windows on an input.

use super::Inputs;
use crate::error::{Error, Result};
use crate::op::{Conv, Dot};
use crate::spec::Spec;

pub(super) fn dot(inputs: &Inputs, attrs: &Dot) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let (a, b) = (inputs.get(0, "a")?, inputs.get(1, "b")?);
    if b.dtype != a.dtype {
        return Err(Error::dtype(inputs.op, "b", a.dtype, b.dtype));
    }
    let batch = attrs.batch_a.len();
    if attrs.contract_a.len() != attrs.contract_b.len() || attrs.batch_b.len() != batch {
        let message = "a and b need as many contracted axes, and as many batch axes, as each other";
        return Err(Error::argument(inputs.op, message));
    }
    for (what, spec, batched, contracted) in
        [("a", a, &attrs.batch_a, &attrs.contract_a), ("b", b, &attrs.batch_b, &attrs.contract_b)]
    {
        if batch > spec.rank() || !batched.iter().copied().eq(0..batch) {
            let message = format!(
                "the batch axes of {what} must be its first ones in order, got {batched:?}"
            );
            return Err(Error::argument(inputs.op, message));
        }
        for (i, axis) in contracted.iter().enumerate() {
            if *axis < batch || *axis >= spec.rank() || contracted[..i].contains(axis) {
                let message = format!(
                    "the contracted axes of {what} must be different ones of {batch}..{}, got \
                     {contracted:?}",
                    spec.rank()
                );
                return Err(Error::argument(inputs.op, message));
            }
        }
    }
    let pairs = attrs.batch_a.iter().zip(&attrs.batch_b);
    for (&i, &j) in pairs.chain(attrs.contract_a.iter().zip(&attrs.contract_b)) {
        if a.shape()[i] != b.shape()[j] {
            let expected = format!("{} long on axis {j}, as a's axis {i} is", a.shape()[i]);
            return Err(Error::shape(inputs.op, "b", expected, b));
        }
    }
    let free_a = free(a, batch, &attrs.contract_a).map(|i| a.shape()[i]);
    let free_b = free(b, batch, &attrs.contract_b).map(|i| b.shape()[i]);
    let shape: Vec<_> = a.shape()[..batch].iter().copied().chain(free_a).chain(free_b).collect();
    Ok(vec![a.with_shape(shape)?])
}

/// The axes that are neither batched nor contracted.
fn free<'a>(
    spec: &Spec,
    batch: usize,
    contracted: &'a [usize],
) -> impl Iterator<Item = usize> + use<'a> {
    (batch..spec.rank()).filter(move |axis| !contracted.contains(axis))
}

/// A `dot` as products {rows, inner} · {inner, columns}, one after another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrices {
    pub batch: usize,
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    /// `free` is along the rows.
    pub a: Operand,
    /// `free` is along the columns.
    pub b: Operand,
}

/// How an operand's elements lie, in elements from one to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operand {
    /// The axes in the order it has to be copied into first, where no strides say how it lies.
    pub order: Option<Vec<usize>>,
    pub batch: usize,
    pub free: usize,
    pub inner: usize,
}

impl Matrices {
    /// Of an op that `infer` has passed.
    pub(crate) fn of(attrs: &Dot, a: &Spec, b: &Spec) -> Self {
        let batch = attrs.batch_a.len();
        // In which order the sum is taken does not matter to its value: of a's and b's own order
        // of the contracted axes, the one that copies less.
        let by = |key: fn(&(usize, usize)) -> usize| {
            let mut pairs: Vec<_> =
                attrs.contract_a.iter().copied().zip(attrs.contract_b.iter().copied()).collect();
            pairs.sort_unstable_by_key(key);
            let (left, right): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let a = Operand::of(a, batch, &left, false);
            let b = Operand::of(b, batch, &right, true);
            (a, b)
        };
        let copied = |(a_is, b_is): &(Operand, Operand)| {
            let count = |operand: &Operand, spec: &Spec| match operand.order {
                Some(_) => spec.len(),
                None => 0,
            };
            count(a_is, a).saturating_add(count(b_is, b))
        };
        let (first, second) = (by(|pair| pair.0), by(|pair| pair.1));
        let (a_is, b_is) = if copied(&second) < copied(&first) { second } else { first };
        let product = |spec: &Spec, axes: &mut dyn Iterator<Item = usize>| -> usize {
            axes.map(|axis| spec.shape()[axis]).product()
        };
        Matrices {
            batch: product(a, &mut (0..batch)),
            rows: product(a, &mut free(a, batch, &attrs.contract_a)),
            inner: product(a, &mut attrs.contract_a.iter().copied()),
            columns: product(b, &mut free(b, batch, &attrs.contract_b)),
            a: a_is,
            b: b_is,
        }
    }

    /// Multiplications, as a number that cannot overflow.
    pub(crate) fn work(&self) -> f64 {
        self.batch as f64 * self.rows as f64 * self.inner as f64 * self.columns as f64
    }
}

impl Operand {
    /// `inner_first`: whether a copy has the contracted axes before the free ones.
    fn of(spec: &Spec, batch: usize, contracted: &[usize], inner_first: bool) -> Self {
        let strides = spec.strides();
        let join = |axes: &[usize]| joined(axes, spec.shape(), &strides);
        let batched: Vec<_> = (0..batch).collect();
        let free: Vec<_> = free(spec, batch, contracted).collect();
        let length = |axes: &[usize]| axes.iter().map(|&i| spec.shape()[i]).product::<usize>();
        if let (Some(batch), Some(free), Some(inner)) =
            (join(&batched), join(&free), join(contracted))
        {
            return Operand { order: None, batch, free, inner };
        }
        let (rows, inner) = (length(&free), length(contracted));
        let (order, free, contracted) = match inner_first {
            true => ([&batched[..], contracted, &free[..]].concat(), 1, rows),
            false => ([&batched[..], &free[..], contracted].concat(), inner, 1),
        };
        Operand { order: Some(order), batch: rows * inner, free, inner: contracted }
    }
}

/// The one stride of these axes as if they were one, if there is one.
fn joined(axes: &[usize], shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut longer = axes.iter().copied().filter(|&i| shape[i] != 1);
    let Some(mut last) = longer.next() else { return Some(1) };
    for next in longer {
        if strides[last] != strides[next] * shape[next] {
            return None;
        }
        last = next;
    }
    Some(strides[last])
}

pub(super) fn conv(inputs: &Inputs, attrs: &Conv) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let (input, kernel) = (inputs.get(0, "input")?, inputs.get(1, "kernel")?);
    if !input.dtype.is_float() {
        return Err(Error::dtype(inputs.op, "input", "a float type", input.dtype));
    }
    if kernel.dtype != input.dtype {
        return Err(Error::dtype(inputs.op, "kernel", input.dtype, kernel.dtype));
    }
    let rank = input.rank();
    if rank < 3 {
        let expected = "{batch, channels, and at least one spatial axis}";
        return Err(Error::shape(inputs.op, "input", expected, input));
    }
    inputs.rank(kernel, "kernel", rank, "of as many axes as the input")?;
    let spatial = rank - 2;
    let lengths = [
        ("strides", attrs.strides.len()),
        ("padding", attrs.padding.len()),
        ("input_dilation", attrs.input_dilation.len()),
        ("kernel_dilation", attrs.kernel_dilation.len()),
    ];
    for (name, length) in lengths {
        if length != spatial {
            let message = format!("{name} needs one entry for each of {spatial} spatial axes");
            return Err(Error::argument(inputs.op, message));
        }
    }
    let steps = [&attrs.strides, &attrs.input_dilation, &attrs.kernel_dilation];
    if steps.into_iter().flatten().any(|&step| step == 0 || step > i32::MAX as usize) {
        let message = "strides and dilations are at least 1 and fit 31 bits";
        return Err(Error::argument(inputs.op, message));
    }
    let near = -i64::from(i32::MAX)..=i64::from(i32::MAX);
    if attrs.padding.iter().any(|p| p.len() != 2 || !p.iter().all(|n| near.contains(n))) {
        let message = "each entry of padding is [low, high], two numbers of 31 bits";
        return Err(Error::argument(inputs.op, message));
    }
    let (features, batches) = (attrs.feature_groups, attrs.batch_groups);
    if features == 0 || batches == 0 || (features > 1 && batches > 1) {
        let message = format!(
            "one of feature_groups and batch_groups is 1 and neither is 0, got {features} and \
             {batches}"
        );
        return Err(Error::argument(inputs.op, message));
    }
    let (batch, channels) = (input.shape()[0], input.shape()[1]);
    let (outputs, kernel_channels) = (kernel.shape()[0], kernel.shape()[1]);
    if kernel_channels.checked_mul(features) != Some(channels) {
        let expected = format!(
            "to have {channels} channels in {features} groups on axis 1, for the input {}",
            input.shape_text()
        );
        return Err(Error::shape(inputs.op, "kernel", expected, kernel));
    }
    if outputs % features != 0 || outputs % batches != 0 {
        let expected = format!("to have whole groups of outputs, {features} or {batches} of them");
        return Err(Error::shape(inputs.op, "kernel", expected, kernel));
    }
    if batch % batches != 0 {
        let expected = format!("to have a batch of {batches} whole groups");
        return Err(Error::shape(inputs.op, "input", expected, input));
    }
    let mut shape = vec![batch / batches, outputs];
    for axis in 0..spatial {
        let window = Window::of(attrs, input, kernel, axis);
        shape.push(window.out(axis).map_err(|message| Error::argument(inputs.op, message))?);
    }
    Ok(vec![input.with_shape(shape)?])
}

/// One spatial axis of a convolution: output i meets tap k at `i · stride + k · kernel_dilation −
/// low` of the dilated input, which has an element at every multiple of `input_dilation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub length: usize,
    pub taps: usize,
    pub stride: usize,
    pub low: i64,
    pub high: i64,
    pub input_dilation: usize,
    pub kernel_dilation: usize,
}

impl Window {
    fn of(attrs: &Conv, input: &Spec, kernel: &Spec, axis: usize) -> Self {
        Window {
            length: input.shape()[axis + 2],
            taps: kernel.shape()[axis + 2],
            stride: attrs.strides[axis],
            low: attrs.padding[axis][0],
            high: attrs.padding[axis][1],
            input_dilation: attrs.input_dilation[axis],
            kernel_dilation: attrs.kernel_dilation[axis],
        }
    }

    /// The length of the output, or why there is none.
    fn out(&self, axis: usize) -> std::result::Result<usize, String> {
        // Below 2^95 each: lengths fit an isize, dilations 31 bits.
        let dilated = |length: usize, by: usize| match length {
            0 => 0,
            n => (n as i128 - 1) * by as i128 + 1,
        };
        let padded = dilated(self.length, self.input_dilation)
            + i128::from(self.low)
            + i128::from(self.high);
        let window = dilated(self.taps, self.kernel_dilation);
        let fits = window > 0 && padded >= window && padded <= i128::from(i64::MAX);
        match usize::try_from((padded - window) / self.stride as i128 + 1) {
            Ok(n) if fits => Ok(n),
            _ => Err(format!(
                "a window of {window} does not fit an input that is {padded} long with its \
                 padding on spatial axis {axis}"
            )),
        }
    }

    /// Where output `at` meets `tap` in the input; none in the padding and between the elements.
    pub(crate) fn place(&self, at: usize, tap: usize) -> Option<usize> {
        let place = (at * self.stride + tap * self.kernel_dilation) as i64 - self.low;
        let dilation = self.input_dilation as i64;
        if place < 0 || place % dilation != 0 || place / dilation >= self.length as i64 {
            return None;
        }
        Some((place / dilation) as usize)
    }
}

/// A `conv` as one product for each group and each entry of the batch: {outputs, inner} of the
/// kernel by {inner, positions} of what the windows see.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Windows {
    /// Of the output.
    pub batch: usize,
    pub groups: usize,
    /// Of the input, in a group.
    pub channels: usize,
    /// Of the output, in a group.
    pub outputs: usize,
    pub axes: Vec<Window>,
    /// Of the output.
    pub spatial: Vec<usize>,
    /// Elements of the input from a group to the next, and from an entry of the batch to the next.
    pub group_stride: usize,
    pub batch_stride: usize,
}

impl Windows {
    /// Of an op that `infer` has passed.
    pub(crate) fn of(attrs: &Conv, input: &Spec, kernel: &Spec, out: &Spec) -> Self {
        let groups = attrs.feature_groups * attrs.batch_groups;
        let batch_stride: usize = input.shape()[1..].iter().product();
        let batch = out.shape()[0];
        Windows {
            batch,
            groups,
            channels: kernel.shape()[1],
            outputs: kernel.shape()[0] / groups,
            axes: (0..input.rank() - 2).map(|i| Window::of(attrs, input, kernel, i)).collect(),
            spatial: out.shape()[2..].to_vec(),
            group_stride: match attrs.batch_groups {
                1 => batch_stride / attrs.feature_groups,
                _ => batch * batch_stride,
            },
            batch_stride,
        }
    }

    /// Elements of a channel of the input.
    pub(crate) fn channel(&self) -> usize {
        self.axes.iter().map(|axis| axis.length).product()
    }

    pub(crate) fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.taps).product()
    }

    /// What an element of the output sums up.
    pub(crate) fn inner(&self) -> usize {
        self.channels * self.taps()
    }

    /// Elements of a channel of the output.
    pub(crate) fn positions(&self) -> usize {
        self.spatial.iter().product()
    }

    /// Multiplications, as a number that cannot overflow.
    pub(crate) fn work(&self) -> f64 {
        let outputs = self.batch as f64 * self.groups as f64 * self.outputs as f64;
        outputs * self.positions() as f64 * self.inner() as f64
    }
}
