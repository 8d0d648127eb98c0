//! `pad`: each element of the result, or 16 bytes of them, finds its place in x, or takes the value.

use super::launch::{Args, Context};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, cover, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::infer;
use crate::op::{Op, Pad};
use crate::spec::{MAX_RANK, Spec};

const SOURCE: &str = "shape/pad.cu";

/// As in `pad.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Padded {
    length: Divisor,
    step: Divisor,
    low: i64,
    count: u64,
    stride: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Frame {
    n: u64,
    rank: u32,
    axis: [Padded; MAX_RANK],
}

/// An axis on the host.
#[derive(Clone, Copy)]
struct Axis {
    length: usize,
    step: usize,
    low: i64,
    count: usize,
}

impl Axis {
    /// Nothing around its elements nor between them.
    fn is_whole(&self) -> bool {
        self.low == 0 && self.count == self.length && self.step == 1
    }
}

struct Plan {
    module: Module,
    pack: usize,
    frame: Frame,
}

fn plan(attrs: &Pad, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let op = Op::Pad(attrs.clone());
    let outputs = infer(&op, inputs)?;
    let (Some(Some(x)), Some(out)) = (inputs.first(), outputs.first()) else {
        return stray("pad");
    };
    let mut axes: Vec<Axis> = Vec::with_capacity(x.rank());
    for (a, (&count, &length)) in x.shape().iter().zip(out.shape()).enumerate() {
        // Along an axis of one element or none there is no between.
        let step = if count > 1 { attrs.interior[a] as usize + 1 } else { 1 };
        let next = Axis { length, step, low: attrs.low[a], count };
        match axes.last_mut() {
            // An axis that is whole goes along with the one before it.
            Some(last) if next.is_whole() && last.step == 1 => {
                *last = Axis {
                    length: last.length * length,
                    step: 1,
                    low: last.low * length as i64,
                    count: last.count * length,
                };
            }
            _ => axes.push(next),
        }
    }
    let wide = 16 / x.dtype.size();
    let last_is_whole = axes.last().is_some_and(|a| {
        let sizes = [a.length, a.count, a.low.unsigned_abs() as usize];
        a.step == 1 && sizes.iter().all(|n| n % wide == 0)
    });
    let pack = if last_is_whole { wide } else { 1 };
    let mut frame = Frame {
        n: (out.len() / pack) as u64,
        rank: axes.len() as u32,
        axis: [Padded::default(); MAX_RANK],
    };
    let mut stride = 1;
    for (i, a) in axes.iter().enumerate().rev() {
        let by = if i + 1 == axes.len() { pack } else { 1 };
        frame.axis[i] = Padded {
            length: Divisor::new(a.length / by),
            step: Divisor::new(a.step),
            low: a.low / by as i64,
            count: (a.count / by) as u64,
            stride,
        };
        stride *= (a.count / by) as i64;
    }
    let module = Module::new(SOURCE).define("SIZE", x.dtype.size());
    Ok(Plan { module, pack, frame })
}

pub fn explain(_: &Props, attrs: &Pad, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(attrs, inputs)?;
    let (variant, why) = match plan.pack {
        1 => ("elements", "an element a thread: rows or what is around them are no whole packs"),
        _ => ("packs", "16 bytes a thread"),
    };
    Ok(Explanation { variant, why: why.into(), launches: usize::from(plan.frame.n > 0) })
}

pub fn modules(_: &Props, attrs: &Pad, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(attrs, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, attrs: &Pad, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = plan(attrs, &specs)?;
    let (Some(x), Some(value), Some(y)) = (call.input(0), call.input(1), call.outputs.first())
    else {
        return stray("pad");
    };
    if plan.frame.n == 0 {
        return Ok(());
    }
    let entry = if plan.pack > 1 { "pad_packs" } else { "pad_elements" };
    let mut args = Args::new();
    args.ptr(x.addr).ptr(value.addr).ptr(y.addr).value(plan.frame);
    let function = cx.function(&plan.module, entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, cover(plan.frame.n as usize)?, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    [1, 2, 4, 8].map(|size| Module::new(SOURCE).define("SIZE", size)).into()
}
