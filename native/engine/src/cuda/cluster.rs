//! A whole window of a recurrent layer by clusters of blocks: `kernels/recurrent/cluster*.cu`.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::recurrent::{Layer, Parameters};
use crate::call::Call;
use crate::error::Result;
use crate::spec::DType;

pub(super) const THREADS: u32 = 256;
/// Bytes of shared memory that the kernels declare themselves, at most.
pub(super) const DECLARED: usize = 4096;
const WARPS: usize = 8;
/// Hidden units of a block.
pub(super) const UNITS: usize = 32;
/// Blocks of a cluster, at most.
const BLOCKS: usize = 16;
/// The first compute capability with clusters.
const SINCE: u32 = 9;

/// 32s of h that a warp of the tensor core kernel multiplies, which has a half of them.
const TILES: [usize; 3] = [2, 4, 8];
/// 8s of columns that the tensor core kernel is compiled for.
const COLUMNS: [usize; 3] = [1, 2, 5];
/// Entries of h that a warp of the f32 kernel multiplies, which has an eighth of them.
const WIDTHS: [usize; 3] = [16, 32, 64];
/// Rows of the batch that the f32 kernel is compiled for.
const ROWS: [usize; 4] = [1, 2, 5, 8];

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Mma { tiles: usize, columns: usize },
    F32 { width: usize, rows: usize },
}

/// How a window is shared out: the batch over clusters, the hidden units over their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cluster {
    kernel: Kernel,
    /// Blocks of a cluster.
    blocks: usize,
    /// Rows of the batch that a cluster has.
    share: usize,
    clusters: usize,
    /// h goes round as the sum of two 16-bit numbers.
    exact: bool,
}

/// The quickest; none where this GPU has no clusters, or wh does not fit one.
pub(super) fn choose(props: &Props, layer: &Layer) -> Option<Cluster> {
    let (blocks, at_once) = clusters(props, layer.hidden)?;
    let exact = is_exact(layer);
    let even = layer.batch.div_ceil(at_once);
    let kernels = kernels(layer.dtype, layer.hidden);
    let fitting =
        kernels.filter(|k| k.shared(layer.gates) + DECLARED <= props.shared_optin as usize);
    fitting
        .map(|kernel| {
            let clusters = layer.batch.div_ceil(even.min(kernel.most_rows(exact)));
            let share = layer.batch.div_ceil(clusters);
            let clusters = layer.batch.div_ceil(share);
            Cluster { kernel, blocks, share, clusters, exact }
        })
        .min_by_key(|c| c.clusters.div_ceil(at_once) * c.kernel.clocks(c.share))
}

/// The blocks of a cluster that has so many hidden units, and how many such run at once.
pub(super) fn clusters(props: &Props, hidden: usize) -> Option<(usize, usize)> {
    // One block is no cluster, and has no use of one; a second without units costs nothing.
    let blocks = hidden.div_ceil(UNITS).max(2);
    let at_once = props.clusters as usize * (BLOCKS / blocks.next_power_of_two().min(BLOCKS));
    (at_once > 0 && blocks <= BLOCKS).then_some((blocks, at_once))
}

/// Whether h goes round as the sum of two 16-bit numbers.
pub(super) fn is_exact(layer: &Layer) -> bool {
    layer.dtype != DType::F32 && layer.state == DType::F32
}

pub(super) fn kernels(dtype: DType, hidden: usize) -> impl Iterator<Item = Kernel> {
    let f32 = dtype == DType::F32;
    let width = WIDTHS.into_iter().find(|w| w * WARPS >= hidden);
    let tiles = TILES.into_iter().find(|t| t * 64 >= hidden);
    let mma =
        tiles.filter(|_| !f32).map(|tiles| COLUMNS.map(|columns| Kernel::Mma { tiles, columns }));
    let scalar = width.filter(|_| f32).map(|width| ROWS.map(|rows| Kernel::F32 { width, rows }));
    mma.into_iter().flatten().chain(scalar.into_iter().flatten())
}

impl Kernel {
    pub fn most_rows(&self, exact: bool) -> usize {
        match *self {
            Kernel::Mma { columns, .. } => columns * if exact { 4 } else { 8 },
            Kernel::F32 { rows, .. } => rows,
        }
    }

    /// Entries of h whose weights the registers of the f32 kernel hold.
    fn held(width: usize, rows: usize, gates: usize) -> usize {
        width.min(match (gates, rows) {
            (4, 1) => 48,
            (4, 2..=5) => 44,
            (4, _) => 40,
            (_, 1) => 64,
            (_, 2..=5) => 52,
            _ => 48,
        })
    }

    /// Bytes of shared memory, as the kernels lay it out.
    pub fn shared(&self, gates: usize) -> usize {
        match *self {
            Kernel::Mma { tiles, columns } => {
                let (chunks, width) = (tiles * 2, columns * 8);
                let staged = chunks * 32 * (gates * UNITS * 2 + 16);
                staged.max(2 * chunks * columns * 512 + 2 * width * (UNITS + 1) * 16)
            }
            Kernel::F32 { width, rows } => {
                let pitch = UNITS + if rows == 8 { 1 } else { 2 };
                let spilled = width - Self::held(width, rows, gates);
                2 * width * WARPS * rows * 4
                    + WARPS * rows * pitch * 16
                    + WARPS * spilled * UNITS * 16
            }
        }
    }

    fn module(&self, dtype: DType, gates: usize) -> Module {
        self.module_of(["recurrent/cluster_mma.cu", "recurrent/cluster_f32.cu"], dtype, gates)
    }

    /// Of the source for tensor cores or of that for f32.
    pub fn module_of(&self, [mma, f32]: [&'static str; 2], dtype: DType, gates: usize) -> Module {
        let module = |source| Module::of(source, dtype).since(SINCE).define("GATES", gates);
        match *self {
            Kernel::Mma { tiles, columns } => {
                module(mma).define("TILES", tiles).define("COLUMNS", columns)
            }
            Kernel::F32 { width, rows } => module(f32)
                .define("WIDTH", width)
                .define("HELD", Self::held(width, rows, gates))
                .define("ROWS", rows),
        }
    }

    /// The column of the first row's low part, where h goes round in two.
    pub fn low(&self, exact: bool) -> usize {
        match *self {
            Kernel::Mma { columns, .. } if exact => columns * 4,
            _ => 0,
        }
    }

    /// Clocks of a step with so many rows, roughly: fitted to an H200 for the order of the choices
    /// only.
    pub fn clocks(&self, share: usize) -> usize {
        match *self {
            Kernel::Mma { tiles, columns } => 900 + columns * tiles * 70 + share * 60,
            Kernel::F32 { width, rows } => 1000 + width * rows * 12 + share * 60,
        }
    }
}

impl Cluster {
    pub fn module(&self, layer: &Layer) -> Module {
        self.kernel.module(layer.dtype, layer.gates)
    }

    pub fn why(&self, layer: &Layer) -> String {
        let Cluster { blocks, share, clusters, .. } = self;
        let steps = layer.steps;
        format!(
            "{steps} steps in one launch: wh stays in the registers of the {blocks} block(s) of a \
             cluster, of which {clusters} take(s) {share} row(s) each"
        )
    }

    /// # Safety
    /// The call's views and workspace are those of `layer`, and the workspace starts with the
    /// projection.
    pub unsafe fn launch(&self, cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
        let low = self.kernel.low(self.exact);
        let mut args = Args::new();
        args.value(Parameters::of(layer, call, self.share, low, 0));
        let function = cx.function(&self.module(layer), "window")?;
        let grid = Grid::new(self.clusters * self.blocks, THREADS)?
            .shared(self.kernel.shared(layer.gates) as u32)
            .clusters(self.blocks as u32);
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, &mut args) }
    }
}

pub(super) fn all_modules(dtype: DType, gates: usize) -> Vec<Module> {
    let widest = |hidden| kernels(dtype, hidden).map(|k| k.module(dtype, gates));
    [128, 256, 512].into_iter().flat_map(widest).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::window::tests::{layer, props};
    use super::*;

    /// Whatever is chosen covers the layer, fits, and keeps to what the kernels take.
    #[test]
    fn clusters_fit_and_cover() {
        let mut chosen = 0;
        for at_once in [1, 7, 8] {
            let props = Props { clusters: at_once, ..props(132, 232_448) };
            for (dtype, state) in
                [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)]
            {
                for batch in [1, 2, 3, 5, 7, 8, 9, 32, 33, 200, 256, 512] {
                    for hidden in [1, 7, 32, 33, 100, 256, 257, 511, 512] {
                        for gates in [3, 4] {
                            let layer = Layer { state, gates, ..layer(dtype, batch, hidden) };
                            let c = choose(&props, &layer).unwrap();
                            chosen += 1;
                            let all = format!("{at_once} {layer:?} {c:?}");
                            assert!((2..=BLOCKS).contains(&c.blocks), "{all}");
                            assert!(c.blocks * UNITS >= hidden, "{all}");
                            assert!(c.clusters * c.share >= batch, "{all}");
                            assert!((c.clusters - 1) * c.share < batch, "an empty one: {all}");
                            assert!(c.share <= c.kernel.most_rows(c.exact), "{all}");
                            let reduced = match c.kernel {
                                Kernel::Mma { tiles, .. } => tiles * 64,
                                Kernel::F32 { width, .. } => width * WARPS,
                            };
                            // Every block's units lie within what is held of h.
                            assert!(reduced >= hidden && c.blocks * UNITS <= reduced, "{all}");
                            assert!(c.kernel.shared(gates) <= 232_448 - 4096, "{all}");
                        }
                    }
                }
            }
        }
        assert!(chosen > 100);
    }

    #[test]
    fn where_there_are_none() {
        let h200 = Props { clusters: 7, ..props(132, 232_448) };
        assert_eq!(choose(&h200, &layer(DType::BF16, 1, 513)), None);
        assert_eq!(choose(&props(132, 232_448), &layer(DType::BF16, 1, 512)), None);
        let few = Props { clusters: 7, ..props(132, 101_376) };
        assert_eq!(choose(&few, &layer(DType::BF16, 1, 512)), None, "too little shared memory");
    }
}
