//! `reduce`, `softmax` and `argmax`. Rows that lie in one piece take a group of threads each,
//! columns a thread or several each; long reductions with few results go in two passes.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Dim, Divisor, Walk, collapse, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::{infer, normalize_axis, reduced_axes};
use crate::op::{Op, Reduce};
use crate::spec::{DType, Spec};

const REDUCE: &str = "reduce/reduce.cu";
const SOFTMAX: &str = "reduce/softmax.cu";
const ARGMAX: &str = "reduce/argmax.cu";

/// The least elements of a row that are worth a block of the first of two passes.
const ROW_PART: usize = 16_384;
/// And of a column, for each thread.
const COLUMN_PART: usize = 32;
/// Threads a row of softmax or argmax; their kernels are compiled for so many.
const MAX_LANES: usize = 512;
/// Parts of a row or column at most, so that the second pass is short.
const MAX_PARTS: usize = 1024;

/// As in `reduce.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rows {
    rows: u64,
    n: u64,
    chunk: u64,
    parts: Divisor,
    lanes: u32,
}

/// As in `lanes.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Columns {
    n: u64,
    inner: u64,
    chunk: u64,
    parts: Divisor,
    tiles: Divisor,
    across: u32,
}

/// As in `reduce.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Target {
    y: u64,
    count: u64,
    kind: u32,
    partial: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct RowPass {
    rows: usize,
    n: usize,
    parts: usize,
    chunk: usize,
    lanes: usize,
}

impl RowPass {
    /// Up to a warp, lanes cost nothing and a short row is done sooner with a pack a lane. Beyond
    /// it a lane takes four packs at once: more lanes would only wait for each other.
    fn new(rows: usize, n: usize, element: usize, most: usize) -> Self {
        let packs = n.div_ceil(16 / element).next_power_of_two();
        let lanes = packs.min(32).max(packs / 4).min(most);
        RowPass { rows, n, parts: 1, chunk: n, lanes }
    }

    /// Cut so that `blocks` of them are busy, where the rows are long enough for it.
    fn split(self, blocks: usize) -> Self {
        let parts = blocks.div_ceil(self.rows.max(1)).min(self.n / ROW_PART).min(MAX_PARTS);
        if parts < 2 {
            return self;
        }
        // Parts begin at packs.
        let chunk = self.n.div_ceil(parts).next_multiple_of(16);
        RowPass { parts: self.n.div_ceil(chunk), chunk, ..self }
    }

    fn grid(&self) -> Result<Grid> {
        let groups = self.rows * self.parts;
        let threads = groups
            .saturating_mul(self.lanes)
            .min(1024)
            .next_power_of_two()
            .clamp(32, self.lanes.max(256));
        Grid::new(groups.div_ceil(threads / self.lanes), threads as u32)
    }

    fn arg(&self) -> Rows {
        Rows {
            rows: self.rows as u64,
            n: self.n as u64,
            chunk: self.chunk as u64,
            parts: Divisor::new(self.parts),
            lanes: self.lanes as u32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct ColumnPass {
    outer: usize,
    n: usize,
    inner: usize,
    parts: usize,
    chunk: usize,
    across: usize,
    threads: usize,
}

impl ColumnPass {
    fn new(outer: usize, n: usize, inner: usize) -> Self {
        let (wide, high) = (inner.min(256), n.clamp(1, 256));
        let (wide, high) = (wide.next_power_of_two(), high.next_power_of_two());
        // At least a warp's width of neighbours, and more where there is little to go down.
        let across = wide.min((256 / high).max(32));
        let threads = (across * high).clamp(32, 256);
        ColumnPass { outer, n, inner, parts: 1, chunk: n, across, threads }
    }

    fn tiles(&self) -> usize {
        self.inner.div_ceil(self.across)
    }

    fn split(self, blocks: usize) -> Self {
        let least = COLUMN_PART * (self.threads / self.across);
        let now = (self.outer * self.tiles()).max(1);
        let parts = blocks.div_ceil(now).min(self.n / least).min(MAX_PARTS);
        if parts < 2 {
            return self;
        }
        let chunk = self.n.div_ceil(parts);
        ColumnPass { parts: self.n.div_ceil(chunk), chunk, ..self }
    }

    fn grid(&self) -> Result<Grid> {
        Grid::new(self.outer * self.parts * self.tiles(), self.threads as u32)
    }

    fn arg(&self) -> Columns {
        Columns {
            n: self.n as u64,
            inner: self.inner as u64,
            chunk: self.chunk as u64,
            parts: Divisor::new(self.parts),
            tiles: Divisor::new(self.tiles()),
            across: self.across as u32,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Plan {
    Nothing,
    Rows(RowPass),
    Columns(ColumnPass),
    Strided { walks: Box<[Walk; 2]>, threads: usize },
}

impl Plan {
    /// Elements of scratch between two passes.
    fn partials(&self) -> usize {
        match self {
            Plan::Rows(p) if p.parts > 1 => p.rows * p.parts,
            Plan::Columns(p) if p.parts > 1 => p.outer * p.parts * p.inner,
            _ => 0,
        }
    }
}

/// What the results of `reduce` are summed up in.
fn accumulator(dtype: DType) -> usize {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 => 4,
        _ => 8,
    }
}

fn plan(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let outputs = infer(op, inputs)?;
    let (Some(Some(x)), Some(out)) = (inputs.first(), outputs.first()) else {
        return stray(op.name());
    };
    if out.is_empty() {
        return Ok(Plan::Nothing);
    }
    match op {
        Op::Softmax(attrs) => along(op, x, attrs.axis),
        Op::Argmax(attrs) => along(op, x, attrs.axis),
        Op::Reduce(attrs) => reduce(props, attrs, x),
        _ => stray(op.name()),
    }
}

fn along(op: &Op, x: &Spec, axis: i64) -> Result<Plan> {
    let axis = normalize_axis(op.name(), axis, x.rank())?;
    let (outer, inner) = (&x.shape()[..axis], &x.shape()[axis + 1..]);
    let (outer, n, inner) = (outer.iter().product(), x.shape()[axis], inner.iter().product());
    Ok(if inner == 1 {
        Plan::Rows(RowPass::new(outer, n, x.dtype.size(), MAX_LANES))
    } else {
        Plan::Columns(ColumnPass::new(outer, n, inner))
    })
}

fn reduce(props: &Props, attrs: &Reduce, x: &Spec) -> Result<Plan> {
    let axes = reduced_axes(attrs, x.rank())?;
    // Neighbours of one kind are one axis. `true` is reduced.
    let mut runs: Vec<(bool, usize)> = Vec::with_capacity(x.rank());
    for (a, &length) in x.shape().iter().enumerate().filter(|&(_, &l)| l != 1) {
        let reduced = axes.contains(&a);
        match runs.last_mut() {
            Some(last) if last.0 == reduced => last.1 *= length,
            _ => runs.push((reduced, length)),
        }
    }
    let sms = props.sms as usize;
    let rows = |rows, n| {
        let most = if n > ROW_PART { 512 } else { 256 };
        Plan::Rows(RowPass::new(rows, n, x.dtype.size(), most).split(2 * sms))
    };
    // Smaller blocks with less in flight each than those of rows: more of them.
    let columns = |outer, n, inner| Plan::Columns(ColumnPass::new(outer, n, inner).split(16 * sms));
    Ok(match runs[..] {
        [] => rows(1, 1),
        [(false, kept)] => rows(kept, 1),
        [(true, n)] => rows(1, n),
        [(false, kept), (true, n)] => rows(kept, n),
        [(true, n), (false, inner)] => columns(1, n, inner),
        [(false, outer), (true, n), (false, inner)] => columns(outer, n, inner),
        _ => {
            let strides = x.strides();
            let dims = |reduced: bool| {
                let axes = (0..x.rank()).filter(|a| axes.contains(a) == reduced);
                collapse(axes.map(|a| Dim { length: x.shape()[a], strides: [strides[a]] }))
            };
            let walks = [false, true].map(|reduced| Walk::new(&dims(reduced), 1));
            let threads = (walks[1].len() / 4).next_power_of_two().clamp(32, 256);
            Plan::Strided { walks: Box::new(walks), threads }
        }
    })
}

pub fn explain(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(props, op, inputs)?;
    let launches = if plan.partials() > 0 { 2 } else { 1 };
    let (variant, why) = match &plan {
        Plan::Nothing => {
            let why = "the result is empty".into();
            return Ok(Explanation { variant: "nothing", why, launches: 0 });
        }
        Plan::Rows(p) if p.parts > 1 => {
            ("rows", format!("{} rows in {} parts each, then the parts", p.rows, p.parts))
        }
        Plan::Rows(p) => ("rows", format!("{} lanes a row", p.lanes)),
        Plan::Columns(p) if p.parts > 1 => {
            ("columns", format!("columns in {} parts each, then the parts", p.parts))
        }
        Plan::Columns(p) => {
            ("columns", format!("{} columns a block, {} down", p.across, p.threads / p.across))
        }
        Plan::Strided { threads, .. } => {
            ("strided", format!("reduced and kept axes alternate: {threads} threads a result"))
        }
    };
    Ok(Explanation { variant, why, launches })
}

fn module(op: &Op, x: &Spec) -> Module {
    let source = match op {
        Op::Softmax(_) => SOFTMAX,
        Op::Argmax(_) => ARGMAX,
        _ => REDUCE,
    };
    Module::of(source, x.dtype)
}

pub fn modules(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let Some(Some(x)) = inputs.first() else { return stray(op.name()) };
    Ok(vec![module(op, x)])
}

pub fn workspace(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
    let Some(Some(x)) = inputs.first() else { return stray(op.name()) };
    Ok(plan(props, op, inputs)?.partials() * accumulator(x.dtype))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (Some(x), Some(y)) = (call.input(0), call.outputs.first()) else {
        return stray(op.name());
    };
    let plan = plan(cx.props(), op, &specs)?;
    let module = module(op, x.spec);
    if let Op::Reduce(attrs) = op {
        // SAFETY: the caller's promise.
        return unsafe { launch_reduce(cx, attrs, call, &plan, &module) };
    }
    let mut args = Args::new();
    args.ptr(x.addr).ptr(y.addr);
    let (rows, grid) = match plan {
        Plan::Rows(p) => {
            args.u64(p.rows as u64).u64(p.n as u64).u32(p.lanes as u32);
            (true, p.grid()?)
        }
        Plan::Columns(p) => {
            args.value(p.arg());
            (false, p.grid()?)
        }
        _ => return Ok(()),
    };
    let entry = match (op, rows) {
        (Op::Softmax(attrs), _) => {
            args.u32(attrs.log.into());
            if rows { "softmax_rows" } else { "softmax_columns" }
        }
        (Op::Argmax(attrs), _) => {
            args.u32(attrs.min.into()).u32(attrs.last.into());
            if rows { "argmax_rows" } else { "argmax_columns" }
        }
        _ => return stray(op.name()),
    };
    let function = cx.function(&module, entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, &mut args) }
}

/// # Safety
/// As for [`launch`].
unsafe fn launch_reduce(
    cx: &Context,
    attrs: &Reduce,
    call: &Call,
    plan: &Plan,
    module: &Module,
) -> Result<()> {
    let (Some(x), Some(y)) = (call.input(0), call.outputs.first()) else {
        return stray("reduce");
    };
    let count = x.spec.len() / y.spec.len().max(1);
    let target = |y: u64, partial: bool| Target {
        y,
        count: count as u64,
        kind: attrs.kind as u32,
        partial: partial.into(),
    };
    // The first pass, and where it leaves parts, the second.
    let parts = plan.partials() > 0;
    let first = target(if parts { call.workspace } else { y.addr }, parts);
    let last = target(y.addr, false);
    let pass = |entry, grid, args: &mut Args| {
        let function = cx.function(module, entry)?;
        // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, args) }
    };
    match plan {
        Plan::Nothing => {}
        Plan::Rows(p) => {
            let mut args = Args::new();
            pass("reduce_rows", p.grid()?, args.ptr(x.addr).value(p.arg()).value(first))?;
            if parts {
                let p = RowPass::new(p.rows, p.parts, accumulator(x.spec.dtype), 256);
                let mut args = Args::new();
                args.ptr(call.workspace).value(p.arg()).value(last);
                pass("join_rows", p.grid()?, &mut args)?;
            }
        }
        Plan::Columns(p) => {
            let mut args = Args::new();
            pass("reduce_columns", p.grid()?, args.ptr(x.addr).value(p.arg()).value(first))?;
            if parts {
                let p = ColumnPass::new(p.outer, p.parts, p.inner);
                let mut args = Args::new();
                args.ptr(call.workspace).value(p.arg()).value(last);
                pass("join_columns", p.grid()?, &mut args)?;
            }
        }
        Plan::Strided { walks, threads } => {
            let [kept, reduced] = **walks;
            let grid = Grid::new(kept.len(), *threads as u32)?;
            let mut args = Args::new();
            args.ptr(x.addr).value(kept).value(reduced).value(first);
            pass("reduce_strided", grid, &mut args)?;
        }
    }
    Ok(())
}

pub fn all_modules() -> Vec<Module> {
    let each = |source, t: DType| Module::of(source, t);
    let all = DType::ALL.into_iter().flat_map(|t| [each(REDUCE, t), each(ARGMAX, t)]);
    let network = DType::ALL.into_iter().filter(|t| t.is_network()).map(|t| each(SOFTMAX, t));
    all.chain(network).collect()
}
