//! `window_reduce` and `window_scatter`: an element of the window at a time, over a whole row of
//! places, so that the loop over places is the inner one.

use super::arithmetic::Arithmetic;
use super::numeric::{Element, with_type};
use super::reduce::{COLUMNS, Reducible, join, start};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::infer::window::{Along, collapse, frame_of, scatter_frame};
use crate::op::{ReduceKind, WindowReduce, WindowScatter};

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(places: usize, window: &[usize]) -> f64 {
    places as f64 * (1.0 + window.iter().map(|&w| w as f64).product::<f64>())
}

/// The last axis of a frame, and those before it with x's strides.
struct Frame {
    outer: Vec<(Along, usize)>,
    last: Along,
    /// Elements of the window over the outer axes.
    steps: usize,
}

impl Frame {
    fn new(along: Vec<Along>) -> Frame {
        let mut along = collapse(along);
        let alone =
            Along { length: 1, places: 1, window: 1, stride: 1, dilation: 1, low: 0, end: 1 };
        let last = along.pop().unwrap_or(alone);
        let mut stride = last.length;
        let mut outer = Vec::with_capacity(along.len());
        for a in along.into_iter().rev() {
            outer.insert(0, (a, stride));
            stride *= a.length;
        }
        let steps = outer.iter().map(|(a, _)| a.window).product();
        Frame { outer, last, steps }
    }

    /// Where the row of x lies that step `step` of the window meets from row `row` of the places;
    /// none where it is outside.
    fn row(&self, mut row: usize, mut step: usize) -> Option<usize> {
        let mut at = 0;
        for (a, stride) in self.outer.iter().rev() {
            let (place, k) = (row % a.places, step % a.window);
            (row, step) = (row / a.places, step / a.window);
            at += inside(a, place, k)? * stride;
        }
        Some(at)
    }

    /// Of the places `first..first + n` of the last axis, those whose element `k` takes part: from
    /// which on, how many, and where the element of the first lies.
    fn span(&self, k: usize, first: usize, n: usize) -> (usize, usize, usize) {
        let a = &self.last;
        let step = a.stride as i128;
        let from = first as i128 * step + k as i128 * a.dilation as i128 - i128::from(a.low);
        let begin = a.begin() as i128;
        let skip = if from < begin { (begin - from + step - 1) / step } else { 0 };
        let left = a.end as i128 - (from + skip * step);
        let count = if left > 0 { (left + step - 1) / step } else { 0 };
        let count = count.min(n as i128 - skip).max(0);
        if count == 0 {
            return (0, 0, 0);
        }
        (skip as usize, count as usize, (from + skip * step) as usize)
    }
}

/// Which element of an axis the window's `k`th is at a place, if it takes part.
fn inside(a: &Along, place: usize, k: usize) -> Option<usize> {
    let at = place as i128 * a.stride as i128 + k as i128 * a.dilation as i128 - i128::from(a.low);
    (a.begin() as i128 <= at && at < a.end as i128).then_some(at as usize)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn reduce(call: &Call, attrs: &WindowReduce) -> Result<()> {
    let (Some(x), out) = (call.input(0), call.outputs[0]) else {
        return Err(Error::Internal("window_reduce without its input".into()));
    };
    let frame = Frame::new(frame_of("window_reduce", attrs, x.spec)?);
    let ns = cost(out.spec.len(), &attrs.window);
    let kind = attrs.kind.reduce();
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, y) = unsafe { (x.slice::<T>(), out.slice_mut::<T>()) };
        threads::over_rows(y, frame.last.places, ns, |first, y| {
            for (i, y) in y.chunks_exact_mut(frame.last.places).enumerate() {
                for (strip, y) in y.chunks_mut(COLUMNS).enumerate() {
                    places::<T>(kind, &frame, first + i, strip * COLUMNS, x, y);
                }
            }
        });
    });
    Ok(())
}

/// A strip of places of one row.
fn places<T: Element>(kind: ReduceKind, f: &Frame, row: usize, first: usize, x: &[T], y: &mut [T])
where
    T::Compute: Reducible,
{
    let mut totals = [start::<T::Compute>(kind); COLUMNS];
    for step in 0..f.steps {
        let Some(corner) = f.row(row, step) else { continue };
        for k in 0..f.last.window {
            let (skip, count, at) = f.span(k, first, y.len());
            if count == 0 {
                continue;
            }
            let x = x[corner + at..].iter().step_by(f.last.stride);
            for (total, &x) in totals[skip..skip + count].iter_mut().zip(x) {
                *total = join(kind, *total, Into::<T::Compute>::into(x).wide());
            }
        }
    }
    for (y, total) in y.iter_mut().zip(totals) {
        *y = T::narrow(T::Compute::back(total));
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn scatter(call: &Call, attrs: &WindowScatter) -> Result<()> {
    let (Some(x), Some(source), Some(init)) = (call.input(0), call.input(1), call.input(2)) else {
        return Err(Error::Internal("window_scatter without its inputs".into()));
    };
    let out = call.outputs[0];
    let frame = Frame::new(scatter_frame("window_scatter", attrs, x.spec)?);
    let ns = cost(source.spec.len(), &attrs.window);
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, source, init, y) = unsafe {
            (x.slice(), source.slice(), init.slice::<T>()[0], out.slice_mut())
        };
        scatter_into(attrs.min, &frame, ns, x, source, init, y);
    });
    Ok(())
}

fn scatter_into<T: Element>(
    min: bool,
    f: &Frame,
    ns: f64,
    x: &[T],
    source: &[T],
    init: T,
    y: &mut [T],
) where
    T::Compute: Reducible,
{
    let around: T::Compute = init.into();
    let mut chosen = vec![None; source.len()];
    threads::over_rows(&mut chosen, f.last.places, ns, |first, chosen| {
        for (i, chosen) in chosen.chunks_exact_mut(f.last.places).enumerate() {
            for (place, chosen) in chosen.iter_mut().enumerate() {
                *chosen = choose(min, f, first + i, place, x, around);
            }
        }
    });
    let mut totals = vec![around.wide(); x.len()];
    for (at, &value) in chosen.iter().zip(source) {
        if let Some(at) = *at {
            totals[at] = totals[at].add(Into::<T::Compute>::into(value).wide());
        }
    }
    for (y, total) in y.iter_mut().zip(totals) {
        *y = T::narrow(T::Compute::back(total));
    }
}

/// Which element of x wins the window at a place; none where one around x does.
fn choose<T: Element>(
    min: bool,
    f: &Frame,
    row: usize,
    place: usize,
    x: &[T],
    around: T::Compute,
) -> Option<usize> {
    let mut best: Option<(T::Compute, Option<usize>)> = None;
    for step in 0..f.steps {
        let corner = f.row(row, step);
        for k in 0..f.last.window {
            let at = corner.and_then(|corner| Some(corner + inside(&f.last, place, k)?));
            let value = at.map_or(around, |at| x[at].into());
            let wins = best.is_none_or(|(b, _)| if min { value <= b } else { value >= b });
            if wins {
                best = Some((value, at));
            }
        }
    }
    best.and_then(|(_, at)| at)
}
