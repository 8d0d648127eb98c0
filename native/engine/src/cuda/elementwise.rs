//! `unary`, `binary`, `select` and `cast`: one launch each, the kind of function a parameter.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Dim, Walk, broadcast_strides, collapse, cover, packable, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::infer;
use crate::op::Op;
use crate::spec::{DType, Spec};

const UNARY: &str = "elementwise/unary.cu";
const BINARY: &str = "elementwise/binary.cu";
const SELECT: &str = "elementwise/select.cu";
const CAST: &str = "elementwise/cast.cu";

/// Elements that a thread of `cast` takes, whatever the two types.
const CAST_PACK: usize = 4;

struct Plan {
    module: Module,
    entry: &'static str,
    grid: Grid,
    /// Of the ops that broadcast.
    walk: Option<Walk>,
    n: usize,
    variant: &'static str,
}

fn plan(op: &Op, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let outputs = infer(op, inputs)?;
    let (Some(Some(x)), Some(out)) = (inputs.first(), outputs.first()) else {
        return stray(op.name());
    };
    let pack = 16 / x.dtype.size();
    match op {
        Op::Unary(_) => flat(Module::of(UNARY, x.dtype), "unary", out, pack),
        Op::Cast(_) => flat(Module::of(CAST, x.dtype), "cast", out, CAST_PACK),
        Op::Binary(_) => {
            let entries = ["binary_packs", "binary_elements"];
            walked::<2>(Module::of(BINARY, x.dtype), entries, inputs, out, pack)
        }
        Op::Select(_) => {
            let size = out.dtype.size();
            let module = Module::new(SELECT).define("SIZE", size);
            walked::<3>(module, ["select_packs", "select_elements"], inputs, out, 16 / size)
        }
        _ => stray(op.name()),
    }
}

fn flat(module: Module, entry: &'static str, out: &Spec, pack: usize) -> Result<Plan> {
    let grid = cover(out.len().div_ceil(pack))?;
    Ok(Plan { module, entry, grid, walk: None, n: out.len(), variant: "packs" })
}

fn walked<const N: usize>(
    module: Module,
    [packs, elements]: [&'static str; 2],
    inputs: &[Option<&Spec>],
    out: &Spec,
    pack: usize,
) -> Result<Plan> {
    let mut dims: Vec<Dim<N>> =
        out.shape().iter().map(|&length| Dim { length, strides: [0; N] }).collect();
    for (k, spec) in inputs.iter().flatten().take(N).enumerate() {
        for (dim, stride) in dims.iter_mut().zip(broadcast_strides(spec.shape(), out.rank())) {
            dim.strides[k] = stride;
        }
    }
    let dims = collapse(dims);
    let (pack, entry, variant) =
        if packable(&dims, pack) { (pack, packs, "packs") } else { (1, elements, "elements") };
    let n = out.len();
    let grid = cover(n.div_ceil(pack))?;
    Ok(Plan { module, entry, grid, walk: Some(Walk::new(&dims, pack)), n, variant })
}

pub fn explain(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(op, inputs)?;
    let why = match plan.variant {
        "packs" => "16-byte accesses: operands are dense or stand still along the last axis",
        _ => "an element a thread: rows are no whole number of 16-byte packs",
    };
    let launches = usize::from(plan.n > 0);
    Ok(Explanation { variant: plan.variant, why: why.into(), launches })
}

pub fn modules(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(op, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let inputs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = plan(op, &inputs)?;
    if plan.n == 0 {
        return Ok(());
    }
    let mut args = Args::new();
    for view in call.inputs.iter().flatten().chain(call.outputs) {
        args.ptr(view.addr);
    }
    match plan.walk {
        Some(walk) => args.value(walk),
        None => args.u64(plan.n as u64),
    };
    match op {
        Op::Unary(a) => args.u32(a.kind as u32),
        Op::Binary(a) => args.u32(a.kind as u32),
        Op::Cast(a) => args.u32(a.r#type as u32),
        _ => &mut args,
    };
    let function = cx.function(&plan.module, plan.entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    let sizes = [1, 2, 4, 8].map(|size| Module::new(SELECT).define("SIZE", size));
    let typed = DType::ALL
        .into_iter()
        .flat_map(|t| [UNARY, BINARY, CAST].map(|source| Module::of(source, t)));
    typed.chain(sizes).collect()
}
