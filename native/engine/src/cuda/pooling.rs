//! `window_reduce` and `window_scatter`: a thread for each place of the window, and for the second
//! op another launch, in which each element of x looks at the windows that cover it.

use super::launch::{Args, Context};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, cover, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::infer;
use crate::infer::window::{collapse, frame_of, scatter_frame};
use crate::op::Op;
use crate::spec::{DType, MAX_RANK, Spec};

const SOURCE: &str = "pool/window.cu";

/// As in `window.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Along {
    length: Divisor,
    places: Divisor,
    window: Divisor,
    stride: i64,
    dilation: i64,
    low: i64,
    begin: i64,
    end: i64,
    pitch: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Frame {
    n: u64,
    steps: u64,
    size: u64,
    rank: u32,
    axis: [Along; MAX_RANK],
}

fn frame(op: &Op, inputs: &[Option<&Spec>]) -> Result<Frame> {
    infer(op, inputs)?;
    let Some(Some(x)) = inputs.first() else { return stray(op.name()) };
    let along = collapse(match op {
        Op::WindowReduce(attrs) => frame_of(op.name(), attrs, x)?,
        Op::WindowScatter(attrs) => scatter_frame(op.name(), attrs, x)?,
        _ => return stray(op.name()),
    });
    let mut frame = Frame {
        n: along.iter().map(|a| a.places as u64).product(),
        steps: along.iter().map(|a| a.window as u64).product(),
        size: x.len() as u64,
        rank: along.len() as u32,
        axis: [Along::default(); MAX_RANK],
    };
    let mut pitch = 1;
    for (axis, a) in frame.axis.iter_mut().zip(&along).rev() {
        *axis = Along {
            length: Divisor::new(a.length),
            places: Divisor::new(a.places),
            window: Divisor::new(a.window),
            stride: a.stride as i64,
            dilation: a.dilation as i64,
            low: a.low,
            begin: a.begin() as i64,
            end: a.end as i64,
            pitch,
        };
        pitch *= a.length as i64;
    }
    Ok(frame)
}

pub fn explain(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let frame = frame(op, inputs)?;
    let why = format!("a thread for each place of a window of {}", frame.steps);
    let some = |n: u64| usize::from(n > 0);
    let (variant, launches) = match op {
        Op::WindowReduce(_) => ("places", some(frame.n)),
        _ => ("choose", some(frame.n) + some(frame.size)),
    };
    Ok(Explanation { variant, why, launches })
}

fn module(inputs: &[Option<&Spec>]) -> Result<Module> {
    match inputs.first() {
        Some(Some(x)) => Ok(Module::of(SOURCE, x.dtype)),
        _ => stray("window"),
    }
}

pub fn modules(_: &Props, _: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![module(inputs)?])
}

/// Which element each window chose.
pub fn workspace(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
    match op {
        Op::WindowScatter(_) => Ok((frame(op, inputs)?.n as usize).saturating_mul(8)),
        _ => Ok(0),
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (frame, module) = (frame(op, &specs)?, module(&specs)?);
    let (Some(x), Some(y)) = (call.input(0), call.outputs.first()) else {
        return stray(op.name());
    };
    let pass = |entry, n: u64, args: &mut Args| {
        if n == 0 {
            return Ok(());
        }
        let function = cx.function(&module, entry)?;
        // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, cover(n as usize)?, args) }
    };
    let mut args = Args::new();
    match op {
        Op::WindowReduce(attrs) => {
            args.ptr(x.addr).ptr(y.addr).value(frame).u32(attrs.kind as u32);
            pass("window_reduce", frame.n, &mut args)
        }
        Op::WindowScatter(attrs) => {
            let (Some(source), Some(init)) = (call.input(1), call.input(2)) else {
                return stray(op.name());
            };
            let chosen = call.workspace;
            args.ptr(x.addr).ptr(init.addr).ptr(chosen).value(frame).u32(attrs.min.into());
            pass("window_choose", frame.n, &mut args)?;
            let mut args = Args::new();
            args.ptr(source.addr).ptr(init.addr).ptr(chosen).ptr(y.addr).value(frame);
            pass("window_scatter", frame.size, &mut args)
        }
        _ => stray(op.name()),
    }
}

pub fn all_modules() -> Vec<Module> {
    DType::ALL.into_iter().map(|t| Module::of(SOURCE, t)).collect()
}
