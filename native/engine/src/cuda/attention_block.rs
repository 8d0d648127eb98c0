//! `attention_block`: one frame of a whole layer of attention in one launch, a cluster a row of the
//! batch.

use super::block::{CLUSTERS, THREADS, WARP, columns_parts, suits};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{Activation, AttentionBlock, FusedNorm, Rope};
use crate::spec::{DType, Spec};

const SOURCE: &str = "attention/block.cu";
/// Columns of a matrix that a block has, at most.
const COLUMNS: usize = 64;
/// Bytes of shared memory that the kernel declares itself.
const BARRIERS: usize = 4 * 8;
/// Pairs of a head whose turns a launch takes by value.
const PAIRS: usize = 128;

/// As in `attention/block.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Block {
    x: u64,
    qkv: u64,
    out: u64,
    up: u64,
    up_b: u64,
    down: u64,
    down_b: u64,
    places: u64,
    number: u64,
    ring: u64,
    y: u64,
    first: Prologue,
    second: Prologue,
    rows: i32,
    context: i32,
    interleaved: i32,
    scale: f32,
    turn: [u64; PAIRS],
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    dtype: DType,
    rows: usize,
    width: usize,
    inner: usize,
    heads: usize,
    size: usize,
    context: usize,
    /// Pairs of a head that are turned.
    pairs: usize,
}

impl Shape {
    fn of(op: &AttentionBlock, inputs: &[Option<&Spec>]) -> Result<Self> {
        let [Some(x), Some(_), Some(_), Some(up), _, Some(_), _, Some(ring), ..] = inputs else {
            return stray("attention_block");
        };
        let &[_, rows, context, heads, size] = ring.shape() else {
            return stray("attention_block");
        };
        let pairs = op.rope.dims.unwrap_or(size) / 2;
        let (dtype, width, inner) = (x.dtype, x.last(), up.last());
        Ok(Shape { dtype, rows, width, inner, heads, size, context, pairs })
    }

    /// Values of a 16-byte load.
    fn pack(&self) -> usize {
        16 / self.dtype.size()
    }

    /// Blocks that share a row, where some number of them divides the layer evenly: heads among
    /// blocks, and columns into whole packs.
    fn cluster(&self) -> Option<usize> {
        let Shape { width, inner, heads, .. } = *self;
        CLUSTERS.into_iter().find(|&blocks| {
            let even =
                |n: usize| n > 0 && n.is_multiple_of(blocks * self.pack()) && n <= blocks * COLUMNS;
            heads > 0 && blocks.is_multiple_of(heads) && even(width) && even(inner)
        })
    }

    /// Bytes of shared memory of each of so many blocks: as `block.cu` lays it out.
    fn shared(&self, blocks: usize) -> usize {
        let Shape { width, inner, heads, size, context, .. } = *self;
        // Keys of the ring that a block has, at the most.
        let keys = context.div_ceil(blocks / heads);
        let product = |columns: usize, matrices: usize| {
            columns_parts(columns / self.pack()) * matrices * columns
        };
        let found = size + 4;
        let columns = width / blocks;
        // The sums of `up` have a place of their own.
        let part = product(columns, 3).max(THREADS / WARP * found) + product(inner / blocks, 1);
        let values = 6 * width + 3 * size + blocks * found + inner;
        4 * (values + part) + 2 * keys * size * self.dtype.size()
    }

    /// The blocks that share a row, where the layer is one launch's: where it divides evenly, and
    /// its weights are few enough.
    fn fits(&self, props: &Props) -> Option<usize> {
        let Shape { rows, width, inner, heads, size, context, .. } = *self;
        let weights = width.saturating_mul(4 * width + 2 * inner);
        let fits = suits(props, rows, weights.saturating_mul(self.dtype.size()))
            && heads * size == width
            && (1..=PAIRS).contains(&self.pairs)
            && size <= 2 * PAIRS
            && context <= props.shared_optin as usize;
        let blocks = self.cluster().filter(|_| fits)?;
        (self.shared(blocks) + BARRIERS <= props.shared_optin as usize).then_some(blocks)
    }

    /// Compiled for this very size: a frame is too short for divisions by what is not known.
    fn module(&self, blocks: usize, op: &AttentionBlock) -> Module {
        Module::of(SOURCE, self.dtype)
            .define("CLUSTER", blocks)
            .define("WIDTH", self.width)
            .define("INNER", self.inner)
            .define("HEADS", self.heads)
            .define("PAIRS", self.pairs)
            .define("CENTRED", i32::from(op.norm.centred))
            .define("SECOND_CENTRED", i32::from(op.ffn_norm.centred))
            .define("ACTIVATION", op.activation as i32)
            .since(9)
    }
}

/// Whether one launch does the whole layer.
pub fn fuses(props: &Props, op: &AttentionBlock, inputs: &[Option<&Spec>]) -> bool {
    Shape::of(op, inputs).is_ok_and(|shape| shape.fits(props).is_some())
}

pub fn explain(
    props: &Props,
    op: &AttentionBlock,
    inputs: &[Option<&Spec>],
) -> Result<Explanation> {
    let (shape, blocks) = fitting(props, op, inputs)?;
    let why = format!(
        "one frame in one launch: {blocks} blocks a row of the batch, {} a head{}",
        blocks / shape.heads,
        explain_prologue(Some(op.norm))
    );
    Ok(Explanation { variant: "cluster", why, launches: 1 })
}

/// Of a layer that is fused, and the blocks that share a row.
fn fitting(props: &Props, op: &AttentionBlock, inputs: &[Option<&Spec>]) -> Result<(Shape, usize)> {
    let shape = Shape::of(op, inputs)?;
    match shape.fits(props) {
        Some(blocks) => Ok((shape, blocks)),
        None => Err(Error::Internal("attention_block: fused where it does not fit".into())),
    }
}

pub fn modules(
    props: &Props,
    op: &AttentionBlock,
    inputs: &[Option<&Spec>],
) -> Result<Vec<Module>> {
    let (shape, blocks) = fitting(props, op, inputs)?;
    Ok(vec![shape.module(blocks, op)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &AttentionBlock, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (shape, blocks) = fitting(cx.props(), op, &specs)?;
    let [y, ring] = call.outputs else { return stray("attention_block") };
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    if ring.addr != addr(7) {
        return Err(Error::Internal("attention_block: a ring that moves".into()));
    }
    let mut turn = [0; PAIRS];
    for (to, of) in turn.iter_mut().zip(op.rope.turns(2 * shape.pairs)) {
        *to = of;
    }
    let block = Block {
        x: addr(0),
        qkv: addr(1),
        out: addr(2),
        up: addr(3),
        up_b: addr(4),
        down: addr(5),
        down_b: addr(6),
        places: addr(8),
        number: addr(9),
        ring: ring.addr,
        y: y.addr,
        first: Prologue::of(call),
        second: Prologue::at(call, op.ffn_norm, 12),
        rows: shape.rows as i32,
        context: shape.context as i32,
        interleaved: i32::from(op.rope.interleaved),
        scale: op.scale,
        turn,
    };
    // Its weights are asked for before x is there.
    let weights = (1..=6).chain(10..=13);
    let grid = Grid::new(shape.rows * blocks, THREADS as u32)?
        .shared(shape.shared(blocks) as u32)
        .clusters(blocks as u32)
        .early(call.constant(weights));
    let function = cx.function(&shape.module(blocks, op), "block")?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, Args::new().value(block)) }
}

/// Of the backbones: other sizes are compiled with the programs that have them.
pub fn all_modules() -> Vec<Module> {
    let norm = FusedNorm { centred: false, epsilon: 1e-5 };
    let rope = Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false };
    let activation = Activation::Gelu;
    let op = AttentionBlock { norm, ffn_norm: norm, activation, rope, scale: 0.125 };
    let backbone = |dtype, heads| {
        let (width, size, pairs) = (heads * 64, 64, 32);
        Shape { dtype, rows: 1, width, inner: width, heads, size, context: 60, pairs }
    };
    [DType::F32, DType::BF16, DType::F16]
        .into_iter()
        .flat_map(|dtype| [3, 4].map(|heads| backbone(dtype, heads)))
        .filter_map(|shape| Some(shape.module(shape.cluster()?, &op)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::props;
    use super::*;

    #[test]
    fn a_ring_that_shared_memory_holds() {
        let h200 = Props { major: 9, ..props(132, 232_448) };
        let backbone = |dtype, context| Shape {
            dtype,
            rows: 1,
            width: 256,
            inner: 256,
            heads: 4,
            size: 64,
            context,
            pairs: 32,
        };
        for dtype in [DType::F32, DType::BF16] {
            let longest = if dtype == DType::F32 { 1600 } else { 3300 };
            assert!(backbone(dtype, 60).fits(&h200).is_some());
            assert!(backbone(dtype, longest).fits(&h200).is_some());
            assert!(backbone(dtype, longest + 200).fits(&h200).is_none());
            // Nor one whose size overflows what it is counted in.
            assert!(backbone(dtype, usize::MAX).fits(&h200).is_none());
        }
        assert!(backbone(DType::F32, 60).fits(&Props { sms: 66, ..h200.clone() }).is_none());
        assert!(backbone(DType::F32, 60).fits(&Props { major: 8, ..h200 }).is_none());
    }
}
