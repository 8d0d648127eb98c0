//! `dense`: x · w with bias, activation and residual in one launch of ours, by the row, by clusters of
//! blocks ([`super::few`]) or by the tile; [`super::linear`] decides between those and cuBLASLt.

use super::few::{self, Few};
use super::launch::{Args, Context, Grid};
use super::linear::{self, Linear};
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{Activation, Dense};
use crate::spec::{DType, Spec};

const VECTOR: &str = "dense/vector.cu";
const TILED_F32: &str = "dense/tiled_f32.cu";
const TILED_MMA: &str = "dense/tiled_mma.cu";
const VECTOR_THREADS: u32 = 256;

/// Rows up to which w is read for all of them at once.
const FEW: usize = 8;
/// Values of x that a block of a vector kernel holds at a time.
const SPAN: usize = 4096;
/// Bytes of weights from which a single row is `vector_long`'s.
const LONG: usize = 8 << 20;
/// The kernels count inner and columns in 32 bits, with room for a tile.
const LONGEST: usize = (1 << 31) - (1 << 12);

/// A product {rows, inner} · {inner, columns}.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    pub dtype: DType,
    /// The result is f32 whatever the storage type: pre-activations of a recurrent net.
    pub to_f32: bool,
    /// x is to be normalised first.
    pub norm: bool,
    /// Two products of x, activation(x · w) ⊙ (x · up).
    pub gated: bool,
}

impl Product {
    /// Columns of y for so many columns of weights that a block reads side by side.
    pub fn share(&self, across: usize) -> usize {
        if self.gated { across / 2 } else { across }
    }

    pub fn module(&self, source: &'static str) -> Module {
        let module = Module::of(source, self.dtype);
        let module = if self.gated { module.define("GATED", 1) } else { module };
        if self.norm { module.define("NORM", 1) } else { module }
    }
}

/// Where a product's operands lie; 0 where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub x: u64,
    pub w: u64,
    pub up: u64,
    pub bias: u64,
    pub residual: u64,
    pub y: u64,
    pub norm: Prologue,
    /// Whether w and up are, and the norm's parameters.
    pub constant: bool,
}

/// As in `dense/epilogue.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Epilogue {
    pub bias: u64,
    pub residual: u64,
    pub y: u64,
    pub columns: i32,
    pub activation: i32,
    pub y_f32: i32,
    pub padding: i32,
}

/// A tiled entry: its tile, its threads, and the tiles it keeps in flight.
struct Tiled {
    entry: &'static str,
    down: usize,
    across: usize,
    threads: u32,
    stages: usize,
}

/// From the largest tile to the smallest; the last takes rows that are not whole 16-byte packs.
const F32_TILES: [Tiled; 4] = [
    Tiled { entry: "tiled_big", down: 128, across: 64, threads: 128, stages: 3 },
    Tiled { entry: "tiled_mid", down: 64, across: 64, threads: 128, stages: 4 },
    Tiled { entry: "tiled_slim", down: 32, across: 32, threads: 128, stages: 6 },
    Tiled { entry: "tiled_odd", down: 64, across: 64, threads: 128, stages: 4 },
];
const MMA_TILES: [Tiled; 4] = [
    Tiled { entry: "tiled_big", down: 128, across: 128, threads: 256, stages: 3 },
    Tiled { entry: "tiled_mid", down: 64, across: 64, threads: 128, stages: 4 },
    Tiled { entry: "tiled_slim", down: 64, across: 32, threads: 128, stages: 6 },
    Tiled { entry: "tiled_odd", down: 64, across: 64, threads: 128, stages: 4 },
];

impl Tiled {
    fn blocks(&self, p: &Product) -> usize {
        p.rows.div_ceil(self.down).saturating_mul(p.columns.div_ceil(p.share(self.across)))
    }

    /// The stages, or the finished tile that lies there after them.
    fn shared(&self, dtype: DType) -> usize {
        let stage = match dtype {
            DType::F32 => 4 * (self.down * (16 + 4) + 16 * self.across),
            _ => 2 * (self.down * (32 + 8) + 32 * (self.across + 8)),
        };
        (self.stages * stage).max(4 * self.down * (self.across + 4))
    }
}

/// What a kernel takes besides the operands.
enum Kernel {
    /// The threads along the columns.
    Vector(usize),
    Few(Few),
    Tiled,
}

struct Plan {
    module: Module,
    entry: &'static str,
    grid: Grid,
    kernel: Kernel,
    /// Whether it asks for its first weights before x is there.
    early: bool,
    variant: &'static str,
    why: String,
}

fn plan(props: &Props, p: &Product) -> Result<Plan> {
    if p.inner > LONGEST || p.columns > LONGEST {
        return Err(Error::unsupported("dense", format!("w has axes of at most {LONGEST}")));
    }
    let sms = props.sms as usize;
    let pack = 16 / p.dtype.size();
    if p.rows <= FEW {
        let whole = p.columns.is_multiple_of(pack);
        // A group of lanes covers whole 32-byte sectors of a row of w. More lanes read longer
        // stretches, as long as that leaves a block for every multiprocessor.
        let weights = p.inner.saturating_mul(p.columns).saturating_mul(p.dtype.size());
        // Measured at {4096, 4096}: 8.2 µs instead of 10.8 in 16 bits, but 21.9 instead of 19.5 in f32.
        let long = whole && p.rows <= 1 && weights >= LONG && p.dtype.size() == 2;
        // Long stretches outweigh a few idle multiprocessors where there is much to read.
        let enough = if long { sms - sms / 16 } else { sms };
        let (width, lanes) = if whole {
            let fills = |lanes: &usize| p.columns.div_ceil(p.share(lanes * pack)) >= enough;
            (pack, [8, 4].into_iter().find(fills).unwrap_or(2))
        } else {
            (1, 32 / p.dtype.size())
        };
        let (variant, entry, held) = match (whole, p.rows) {
            (true, 0..=1) if long => ("vector", "vector_long", 1),
            (true, 0..=1) => ("vector", "vector_1", 1),
            (true, 2) => ("vector", "vector_2", 2),
            (true, 3..=4) => ("vector", "vector_4", 4),
            (true, _) => ("vector", "vector_8", 8),
            (false, 0..=1) => ("vector_odd", "odd_1", 1),
            (false, _) => ("vector_odd", "odd_8", 8),
        };
        if p.norm && (p.inner == 0 || p.inner > SPAN / held) {
            return Err(Error::Internal("dense: a fused norm of a row that is not held".into()));
        }
        let how = if whole { "16 bytes a load" } else { "rows of w are no whole 16-byte packs" };
        let blocks = if p.rows == 0 { 0 } else { p.columns.div_ceil(p.share(lanes * width)) };
        return Ok(Plan {
            module: p.module(VECTOR),
            entry,
            grid: Grid::new(blocks, VECTOR_THREADS)?,
            kernel: Kernel::Vector(lanes),
            // A long one gains little by its first weights, and its blocks would be placed unevenly: between
            // those of the kernel ahead, wherever these end first.
            early: !long,
            variant,
            why: format!("{} row(s): w is read once, {how}", p.rows),
        });
    }
    if let Some(few) = few::choose(props, p) {
        return Ok(Plan {
            module: p.module(few::SOURCE),
            entry: "few",
            grid: few.grid()?,
            early: true,
            variant: "few",
            why: few.why(props, p),
            kernel: Kernel::Few(few),
        });
    }
    if p.norm {
        return Err(Error::Internal("dense: a fused norm in a tiled product".into()));
    }
    let (tiles, module, unit) = match p.dtype {
        DType::F32 => (&F32_TILES, p.module(TILED_F32), "f32 multiply-adds"),
        _ => (&MMA_TILES, p.module(TILED_MMA), "tensor cores"),
    };
    let [big, mid, slim, odd] = tiles;
    let whole = p.columns.is_multiple_of(pack) && p.inner.is_multiple_of(pack);
    let (variant, tile) = match () {
        () if !whole => ("tiled_odd", odd),
        () if big.blocks(p) >= sms => ("tiled_big", big),
        () if mid.blocks(p) >= sms => ("tiled_mid", mid),
        () => ("tiled_slim", slim),
    };
    let mut why = format!(
        "our tiled product by {unit}: {} tiles of {} x {} on {sms} multiprocessors",
        tile.blocks(p),
        tile.down,
        tile.across
    );
    if !whole {
        why.push_str("; rows are no whole 16-byte packs");
    }
    let grid = Grid::new(tile.blocks(p), tile.threads)?.shared(tile.shared(p.dtype) as u32);
    let kernel = Kernel::Tiled;
    Ok(Plan { module, entry: tile.entry, grid, kernel, early: false, variant, why })
}

/// The variant that computes `p`, and why.
pub(super) fn explain_product(props: &Props, p: &Product) -> Result<(&'static str, String)> {
    plan(props, p).map(|plan| (plan.variant, plan.why))
}

pub(super) fn product_module(props: &Props, p: &Product) -> Result<Module> {
    plan(props, p).map(|plan| plan.module)
}

/// # Safety
/// The operands are live device memory of the product's shapes, and y overlaps none of the others.
pub(super) unsafe fn launch_product(
    cx: &Context,
    p: &Product,
    activation: Activation,
    at: Operands,
) -> Result<()> {
    if p.rows == 0 || p.columns == 0 {
        return Ok(());
    }
    let plan = plan(cx.props(), p)?;
    let mut args = Args::new();
    args.ptr(at.x).ptr(at.w).ptr(at.up).value(Epilogue {
        bias: at.bias,
        residual: at.residual,
        y: at.y,
        columns: p.columns as i32,
        activation: activation as i32,
        y_f32: i32::from(p.to_f32),
        padding: 0,
    });
    let (rows, inner) = (p.rows as i32, p.inner as i32);
    match plan.kernel {
        Kernel::Vector(lanes) => args.i32(rows).i32(inner).i32(lanes as i32).value(at.norm),
        Kernel::Few(Few { slice, blocks, .. }) => {
            args.i32(rows).i32(inner).i32(slice as i32).u32(blocks as u32).value(at.norm)
        }
        Kernel::Tiled => args.i64(p.rows as i64).i32(inner),
    };
    let function = cx.function(&plan.module, plan.entry)?;
    let grid = plan.grid.early(at.constant && plan.early);
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, &mut args) }
}

fn linear(op: &Dense, inputs: &[Option<&Spec>]) -> Result<Linear> {
    let [Some(x), Some(w), ..] = inputs else {
        return Err(Error::Internal("dense without its inputs".into()));
    };
    let (rows, inner, columns) = (x.rows(), x.last(), w.last());
    let norm = op.norm.is_some();
    let given = |i: usize| inputs.get(i).is_some_and(Option::is_some);
    Ok(Linear {
        product: Product {
            rows,
            inner,
            columns,
            dtype: x.dtype,
            to_f32: false,
            gated: false,
            norm,
        },
        bias: given(2),
        residual: given(3),
        activation: op.activation,
    })
}

/// Whether one launch does the norm of x as well.
pub fn fuses(props: &Props, op: &Dense, inputs: &[Option<&Spec>]) -> bool {
    linear(op, inputs).is_ok_and(|Linear { product: p, .. }| {
        p.rows > 0 && p.columns > 0 && plan(props, &p).is_ok()
    })
}

pub fn explain(props: &Props, op: &Dense, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let (variant, mut why, launches) = linear(op, inputs)?.explain(props)?;
    why.push_str(explain_prologue(op.norm));
    Ok(Explanation { variant, why, launches })
}

pub fn modules(props: &Props, op: &Dense, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    linear(op, inputs)?.modules(props)
}

pub fn is_warm(props: &Props, op: &Dense, inputs: &[Option<&Spec>]) -> Result<bool> {
    Ok(linear(op, inputs)?.is_warm(props))
}

pub fn workspace(props: &Props, op: &Dense, inputs: &[Option<&Spec>]) -> Result<usize> {
    Ok(linear(op, inputs)?.workspace(props))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Dense, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.as_ref().map(|v| v.spec)).collect();
    let linear = linear(op, &specs)?;
    let addr = |i| call.input(i).map_or(0, |v| v.addr);
    let y = call.outputs.first().map_or(0, |v| v.addr);
    let at = Operands {
        x: addr(0),
        w: addr(1),
        up: 0,
        bias: addr(2),
        residual: addr(3),
        y,
        norm: Prologue::of(call),
        constant: call.constant([1, 4, 5]),
    };
    // SAFETY: the caller vouches for the call's views, which `infer` has passed, and for the
    // workspace.
    unsafe { linear.launch(cx, at, call.workspace) }
}

/// Those without a norm.
pub(super) fn plain_modules() -> Vec<Module> {
    let mut all = vec![Module::of(TILED_F32, DType::F32), Module::of(few::SOURCE, DType::F32)];
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        all.push(Module::of(VECTOR, dtype));
    }
    all.extend([DType::BF16, DType::F16].map(|t| Module::of(TILED_MMA, t)));
    all
}

pub fn all_modules() -> Vec<Module> {
    let vectors = [DType::F32, DType::BF16, DType::F16].map(|t| Module::of(VECTOR, t));
    let few = Module::of(few::SOURCE, DType::F32);
    let normed = vectors.into_iter().chain([few]).map(|m| m.define("NORM", 1)).collect();
    [plain_modules(), normed, linear::all_modules()].concat()
}
