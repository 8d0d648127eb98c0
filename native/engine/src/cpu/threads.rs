//! When threads are worth their start, and how work is cut for them. A cut never changes a result:
//! each element is computed in the same order whoever computes it.

use std::num::NonZero;
use std::sync::OnceLock;

use rayon::prelude::*;

/// Below this a call stays on its caller's thread.
const ALONE_NS: f64 = 200_000.0;
/// The least that is worth giving to one more thread.
const SHARE_NS: f64 = 100_000.0;

pub(super) fn available() -> usize {
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    *AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// Threads for work that takes one thread `ns` nanoseconds.
pub(super) fn count(ns: f64) -> usize {
    if ns < ALONE_NS { 1 } else { ((ns / SHARE_NS) as usize).clamp(1, available()) }
}

/// Calls `f` with the first row and the slice of each cut of `out`, rows of `row` elements; all of
/// it at once where the work of `ns` nanoseconds does not pay for threads.
pub(super) fn over_rows<T: Send>(
    out: &mut [T],
    row: usize,
    ns: f64,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() || row == 0 {
        return;
    }
    let rows = out.len() / row;
    let n = count(ns).min(rows);
    if n <= 1 {
        return f(0, out);
    }
    let share = rows.div_ceil(n);
    out.par_chunks_mut(share * row).enumerate().for_each(|(i, part)| f(i * share, part));
}

/// As [`over_rows`] for two outputs of the same shape.
pub(super) fn over_row_pairs<T: Send>(
    a: &mut [T],
    b: &mut [T],
    row: usize,
    ns: f64,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    if a.is_empty() || row == 0 {
        return;
    }
    let rows = a.len() / row;
    let n = count(ns).min(rows);
    if n <= 1 {
        return f(0, a, b);
    }
    let share = rows.div_ceil(n);
    a.par_chunks_mut(share * row)
        .zip(b.par_chunks_mut(share * row))
        .enumerate()
        .for_each(|(i, (a, b))| f(i * share, a, b));
}
