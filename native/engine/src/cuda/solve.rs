//! `triangular_solve`: a warp for each small triangle and some of its right sides, or a block that goes
//! down a large one; a single large one by cuBLAS ([`super::trsm`]), where it is there.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::trsm::{self, Solve};
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

/// The system as cuBLAS would be asked for it, without a look whether it is there.
fn for_library(attrs: &TriangularSolve, inputs: &[Option<&Spec>]) -> Result<Option<Solve>> {
    infer(&Op::TriangularSolve(*attrs), inputs)?;
    let [Some(a), Some(b)] = inputs else { return stray("triangular_solve") };
    Ok(Solve::of(attrs, &solve::Systems::of(attrs, a, b), a.dtype))
}

/// The same where it is there.
fn library(
    props: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<Option<Solve>> {
    Ok(for_library(attrs, inputs)?.filter(|_| props.trsm.find().is_ok()))
}

pub fn explain(
    props: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<Explanation> {
    let plan = plan(attrs, inputs)?;
    let mut why = match plan.is_tile() {
        true => "at most 32 rows: a lane each".to_owned(),
        false => "32 rows at a time, by one block from the first down".to_owned(),
    };
    if for_library(attrs, inputs)?.is_some() {
        match props.trsm.find() {
            Ok(()) => {
                let why = "one large triangle, by cuBLAS in place of the right sides".into();
                return Ok(Explanation { variant: "cublas", why, launches: 2 });
            }
            Err(error) => why.push_str(&format!("; not by cuBLAS: {error}")),
        }
    }
    let launches = usize::from(plan.blocks > 0);
    Ok(Explanation { variant: plan.entry, why, launches })
}

pub fn modules(
    props: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<Vec<Module>> {
    Ok(match library(props, attrs, inputs)? {
        Some(_) => Vec::new(),
        None => vec![plan(attrs, inputs)?.module],
    })
}

/// Whether a launch has nothing of the library's to open or load.
pub fn is_warm(props: &Props, attrs: &TriangularSolve, inputs: &[Option<&Spec>]) -> Result<bool> {
    let solve = for_library(attrs, inputs)?;
    Ok(solve.and_then(|solve| props.trsm.is_warm(&solve)).unwrap_or(true))
}

pub fn workspace(
    props: &Props,
    attrs: &TriangularSolve,
    inputs: &[Option<&Spec>],
) -> Result<usize> {
    Ok(match library(props, attrs, inputs)? {
        Some(_) => trsm::WORKSPACE,
        None => plan(attrs, inputs)?.workspace,
    })
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
    if let Some(solve) = library(cx.props(), attrs, &specs)? {
        let at = [a.addr, y.addr, call.workspace];
        // SAFETY: the caller vouches for the views, which `infer` has passed, and for the workspace.
        unsafe {
            if b.addr != y.addr {
                cx.copy(y.addr, b.addr, y.spec.bytes())?;
            }
            return cx.props().trsm.launch(cx.stream().raw(), &solve, at);
        }
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
