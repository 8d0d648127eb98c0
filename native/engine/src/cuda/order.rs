//! `sort` and `cumulative`: along an axis, every element after those before it.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, cover, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::infer::{infer, normalize_axis};
use crate::op::{Cumulative, Op, Sort};
use crate::spec::{DType, Spec};

const SORT: &str = "order/sort.cu";
const CUMULATIVE: &str = "order/cumulative.cu";

/// Elements that a block sorts, or merges, or scans at once.
const TILE: usize = 2048;
/// Elements of a thread of those.
const ITEMS: usize = 8;
/// Threads of a block that merges or scans.
const THREADS: usize = TILE / ITEMS;
/// The least elements of a row that are worth a block of their own in a scan.
const ROW_PART: usize = 2 * TILE;
/// And of a column, for each thread.
const COLUMN_PART: usize = 64;
/// Parts of a row at most: what they begin with is found by one block.
const ROW_PARTS: usize = TILE;
/// And of a column: by one thread.
const COLUMN_PARTS: usize = 256;

/// As in `sort.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rows {
    rows: u64,
    n: u64,
    inner: Divisor,
    tiles: Divisor,
    padded: u32,
    together: u32,
    descending: u32,
}

/// As `Results` in `sort.cu`: an address of 0 is not written.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Results {
    pub x: u64,
    pub y: u64,
    pub places: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Runs {
    key: u64,
    at: u64,
}

/// A sort of `rows` rows of `n` elements, `inner` of them side by side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sorting {
    dtype: DType,
    rows: usize,
    n: usize,
    inner: usize,
    descending: bool,
}

impl Sorting {
    /// Of one row, from the least up.
    pub(super) fn row(dtype: DType, n: usize) -> Self {
        Sorting { dtype, rows: 1, n, inner: 1, descending: false }
    }

    fn new(attrs: &Sort, x: &Spec) -> Result<Self> {
        let axis = normalize_axis("sort", attrs.axis, x.rank())?;
        let n = x.shape()[axis];
        Ok(Sorting {
            dtype: x.dtype,
            rows: x.len().checked_div(n).unwrap_or(0),
            n,
            inner: x.shape()[axis + 1..].iter().product(),
            descending: attrs.descending,
        })
    }

    pub(super) fn module(&self) -> Module {
        Module::of(SORT, self.dtype)
    }

    fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Merges until one run is left.
    fn merges(&self) -> usize {
        self.tiles().max(1).next_power_of_two().trailing_zeros() as usize
    }

    pub(super) fn launches(&self) -> usize {
        if self.rows == 0 { 0 } else { 1 + self.merges() }
    }

    /// Bytes of a key.
    fn key(&self) -> usize {
        self.dtype.size().max(4)
    }

    /// Bytes of one set of runs.
    fn runs(&self) -> usize {
        (self.rows * self.n * (self.key() + 4)).next_multiple_of(256)
    }

    pub(super) fn workspace(&self) -> Result<usize> {
        let elements = self.rows.checked_mul(self.n);
        let bytes = elements.and_then(|n| n.checked_mul(2 * (self.key() + 4)));
        match (self.merges(), bytes) {
            (0, _) => Ok(0),
            (_, Some(_)) => Ok(2 * self.runs()),
            (_, None) => Err(Error::argument("sort", "the scratch between merges overflows")),
        }
    }

    /// # Safety
    /// The addresses are those of live device memory: of the elements, and of scratch as large as
    /// `workspace` said.
    pub(super) unsafe fn launch(&self, cx: &Context, out: Results, scratch: u64) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let padded = self.n.min(TILE).next_power_of_two();
        let together = (1024 / padded).clamp(1, self.rows);
        let rows = Rows {
            rows: self.rows as u64,
            n: self.n as u64,
            inner: Divisor::new(self.inner),
            tiles: Divisor::new(self.tiles()),
            padded: padded as u32,
            together: together as u32,
            descending: self.descending.into(),
        };
        let side = |i: usize| {
            let key = scratch + (i * self.runs()) as u64;
            Runs { key, at: key + (self.rows * self.n * self.key()) as u64 }
        };
        let module = self.module();
        let threads = (padded * together).div_ceil(ITEMS).next_multiple_of(32);
        let blocks = self.rows.div_ceil(together) * self.tiles();
        let mut args = Args::new();
        args.value(out).value(side(0)).value(rows);
        let function = cx.function(&module, "sort_tiles")?;
        // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, Grid::new(blocks, threads as u32)?, &mut args) }?;
        let merges = self.merges();
        for pass in 0..merges {
            let last = pass + 1 == merges;
            let mut args = Args::new();
            args.value(out).value(side(pass % 2)).value(side((pass + 1) % 2)).value(rows);
            args.u64((TILE << pass) as u64).u32(last.into());
            let function = cx.function(&module, "sort_merge")?;
            let grid = Grid::new(self.rows * self.tiles(), THREADS as u32)?;
            // SAFETY: as above.
            unsafe { cx.launch(&function, grid, &mut args) }?;
        }
        Ok(())
    }
}

/// As in `cumulative.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scan {
    outer: u64,
    n: u64,
    chunk: u64,
    inner: Divisor,
    parts: Divisor,
    kind: u32,
    reverse: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Scanning {
    dtype: DType,
    outer: usize,
    n: usize,
    inner: usize,
    parts: usize,
    chunk: usize,
}

impl Scanning {
    fn new(props: &Props, attrs: &Cumulative, x: &Spec) -> Result<Self> {
        let axis = normalize_axis("cumulative", attrs.axis, x.rank())?;
        let outer: usize = x.shape()[..axis].iter().product();
        let n = x.shape()[axis];
        let inner: usize = x.shape()[axis + 1..].iter().product();
        // As many parts as keep the device busy, where they are long enough to be worth it.
        let sms = props.sms as usize;
        let (busy, least, most) = match inner {
            1 => (8 * sms / outer.max(1), ROW_PART, ROW_PARTS),
            _ => (512 * sms / (outer * inner).max(1), COLUMN_PART, COLUMN_PARTS),
        };
        let parts = busy.min(n / least).clamp(1, most);
        let chunk = n.div_ceil(parts).max(1);
        let chunk = if inner == 1 && parts > 1 { chunk.next_multiple_of(TILE) } else { chunk };
        Ok(Scanning {
            dtype: x.dtype,
            outer: if x.is_empty() { 0 } else { outer },
            n,
            inner,
            parts: n.div_ceil(chunk).max(1),
            chunk,
        })
    }

    fn launches(&self) -> usize {
        match (self.outer, self.parts) {
            (0, _) => 0,
            (_, 1) => 1,
            _ => 3,
        }
    }

    /// What the parts begin with, 8 bytes each.
    fn workspace(&self) -> usize {
        if self.launches() == 3 { self.outer * self.parts * self.inner * 8 } else { 0 }
    }

    /// # Safety
    /// As for [`launch`].
    unsafe fn launch(&self, cx: &Context, attrs: &Cumulative, call: &Call) -> Result<()> {
        let (Some(x), Some(y)) = (call.input(0), call.outputs.first()) else {
            return stray("cumulative");
        };
        if self.launches() == 0 {
            return Ok(());
        }
        let scan = Scan {
            outer: self.outer as u64,
            n: self.n as u64,
            chunk: self.chunk as u64,
            inner: Divisor::new(self.inner),
            parts: Divisor::new(self.parts),
            kind: attrs.kind as u32,
            reverse: attrs.reverse.into(),
        };
        let carries = if self.parts > 1 { call.workspace } else { 0 };
        let rows = self.inner == 1;
        let grid = || match rows {
            true => Grid::new(self.outer * self.parts, THREADS as u32),
            false => cover(self.outer * self.parts * self.inner),
        };
        let module = Module::of(CUMULATIVE, self.dtype);
        let pass = |entry: &'static str, grid| {
            let mut args = Args::new();
            if !entry.starts_with("begin") {
                args.ptr(x.addr).ptr(y.addr);
            }
            args.ptr(carries).value(scan);
            let function = cx.function(&module, entry)?;
            // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
            unsafe { cx.launch(&function, grid, &mut args) }
        };
        if self.parts > 1 {
            pass(if rows { "total_rows" } else { "total_columns" }, grid()?)?;
            match rows {
                true => pass("begin_rows", Grid::new(self.outer, THREADS as u32)?)?,
                false => pass("begin_columns", cover(self.outer * self.inner)?)?,
            }
        }
        pass(if rows { "cumulative_rows" } else { "cumulative_columns" }, grid()?)
    }
}

enum Plan {
    Sort(Sorting),
    Scan(Scanning),
}

fn plan(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Plan> {
    infer(op, inputs)?;
    match (op, inputs) {
        (Op::Sort(attrs), [Some(x)]) => Ok(Plan::Sort(Sorting::new(attrs, x)?)),
        (Op::Cumulative(attrs), [Some(x)]) => Ok(Plan::Scan(Scanning::new(props, attrs, x)?)),
        _ => stray(op.name()),
    }
}

pub fn explain(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let (variant, why, launches) = match plan(props, op, inputs)? {
        Plan::Sort(s) if s.merges() == 0 => {
            ("tile", "each row in shared memory".to_string(), s.launches())
        }
        Plan::Sort(s) => {
            let why = format!("tiles of {TILE} in shared memory, then {} merges", s.merges());
            ("merge", why, s.launches())
        }
        Plan::Scan(s) => {
            let variant = if s.inner == 1 { "rows" } else { "columns" };
            let why = match s.parts {
                1 => "each in one go".into(),
                n => format!("{n} parts each: their totals, what each begins with, the parts"),
            };
            (variant, why, s.launches())
        }
    };
    Ok(Explanation { variant, why, launches })
}

pub fn modules(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![match plan(props, op, inputs)? {
        Plan::Sort(s) => s.module(),
        Plan::Scan(s) => Module::of(CUMULATIVE, s.dtype),
    }])
}

pub fn workspace(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
    match plan(props, op, inputs)? {
        Plan::Sort(s) => s.workspace(),
        Plan::Scan(s) => Ok(s.workspace()),
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    // SAFETY (of both): the caller's promise.
    match (op, plan(cx.props(), op, &specs)?) {
        (Op::Sort(attrs), Plan::Sort(s)) => {
            let (Some(x), Some(out)) = (call.input(0), call.outputs.first()) else {
                return stray("sort");
            };
            let (y, places) = if attrs.indices { (0, out.addr) } else { (out.addr, 0) };
            // SAFETY: as above.
            unsafe { s.launch(cx, Results { x: x.addr, y, places }, call.workspace) }
        }
        // SAFETY: as above.
        (Op::Cumulative(attrs), Plan::Scan(s)) => unsafe { s.launch(cx, attrs, call) },
        _ => stray(op.name()),
    }
}

pub fn all_modules() -> Vec<Module> {
    DType::ALL
        .into_iter()
        .flat_map(|t| [SORT, CUMULATIVE].map(|source| Module::of(source, t)))
        .collect()
}
