//! `lstm` and `gru`: the input projections of many frames in one product, then frame after frame
//! the product of the hidden state with its weights and the gates. Everything between x, the
//! weights and the outputs is f32.

use super::gemm::{Product, product};
use super::math::{sigmoid, tanh};
use super::numeric::{Network, Scratch, read_f32, widen, with_network, write_f32};
use super::simd::{Isa, dispatch};
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::op::{Op, Recurrent};
use crate::spec::{DType, Spec};

/// Floats of input projections that are held at a time: they stay in the outer caches.
const PROJECTIONS: usize = 1 << 20;
/// Frames that are projected together at least, so that the product pays.
const FRAMES: usize = 8;

/// Where an op's operands are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Input positions: LSTM's c0, then h0 and the four that follow one another from wi on.
    c0: Option<usize>,
    h0: usize,
    wi: usize,
}

fn layout(op: &Op) -> Layout {
    match op {
        Op::Lstm(_) => Layout { c0: Some(1), h0: 2, wi: 3 },
        _ => Layout { c0: None, h0: 1, wi: 2 },
    }
}

/// Sizes, and the floats of each piece of workspace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    batch: usize,
    time: usize,
    hidden: usize,
    packed: usize,
    weight_bytes: usize,
    /// Frames whose inputs are projected together.
    frames: usize,
    /// The input projection of that many frames, and one step's recurrent product.
    pub(super) input: Product,
    pub(super) step: Product,
    /// Whether the rows of x are brought together, and widened, before they are projected.
    gathers: bool,
    /// Whether 16-bit recurrent weights are widened once for all steps.
    widens: bool,
    panel: usize,
}

impl Plan {
    pub(super) fn new(op: &Op, inputs: &[Option<&Spec>]) -> Result<Plan> {
        let layout = layout(op);
        let spec = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(wh)) = (spec(0), spec(layout.wi + 1)) else {
            return Err(Error::argument(op.name(), "x and wh are missing"));
        };
        let (batch, time, features) = (x.shape()[0], x.shape()[1], x.shape()[2]);
        let (hidden, packed) = (wh.shape()[0], wh.shape()[1]);
        let fit = PROJECTIONS / batch.saturating_mul(packed).max(1);
        let frames = fit.max(FRAMES).min(time);
        let input =
            Product { rows: batch.saturating_mul(frames), inner: features, columns: packed };
        let step = Product { rows: batch, inner: hidden, columns: packed };
        let sixteen = x.dtype != DType::F32;
        let widens = sixteen && !step.is_gemv() && time > 1;
        let (on_input, on_step) =
            with_network!(x.dtype, T => (input.scratch::<T>(), step.scratch::<T>()));
        Ok(Plan {
            batch,
            time,
            hidden,
            packed,
            weight_bytes: x.dtype.size(),
            frames,
            input,
            step,
            gathers: sixteen || (frames < time && batch > 1),
            widens,
            panel: on_input.max(if widens { 0 } else { on_step }),
        })
    }

    /// x, projections, step, h, c, bias, wide weights, panel.
    fn pieces(&self) -> [usize; 8] {
        let state = self.batch.saturating_mul(self.hidden);
        [
            if self.gathers { self.input.rows.saturating_mul(self.input.inner) } else { 0 },
            self.input.rows.saturating_mul(self.packed),
            self.batch.saturating_mul(self.packed),
            state,
            state,
            self.hidden.saturating_mul(4),
            if self.widens { self.hidden.saturating_mul(self.packed) } else { 0 },
            self.panel,
        ]
    }

    pub(super) fn bytes(&self) -> usize {
        self.pieces().into_iter().map(Scratch::bytes).fold(0, usize::saturating_add)
    }

    /// The longer of the two products, in nanoseconds on one thread.
    pub(super) fn longest(&self) -> f64 {
        self.input.ns(self.weight_bytes).max(self.step.ns(self.weight_bytes))
    }

    /// Nanoseconds on one thread, roughly.
    pub(super) fn ns(&self) -> f64 {
        let blocks = self.time as f64 / self.frames.max(1) as f64;
        let gates = self.batch as f64 * self.packed as f64 * 0.7;
        self.input.ns(self.weight_bytes) * blocks
            + (self.step.ns(self.weight_bytes) + gates) * self.time as f64
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Recurrent) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = Plan::new(call.op, &specs)?;
    with_network!(specs[0].map_or(DType::F32, |x| x.dtype), T => {
        // SAFETY: the caller's promise.
        unsafe { run::<T>(call, attrs, plan, layout(call.op)) }
    })
}

/// # Safety
/// As for [`execute`].
unsafe fn run<T: Network>(call: &Call, attrs: &Recurrent, p: Plan, at: Layout) -> Result<()> {
    let (Some(x), Some(wi), Some(wh)) = (call.input(0), call.input(at.wi), call.input(at.wi + 1))
    else {
        return Err(Error::Internal(format!("{} without its weights", call.op.name())));
    };
    // SAFETY: the caller's promise, here and for the views below; `workspace` asked for the pieces.
    let (xs, wi, wh, mask) = unsafe {
        let mask = call.input(at.wi + 3).map(|m| m.slice::<u8>());
        (x.slice::<T>(), wi.slice::<T>(), wh.slice::<T>(), mask)
    };
    // SAFETY: as above.
    let mut scratch = unsafe { Scratch::new(call.workspace) };
    let [gathered, projected, stepped, h, c, bias, wide, panel] =
        p.pieces().map(|n| scratch.take(n));
    // SAFETY: as above.
    unsafe {
        read_state(call.input(at.h0), h);
        read_state(at.c0.and_then(|i| call.input(i)), c);
        read_state(call.input(at.wi + 2), bias);
    }
    if p.widens {
        widen(wh, wide);
    }
    let features = p.input.inner;
    let blocks = p.time.div_ceil(p.frames.max(1));
    for block in 0..blocks {
        let block = if attrs.reverse { blocks - 1 - block } else { block };
        let first = block * p.frames;
        let frames = p.frames.min(p.time - first);
        let input = Product { rows: p.batch * frames, ..p.input };
        let place = first * features..first * features + input.rows * features;
        let rows = match T::as_f32(xs) {
            Some(xs) if !p.gathers => &xs[place],
            _ => {
                let each = gathered.chunks_exact_mut((frames * features).max(1)).take(p.batch);
                for (b, rows) in each.enumerate() {
                    let from = (b * p.time + first) * features;
                    widen(&xs[from..from + rows.len()], rows);
                }
                &gathered[..input.rows * features]
            }
        };
        let projected = &mut projected[..input.rows * p.packed];
        product(input, rows, wi, projected, panel);
        for t in 0..frames {
            let t = if attrs.reverse { frames - 1 - t } else { t };
            if p.widens {
                product(p.step, h, wide, stepped, panel);
            } else {
                product(p.step, h, wh, stepped, panel);
            }
            for b in 0..p.batch {
                let frame = b * p.time + first + t;
                let h = &mut h[b * p.hidden..][..p.hidden];
                if mask.is_none_or(|m| m[frame] == 0) {
                    let xw = &projected[(b * frames + t) * p.packed..][..p.packed];
                    let hw = &mut stepped[b * p.packed..][..p.packed];
                    if at.c0.is_some() {
                        let c = &mut c[b * p.hidden..][..p.hidden];
                        dispatch!(I => lstm_gates::<I>(xw, hw, bias, c, h));
                    } else {
                        dispatch!(I => gru_gates::<I>(xw, hw, bias, h));
                    }
                }
                // SAFETY: as above.
                unsafe { write_f32(&call.outputs[0], frame * p.hidden, h) };
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        if at.c0.is_some() {
            write_f32(&call.outputs[1], 0, c);
            write_f32(&call.outputs[2], 0, h);
        } else {
            write_f32(&call.outputs[1], 0, h);
        }
    }
    Ok(())
}

/// Reads a state or a bias; one that was not given is zero.
///
/// # Safety
/// As for [`View::slice`].
unsafe fn read_state(view: Option<View>, into: &mut [f32]) {
    match view {
        // SAFETY: the caller's promise.
        Some(view) => unsafe { read_f32(&view, into) },
        None => into.fill(0.0),
    }
}

#[inline(always)]
fn add(y: &mut [f32], a: &[f32], b: &[f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y += a + b;
    }
}

#[inline(always)]
fn map(y: &mut [f32], f: impl Fn(f32) -> f32) {
    for y in y {
        *y = f(*y);
    }
}

/// c ← f·c + i·g, h ← o·tanh c; gates i f g o in `hw`, which holds h · wh on entry.
#[inline(always)]
fn lstm_gates<I: Isa>(xw: &[f32], hw: &mut [f32], bias: &[f32], c: &mut [f32], h: &mut [f32]) {
    let n = h.len();
    add(hw, xw, bias);
    let (i, rest) = hw.split_at_mut(n);
    let (f, rest) = rest.split_at_mut(n);
    let (g, o) = rest.split_at_mut(n);
    map(i, sigmoid::<I>);
    map(f, sigmoid::<I>);
    map(g, tanh::<I>);
    map(o, sigmoid::<I>);
    for (i, g) in i.iter_mut().zip(&*g) {
        *i *= g;
    }
    for ((c, f), ig) in c.iter_mut().zip(&*f).zip(&*i) {
        *c = I::fma(*f, *c, *ig);
    }
    for ((h, c), o) in h.iter_mut().zip(&*c).zip(&*o) {
        *h = o * tanh::<I>(*c);
    }
}

/// h ← (1 − z)·n + z·h with n = tanh(xn + bn + r·(hn + b'n)); gates r z n.
#[inline(always)]
fn gru_gates<I: Isa>(xw: &[f32], hw: &mut [f32], bias: &[f32], h: &mut [f32]) {
    let k = h.len();
    let (rz, n) = hw.split_at_mut(2 * k);
    add(rz, &xw[..2 * k], &bias[..2 * k]);
    map(rz, sigmoid::<I>);
    let (r, z) = rz.split_at(k);
    for ((n, b), r) in n.iter_mut().zip(&bias[3 * k..]).zip(r) {
        *n = (*n + b) * r;
    }
    add(n, &xw[2 * k..], &bias[2 * k..3 * k]);
    map(n, tanh::<I>);
    for ((h, n), z) in h.iter_mut().zip(&*n).zip(z) {
        *h = I::fma(*z, *h - n, *n);
    }
}
