//! `triangular_solve`: a warp for each small triangle and some of its right sides, or a block that goes
//! down a large one.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::infer::infer;
use crate::infer::solve;
use crate::op::{Op, TriangularSolve};
use crate::spec::{DType, Spec};

const SOURCE: &str = "solve/triangular.cu";
const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Rows that a warp has at once.
const ROWS: usize = 32;
/// Right sides from which on a block solves several together.
const MANY: usize = 8;

/// As in `triangular.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    first: i64,
    row: i64,
    column: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Systems {
    batch: u64,
    size: u64,
    columns: u64,
    strips: Divisor,
    a: Layout,
    x: Layout,
}

struct Plan {
    module: Module,
    entry: &'static str,
    /// Blocks of threads.
    blocks: usize,
    systems: Systems,
    /// Bytes of the unknowns in f32, where they are not kept in the result.
    workspace: usize,
}

impl Plan {
    fn is_tile(&self) -> bool {
        self.systems.size <= ROWS as u64
    }
}

impl From<solve::Layout> for Layout {
    fn from(lies: solve::Layout) -> Self {
        let [first, row, column] = [lies.first, lies.row, lies.column].map(|n| n as i64);
        Layout { first, row, column }
    }
}

fn plan(attrs: &TriangularSolve, inputs: &[Option<&Spec>]) -> Result<Plan> {
    infer(&Op::TriangularSolve(*attrs), inputs)?;
    let [Some(a), Some(b)] = inputs else { return stray("triangular_solve") };
    let systems = solve::Systems::of(attrs, a, b);
    let (size, columns) = (systems.size, systems.columns);
    let (entry, each) = match (size <= ROWS, columns) {
        (true, 0..4) => ("tile_column", 1),
        (true, _) => ("tile_columns", 4),
        (false, 0..MANY) => ("blocks_column", 1),
        (false, _) => ("blocks_columns", 16),
    };
    let strips = columns.div_ceil(each);
    let units = if b.is_empty() { 0 } else { systems.batch * strips };
    let narrow = a.dtype.size() == 2 && size > ROWS;
    let workspace = if narrow { b.len().checked_mul(4) } else { Some(0) };
    Ok(Plan {
        module: Module::of(SOURCE, a.dtype),
        entry,
        blocks: if size <= ROWS { units.div_ceil(WARPS) } else { units },
        systems: Systems {
            batch: systems.batch as u64,
            size: size as u64,
            columns: columns as u64,
            strips: Divisor::new(strips),
            a: systems.a.into(),
            x: systems.x.into(),
        },
        workspace: workspace
            .ok_or_else(|| Error::argument("triangular_solve", "the unknowns in f32 overflow"))?,
    })
}

pub fn explain(
    _: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<Explanation> {
    let plan = plan(attrs, inputs)?;
    let why = match plan.is_tile() {
        true => "at most 32 rows: a lane each",
        false => "32 rows at a time, by one block from the first down",
    };
    let launches = usize::from(plan.blocks > 0);
    Ok(Explanation { variant: plan.entry, why: why.into(), launches })
}

pub fn modules(
    _: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<Vec<Module>> {
    Ok(vec![plan(attrs, inputs)?.module])
}

pub fn workspace(_: &Props, attrs: &TriangularSolve, inputs: &[Option<&Spec>]) -> Result<usize> {
    Ok(plan(attrs, inputs)?.workspace)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, attrs: &TriangularSolve, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = plan(attrs, &specs)?;
    let (Some(a), Some(b), Some(y)) = (call.input(0), call.input(1), call.outputs.first()) else {
        return stray("triangular_solve");
    };
    if plan.blocks == 0 {
        return Ok(());
    }
    let mut args = Args::new();
    args.ptr(a.addr).ptr(b.addr).ptr(y.addr);
    if !plan.is_tile() {
        args.ptr(if plan.workspace > 0 { call.workspace } else { y.addr });
    }
    args.value(plan.systems);
    let function = cx.function(&plan.module, plan.entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, Grid::new(plan.blocks, THREADS)?, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    DType::ALL.into_iter().filter(|t| t.is_float()).map(|t| Module::of(SOURCE, t)).collect()
}
