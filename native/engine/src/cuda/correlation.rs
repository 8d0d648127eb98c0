//! A convolution in the terms of cuDNN, where it is a cross-correlation of dense tensors.

use std::ffi::c_int;

use crate::infer::product::{Window, Windows};
use crate::spec::DType;

/// Spatial axes, and all axes, of the largest.
const SPATIAL: usize = 3;
pub(super) const AXES: usize = SPATIAL + 2;

/// A convolution as the library takes it: of two or three spatial axes, everything dense, and as much
/// padding behind an axis as before it. Axes beyond `rank` are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Convolution {
    pub dtype: DType,
    pub groups: c_int,
    /// All axes; those of the images come after two others.
    pub rank: usize,
    /// {batch, channels, …}
    pub input: [c_int; AXES],
    /// {outputs, channels of a group, …}
    pub kernel: [c_int; AXES],
    /// {batch, outputs, …}
    pub output: [c_int; AXES],
    pub padding: [c_int; SPATIAL],
    pub strides: [c_int; SPATIAL],
    pub dilation: [c_int; SPATIAL],
}

impl Convolution {
    /// None where it is not of that kind. There are elements, and something is summed.
    pub(super) fn of(windows: &Windows, dtype: DType) -> Option<Self> {
        let Windows { batch, groups, channels, outputs, .. } = *windows;
        // Groups of the batch lie apart from each other.
        let dense = groups.checked_mul(channels)?.checked_mul(windows.channel())?;
        if windows.axes.len() > SPATIAL || windows.batch_stride != dense {
            return None;
        }
        let number = |n: usize| c_int::try_from(n).ok();
        // A single axis is the last of two.
        let first = 2 + usize::from(windows.axes.len() == 1);
        let mut convolution = Convolution {
            dtype,
            groups: number(groups)?,
            rank: first + windows.axes.len(),
            input: [0; AXES],
            kernel: [0; AXES],
            output: [0; AXES],
            padding: [0; SPATIAL],
            strides: [0; SPATIAL],
            dilation: [0; SPATIAL],
        };
        let Convolution { input, kernel, output, padding, strides, dilation, .. } =
            &mut convolution;
        (input[0], input[1]) = (number(batch)?, number(groups.checked_mul(channels)?)?);
        (kernel[0], kernel[1]) = (number(groups.checked_mul(outputs)?)?, number(channels)?);
        (output[0], output[1]) = (input[0], kernel[0]);
        if first > 2 {
            (input[2], kernel[2], output[2]) = (1, 1, 1);
            (strides[0], dilation[0]) = (1, 1);
        }
        for (i, (axis, &out)) in windows.axes.iter().zip(&windows.spatial).enumerate() {
            let at = first + i;
            padding[at - 2] = number(even_padding(axis, out)?)?;
            (input[at], kernel[at]) = (number(axis.length)?, number(axis.taps)?);
            output[at] = number(out)?;
            (strides[at - 2], dilation[at - 2]) =
                (number(axis.stride)?, number(axis.kernel_dilation)?);
        }
        let small = |shape: &[c_int; AXES]| {
            let lengths = shape[..convolution.rank].iter().map(|&n| n as usize);
            lengths.fold(1usize, usize::saturating_mul) <= c_int::MAX as usize
        };
        [&convolution.input, &convolution.kernel, &convolution.output]
            .into_iter()
            .all(small)
            .then_some(convolution)
    }
}

/// The padding on both sides with which the same windows come out: as much behind as before, or
/// where what is behind makes no difference to their number.
fn even_padding(axis: &Window, out: usize) -> Option<usize> {
    let low = usize::try_from(axis.low).ok()?;
    let reach = (axis.taps - 1).checked_mul(axis.kernel_dilation)?.checked_add(1)?;
    let padded = axis.length.checked_add(low.checked_mul(2)?)?;
    let same = padded.checked_sub(reach)? / axis.stride + 1 == out;
    (same && axis.input_dilation == 1).then_some(low)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::infer::infer;
    use crate::op::{Conv, Op};
    use crate::spec::Spec;

    fn plain(spatial: usize) -> Conv {
        Conv {
            strides: vec![1; spatial],
            padding: vec![vec![0, 0]; spatial],
            input_dilation: vec![1; spatial],
            kernel_dilation: vec![1; spatial],
            feature_groups: 1,
            batch_groups: 1,
        }
    }

    fn of(conv: &Conv, input: &[usize], kernel: &[usize]) -> Option<Convolution> {
        let [input, kernel] = [input, kernel].map(|shape| Spec::new(DType::F32, shape).unwrap());
        let out = infer(&Op::Conv(conv.clone()), &[Some(&input), Some(&kernel)]).unwrap();
        Convolution::of(&Windows::of(conv, &input, &kernel, &out[0]), DType::F32)
    }

    #[test]
    fn one_axis_is_the_last_of_two() {
        let conv = Conv {
            strides: vec![2],
            padding: vec![vec![3, 3]],
            kernel_dilation: vec![2],
            feature_groups: 4,
            ..plain(1)
        };
        let c = of(&conv, &[5, 8, 20], &[12, 2, 5]).unwrap();
        assert_eq!((c.rank, c.groups), (4, 4));
        assert_eq!(c.input, [5, 8, 1, 20, 0]);
        assert_eq!(c.kernel, [12, 2, 1, 5, 0]);
        assert_eq!(c.output, [5, 12, 1, 9, 0]);
        assert_eq!((c.padding, c.strides, c.dilation), ([0, 3, 0], [1, 2, 0], [1, 2, 0]));
    }

    #[test]
    fn three_axes_stay_three() {
        let c = of(&plain(3), &[2, 3, 5, 6, 7], &[4, 3, 2, 3, 4]).unwrap();
        assert_eq!((c.rank, c.output), (5, [2, 4, 4, 4, 4]));
        assert!(of(&plain(4), &[1, 2, 3, 4, 3, 4], &[2, 2, 2, 2, 2, 2]).is_none());
    }

    #[test]
    fn padding_is_even_or_makes_no_difference() {
        let with = |padding: [i64; 2], stride: usize| {
            let conv = Conv { padding: vec![padding.to_vec()], strides: vec![stride], ..plain(1) };
            of(&conv, &[1, 1, 56], &[1, 1, 3]).map(|c| c.padding[1])
        };
        assert_eq!(with([1, 1], 1), Some(1));
        // The window that begins behind the last whole step is no window.
        assert_eq!(with([1, 0], 2), Some(1));
        assert_eq!(with([1, 0], 1), None);
        assert_eq!(with([0, 1], 2), None);
        assert_eq!(with([-1, -1], 1), None);
        assert_eq!(with([2, -2], 1), None);
        assert_eq!(with([0, -1], 2), Some(0));
    }

    #[test]
    fn neither_zeros_between_elements_nor_groups_of_the_batch() {
        let conv = Conv { input_dilation: vec![2], ..plain(1) };
        assert!(of(&conv, &[1, 1, 9], &[1, 1, 3]).is_none());
        let conv = Conv { batch_groups: 2, ..plain(1) };
        assert!(of(&conv, &[4, 1, 9], &[2, 1, 3]).is_none());
    }

    #[test]
    fn as_many_elements_as_it_counts() {
        let size = |length: usize| of(&plain(1), &[1 << 10, 1, length], &[1, 1, 2]);
        assert!(size((1 << 21) - 1).is_some());
        assert!(size(1 << 21).is_none());
    }
}
