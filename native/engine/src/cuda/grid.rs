//! A whole window of a 16-bit recurrent layer by one grid whose blocks are all there at once, its
//! weights in registers: `kernels/recurrent/grid_mma.cu`.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::recurrent::{Layer, Parameters};
use crate::call::Call;
use crate::error::Result;
use crate::spec::DType;

const THREADS: u32 = 256;
/// Bytes of shared memory that the kernels declare themselves, at most.
const DECLARED: usize = 4096;
const WARPS: usize = 8;
/// Hidden units of a block.
const UNITS: usize = 16;
/// 32s of h that a warp multiplies, which has an eighth of them: what its registers hold.
const TILES: [usize; 4] = [1, 2, 3, 4];
/// 8s of columns that the kernel is compiled for.
const COLUMNS: [usize; 3] = [1, 2, 4];
/// Buffers of h, that take turns.
const BUFFERS: usize = 64;

/// How a window is shared out: the batch over parts of the grid, the hidden units over their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    tiles: usize,
    columns: usize,
    /// Blocks of a part.
    blocks: usize,
    /// Rows of the batch that a part has.
    share: usize,
    parts: usize,
    /// h goes round as the sum of two 16-bit numbers.
    exact: bool,
}

/// None where wh or the batch does not fit, or the types are others.
pub(super) fn choose(props: &Props, layer: &Layer) -> Option<Parts> {
    let tiles = TILES.into_iter().find(|t| t * 32 * WARPS >= layer.hidden)?;
    let blocks = layer.hidden.div_ceil(UNITS);
    // One block a multiprocessor: all have to be there at once.
    let most = (props.sms as usize / blocks).min(layer.batch);
    if layer.dtype == DType::F32 || !props.cooperative || most == 0 {
        return None;
    }
    let exact = layer.state == DType::F32;
    let share = layer.batch.div_ceil(most);
    let columns = COLUMNS.into_iter().find(|c| c * if exact { 4 } else { 8 } >= share)?;
    let parts = layer.batch.div_ceil(share);
    let chosen = Parts { tiles, columns, blocks, share, parts, exact };
    let fits = chosen.shared(layer.gates) + DECLARED <= props.shared_optin as usize;
    fits.then_some(chosen)
}

impl Parts {
    /// Bytes of shared memory, as the kernel lays it out.
    fn shared(&self, gates: usize) -> usize {
        let row = gates * UNITS * 2;
        let staged = row + if row % 128 == 112 { 32 } else { 16 };
        (WARPS * 32 * staged).max(WARPS * 8 * self.columns * (UNITS + 1) * 16)
    }

    pub fn exchange_bytes(&self) -> usize {
        BUFFERS * self.parts * self.tiles * WARPS * self.columns * 512
    }

    pub fn module(&self, layer: &Layer) -> Module {
        module(layer.dtype, layer.gates, self.tiles, self.columns)
    }

    pub fn why(&self, layer: &Layer) -> String {
        let Parts { blocks, share, parts, .. } = self;
        let steps = layer.steps;
        format!(
            "{steps} steps in one cooperative launch: wh stays in the registers of {blocks} \
             block(s), for each of {parts} part(s) of the batch of {share} row(s)"
        )
    }

    /// # Safety
    /// The call's views and workspace are those of `layer`, and the workspace starts with the
    /// projection.
    pub unsafe fn launch(&self, cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
        let exchange = call.workspace + layer.projection_bytes() as u64;
        let low = if self.exact { self.columns * 4 } else { 0 };
        let mut args = Args::new();
        args.value(Parameters::of(layer, call, self.share, low, exchange));
        let function = cx.function(&self.module(layer), "window")?;
        let grid = Grid::new_3d([self.blocks, self.parts, 1], THREADS)?
            .shared(self.shared(layer.gates) as u32)
            .cooperative();
        // SAFETY: the workspace holds the exchange; this is the entry's parameter, and the caller
        // vouches for the addresses.
        unsafe {
            cx.memset_zero(exchange, self.exchange_bytes())?;
            cx.launch(&function, grid, &mut args)
        }
    }
}

fn module(dtype: DType, gates: usize, tiles: usize, columns: usize) -> Module {
    Module::of("recurrent/grid_mma.cu", dtype)
        .define("GATES", gates)
        .define("UNITS", UNITS)
        .define("TILES", tiles)
        .define("COLUMNS", columns)
}

pub(super) fn all_modules(dtype: DType, gates: usize) -> Vec<Module> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let all = |tiles| COLUMNS.map(|columns| module(dtype, gates, tiles, columns));
    TILES.into_iter().flat_map(all).collect()
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::{layer, props};
    use super::*;

    /// Whatever is chosen is there at once, covers the layer, and keeps to what the kernels take.
    #[test]
    fn parts_fit_and_cover() {
        let mut chosen = 0;
        for (sms, shared) in [(132, 232_448), (108, 166_912), (68, 101_376), (1, 101_376)] {
            for state in [DType::BF16, DType::F32] {
                for batch in [1, 2, 3, 7, 8, 9, 32, 33, 200, 256, 512] {
                    for hidden in [1, 7, 16, 17, 33, 256, 512, 513, 768, 1000, 1024, 1025, 4096] {
                        let layer = Layer { state, ..layer(DType::BF16, batch, hidden) };
                        let props = props(sms, shared);
                        let Some(p) = choose(&props, &layer) else { continue };
                        chosen += 1;
                        let all = format!("{sms} {shared} {layer:?} {p:?}");
                        assert!(p.blocks * p.parts <= sms as usize, "{all}");
                        assert!(p.shared(4) + DECLARED <= shared as usize, "{all}");
                        assert!(p.parts * p.share >= batch, "{all}");
                        assert!((p.parts - 1) * p.share < batch, "an empty part: {all}");
                        // Every block's units lie within the packs of h.
                        let reduced = p.tiles * 32 * WARPS;
                        assert!((hidden..=reduced).contains(&(p.blocks * UNITS)), "{all}");
                        assert!(p.columns * if p.exact { 4 } else { 8 } >= p.share, "{all}");
                    }
                }
            }
        }
        assert!(chosen > 100);
    }
}
