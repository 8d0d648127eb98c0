//! `dense_stack`: dense layers one upon the other in one launch, a cluster a row of the batch.

use super::block::{THREADS, columns_parts, suits};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{Activation, Dense, DenseStack, FusedNorm};
use crate::spec::{DType, Spec};

const SOURCE: &str = "dense/stack.cu";
/// Blocks of a cluster, the most that divides the hidden layers evenly first.
const CLUSTERS: [usize; 10] = [16, 15, 14, 13, 12, 11, 10, 8, 6, 4];
/// Layers but the last.
const HIDDEN: usize = 3;
const LAYERS: usize = HIDDEN + 1;
/// Rows up to which it is done: an H200 has room for seven clusters of 16 blocks at once. Three layers of 288, 512 and
/// 512 took 7.1 µs with one row and 8.7 with seven, in a program of twelve times these; apart 11.4 with eight.
const ROWS: usize = 7;
/// Bytes of shared memory that the kernel declares itself.
const BARRIERS: usize = HIDDEN * 8;

/// As in `dense/stack.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Layer {
    w: u64,
    b: u64,
    gamma: u64,
    beta: u64,
    epsilon: f32,
    padding: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Stack {
    x: u64,
    residual: u64,
    y: u64,
    layers: [Layer; LAYERS],
}

#[derive(Debug, Clone)]
struct Shape {
    dtype: DType,
    rows: usize,
    /// Of x and of the hidden layers.
    widths: Vec<usize>,
    outputs: usize,
    /// Which layers have a norm of what they are given.
    normed: Vec<bool>,
}

impl Shape {
    fn of(op: &DenseStack, inputs: &[Option<&Spec>]) -> Result<Self> {
        let w = |layer: usize| inputs.get(1 + layer * DenseStack::EACH).copied().flatten();
        let Some(Some(x)) = inputs.first() else { return stray("dense_stack") };
        let mut widths = vec![x.last()];
        for layer in 0..op.layers.len() {
            let Some(w) = w(layer) else { return stray("dense_stack") };
            widths.push(w.last());
        }
        let Some(outputs) = widths.pop() else { return stray("dense_stack") };
        let normed = op.layers.iter().map(|layer| layer.norm.is_some()).collect();
        Ok(Shape { dtype: x.dtype, rows: x.rows(), widths, outputs, normed })
    }

    /// Values of a 16-byte load.
    fn pack(&self) -> usize {
        16 / self.dtype.size()
    }

    fn hidden(&self) -> &[usize] {
        self.widths.get(1..).unwrap_or_default()
    }

    /// Blocks that share a row, where some number of them divides all hidden layers into whole packs.
    fn cluster(&self) -> Option<usize> {
        CLUSTERS.into_iter().find(|&blocks| {
            let even = |&n: &usize| n > 0 && n.is_multiple_of(blocks * self.pack());
            self.hidden().iter().all(even)
        })
    }

    /// Columns of the last layer in whole fours.
    fn padded(&self) -> usize {
        self.outputs.next_multiple_of(4)
    }

    /// The most values that the threads of a block leave to be added up.
    fn part(&self, blocks: usize) -> usize {
        let sums = |n: &usize| columns_parts(n / blocks / self.pack()) * (n / blocks);
        let hidden = self.hidden().iter().map(sums).max().unwrap_or(0);
        hidden.max(THREADS / self.padded() * self.padded())
    }

    /// Bytes of shared memory of each of so many blocks: as `stack.cu` lays it out.
    fn shared(&self, blocks: usize) -> usize {
        let (last, between) = self.hidden().split_last().unwrap_or((&0, &[]));
        let norms = self.widths.iter().zip(&self.normed).filter(|(_, normed)| **normed);
        let norms: usize = norms.map(|(width, _)| 2 * width).sum();
        let own = (self.padded() / 4).div_ceil(blocks) * 4;
        let values = between.iter().sum::<usize>() + norms + last / blocks + blocks * own;
        4 * (values + 2 * self.part(blocks))
    }

    /// The blocks that share a row, where the layers are one launch's: where they divide evenly, and
    /// their weights are few enough.
    fn fits(&self, props: &Props) -> Option<usize> {
        let Shape { dtype, rows, widths, outputs, normed } = self;
        let across = widths.iter().skip(1).chain([outputs]);
        let weights = widths.iter().zip(across).map(|(&down, &across)| down.saturating_mul(across));
        let weights = weights.fold(0, usize::saturating_add).saturating_mul(dtype.size());
        // Rows of x whose norm is found are read by packs.
        let whole = !normed.first().is_some_and(|&n| n) || widths[0].is_multiple_of(self.pack());
        let fits = (1..=HIDDEN).contains(&self.hidden().len())
            && widths.iter().all(|&n| n > 0)
            && (1..=THREADS).contains(outputs)
            && normed.last().is_some_and(|&normed| !normed)
            && whole
            && *rows <= ROWS
            && suits(props, *rows, weights);
        let blocks = self.cluster().filter(|_| fits)?;
        (self.shared(blocks) + BARRIERS <= props.shared_optin as usize).then_some(blocks)
    }

    /// Compiled for this very size, as a frame's other kernels are.
    fn module(&self, blocks: usize, layers: &[Dense]) -> Module {
        let width = |i: usize| self.widths.get(i).copied().unwrap_or(0);
        let f = |layer: Option<&Dense>| layer.map_or(Activation::None, |l| l.activation) as i32;
        let norm = |i: usize| match layers.get(i).and_then(|layer| layer.norm) {
            None => "PLAIN",
            Some(FusedNorm { centred: false, .. }) => "RMS",
            Some(FusedNorm { centred: true, .. }) => "LAYER",
        };
        let hidden = self.hidden().len();
        let of_hidden = |i: usize| if i < hidden { f(layers.get(i)) } else { 0 };
        Module::of(SOURCE, self.dtype)
            .define("CLUSTER", blocks)
            .define("HIDDEN", hidden)
            .define("WIDTH_0", width(0))
            .define("WIDTH_1", width(1))
            .define("WIDTH_2", width(2))
            .define("WIDTH_3", width(3))
            .define("OUTPUTS", self.outputs)
            .define("PART", self.part(blocks))
            .define("NORM_0", norm(0))
            .define("NORM_1", norm(1))
            .define("NORM_2", norm(2))
            .define("F_0", of_hidden(0))
            .define("F_1", of_hidden(1))
            .define("F_2", of_hidden(2))
            .define("F_OUT", f(layers.last()))
            .since(9)
    }
}

/// Whether one launch does all the layers.
pub fn fuses(props: &Props, op: &DenseStack, inputs: &[Option<&Spec>]) -> bool {
    Shape::of(op, inputs).is_ok_and(|shape| shape.fits(props).is_some())
}

/// Of layers that are fused, and the blocks that share a row.
fn fitting(props: &Props, op: &DenseStack, inputs: &[Option<&Spec>]) -> Result<(Shape, usize)> {
    let shape = Shape::of(op, inputs)?;
    match shape.fits(props) {
        Some(blocks) => Ok((shape, blocks)),
        None => Err(Error::Internal("dense_stack: fused where it does not fit".into())),
    }
}

pub fn explain(props: &Props, op: &DenseStack, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let (shape, blocks) = fitting(props, op, inputs)?;
    let norms = shape.normed.iter().filter(|normed| **normed).count();
    let with =
        if norms > 0 { format!(", with {norms} norm(s) between them") } else { String::new() };
    let layers = op.layers.len();
    let why = format!("{layers} layers in one launch: {blocks} blocks a row of the batch{with}");
    Ok(Explanation { variant: "cluster", why, launches: 1 })
}

pub fn modules(props: &Props, op: &DenseStack, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let (shape, blocks) = fitting(props, op, inputs)?;
    Ok(vec![shape.module(blocks, &op.layers)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &DenseStack, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (shape, blocks) = fitting(cx.props(), op, &specs)?;
    let [y] = call.outputs else { return stray("dense_stack") };
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let mut layers = [Layer::default(); LAYERS];
    for (i, (to, layer)) in layers.iter_mut().zip(&op.layers).enumerate() {
        let [w, b, _, gamma, beta] = DenseStack::places(i).map(addr);
        let epsilon = layer.norm.map_or(0.0, |norm| norm.epsilon as f32);
        *to = Layer { w, b, gamma, beta, epsilon, padding: 0 };
    }
    let last = op.layers.len().saturating_sub(1);
    let [.., residual, _, _] = DenseStack::places(last);
    let stack = Stack { x: addr(0), residual: addr(residual), y: y.addr, layers };
    // Its weights are asked for before x is there.
    let weights = (1..call.inputs.len()).filter(|&i| i != residual);
    let grid = Grid::new(shape.rows * blocks, THREADS as u32)?
        .shared(shape.shared(blocks) as u32)
        .clusters(blocks as u32)
        .early(call.constant(weights));
    let function = cx.function(&shape.module(blocks, &op.layers), "stack")?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, Args::new().value(stack)) }
}

/// Of the policies of the tests and benches, and one of each kind of norm: other sizes are compiled with
/// the programs that have them.
pub fn all_modules() -> Vec<Module> {
    let relu = Dense { activation: Activation::Relu, norm: None };
    let norm = |centred| Some(FusedNorm { centred, epsilon: 1e-5 });
    let policies = [
        (vec![288, 512, 512], 53, vec![relu; 3]),
        (
            vec![64, 256, 128, 64],
            1,
            vec![
                relu,
                Dense { norm: norm(true), ..relu },
                Dense { norm: norm(false), ..relu },
                relu,
            ],
        ),
    ];
    let types = [DType::F32, DType::BF16, DType::F16];
    let all = types.into_iter().flat_map(|dtype| policies.iter().map(move |p| (dtype, p)));
    all.filter_map(|(dtype, (widths, outputs, layers))| {
        let normed = layers.iter().map(|layer| layer.norm.is_some()).collect();
        let shape = Shape { dtype, rows: 1, widths: widths.clone(), outputs: *outputs, normed };
        Some(shape.module(shape.cluster()?, layers))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::props;
    use super::*;

    fn policy(dtype: DType, rows: usize, widths: &[usize], outputs: usize) -> Shape {
        let normed = vec![false; widths.len()];
        Shape { dtype, rows, widths: widths.to_vec(), outputs, normed }
    }

    #[test]
    fn layers_that_a_cluster_takes() {
        let h200 = Props { major: 9, ..props(132, 232_448) };
        let f32 =
            |rows, widths: &[usize], outputs| policy(DType::F32, rows, widths, outputs).fits(&h200);
        assert_eq!(f32(1, &[288, 512, 512], 53), Some(16));
        assert_eq!(f32(7, &[17, 512], 512), Some(16));
        assert_eq!(f32(1, &[5, 48, 96, 48], 1), Some(12));
        assert_eq!(f32(1, &[5, 32], 2), Some(8));
        assert_eq!(policy(DType::BF16, 1, &[5, 32], 2).fits(&h200), Some(4));
        // One layer, five, many rows, many outputs, much to read, widths that none divides, and nothing.
        assert_eq!(f32(1, &[288], 53), None);
        assert_eq!(f32(1, &[64; 5], 64), None);
        assert_eq!(f32(8, &[288, 512, 512], 53), None);
        assert_eq!(f32(1, &[288, 512], 513), None);
        assert_eq!(f32(1, &[288, 1024, 1024], 53), None);
        assert_eq!(f32(1, &[288, 500], 53), None);
        assert_eq!(f32(1, &[0, 512], 53), None);
        assert_eq!(f32(1, &[288, usize::MAX - 15], 53), None);
        // A norm of the last layer's, and one of rows that are no whole packs.
        let mut normed = policy(DType::F32, 1, &[30, 512], 53);
        normed.normed = vec![false, true];
        assert_eq!(normed.fits(&h200), None);
        normed.normed = vec![true, false];
        assert_eq!(normed.fits(&h200), None);
        normed.widths[0] = 32;
        assert_eq!(normed.fits(&h200), Some(16));
        assert_eq!(normed.fits(&Props { major: 8, ..h200 }), None);
    }
}
