//! Ops with a window.

use nitrox_engine::op::{FoldKind, WindowReduce, WindowScatter};

use super::array::{int_range, spec, wrap};
use super::shape::{indices, offset};
use super::{Array, Expected, Real, bound};

/// The shape of the places, and for each of them, in order, where each element of its window lies:
/// `None` around x.
type Windows = (Vec<usize>, Vec<Vec<Option<usize>>>);

fn windows(
    x: &Array,
    window: &[usize],
    strides: &[usize],
    padding: &[(i64, i64)],
    dilations: &[usize],
) -> Windows {
    let rank = x.shape().len();
    let padded: Vec<i64> =
        (0..rank).map(|a| x.shape()[a] as i64 + padding[a].0 + padding[a].1).collect();
    let places: Vec<usize> = (0..rank)
        .map(|a| {
            let reach = ((window[a] - 1) * dilations[a] + 1) as i64;
            ((padded[a] - reach) / strides[a] as i64 + 1) as usize
        })
        .collect();
    let elements = indices(window);
    let of = |place: &Vec<usize>| {
        let at = |element: &Vec<usize>| -> Option<usize> {
            let index: Option<Vec<usize>> = (0..rank)
                .map(|a| {
                    // In the padded x, then in x; what padding below zero cuts off is never met.
                    let i = (place[a] * strides[a] + element[a] * dilations[a]) as i64;
                    assert!(i < padded[a]);
                    let i = i - padding[a].0;
                    (i >= 0 && i < x.shape()[a] as i64).then_some(i as usize)
                })
                .collect();
            Some(offset(x.shape(), &index?))
        };
        elements.iter().map(at).collect()
    };
    let all = indices(&places).iter().map(of).collect();
    (places, all)
}

pub fn reduce(attrs: &WindowReduce, x: &Array) -> Expected {
    let (shape, all) = windows(x, &attrs.window, &attrs.strides, &attrs.padding, &attrs.dilations);
    if !x.dtype().is_float() {
        let v = x.to_ints();
        let (least, most) = int_range(x.dtype());
        let fold = |window: &Vec<Option<usize>>| {
            let items = window.iter().flatten().map(|&i| v[i]);
            match attrs.kind {
                FoldKind::Sum => items.fold(0, i128::wrapping_add),
                FoldKind::Product => items.fold(1, i128::wrapping_mul),
                FoldKind::Max => items.fold(least, i128::max),
                FoldKind::Min => items.fold(most, i128::min),
            }
        };
        let values: Vec<_> = all.iter().map(|w| wrap(x.dtype(), fold(w))).collect();
        return Expected::Bits(Array::integers(x.dtype(), &shape, &values));
    }
    let v = x.to_f64();
    let fold = |window: &Vec<Option<usize>>| {
        let items = || window.iter().flatten().map(|&i| v[i]);
        let nan = items().any(f64::is_nan);
        match attrs.kind {
            FoldKind::Sum => items().sum(),
            FoldKind::Product => items().product(),
            FoldKind::Max | FoldKind::Min if nan => f64::NAN,
            FoldKind::Max => items().fold(f64::NEG_INFINITY, f64::max),
            FoldKind::Min => items().fold(f64::INFINITY, f64::min),
        }
    };
    let values: Vec<f64> = all.iter().map(fold).collect();
    let out = spec(x.dtype(), &shape);
    if matches!(attrs.kind, FoldKind::Max | FoldKind::Min) {
        return Real::exact(out, values);
    }
    let size = |w: &Vec<Option<usize>>| w.iter().flatten().map(|&i| v[i].abs()).sum::<f64>();
    let slack = (0..values.len())
        .map(|i| bound(x.dtype()) * values[i].abs().max(size(&all[i])) + 1e-38)
        .collect();
    Expected::Real(Real { spec: out, values, scale: 0.0, slack: Some(slack) })
}

pub fn scatter(attrs: &WindowScatter, x: &Array, source: &Array, init: &Array) -> Expected {
    let ones = vec![1; attrs.window.len()];
    let (_, all) = windows(x, &attrs.window, &attrs.strides, &attrs.padding, &ones);
    // The place that each element of the source goes to.
    let chosen = |ge: &dyn Fn(Option<usize>, Option<usize>) -> bool| -> Vec<Option<usize>> {
        all.iter().map(|w| w.iter().fold(w[0], |b, &at| if ge(at, b) { at } else { b })).collect()
    };
    if !x.dtype().is_float() {
        let (v, s, init) = (x.to_ints(), source.to_ints(), init.to_ints()[0]);
        let value = |at: Option<usize>| at.map_or(init, |i| v[i]);
        let ge = |a, b| {
            if attrs.min { value(a) <= value(b) } else { value(a) >= value(b) }
        };
        let mut values = vec![init; x.len()];
        for (at, s) in chosen(&ge).into_iter().zip(s) {
            if let Some(at) = at {
                values[at] = wrap(x.dtype(), values[at] + s);
            }
        }
        return Expected::Bits(Array::integers(x.dtype(), x.shape(), &values));
    }
    let (v, s, init) = (x.to_f64(), source.to_f64(), init.to_f64()[0]);
    let value = |at: Option<usize>| at.map_or(init, |i| v[i]);
    let ge = |a, b| if attrs.min { value(a) <= value(b) } else { value(a) >= value(b) };
    let (mut values, mut sizes) = (vec![init; x.len()], vec![init.abs(); x.len()]);
    for (at, s) in chosen(&ge).into_iter().zip(s) {
        if let Some(at) = at {
            values[at] += s;
            sizes[at] += s.abs();
        }
    }
    let slack = sizes.iter().map(|s| bound(x.dtype()) * s).collect();
    Expected::Real(Real { spec: x.spec.clone(), values, scale: 0.0, slack: Some(slack) })
}
