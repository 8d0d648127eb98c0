//! `dot` and `conv`.

use nitrox_engine::op::{Conv, Dot};

use super::array::spec;
use super::network::rms;
use super::shape::{indices, offset};
use super::{Array, Expected, Real};

/// Σ over the contracted axes of a · b, for every index of the batch, of a's axes and of b's.
pub fn dot(attrs: &Dot, a: &Array, b: &Array) -> Expected {
    let batch = attrs.batch_a.len();
    let free = |x: &Array, contracted: &[usize]| -> Vec<usize> {
        (batch..x.shape().len()).filter(|i| !contracted.contains(i)).collect()
    };
    let (free_a, free_b) = (free(a, &attrs.contract_a), free(b, &attrs.contract_b));
    let lengths = |x: &Array, axes: &[usize]| axes.iter().map(|&i| x.shape()[i]).collect();
    let summed: Vec<usize> = lengths(a, &attrs.contract_a);
    let shape = [lengths(a, &attrs.batch_a), lengths(a, &free_a), lengths(b, &free_b)].concat();
    // Where an operand's element lies is the place of the output plus the place of the term.
    let place = |x: &Array, axes: &[usize], index: &[usize]| {
        let mut whole = vec![0; x.shape().len()];
        axes.iter().zip(index).for_each(|(&axis, &i)| whole[axis] = i);
        offset(x.shape(), &whole)
    };
    let terms: Vec<_> = indices(&summed)
        .iter()
        .map(|term| (place(a, &attrs.contract_a, term), place(b, &attrs.contract_b, term)))
        .collect();
    let outputs: Vec<_> = indices(&shape)
        .iter()
        .map(|index| {
            let (common, rest) = index.split_at(batch);
            let (own_a, own_b) = rest.split_at(free_a.len());
            let of_a = place(a, &attrs.batch_a, common) + place(a, &free_a, own_a);
            (of_a, place(b, &attrs.batch_b, common) + place(b, &free_b, own_b))
        })
        .collect();
    if !a.dtype().is_float() {
        let (a64, b64) = (a.to_ints(), b.to_ints());
        let sum = |&(i, j): &(usize, usize)| {
            terms
                .iter()
                .fold(0i128, |sum, &(k, l)| sum.wrapping_add(a64[i + k].wrapping_mul(b64[j + l])))
        };
        let values: Vec<_> = outputs.iter().map(sum).collect();
        return Expected::Bits(Array::integers(a.dtype(), &shape, &values));
    }
    let (a64, b64) = (a.to_f64(), b.to_f64());
    let mut squares = 0.0;
    let mut values = Vec::new();
    for (i, j) in outputs {
        let mut sum = 0.0;
        for (k, l) in &terms {
            let product = a64[i + k] * b64[j + l];
            sum += product;
            squares += product * product;
        }
        values.push(sum);
    }
    let scale = if squares.is_finite() { rms(squares, values.len()) } else { 0.0 };
    Real::whole(spec(a.dtype(), &shape), values, scale)
}

/// A box of numbers.
struct Grid {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Grid {
    /// `x` with `dilation − 1` zeros between the elements of an axis, then so many more before and
    /// after, or fewer where that is negative.
    fn padded(shape: &[usize], values: &[f64], padding: &[[i64; 2]], dilation: &[usize]) -> Grid {
        let wide: Vec<usize> = (0..shape.len())
            .map(|i| {
                let dilated = (shape[i] as i64 - 1) * dilation[i] as i64 + 1;
                (dilated + padding[i][0] + padding[i][1]) as usize
            })
            .collect();
        let mut out = vec![0.0; wide.iter().product()];
        for (index, value) in indices(shape).iter().zip(values) {
            let to: Vec<i64> =
                (0..shape.len()).map(|i| (index[i] * dilation[i]) as i64 + padding[i][0]).collect();
            if to.iter().zip(&wide).all(|(&to, &n)| to >= 0 && to < n as i64) {
                let to: Vec<_> = to.iter().map(|&i| i as usize).collect();
                out[offset(&wide, &to)] = *value;
            }
        }
        Grid { shape: wide, values: out }
    }
}

/// Σ over the channels of the group and the taps of input · kernel, for every place of the window.
pub fn conv(attrs: &Conv, input: &Array, kernel: &Array) -> Expected {
    let spatial = attrs.strides.len();
    let mut padding = vec![[0, 0]; 2];
    padding.extend(attrs.padding.iter().map(|p| [p[0], p[1]]));
    let with_ones = |dilation: &[usize]| [&[1, 1], dilation].concat();
    let x =
        Grid::padded(input.shape(), &input.to_f64(), &padding, &with_ones(&attrs.input_dilation));
    let w = Grid::padded(
        kernel.shape(),
        &kernel.to_f64(),
        &vec![[0, 0]; spatial + 2],
        &with_ones(&attrs.kernel_dilation),
    );
    let (outputs, channels) = (w.shape[0], w.shape[1]);
    let batch = x.shape[0] / attrs.batch_groups;
    let mut shape = vec![batch, outputs];
    for i in 0..spatial {
        shape.push((x.shape[i + 2] - w.shape[i + 2]) / attrs.strides[i] + 1);
    }
    // Where each tap lies from the corner of a window on.
    let taps: Vec<_> = indices(&w.shape[1..])
        .iter()
        .map(|tap| offset(&x.shape, &[&[0], &tap[..]].concat()))
        .collect();
    let mut squares = 0.0;
    let mut values = Vec::new();
    for index in indices(&shape) {
        let output = index[1];
        let entry = output / (outputs / attrs.batch_groups) * batch + index[0];
        let channel = output / (outputs / attrs.feature_groups) * channels;
        let mut corner = vec![entry, channel];
        corner.extend((0..spatial).map(|i| index[i + 2] * attrs.strides[i]));
        let corner = if taps.is_empty() { 0 } else { offset(&x.shape, &corner) };
        let weights = &w.values[output * taps.len()..][..taps.len()];
        let mut sum = 0.0;
        for (tap, weight) in taps.iter().zip(weights) {
            let term = x.values[corner + tap] * weight;
            sum += term;
            squares += term * term;
        }
        values.push(sum);
    }
    let scale = if squares.is_finite() { rms(squares, values.len()) } else { 0.0 };
    Real::whole(spec(input.dtype(), &shape), values, scale)
}
