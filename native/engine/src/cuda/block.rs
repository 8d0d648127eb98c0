//! `mamba_block`: one frame of a whole block in one launch, a cluster a row of the batch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{FusedNorm, MambaBlock};
use crate::spec::{DType, Spec};

const SOURCE: &str = "scan/block.cu";
pub(super) const THREADS: usize = 512;
pub(super) const WARP: usize = 32;
/// Blocks of a cluster, the most that divides the block evenly first. It takes a whole graphics
/// cluster of the card, which a card that is cut up may not have left: such has fewer
/// multiprocessors.
pub(super) const CLUSTERS: [usize; 7] = [16, 15, 14, 13, 12, 11, 10];
const WHOLE_CARD: u32 = 100;
/// Rows up to which a launch a row of weights is worth it, and the bytes of weights: a cluster reads
/// them by itself, and more than so many are read sooner by all of the card in more launches.
const ROWS: usize = 8;
const WEIGHTS: usize = 3 << 20;
/// Bytes of shared memory that the kernel declares itself.
const BARRIERS: usize = 2 * 8;

/// As in `scan/block.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Block {
    x: u64,
    in_w: u64,
    conv_w: u64,
    conv_b: u64,
    x_w: u64,
    dt_w: u64,
    bias: u64,
    a: u64,
    d: u64,
    out_w: u64,
    residual: u64,
    frames: u64,
    state: u64,
    y: u64,
    frames_out: u64,
    h: u64,
    norm: Prologue,
    a_f32: i32,
    bias_f32: i32,
    d_f32: i32,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    dtype: DType,
    batch: usize,
    width: usize,
    inner: usize,
    states: usize,
    taps: usize,
    rank: usize,
}

impl Shape {
    fn of(inputs: &[Option<&Spec>]) -> Result<Self> {
        let [Some(x), Some(_), Some(conv), _, Some(_), Some(dt), _, Some(a), ..] = inputs else {
            return stray("mamba_block");
        };
        Ok(Shape {
            dtype: x.dtype,
            batch: x.shape().first().copied().unwrap_or(0),
            width: x.last(),
            inner: a.rows(),
            states: a.last(),
            taps: conv.rows(),
            rank: dt.rows(),
        })
    }

    /// Columns of the projection to dt, b and c.
    fn wide(&self) -> usize {
        self.rank + 2 * self.states
    }

    /// Values of a 16-byte load.
    fn pack(&self) -> usize {
        16 / self.dtype.size()
    }

    /// Blocks that share a row, where some number of them divides the block evenly: channels into
    /// whole packs and among the threads, columns into fours.
    fn cluster(&self) -> Option<usize> {
        let Shape { width, inner, .. } = *self;
        CLUSTERS.into_iter().find(|&blocks| {
            let mine = inner / blocks;
            inner.is_multiple_of(blocks)
                && mine.is_power_of_two()
                && (THREADS / WARP..=THREADS / 4).contains(&mine)
                && mine.is_multiple_of(self.pack())
                && width.is_multiple_of(4 * blocks)
                && width.is_multiple_of(self.pack())
                && (1..=THREADS).contains(&(width / self.pack()))
        })
    }

    /// Bytes of shared memory of each of so many blocks: as `block.cu` lays it out.
    fn shared(&self, blocks: usize) -> usize {
        let mine = self.inner / blocks;
        let product = |columns: usize, matrices: usize| {
            columns_parts(columns / self.pack()) * matrices * columns
        };
        let part = product(mine, 2).max(product(self.width, 1)).max(THREADS);
        let gathered = self.wide().next_multiple_of(4);
        4 * (3 * self.width + 2 * mine + (1 + blocks) * gathered + part)
    }

    /// The blocks that share a row, where it is one launch's: where it divides evenly, and its
    /// weights are few enough.
    fn fits(&self, props: &Props) -> Option<usize> {
        let Shape { width, inner, .. } = *self;
        let weights = [2 * width, self.wide(), self.rank, width].into_iter().sum::<usize>();
        let weights = weights.saturating_mul(inner * self.dtype.size());
        let few = self.wide() <= THREADS && suits(props, self.batch, weights);
        let blocks = self.cluster().filter(|_| few)?;
        (self.shared(blocks) + BARRIERS <= props.shared_optin as usize).then_some(blocks)
    }

    /// Compiled for this very size: a frame is too short for divisions by what is not known.
    fn module(&self, blocks: usize, norm: FusedNorm) -> Module {
        Module::of(SOURCE, self.dtype)
            .define("CLUSTER", blocks)
            .define("WIDTH", self.width)
            .define("INNER", self.inner)
            .define("STATES", self.states)
            .define("TAPS", self.taps)
            .define("RANK", self.rank)
            .define("CENTRED", i32::from(norm.centred))
            .since(9)
    }
}

/// Whether this card has room for a cluster, and so many rows and bytes of weights are few enough for one.
pub(super) fn suits(props: &Props, rows: usize, weights: usize) -> bool {
    props.major >= 9 && props.sms >= WHOLE_CARD && (1..=ROWS).contains(&rows) && weights <= WEIGHTS
}

/// Sums of a column that a block's threads leave of a product whose rows are so many packs: a warp's
/// lanes add theirs up where packs divide it (`dense/columns.cuh`).
pub(super) fn columns_parts(packs: usize) -> usize {
    THREADS / if WARP.is_multiple_of(packs) { WARP } else { packs }
}

/// Whether one launch does the whole block.
pub fn fuses(props: &Props, _: &MambaBlock, inputs: &[Option<&Spec>]) -> bool {
    Shape::of(inputs).is_ok_and(|shape| shape.fits(props).is_some())
}

/// Of a block that is fused, and the blocks that share a row.
fn fitting(props: &Props, inputs: &[Option<&Spec>]) -> Result<(Shape, usize)> {
    let shape = Shape::of(inputs)?;
    match shape.fits(props) {
        Some(blocks) => Ok((shape, blocks)),
        None => Err(Error::Internal("mamba_block: fused where it does not fit".into())),
    }
}

pub fn explain(props: &Props, op: &MambaBlock, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let (shape, blocks) = fitting(props, inputs)?;
    let why = format!(
        "one frame in one launch: {blocks} blocks a row of the batch share {} channels{}",
        shape.inner,
        explain_prologue(Some(op.norm))
    );
    Ok(Explanation { variant: "cluster", why, launches: 1 })
}

pub fn modules(props: &Props, op: &MambaBlock, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let (shape, blocks) = fitting(props, inputs)?;
    Ok(vec![shape.module(blocks, op.norm)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &MambaBlock, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (shape, blocks) = fitting(cx.props(), &specs)?;
    let [y, frames_out, h] = call.outputs else { return stray("mamba_block") };
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let is_f32 = |i: usize| i32::from(call.input(i).is_some_and(|v| v.spec.dtype == DType::F32));
    let block = Block {
        x: addr(0),
        in_w: addr(1),
        conv_w: addr(2),
        conv_b: addr(3),
        x_w: addr(4),
        dt_w: addr(5),
        bias: addr(6),
        a: addr(7),
        d: addr(8),
        out_w: addr(9),
        residual: addr(10),
        frames: addr(11),
        state: addr(12),
        y: y.addr,
        frames_out: frames_out.addr,
        h: h.addr,
        norm: Prologue::of(call),
        a_f32: is_f32(7),
        bias_f32: is_f32(6),
        d_f32: is_f32(8),
    };
    // Its weights are asked for before x is there.
    let weights = (1..=9).chain([13, 14]);
    let grid = Grid::new(shape.batch * blocks, THREADS as u32)?
        .shared(shape.shared(blocks) as u32)
        .clusters(blocks as u32)
        .early(call.constant(weights));
    let function = cx.function(&shape.module(blocks, op.norm), "block")?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, Args::new().value(block)) }
}

/// Of the backbones: other sizes are compiled with the programs that have them.
pub fn all_modules() -> Vec<Module> {
    let backbone = |dtype, width: usize| Shape {
        dtype,
        batch: 1,
        width,
        inner: 2 * width,
        states: 16,
        taps: 4,
        rank: width / 16,
    };
    [DType::F32, DType::BF16, DType::F16]
        .into_iter()
        .flat_map(|dtype| [192, 256].map(|width| backbone(dtype, width)))
        .filter_map(|shape| {
            Some(shape.module(shape.cluster()?, FusedNorm { centred: false, epsilon: 1e-5 }))
        })
        .collect()
}
