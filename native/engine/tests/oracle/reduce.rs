//! Reductions and argmax.

use nitrox_engine::DType;
use nitrox_engine::op::{Argmax, Reduce, ReduceKind};

use super::array::{int_range, spec, wrap};
use super::network::{rms, split};
use super::{Array, Expected, Real};

/// The position of the first largest; a NaN is larger than any number.
pub fn first_largest<T: Copy>(
    items: &[T],
    nan: impl Fn(T) -> bool,
    less: impl Fn(T, T) -> bool,
) -> usize {
    if let Some(i) = items.iter().position(|&v| nan(v)) {
        return i;
    }
    (1..items.len()).fold(0, |best, i| if less(items[best], items[i]) { i } else { best })
}

pub fn argmax(attrs: &Argmax, x: &Array) -> Expected {
    let (outer, length, inner) = split(&x.spec, attrs.axis);
    let mut shape = x.shape().to_vec();
    let axis = (attrs.axis + if attrs.axis < 0 { shape.len() as i64 } else { 0 }) as usize;
    if attrs.keep_axis {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    let mut ids = Vec::with_capacity(outer * inner);
    let (floats, ints) =
        if x.dtype().is_float() { (x.to_f64(), vec![]) } else { (vec![], x.to_ints()) };
    for o in 0..outer {
        for i in 0..inner {
            let mut at: Vec<usize> = (0..length).map(|j| (o * length + j) * inner + i).collect();
            // The last of equals is the first from the other end.
            if attrs.last {
                at.reverse();
            }
            let best = if x.dtype().is_float() {
                let sign = if attrs.min { -1.0 } else { 1.0 };
                let row: Vec<_> = at.iter().map(|&a| sign * floats[a]).collect();
                first_largest(&row, f64::is_nan, |a, b| a < b)
            } else {
                let sign = if attrs.min { -1 } else { 1 };
                let row: Vec<_> = at.iter().map(|&a| sign * ints[a]).collect();
                first_largest(&row, |_| false, |a, b| a < b)
            };
            ids.push(if attrs.last { length - 1 - best } else { best } as i64);
        }
    }
    Expected::Bits(Array::ints(DType::S32, &shape, &ids))
}

pub fn reduce(attrs: &Reduce, x: &Array) -> Expected {
    let rank = x.shape().len();
    let axes: Vec<usize> = if attrs.axes.is_empty() {
        (0..rank).collect()
    } else {
        attrs.axes.iter().map(|&a| if a < 0 { a + rank as i64 } else { a } as usize).collect()
    };
    // The reduced shape with its axes kept, which the elements are sorted into.
    let kept: Vec<usize> =
        (0..rank).map(|a| if axes.contains(&a) { 1 } else { x.shape()[a] }).collect();
    let groups: usize = kept.iter().product();
    let mut members = vec![Vec::new(); groups];
    for i in 0..x.len() {
        let (mut rest, mut group, mut stride) = (i, 0, 1);
        for a in (0..rank).rev() {
            let index = rest % x.shape()[a];
            rest /= x.shape()[a];
            if !axes.contains(&a) {
                group += index * stride;
                stride *= kept[a];
            }
        }
        members[group].push(i);
    }
    let shape: Vec<usize> = if attrs.keep_axes {
        kept
    } else {
        (0..rank).filter(|a| !axes.contains(a)).map(|a| x.shape()[a]).collect()
    };

    if attrs.kind.is_predicate() {
        let truth: Vec<bool> = match x.dtype().is_float() {
            true => x.to_f64().into_iter().map(|v| v != 0.0).collect(),
            false => x.to_ints().into_iter().map(|v| v != 0).collect(),
        };
        let holds = |m: &Vec<usize>| match attrs.kind {
            ReduceKind::All => m.iter().all(|&i| truth[i]),
            _ => m.iter().any(|&i| truth[i]),
        };
        let values: Vec<i64> = members.iter().map(|m| holds(m).into()).collect();
        return Expected::Bits(Array::ints(DType::U8, &shape, &values));
    }
    if !x.dtype().is_float() {
        let v = x.to_ints();
        let fold = |m: &Vec<usize>| {
            let items = m.iter().map(|&i| v[i]);
            match attrs.kind {
                ReduceKind::Sum => items.fold(0, i128::wrapping_add),
                ReduceKind::Product => items.fold(1, i128::wrapping_mul),
                ReduceKind::Max => items.fold(int_range(x.dtype()).0, i128::max),
                ReduceKind::Min => items.fold(int_range(x.dtype()).1, i128::min),
                kind => panic!("no {kind:?} of integers"),
            }
        };
        let values: Vec<_> = members.iter().map(|m| wrap(x.dtype(), fold(m))).collect();
        return Expected::Bits(Array::integers(x.dtype(), &shape, &values));
    }

    let v = x.to_f64();
    let mut squares = 0.0;
    let mut values = Vec::with_capacity(groups);
    for m in &members {
        let items = || m.iter().map(|&i| v[i]);
        let n = m.len() as f64;
        let energy: f64 = items().map(|v| v * v).sum();
        let nan = items().any(f64::is_nan);
        let (value, energy) = match attrs.kind {
            ReduceKind::Sum => (sum(items()), energy),
            ReduceKind::Mean => (sum(items()) / n, energy / (n * n)),
            ReduceKind::Product => (items().product(), 0.0),
            ReduceKind::Max | ReduceKind::Min if nan => (f64::NAN, 0.0),
            ReduceKind::Max => (items().fold(f64::NEG_INFINITY, f64::max), 0.0),
            ReduceKind::Min => (items().fold(f64::INFINITY, f64::min), 0.0),
            kind => panic!("{kind:?} gives no float"),
        };
        values.push(value);
        squares += if energy.is_finite() { energy } else { 0.0 };
    }
    let scale = rms(squares, values.len());
    Real::whole(spec(x.dtype(), &shape), values, scale)
}

/// Neumaier's sum: for f64 tensors the reference must be better than what it judges.
fn sum(items: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for v in items {
        let next = total + v;
        lost += if total.abs() >= v.abs() { (total - next) + v } else { (v - next) + total };
        total = next;
    }
    if lost.is_finite() { total + lost } else { total }
}
