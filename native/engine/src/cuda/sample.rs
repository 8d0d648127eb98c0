//! `sample`: one launch, a block a row.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::Sample;
use crate::spec::{DType, Spec};

const SOURCE: &str = "sample/sample.cu";

/// As in `sample.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Options {
    seed: u64,
    top_p: f64,
    top_k: u32,
    temperature: f32,
}

struct Plan {
    module: Module,
    grid: Grid,
    options: Options,
}

fn plan(op: &Sample, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let Some(Some(logits)) = inputs.first() else { return stray("sample") };
    // A thread takes four at a time: that is what one call of the generator gives.
    let threads = logits.last().div_ceil(4).next_power_of_two().clamp(64, 1024);
    // The counter advances also where there are no rows.
    let blocks = logits.rows().max(1);
    let keep = op.top_k.filter(|&k| k < logits.last()).unwrap_or(0);
    Ok(Plan {
        module: Module::of(SOURCE, logits.dtype),
        grid: Grid::new(blocks, threads as u32)?,
        options: Options {
            seed: op.seed,
            top_p: op.top_p.unwrap_or(1.0),
            top_k: keep as u32,
            temperature: op.temperature as f32,
        },
    })
}

pub fn explain(_: &Props, op: &Sample, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let options = plan(op, inputs)?.options;
    let (variant, why) = if options.temperature == 0.0 {
        ("largest", "temperature 0 takes the most likely")
    } else if options.top_k > 0 || options.top_p < 1.0 {
        ("threshold", "thresholds found digit by digit, then Gumbel noise on what is kept")
    } else {
        ("gumbel", "Gumbel noise on every logit")
    };
    Ok(Explanation { variant, why: format!("{why}; a block a row"), launches: 1 })
}

pub fn modules(_: &Props, op: &Sample, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(op, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Sample, call: &Call) -> Result<()> {
    let (Some(logits), Some(counter), [ids, next]) = (call.input(0), call.input(1), call.outputs)
    else {
        return stray("sample");
    };
    let plan = plan(op, &[Some(logits.spec)])?;
    let mut args = Args::new();
    args.ptr(logits.addr).ptr(counter.addr).ptr(ids.addr).ptr(next.addr);
    args.u64(logits.spec.rows() as u64).u32(logits.spec.last() as u32).value(plan.options);
    let function = cx.function(&plan.module, "sample")?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid.early(true), &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    DType::ALL.into_iter().filter(|t| t.is_network()).map(|t| Module::of(SOURCE, t)).collect()
}
