//! `attention_block`: one frame of a whole layer of attention in one launch, a cluster a row of the
//! batch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::AttentionBlock;
use crate::spec::{DType, Spec};

const SOURCE: &str = "attention/block.cu";
const THREADS: usize = 512;
/// Neighbouring threads that end with a column, and columns that all threads end with.
const SHARE: usize = 8;
const COLUMNS: usize = THREADS / SHARE;
/// Blocks of a cluster, and the multiprocessors of a card that has room for one: as for a Mamba
/// block.
const CLUSTER: usize = 16;
const WHOLE_CARD: u32 = 100;
/// Rows up to which a launch a row of weights is worth it, and the bytes of weights, likewise.
const ROWS: usize = 8;
const WEIGHTS: usize = 3 << 20;
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
    width: i32,
    inner: i32,
    heads: i32,
    size: i32,
    context: i32,
    pairs: i32,
    interleaved: i32,
    activation: i32,
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

    /// Blocks that have a head.
    fn members(&self) -> usize {
        CLUSTER / self.heads
    }

    /// Keys of the ring that a block has, at the most.
    fn keys(&self) -> usize {
        self.context.div_ceil(self.members())
    }

    /// Bytes of shared memory of a block: as `block.cu` lays it out.
    fn shared(&self) -> usize {
        let pitch = |columns: usize| (columns + 3) / 8 * 8 + 4;
        let product = |columns: usize| THREADS * self.pack() / columns * pitch(columns);
        let (columns, inner) = (self.width / CLUSTER, self.inner / CLUSTER);
        let attend = THREADS * self.pack() / self.size * pitch(self.size + 1);
        let part = [product(3 * columns), product(columns), product(inner), attend];
        let part = part.into_iter().max().unwrap_or(0);
        let found = CLUSTER * (self.size + 2).next_multiple_of(4);
        let values = 2 * self.width + 3 * self.size + found + self.inner;
        let ring = 2 * self.keys() * self.size * self.dtype.size();
        4 * (values + self.keys().next_multiple_of(4) + part) + ring
    }

    /// Whether the kernel's threads divide the layer evenly, and its weights are few enough.
    fn fits(&self, props: &Props) -> bool {
        let Shape { rows, width, inner, heads, size, context, .. } = *self;
        if props.major < 9 || props.sms < WHOLE_CARD || !(1..=ROWS).contains(&rows) {
            return false;
        }
        // A block's columns are whole packs, and threads have at most one of them in the end.
        let even =
            |n: usize| n > 0 && n.is_multiple_of(CLUSTER * self.pack()) && n <= CLUSTER * COLUMNS;
        let weights = width.saturating_mul(4 * width + 2 * inner);
        even(width)
            && even(inner)
            && heads > 0
            && CLUSTER.is_multiple_of(heads)
            && heads * size == width
            && (1..=PAIRS).contains(&self.pairs)
            && size <= 2 * PAIRS
            && weights.saturating_mul(self.dtype.size()) <= WEIGHTS
            && context <= props.shared_optin as usize
            && self.shared() <= props.shared_optin as usize
    }
}

/// Whether one launch does the whole layer.
pub fn fuses(props: &Props, op: &AttentionBlock, inputs: &[Option<&Spec>]) -> bool {
    Shape::of(op, inputs).is_ok_and(|shape| shape.fits(props))
}

pub fn explain(
    props: &Props,
    op: &AttentionBlock,
    inputs: &[Option<&Spec>],
) -> Result<Explanation> {
    let shape = Shape::of(op, inputs)?;
    if !shape.fits(props) {
        return Err(Error::Internal("attention_block: fused where it does not fit".into()));
    }
    let why = format!(
        "one frame in one launch: {CLUSTER} blocks a row of the batch, {} a head{}",
        shape.members(),
        explain_prologue(Some(op.norm))
    );
    Ok(Explanation { variant: "cluster", why, launches: 1 })
}

fn module(dtype: DType) -> Module {
    Module::of(SOURCE, dtype).define("CLUSTER", CLUSTER)
}

pub fn modules(_: &Props, op: &AttentionBlock, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![module(Shape::of(op, inputs)?.dtype)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &AttentionBlock, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let shape = Shape::of(op, &specs)?;
    let [y, ring] = call.outputs else { return stray("attention_block") };
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    if !shape.fits(cx.props()) || ring.addr != addr(7) {
        return Err(Error::Internal("attention_block: fused where it does not fit".into()));
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
        width: shape.width as i32,
        inner: shape.inner as i32,
        heads: shape.heads as i32,
        size: shape.size as i32,
        context: shape.context as i32,
        pairs: shape.pairs as i32,
        interleaved: i32::from(op.rope.interleaved),
        activation: op.activation as i32,
        scale: op.scale,
        turn,
    };
    // Its weights are asked for before x is there.
    let weights = (1..=6).chain(10..=13);
    let grid = Grid::new(shape.rows * CLUSTER, THREADS as u32)?
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
            let longest = if dtype == DType::F32 { 1600 } else { 3100 };
            assert!(backbone(dtype, 60).fits(&h200));
            assert!(backbone(dtype, longest).fits(&h200));
            assert!(!backbone(dtype, longest + 200).fits(&h200));
            // Nor one whose size overflows what it is counted in.
            assert!(!backbone(dtype, usize::MAX).fits(&h200));
        }
        assert!(!backbone(DType::F32, 60).fits(&Props { sms: 66, ..h200.clone() }));
        assert!(!backbone(DType::F32, 60).fits(&Props { major: 8, ..h200 }));
    }
}
