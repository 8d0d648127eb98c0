//! Ops that make, move and address elements by their place.

use nitrox_engine::DType;
use nitrox_engine::op::{Indexed, Iota, Pad};

use super::array::{spec, wrap};
use super::shape::{indices, offset};
use super::{Array, Expected, Real};

fn normal(axes: &[i64], rank: usize) -> Vec<usize> {
    axes.iter().map(|&a| if a < 0 { a + rank as i64 } else { a } as usize).collect()
}

pub fn iota(attrs: &Iota) -> Expected {
    let all = indices(&attrs.shape);
    let axis = attrs.axis.map(|a| normal(&[a], attrs.shape.len())[0]);
    let values: Vec<usize> = (0..all.len()).map(|i| axis.map_or(i, |a| all[i][a])).collect();
    if attrs.r#type.is_float() {
        let values = values.into_iter().map(|v| v as f64).collect();
        return Real::exact(spec(attrs.r#type, &attrs.shape), values);
    }
    let values: Vec<i128> = values.into_iter().map(|v| v as i128).collect();
    Expected::Bits(Array::integers(attrs.r#type, &attrs.shape, &values))
}

pub fn pad(attrs: &Pad, x: &Array, value: &Array) -> Expected {
    let shape: Vec<usize> = (0..x.shape().len())
        .map(|a| {
            let n = x.shape()[a] as i64;
            (n + (n - 1).max(0) * attrs.interior[a] + attrs.low[a] + attrs.high[a]) as usize
        })
        .collect();
    let mut bytes = Vec::new();
    for index in indices(&shape) {
        let from: Option<Vec<usize>> = (0..shape.len())
            .map(|a| {
                let (at, step) = (index[a] as i64 - attrs.low[a], attrs.interior[a] + 1);
                let inside = at >= 0 && at % step == 0 && at / step < x.shape()[a] as i64;
                inside.then_some((at / step) as usize)
            })
            .collect();
        bytes.extend_from_slice(match from {
            Some(from) => x.element(offset(x.shape(), &from)),
            None => value.element(0),
        });
    }
    Expected::Bits(Array::new(spec(x.dtype(), &shape), bytes))
}

pub fn reverse(axes: &[i64], x: &Array) -> Expected {
    let axes = normal(axes, x.shape().len());
    super::shape::gather(x, x.shape(), |index| {
        let at = |a: usize| if axes.contains(&a) { x.shape()[a] - 1 - index[a] } else { index[a] };
        (0..index.len()).map(at).collect()
    })
}

pub fn gather(attrs: &Indexed, x: &Array, indices: &Array) -> Expected {
    let axes = normal(&attrs.axes, x.shape().len());
    let rest: Vec<usize> = (0..x.shape().len()).filter(|a| !axes.contains(a)).collect();
    let leading = &indices.shape()[..indices.shape().len() - 1];
    let mut shape = leading.to_vec();
    shape.extend(rest.iter().map(|&a| x.shape()[a]));
    let numbers = indices.to_ints();
    super::shape::gather(x, &shape, |index| {
        let row = offset(leading, &index[..leading.len()]);
        let mut from = vec![0; x.shape().len()];
        for (i, &a) in axes.iter().enumerate() {
            let most = x.shape()[a] as i128 - 1;
            from[a] = numbers[row * axes.len() + i].clamp(0, most) as usize;
        }
        for (&a, &i) in rest.iter().zip(&index[leading.len()..]) {
            from[a] = i;
        }
        from
    })
}

pub fn indexed(attrs: &Indexed, adds: bool, x: &Array, rows: &Array, updates: &Array) -> Expected {
    let axes = normal(&attrs.axes, x.shape().len());
    let rest: Vec<usize> = (0..x.shape().len()).filter(|a| !axes.contains(a)).collect();
    let numbers = rows.to_ints();
    // Which update goes where, in the order of the updates.
    let moves: Vec<(usize, usize)> = indices(updates.shape())
        .iter()
        .enumerate()
        .filter_map(|(u, index)| {
            let mut to = vec![0; x.shape().len()];
            for (i, &a) in axes.iter().enumerate() {
                let number = numbers[index[0] * axes.len() + i];
                to[a] = usize::try_from(number).ok().filter(|&n| n < x.shape()[a])?;
            }
            for (&a, &i) in rest.iter().zip(&index[1..]) {
                to[a] = i;
            }
            Some((u, offset(x.shape(), &to)))
        })
        .collect();
    if !adds {
        let (mut bytes, size) = (x.bytes.clone(), x.dtype().size());
        for (u, to) in moves {
            bytes[to * size..(to + 1) * size].copy_from_slice(updates.element(u));
        }
        return Expected::Bits(Array::new(x.spec.clone(), bytes));
    }
    if !x.dtype().is_float() {
        let (mut values, updates) = (x.to_ints(), updates.to_ints());
        for (u, to) in moves {
            values[to] = wrap(x.dtype(), values[to] + updates[u]);
        }
        return Expected::Bits(Array::integers(x.dtype(), x.shape(), &values));
    }
    let (mut values, updates) = (x.to_f64(), updates.to_f64());
    // What the terms of each sum are, whatever they cancel to.
    let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    for (u, to) in moves {
        values[to] += updates[u];
        sizes[to] += updates[u].abs();
    }
    let slack = sizes.iter().map(|s| super::bound(x.dtype()) * s).collect();
    Expected::Real(Real { spec: x.spec.clone(), values, scale: 0.0, slack: Some(slack) })
}

pub fn bitcast(to: DType, x: &Array) -> Expected {
    Expected::Bits(Array::new(spec(to, x.shape()), x.bytes.clone()))
}
