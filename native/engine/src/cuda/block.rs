//! `mamba_block`: one frame of a whole block in one launch, a cluster a row of the batch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::MambaBlock;
use crate::spec::{DType, Spec};

const SOURCE: &str = "scan/block.cu";
const THREADS: usize = 512;
const WARP: usize = 32;
/// Blocks of a cluster. It takes a whole graphics cluster of the card, which a card that is cut up
/// may not have left: such has fewer multiprocessors.
const CLUSTER: usize = 16;
const WHOLE_CARD: u32 = 100;
/// Rows up to which a launch a row of weights is worth it, and the bytes of weights: a cluster reads
/// them by itself, and more than so many are read sooner by all of the card in more launches.
const ROWS: usize = 8;
const WEIGHTS: usize = 3 << 20;

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
    width: i32,
    inner: i32,
    states: i32,
    taps: i32,
    rank: i32,
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

    /// Bytes of shared memory of a block: as `block.cu` lays it out.
    fn shared(&self) -> usize {
        let mine = self.inner / CLUSTER;
        let warps = THREADS / WARP;
        let groups = THREADS * self.pack() / self.width;
        let part = [warps * 2 * mine, THREADS, groups * self.width, 3 * warps];
        let part = part.into_iter().max().unwrap_or(0);
        let got = self.wide().next_multiple_of(4);
        4 * (self.width + 2 * mine + got + CLUSTER * self.wide() + self.width + part)
    }

    /// Values of a 16-byte load.
    fn pack(&self) -> usize {
        16 / self.dtype.size()
    }

    /// Whether the kernel's threads divide the block evenly, and its weights are few enough.
    fn fits(&self, props: &Props) -> bool {
        let Shape { width, inner, .. } = *self;
        if props.major < 9 || props.sms < WHOLE_CARD || !(1..=ROWS).contains(&self.batch) {
            return false;
        }
        let parts = width.is_multiple_of(CLUSTER) && inner.is_multiple_of(CLUSTER);
        let (mine, pack) = (inner / CLUSTER, self.pack());
        // A row's packs are a power of two: of `in` at most a warp has one, of `out` the block.
        let of_in = 2 * mine / pack;
        let of_out = width / pack;
        let even = mine.is_multiple_of(pack)
            && of_in.is_power_of_two()
            && of_in <= WARP
            && width.is_multiple_of(pack)
            && of_out.is_power_of_two()
            && of_out <= THREADS;
        let lanes = mine.is_power_of_two() && (THREADS / WARP..=THREADS / 2).contains(&mine);
        let weights = [2 * width, self.wide(), self.rank, width].into_iter().sum::<usize>();
        parts
            && even
            && lanes
            && self.wide() <= THREADS
            && weights.saturating_mul(inner * self.dtype.size()) <= WEIGHTS
            && self.shared() <= props.shared_optin as usize
    }
}

/// Whether one launch does the whole block.
pub fn fuses(props: &Props, _: &MambaBlock, inputs: &[Option<&Spec>]) -> bool {
    Shape::of(inputs).is_ok_and(|shape| shape.fits(props))
}

pub fn explain(props: &Props, op: &MambaBlock, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let shape = Shape::of(inputs)?;
    if !shape.fits(props) {
        return Err(Error::Internal("mamba_block: fused where it does not fit".into()));
    }
    let why = format!(
        "one frame in one launch: {CLUSTER} blocks a row of the batch share {} channels{}",
        shape.inner,
        explain_prologue(Some(op.norm))
    );
    Ok(Explanation { variant: "cluster", why, launches: 1 })
}

fn module(dtype: DType) -> Module {
    Module::of(SOURCE, dtype).define("CLUSTER", CLUSTER)
}

pub fn modules(_: &Props, _: &MambaBlock, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![module(Shape::of(inputs)?.dtype)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, _: &MambaBlock, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let shape = Shape::of(&specs)?;
    let [y, frames_out, h] = call.outputs else { return stray("mamba_block") };
    if !shape.fits(cx.props()) {
        return Err(Error::Internal("mamba_block: fused where it does not fit".into()));
    }
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
        width: shape.width as i32,
        inner: shape.inner as i32,
        states: shape.states as i32,
        taps: shape.taps as i32,
        rank: shape.rank as i32,
        a_f32: is_f32(7),
        bias_f32: is_f32(6),
        d_f32: is_f32(8),
    };
    // Its weights are asked for before x is there.
    let weights = (1..=9).chain([13, 14]);
    let grid = Grid::new(shape.batch * CLUSTER, THREADS as u32)?
        .shared(shape.shared() as u32)
        .clusters(CLUSTER as u32)
        .early(call.constant(weights));
    let function = cx.function(&module(shape.dtype), "block")?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, Args::new().value(block)) }
}

pub fn all_modules() -> Vec<Module> {
    [DType::F32, DType::BF16, DType::F16].map(module).to_vec()
}
