//! Sort and cumulative ops.

use std::cmp::Ordering;

use nitrox_engine::DType;
use nitrox_engine::op::{Cumulative, FoldKind, Sort};

use super::array::wrap;
use super::network::split;
use super::{Array, Expected, Real, bound};

pub fn sort(attrs: &Sort, x: &Array) -> Expected {
    let (outer, length, inner) = split(&x.spec, attrs.axis);
    let float = x.dtype().is_float();
    let (floats, ints) = if float { (x.to_f64(), vec![]) } else { (vec![], x.to_ints()) };
    let compare = |a: usize, b: usize| match float {
        false => ints[a].cmp(&ints[b]),
        true => match (floats[a].is_nan(), floats[b].is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => floats[a].partial_cmp(&floats[b]).unwrap(),
        },
    };
    let size = x.dtype().size();
    let (mut bytes, mut places) = (x.bytes.clone(), vec![0; x.len()]);
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| (o * length + j) * inner + i;
            let mut order: Vec<usize> = (0..length).collect();
            order.sort_by(|&a, &b| {
                let ascending = compare(at(a), at(b));
                if attrs.descending { ascending.reverse() } else { ascending }
            });
            for (j, &from) in order.iter().enumerate() {
                places[at(j)] = from as i64;
                bytes[at(j) * size..][..size].copy_from_slice(x.element(at(from)));
            }
        }
    }
    Expected::Bits(match attrs.indices {
        true => Array::ints(DType::S32, x.shape(), &places),
        false => Array::new(x.spec.clone(), bytes),
    })
}

pub fn cumulative(attrs: &Cumulative, x: &Array) -> Expected {
    let (outer, length, inner) = split(&x.spec, attrs.axis);
    let order: Vec<usize> = match attrs.reverse {
        true => (0..length).rev().collect(),
        false => (0..length).collect(),
    };
    // Each element's place, and the place of the one before it.
    let mut walk = Vec::new();
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| (o * length + j) * inner + i;
            for (n, &j) in order.iter().enumerate() {
                walk.push((at(j), n.checked_sub(1).map(|before| at(order[before]))));
            }
        }
    }
    if !x.dtype().is_float() {
        let mut values = x.to_ints();
        for (at, before) in walk {
            if let Some(before) = before {
                let (a, b) = (values[before], values[at]);
                values[at] = wrap(
                    x.dtype(),
                    match attrs.kind {
                        FoldKind::Sum => a + b,
                        FoldKind::Product => a.wrapping_mul(b),
                        FoldKind::Max => a.max(b),
                        FoldKind::Min => a.min(b),
                    },
                );
            }
        }
        return Expected::Bits(Array::integers(x.dtype(), x.shape(), &values));
    }
    let mut values = x.to_f64();
    // What the terms of each sum are, whatever they cancel to.
    let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    for (at, before) in walk {
        if let Some(before) = before {
            let (a, b) = (values[before], values[at]);
            values[at] = match attrs.kind {
                FoldKind::Sum => a + b,
                FoldKind::Product => a * b,
                _ if a.is_nan() || b.is_nan() => f64::NAN,
                FoldKind::Max => a.max(b),
                FoldKind::Min => a.min(b),
            };
            sizes[at] = match attrs.kind {
                FoldKind::Sum => sizes[before] + sizes[at],
                _ => values[at].abs(),
            };
        }
    }
    if matches!(attrs.kind, FoldKind::Max | FoldKind::Min) {
        return Real::exact(x.spec.clone(), values);
    }
    let slack = sizes.iter().map(|s| bound(x.dtype()) * s + least(x.dtype())).collect();
    Expected::Real(Real { spec: x.spec.clone(), values, scale: 0.0, slack: Some(slack) })
}

/// Below the least normal number a product may be zero.
fn least(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-24),
        DType::F64 => f64::MIN_POSITIVE,
        _ => f32::MIN_POSITIVE.into(),
    }
}
