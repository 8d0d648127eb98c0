//! Attention by online softmax: blocks of rows against tiles of keys, so that scores never take
//! more than a block's scratch.
//!
//! A row is a query of one head; the rows of all the heads that share a key head lie next to each
//! other, so that what is packed for one serves them all.

use rayon::prelude::*;

use super::math::{exp, tanh};
use super::numeric::{Network, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::infer::attention::bias_strides;
use crate::op::FlashAttention;
use crate::spec::{DType, Spec};

/// Rows of a block, and keys of a tile.
const ROWS: usize = 64;
const KEYS: usize = 64;
/// Rows up to which keys and values are read where they lie instead of being packed first.
const FEW_ROWS: usize = 3;
/// What a row of a packed tile is padded to: the longest vector.
const PAD: usize = 16;

/// One call: sizes, options and inputs. `low` and `high` are as [`FlashAttention::reach`] says.
struct Job<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    bias: Option<Bias<'a, T>>,
    key_mask: Option<&'a [u8]>,
    kv_len: Option<&'a [i32]>,
    offset: Option<&'a [i32]>,
    queries: usize,
    keys: usize,
    heads: usize,
    key_heads: usize,
    head: usize,
    scale: f32,
    softcap: Option<f32>,
    low: i64,
    high: i64,
}

struct Bias<'a, T> {
    values: BiasValues<'a, T>,
    strides: [usize; 4],
}

enum BiasValues<'a, T> {
    Own(&'a [T]),
    F32(&'a [f32]),
}

/// Where results go. Blocks write rows of their own.
struct Output<T> {
    out: *mut T,
    lse: Option<*mut f32>,
}

// SAFETY: no two blocks write the same row.
unsafe impl<T: Send> Sync for Output<T> {}

/// Rows of one key head: all but the last block of a head are [`ROWS`] long.
struct Block {
    batch: usize,
    key_head: usize,
    first: usize,
    rows: usize,
}

/// One thread's scratch.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(q: &Spec, k: &Spec) -> f64 {
    let keys = k.shape().get(1).copied().unwrap_or(0);
    q.len() as f64 * keys as f64 * 0.06
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &FlashAttention) -> Result<()> {
    let (Some(q), Some(k), Some(v)) = (call.input(0), call.input(1), call.input(2)) else {
        return Err(Error::Internal("attention without q, k or v".into()));
    };
    let (&[batch, queries, heads, head], &[_, keys, key_heads, _]) =
        (q.spec.shape(), k.spec.shape())
    else {
        return Err(Error::Internal("attention on other than four axes".into()));
    };
    let [out, rest @ ..] = call.outputs else {
        return Err(Error::Internal("attention without its output".into()));
    };
    let (low, high) = attrs.reach(queries, keys, call.input(6).is_some());
    with_network!(q.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let job = unsafe {
            Job {
                q: q.slice::<T>(),
                k: k.slice::<T>(),
                v: v.slice::<T>(),
                bias: call.input(3).map(|bias| Bias {
                    values: match bias.spec.dtype {
                        DType::F32 => BiasValues::F32(bias.slice()),
                        _ => BiasValues::Own(bias.slice()),
                    },
                    strides: bias_strides(bias.spec),
                }),
                key_mask: call.input(4).map(|mask| mask.slice()),
                kv_len: call.input(5).map(|length| length.slice()),
                offset: call.input(6).map(|offset| offset.slice()),
                queries,
                keys,
                heads,
                key_heads,
                head,
                scale: attrs.scale(head),
                softcap: attrs.softcap.map(|cap| cap as f32),
                low,
                high,
            }
        };
        let lse = rest.first().map(|lse| lse.addr as *mut f32);
        job.run(batch, &Output { out: out.addr as *mut T, lse }, cost(q.spec, k.spec));
    });
    Ok(())
}

impl<T: Network> Job<'_, T> {
    fn run(&self, batch: usize, out: &Output<T>, ns: f64) {
        let rows = self.queries * (self.heads / self.key_heads);
        let blocks = rows.div_ceil(ROWS);
        let one = |scratch: &mut Scratch, i: usize| {
            let first = i % blocks * ROWS;
            let unit = i / blocks;
            let (batch, key_head) = (unit / self.key_heads, unit % self.key_heads);
            let block = Block { batch, key_head, first, rows: ROWS.min(rows - first) };
            dispatch!(I => self.block::<I>(&block, scratch, out));
        };
        let count = batch * self.key_heads * blocks;
        if threads::count(ns) == 1 {
            let mut scratch = Scratch::default();
            (0..count).for_each(|i| one(&mut scratch, i));
        } else {
            // A causal block has more to do the later its rows are: small pieces even that out.
            (0..count).into_par_iter().with_max_len(4).for_each_init(Scratch::default, one);
        }
    }

    /// The query and the head of a row.
    fn row(&self, block: &Block, r: usize) -> (usize, usize) {
        let (row, group) = (block.first + r, self.heads / self.key_heads);
        (row / group, block.key_head * group + row % group)
    }

    /// The keys that query i sees, masks aside.
    fn sees(&self, batch: usize, query: usize) -> (usize, usize) {
        let end = self.kv_len.map_or(self.keys as i64, |l| i64::from(l[batch]));
        let end = end.clamp(0, self.keys as i64);
        // One for all, or one for each batch entry.
        let shift =
            self.offset.map_or(0, |o| i64::from(if o.len() == 1 { o[0] } else { o[batch] }));
        let low = (query as i64 + shift + self.low).clamp(0, end);
        let high = (query as i64 + shift + self.high).clamp(low, end);
        (low as usize, high as usize)
    }

    #[inline(always)]
    fn block<I: Isa>(&self, block: &Block, scratch: &mut Scratch, out: &Output<T>) {
        let (rows, head) = (block.rows, self.head);
        let wide = head.next_multiple_of(PAD);
        let Scratch { q, k, v, scores, out: sums } = scratch;
        for (buffer, size) in [
            (&mut *q, ROWS * wide),
            (&mut *k, wide * KEYS),
            (&mut *v, KEYS * wide),
            (&mut *scores, ROWS * KEYS),
            (&mut *sums, ROWS * wide),
        ] {
            buffer.resize(size, 0.0);
        }
        let mut sees = [(0, 0); ROWS];
        let (mut top, mut total) = ([f32::NEG_INFINITY; ROWS], [0.0f32; ROWS]);
        sums[..rows * wide].fill(0.0);
        for r in 0..rows {
            let (query, h) = self.row(block, r);
            sees[r] = self.sees(block.batch, query);
            let at = ((block.batch * self.queries + query) * self.heads + h) * head;
            let to = &mut q[r * wide..(r + 1) * wide];
            widen::<I, T>(&self.q[at..at + head], &mut to[..head]);
            to[head..].fill(0.0);
            to.iter_mut().for_each(|x| *x *= self.scale);
        }
        // Later rows see later keys.
        let (start, end) = (sees[0].0, sees[rows - 1].1);
        let mut key = start;
        while key < end {
            let keys = KEYS.min(end - key);
            let scores = &mut scores[..rows * KEYS];
            if rows <= FEW_ROWS {
                for (q, scores) in q.chunks_exact(wide).zip(scores.chunks_exact_mut(KEYS)) {
                    for (j, s) in scores[..keys].iter_mut().enumerate() {
                        *s = dot::<I, T>(&q[..head], self.head_of(self.k, block, key + j));
                    }
                }
            } else {
                self.pack_keys::<I>(block, key, keys, wide, v, k);
                scores.fill(0.0);
                multiply::<I>(q, wide, k, KEYS, scores, KEYS, rows, wide, KEYS);
            }
            for (r, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                self.modify::<I>(block, r, key, sees[r], &mut scores[..keys]);
                let sums = &mut sums[r * wide..(r + 1) * wide];
                soften::<I>(&mut scores[..keys], &mut top[r], &mut total[r], sums);
                scores[keys..].fill(0.0);
            }
            if rows <= FEW_ROWS {
                for (p, sums) in scores.chunks_exact(KEYS).zip(sums.chunks_exact_mut(wide)) {
                    for (j, &p) in p[..keys].iter().enumerate() {
                        // What is hidden may be anything, NaN too.
                        if p != 0.0 {
                            add::<I, T>(p, self.head_of(self.v, block, key + j), &mut sums[..head]);
                        }
                    }
                }
            } else {
                for (j, v) in v.chunks_exact_mut(wide).enumerate() {
                    if j < keys && !self.is_masked(block.batch, key + j) {
                        widen::<I, T>(self.head_of(self.v, block, key + j), &mut v[..head]);
                        v[head..].fill(0.0);
                    } else {
                        v.fill(0.0);
                    }
                }
                multiply::<I>(scores, KEYS, v, wide, sums, wide, rows, keys, wide);
            }
            key += keys;
        }
        for r in 0..rows {
            let (query, h) = self.row(block, r);
            let at = ((block.batch * self.queries + query) * self.heads + h) * head;
            // A sum that is NaN stays so.
            let inverse = if total[r] == 0.0 { 0.0 } else { 1.0 / total[r] };
            // SAFETY: this row is this block's own, and `infer` has checked the output's shape.
            let to = unsafe { std::slice::from_raw_parts_mut(out.out.add(at), head) };
            for (to, x) in to.iter_mut().zip(&sums[r * wide..]) {
                *to = T::narrow(x * inverse);
            }
            if let Some(lse) = out.lse {
                let at = (block.batch * self.heads + h) * self.queries + query;
                let empty = total[r] == 0.0;
                let value = if empty { f32::NEG_INFINITY } else { top[r] + total[r].ln() };
                // SAFETY: as above.
                unsafe { lse.add(at).write(value) };
            }
        }
    }

    fn is_masked(&self, batch: usize, key: usize) -> bool {
        self.key_mask.is_some_and(|mask| mask[batch * self.keys + key] == 0)
    }

    /// A key or value of the block's head.
    #[inline(always)]
    fn head_of<'b>(&self, of: &'b [T], block: &Block, key: usize) -> &'b [T] {
        let at = ((block.batch * self.keys + key) * self.key_heads + block.key_head) * self.head;
        &of[at..at + self.head]
    }

    /// Keys as columns: `to[d][j]`, zeros where there is neither. `rows` is scratch.
    #[inline(always)]
    fn pack_keys<I: Isa>(
        &self,
        block: &Block,
        key: usize,
        keys: usize,
        wide: usize,
        rows: &mut [f32],
        to: &mut [f32],
    ) {
        /// Keys whose elements are written together.
        const STRIP: usize = 8;
        for (j, row) in rows.chunks_exact_mut(wide).enumerate() {
            if j < keys {
                widen::<I, T>(self.head_of(self.k, block, key + j), &mut row[..self.head]);
                row[self.head..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        for (strip, rows) in rows.chunks_exact(wide * STRIP).enumerate() {
            for (d, to) in to.chunks_exact_mut(KEYS).enumerate() {
                let column: [f32; STRIP] = std::array::from_fn(|j| rows[j * wide + d]);
                to[strip * STRIP..][..STRIP].copy_from_slice(&column);
            }
        }
    }

    /// Soft cap, bias and masks on the scores of a row, whose scale is in q already.
    #[inline(always)]
    fn modify<I: Isa>(
        &self,
        block: &Block,
        r: usize,
        key: usize,
        sees: (usize, usize),
        scores: &mut [f32],
    ) {
        if let Some(cap) = self.softcap {
            for s in &mut *scores {
                *s = cap * tanh::<I>(*s / cap);
            }
        }
        if let Some(bias) = &self.bias {
            let (query, h) = self.row(block, r);
            let [b, head, i, j] = bias.strides;
            let at = block.batch * b + h * head + query * i + key * j;
            for (n, s) in scores.iter_mut().enumerate() {
                *s += match bias.values {
                    BiasValues::Own(values) => values[at + n * j].into(),
                    BiasValues::F32(values) => values[at + n * j],
                };
            }
        }
        if self.key_mask.is_some() {
            for (j, s) in scores.iter_mut().enumerate() {
                if self.is_masked(block.batch, key + j) {
                    *s = f32::NEG_INFINITY;
                }
            }
        }
        let (low, high) = (sees.0.saturating_sub(key), sees.1.saturating_sub(key));
        let count = scores.len();
        scores[..low.min(count)].fill(f32::NEG_INFINITY);
        scores[high.min(count)..].fill(f32::NEG_INFINITY);
    }
}

/// Scores become exp(score - top); what was summed before is brought to the new top.
#[inline(always)]
fn soften<I: Isa>(scores: &mut [f32], top: &mut f32, total: &mut f32, sums: &mut [f32]) {
    // A NaN is passed over here and comes back in the sum.
    let most = scores.iter().fold(*top, |m, &s| if s > m { s } else { m });
    if most == f32::NEG_INFINITY && scores.iter().all(|&s| s == most) {
        scores.fill(0.0);
        return;
    }
    let base = if most == f32::NEG_INFINITY { 0.0 } else { most };
    if most > *top {
        let shrink = exp::<I>(*top - base);
        *total *= shrink;
        sums.iter_mut().for_each(|x| *x *= shrink);
        *top = most;
    }
    for s in &mut *scores {
        *s = exp::<I>(*s - base);
    }
    let mut lanes = [0.0f32; PAD];
    let mut chunks = scores.chunks_exact(PAD);
    for chunk in &mut chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, s)| *l += s);
    }
    *total += lanes.iter().sum::<f32>() + chunks.remainder().iter().sum::<f32>();
}

#[inline(always)]
fn widen<I: Isa, T: Network>(from: &[T], to: &mut [f32]) {
    let n = from.len().min(to.len());
    let whole = n - n % I::LANES;
    for at in (0..whole).step_by(I::LANES) {
        // SAFETY: so many elements are in both; the instruction set is `dispatch!`'s affair.
        unsafe { I::store(to.as_mut_ptr().add(at), T::load::<I>(from.as_ptr().add(at))) };
    }
    for (to, &from) in to[whole..n].iter_mut().zip(&from[whole..n]) {
        *to = from.into();
    }
}

#[inline(always)]
fn dot<I: Isa, T: Network>(a: &[f32], b: &[T]) -> f32 {
    let n = a.len().min(b.len());
    let whole = n - n % I::LANES;
    let mut lanes = [0.0f32; PAD];
    // SAFETY: so many elements are in both; the instruction set is `dispatch!`'s affair.
    unsafe {
        let mut sums = [I::splat(0.0); 2];
        for at in (0..whole).step_by(I::LANES) {
            let sum = &mut sums[at / I::LANES % 2];
            *sum = I::fmadd(I::load(a.as_ptr().add(at)), T::load::<I>(b.as_ptr().add(at)), *sum);
        }
        I::store(lanes.as_mut_ptr(), I::fmadd(I::splat(1.0), sums[0], sums[1]));
    }
    let rest: f32 = a[whole..n].iter().zip(&b[whole..n]).map(|(a, &b)| a * b.into()).sum();
    lanes.iter().sum::<f32>() + rest
}

/// `to += p * v`
#[inline(always)]
fn add<I: Isa, T: Network>(p: f32, v: &[T], to: &mut [f32]) {
    let n = v.len().min(to.len());
    let whole = n - n % I::LANES;
    // SAFETY: so many elements are in both; the instruction set is `dispatch!`'s affair.
    unsafe {
        let p = I::splat(p);
        for at in (0..whole).step_by(I::LANES) {
            let to = to.as_mut_ptr().add(at);
            I::store(to, I::fmadd(p, T::load::<I>(v.as_ptr().add(at)), I::load(to)));
        }
    }
    for (to, &v) in to[whole..n].iter_mut().zip(&v[whole..n]) {
        *to = I::fma(p, v.into(), *to);
    }
}

/// `c += a * b` for row-major matrices {m, k} · {k, n} whose rows are `lda`, `ldb` and `ldc` apart;
/// n is a multiple of [`PAD`].
#[inline(always)]
fn multiply<I: Isa>(
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    m: usize,
    k: usize,
    n: usize,
) {
    assert!(n.is_multiple_of(PAD) && m > 0 && k > 0);
    assert!(a.len() >= (m - 1) * lda + k);
    assert!(b.len() >= (k - 1) * ldb + n && c.len() >= (m - 1) * ldc + n);
    let mut row = 0;
    while row < m {
        let rows = (m - row).min(4);
        let mut column = 0;
        while column < n {
            let pair = column + 2 * I::LANES <= n;
            // SAFETY: the tiles lie inside the matrices, as asserted above.
            unsafe {
                let a = a.as_ptr().add(row * lda);
                let b = b.as_ptr().add(column);
                let c = c.as_mut_ptr().add(row * ldc + column);
                match (rows, pair) {
                    (4, true) => tile::<I, 4, 2>(a, lda, b, ldb, c, ldc, k),
                    (4, false) => tile::<I, 4, 1>(a, lda, b, ldb, c, ldc, k),
                    (3, _) => tile::<I, 3, 1>(a, lda, b, ldb, c, ldc, k),
                    (2, _) => tile::<I, 2, 1>(a, lda, b, ldb, c, ldc, k),
                    _ => tile::<I, 1, 1>(a, lda, b, ldb, c, ldc, k),
                }
            }
            column += if pair && rows == 4 { 2 * I::LANES } else { I::LANES };
        }
        row += rows;
    }
}

/// M rows and N vectors of columns of the product, in registers.
///
/// # Safety
/// M rows of `a` and `c` and k rows of `b`, of so many columns, are live, and what [`Isa`] asks.
#[inline(always)]
unsafe fn tile<I: Isa, const M: usize, const N: usize>(
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    k: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[I::splat(0.0); N]; M];
        for (m, row) in sums.iter_mut().enumerate() {
            for (n, sum) in row.iter_mut().enumerate() {
                *sum = I::load(c.add(m * ldc + n * I::LANES));
            }
        }
        for i in 0..k {
            let columns: [I::V; N] =
                std::array::from_fn(|n| I::load(b.add(i * ldb + n * I::LANES)));
            for (m, row) in sums.iter_mut().enumerate() {
                let x = I::splat(*a.add(m * lda + i));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = I::fmadd(x, column, *sum);
                }
            }
        }
        for (m, row) in sums.iter().enumerate() {
            for (n, sum) in row.iter().enumerate() {
                I::store(c.add(m * ldc + n * I::LANES), *sum);
            }
        }
    }
}
