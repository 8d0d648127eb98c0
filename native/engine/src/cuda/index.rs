//! Ops that make and address elements by their place: `iota`, `gather`, `indexed_add` and
//! `indexed_put`. The last two sort their rows by place first, so that each place is written once
//! and sums its rows in their order, whoever comes first.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::order::{Results, Sorting};
use super::props::Props;
use super::walk::{Dim, Divisor, Walk, collapse, cover, packable, stray};
use crate::call::{Call, View};
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::index::Address;
use crate::infer::{infer, normalize_axis};
use crate::op::{Indexed, Iota, Op};
use crate::spec::{DType, MAX_RANK, Spec};

const IOTA: &str = "index/iota.cu";
const GATHER: &str = "index/gather.cu";
const PLACES: &str = "index/places.cu";
const ADD: &str = "index/add.cu";

/// As `Index` in `address.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Index {
    numbers: u64,
    dtype: u32,
    n: u32,
    length: [i64; MAX_RANK],
    stride: [i64; MAX_RANK],
}

/// As `Count` in `iota.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Count {
    n: u64,
    inner: Divisor,
    length: Divisor,
}

/// What one index brings, as it lies in x, and the index.
struct Plan {
    address: Address,
    /// Of the axes that are moved whole.
    dims: Vec<Dim<1>>,
    /// Elements of a row.
    row: usize,
    /// Rows of indices.
    rows: usize,
    pack: usize,
}

impl Plan {
    fn new(op: &Op, attrs: &Indexed, x: &Spec, indices: &Spec) -> Result<Self> {
        let address = Address::new(op.name(), attrs, x)?;
        let whole = address.whole.iter();
        let dims = collapse(whole.map(|&(length, stride)| Dim { length, strides: [stride] }));
        let (row, pack) = (address.row(), 16 / x.dtype.size());
        // A row, and every place that one may lie at, has to be whole packs.
        let whole = packable(&dims, pack)
            && row % pack == 0
            && dims.last().is_none_or(|d| d.strides[0] == 1)
            && address.indexed.iter().all(|&(_, stride)| stride % pack == 0);
        let pack = if whole && !dims.is_empty() { pack } else { 1 };
        Ok(Plan { address, dims, row, rows: indices.rows(), pack })
    }

    fn index(&self, indices: &View) -> Index {
        let mut index = Index {
            numbers: indices.addr,
            dtype: indices.spec.dtype as u32,
            n: self.address.indexed.len() as u32,
            length: [0; MAX_RANK],
            stride: [0; MAX_RANK],
        };
        for (i, &(length, stride)) in self.address.indexed.iter().enumerate() {
            (index.length[i], index.stride[i]) = (length as i64, stride as i64);
        }
        index
    }

    /// Packs of a row, and of all rows.
    fn packs(&self) -> (usize, usize) {
        (self.row / self.pack, self.row / self.pack * self.rows)
    }

    /// The sort of the rows by place.
    fn sorting(&self) -> Sorting {
        Sorting::row(DType::U64, self.rows)
    }

    /// The places of the rows, then sorted, then which row each is, then the sort's own scratch.
    fn scratch(&self) -> Result<[usize; 4]> {
        let whole = |bytes: usize| bytes.next_multiple_of(256);
        let (places, rows) = (whole(self.rows * 8), whole(self.rows * 4));
        Ok([places, places, rows, self.sorting().workspace()?])
    }
}

fn gather_module(x: &Spec) -> Module {
    Module::new(GATHER).define("SIZE", x.dtype.size())
}

type Specs<'a> = &'a [Option<&'a Spec>];

/// x, the indices and the plan of an op that has them.
fn plan<'a>(op: &Op, inputs: Specs<'a>) -> Result<(&'a Spec, Plan)> {
    infer(op, inputs)?;
    match (op, inputs) {
        (
            Op::Gather(attrs) | Op::IndexedAdd(attrs) | Op::IndexedPut(attrs),
            [Some(x), Some(indices), ..],
        ) => Ok((x, Plan::new(op, attrs, x, indices)?)),
        _ => stray(op.name()),
    }
}

pub fn explain(_: &Props, op: &Op, inputs: Specs) -> Result<Explanation> {
    if let Op::Iota(_) = op {
        let launches = infer(op, inputs)?.iter().filter(|out| !out.is_empty()).count();
        let why = "16 bytes a thread".into();
        return Ok(Explanation { variant: "count", why, launches });
    }
    let (x, plan) = plan(op, inputs)?;
    let by = match plan.pack {
        1 => "an element a thread",
        _ => "16 bytes a thread",
    };
    let some = plan.row > 0 && plan.rows > 0 && !x.is_empty();
    let sorted = if some { 2 + plan.sorting().launches() } else { 0 };
    let (variant, why, launches) = match op {
        Op::Gather(_) => ("gather", by.to_string(), usize::from(plan.packs().1 > 0)),
        Op::IndexedPut(_) => ("sorted-put", format!("rows sorted by place; {by}"), sorted),
        _ => ("sorted-add", "rows sorted by place, then a warp for each place".into(), sorted),
    };
    Ok(Explanation { variant, why, launches })
}

pub fn modules(_: &Props, op: &Op, inputs: Specs) -> Result<Vec<Module>> {
    if let Op::Iota(_) = op {
        return Ok(vec![Module::new(IOTA)]);
    }
    let (x, plan) = plan(op, inputs)?;
    Ok(match op {
        Op::Gather(_) => vec![gather_module(x)],
        Op::IndexedPut(_) => vec![Module::new(PLACES), plan.sorting().module(), gather_module(x)],
        _ => vec![Module::new(PLACES), plan.sorting().module(), Module::of(ADD, x.dtype)],
    })
}

pub fn workspace(_: &Props, op: &Op, inputs: Specs) -> Result<usize> {
    match op {
        Op::IndexedAdd(_) | Op::IndexedPut(_) => Ok(plan(op, inputs)?.1.scratch()?.iter().sum()),
        _ => Ok(0),
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    // SAFETY (of all): the caller's promise.
    match op {
        // SAFETY: as above.
        Op::Iota(attrs) => unsafe { iota(cx, attrs, call) },
        // SAFETY: as above.
        Op::Gather(_) => unsafe { gather(cx, op, call) },
        // SAFETY: as above.
        _ => unsafe { indexed(cx, op, call) },
    }
}

/// # Safety
/// As for [`launch`].
unsafe fn iota(cx: &Context, attrs: &Iota, call: &Call) -> Result<()> {
    let Some(y) = call.outputs.first() else { return stray("iota") };
    if y.spec.is_empty() {
        return Ok(());
    }
    let shape = y.spec.shape();
    let (length, inner) = match attrs.axis {
        Some(a) => {
            let a = normalize_axis("iota", a, shape.len())?;
            (shape[a], shape[a + 1..].iter().product())
        }
        None => (y.spec.len(), 1),
    };
    let count =
        Count { n: y.spec.len() as u64, inner: Divisor::new(inner), length: Divisor::new(length) };
    let mut args = Args::new();
    args.ptr(y.addr).value(count).u32(y.spec.dtype as u32);
    let function = cx.function(&Module::new(IOTA), "iota")?;
    let grid = cover(y.spec.len().div_ceil(16 / y.spec.dtype.size()))?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, &mut args) }
}

/// # Safety
/// As for [`launch`].
unsafe fn gather(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (x_spec, plan) = plan(op, &specs)?;
    let (Some(x), Some(indices), Some(y)) = (call.input(0), call.input(1), call.outputs.first())
    else {
        return stray(op.name());
    };
    let (row, n) = plan.packs();
    if n == 0 {
        return Ok(());
    }
    let mut args = Args::new();
    args.ptr(x.addr).ptr(y.addr).u64(n as u64).value(plan.index(&indices));
    args.value(Divisor::new(row)).value(Walk::new(&plan.dims, plan.pack));
    let entry = if plan.pack > 1 { "gather_packs" } else { "gather_elements" };
    let function = cx.function(&gather_module(x_spec), entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, cover(n)?, &mut args) }
}

/// # Safety
/// As for [`launch`].
unsafe fn indexed(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (_, plan) = plan(op, &specs)?;
    let [Some(x), Some(indices), Some(updates)] = [0, 1, 2].map(|i| call.input(i)) else {
        return stray(op.name());
    };
    let Some(y) = call.outputs.first() else { return stray(op.name()) };
    // SAFETY: the caller vouches for both, which do not overlap.
    unsafe { cx.copy(y.addr, x.addr, y.spec.bytes()) }?;
    let (row, n) = plan.packs();
    if n == 0 || x.spec.is_empty() {
        return Ok(());
    }
    let [places, sorted, rows, _] = plan.scratch()?.map(|bytes| bytes as u64);
    let places_at = call.workspace;
    let sorted_at = places_at + places;
    let rows_at = sorted_at + sorted;
    let mut args = Args::new();
    args.ptr(places_at).u64(plan.rows as u64).value(plan.index(&indices));
    let function = cx.function(&Module::new(PLACES), "places")?;
    let order = Results { x: places_at, y: sorted_at, places: rows_at };
    // SAFETY: these are the entry's parameters; the scratch is as large as `workspace` said.
    unsafe {
        cx.launch(&function, cover(plan.rows)?, &mut args)?;
        plan.sorting().launch(cx, order, rows_at + rows)?;
    }
    let walk = Walk::new(&plan.dims, plan.pack);
    let mut args = Args::new();
    args.ptr(updates.addr).ptr(sorted_at).ptr(rows_at);
    if let Op::IndexedPut(_) = op {
        args.ptr(y.addr).u64(plan.rows as u64).u64(n as u64).value(Divisor::new(row)).value(walk);
        let entry = if plan.pack > 1 { "put_packs" } else { "put_elements" };
        let function = cx.function(&gather_module(x.spec), entry)?;
        // SAFETY: as above.
        return unsafe { cx.launch(&function, cover(n)?, &mut args) };
    }
    const WARPS: usize = 8;
    let across = plan.row.next_power_of_two().min(32);
    let blocks = [plan.rows.div_ceil(WARPS), plan.row.div_ceil(across).min(65_535), 1];
    args.ptr(x.addr).ptr(y.addr).u64(plan.rows as u64).u64(plan.row as u64).u32(across as u32);
    args.value(Walk::new(&plan.dims, 1));
    let function = cx.function(&Module::of(ADD, x.spec.dtype), "add_rows")?;
    // SAFETY: as above.
    unsafe { cx.launch(&function, Grid::new_3d(blocks, 32 * WARPS as u32)?, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    let sizes = [1, 2, 4, 8].map(|size| Module::new(GATHER).define("SIZE", size));
    let adds = DType::ALL.map(|t| Module::of(ADD, t));
    [IOTA, PLACES].map(Module::new).into_iter().chain(sizes).chain(adds).collect()
}
