//! A whole window of a 16-bit recurrent layer with many rows by one grid whose blocks are all there at
//! once, its weights in registers, by the products of warpgroups (Hopper):
//! `kernels/recurrent/grid_wgmma.cu`.

use super::cluster::clusters;
use super::grid;
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::recurrent::{Layer, Parameters};
use crate::call::Call;
use crate::error::Result;
use crate::spec::DType;

const MAJOR: u32 = 9;
const THREADS: u32 = 256;
/// Bytes of shared memory that are kept for the system.
const RESERVED: usize = 1024;
/// Hidden units of a block whose warpgroups have units of their own.
const UNITS: usize = 32;
/// 16s of h that a warpgroup multiplies: what its registers hold.
const DEPTHS: [usize; 3] = [16, 24, 32];
/// 8s of columns that the kernel is compiled for.
const COLUMNS: [usize; 2] = [2, 4];
/// Buffers of h, that take turns.
const BUFFERS: usize = 32;
/// Rows of a cluster from which this is the quicker, up to 512 hidden units, and rows of a part of
/// [`super::grid`] above, unless that has blocks of 32 units for them: 416 against 470 µs at
/// f16-b64t128h1024 of a GRU on an H200, 380 against 398 at b64t128h768 of an LSTM.
const MANY_A_CLUSTER: usize = 14;
const MANY_A_PART: usize = 17;

/// How a window is shared out: the batch over launches and parts of the grid, the hidden units over
/// their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Warpgroups {
    /// Shares of the reduction that a block's warpgroups have.
    split: usize,
    depth: usize,
    columns: usize,
    /// Blocks of a part.
    blocks: usize,
    /// Rows of the batch that a part has.
    share: usize,
    /// Parts of a launch, at most.
    parts: usize,
    batch: usize,
    /// h goes round as the sum of two 16-bit numbers.
    exact: bool,
}

/// None where it does not fit, or another is quicker.
pub(super) fn choose(props: &Props, layer: &Layer) -> Option<Warpgroups> {
    let chosen = fit(props, layer)?;
    let many = match chosen.split {
        1 => clusters(props, layer.hidden)
            .is_none_or(|(_, at_once)| layer.batch.div_ceil(at_once) >= MANY_A_CLUSTER),
        _ => {
            chosen.share * if chosen.exact { 2 } else { 1 } >= MANY_A_PART
                && !grid::choose(props, layer).is_some_and(|parts| parts.is_wide())
        }
    };
    many.then_some(chosen)
}

fn fit(props: &Props, layer: &Layer) -> Option<Warpgroups> {
    let Layer { hidden, batch, .. } = *layer;
    let usable = props.major == MAJOR && props.cooperative && layer.dtype != DType::F32;
    let split = if hidden <= 512 { 1 } else { 2 };
    let depth = DEPTHS.into_iter().find(|depth| depth * 16 * split >= hidden)?;
    let blocks = hidden.div_ceil(UNITS / split);
    // One block a multiprocessor: all have to be there at once.
    let most = props.sms as usize / blocks;
    if !usable || most == 0 || batch == 0 {
        return None;
    }
    let exact = layer.state == DType::F32;
    let rows = |columns: usize| columns * if exact { 4 } else { 8 };
    let widest = rows(COLUMNS[COLUMNS.len() - 1]);
    let launches = batch.div_ceil(most * widest);
    let share = batch.div_ceil(launches).div_ceil(most);
    let columns = COLUMNS.into_iter().find(|&columns| rows(columns) >= share)?;
    let parts = batch.div_ceil(launches).div_ceil(share);
    let chosen = Warpgroups { split, depth, columns, blocks, share, parts, batch, exact };
    let fits = chosen.shared(layer.gates) + RESERVED <= props.shared_optin as usize;
    fits.then_some(chosen)
}

impl Warpgroups {
    /// 16-byte packs of h that a step of a part has.
    fn packs(&self) -> usize {
        self.split * self.depth * 2 * 8 * self.columns
    }

    /// Bytes of shared memory, as the kernel lays it out.
    fn shared(&self, gates: usize) -> usize {
        let staged = 2 * self.depth * 16 * (64 * 2 + 16);
        let input = self.columns / self.split * 8 * (gates * UNITS / self.split + 4) * 4;
        let part = if self.split == 2 { 2 * self.columns * 128 * 16 } else { 0 };
        staged.max(2 * self.packs() * 16 + 2 * self.split * input + part)
    }

    pub fn exchange_bytes(&self) -> usize {
        BUFFERS * self.parts * self.packs() * 16
    }

    pub fn launches(&self) -> usize {
        self.batch.div_ceil(self.parts * self.share)
    }

    pub fn module(&self, layer: &Layer) -> Module {
        module(layer.dtype, layer.gates, self.split, self.depth, self.columns)
    }

    pub fn why(&self, layer: &Layer) -> String {
        let Warpgroups { blocks, share, parts, .. } = self;
        let (steps, launches) = (layer.steps, self.launches());
        format!(
            "{steps} steps in {launches} cooperative launch(es): wh stays in the registers of {blocks} \
             block(s), for each of {parts} part(s) of the batch of {share} row(s)"
        )
    }

    /// # Safety
    /// The call's views and workspace are those of `layer`, and the workspace starts with the
    /// projection.
    pub unsafe fn launch(&self, cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
        let exchange = call.workspace + layer.projection_bytes() as u64;
        let low = if self.exact { self.columns * 4 } else { 0 };
        let parameters = Parameters::of(layer, call, self.share, low, exchange);
        let function = cx.function(&self.module(layer), "window")?;
        for first in (0..self.batch).step_by(self.parts * self.share) {
            let parts = (self.batch - first).div_ceil(self.share).min(self.parts);
            let mut args = Args::new();
            args.value(parameters.since_row(first));
            let grid = Grid::new_3d([self.blocks, parts, 1], THREADS)?
                .shared(self.shared(layer.gates) as u32)
                .cooperative();
            // SAFETY: the workspace holds the exchange; this is the entry's parameter, and the caller
            // vouches for the addresses.
            unsafe {
                cx.memset_zero(exchange, self.exchange_bytes())?;
                cx.launch(&function, grid, &mut args)?;
            }
        }
        Ok(())
    }
}

fn module(dtype: DType, gates: usize, split: usize, depth: usize, columns: usize) -> Module {
    Module::of("recurrent/grid_wgmma.cu", dtype)
        .only(MAJOR)
        .define("GATES", gates)
        .define("SPLIT", split)
        .define("DEPTH", depth)
        .define("COLUMNS", columns)
}

pub(super) fn all_modules(dtype: DType, gates: usize) -> Vec<Module> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let narrow = COLUMNS.into_iter().flat_map(|columns| DEPTHS.map(|depth| (1, depth, columns)));
    // Halves of the reduction are taken for many rows alone.
    let halves = [24, 32].map(|depth| (2, depth, COLUMNS[COLUMNS.len() - 1]));
    narrow
        .chain(halves)
        .map(|(split, depth, columns)| module(dtype, gates, split, depth, columns))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::{layer, props};
    use super::*;

    /// Whatever is chosen is there at once, covers the layer, and is one of the modules.
    #[test]
    fn launches_fit_and_cover() {
        let mut chosen = 0;
        for state in [DType::BF16, DType::F32] {
            for batch in [1, 2, 7, 64, 65, 128, 200, 256, 257, 512, 1000] {
                for hidden in [1, 7, 16, 33, 256, 257, 400, 512, 513, 768, 1000, 1024, 1025] {
                    let layer = Layer { state, ..layer(DType::BF16, batch, hidden) };
                    let props = Props { major: 9, clusters: 7, ..props(132, 232_448) };
                    let Some(p) = choose(&props, &layer) else { continue };
                    chosen += 1;
                    let all = format!("{layer:?} {p:?}");
                    assert!(p.blocks * p.parts <= 132, "{all}");
                    assert!(p.shared(4) + RESERVED <= 232_448, "{all}");
                    assert!(p.columns * if p.exact { 4 } else { 8 } >= p.share, "{all}");
                    assert!(p.launches() * p.parts * p.share >= batch, "{all}");
                    assert!(p.split * p.depth * 16 >= hidden, "{all}");
                    // Every block's units lie within the packs of h.
                    assert!(p.blocks * (UNITS / p.split) <= p.split * p.depth * 16, "{all}");
                    assert!(all_modules(DType::BF16, 4).contains(&p.module(&layer)), "{all}");
                }
            }
        }
        assert!(chosen > 50);
    }

    #[test]
    fn few_rows_and_other_cards_are_left_to_others() {
        let hopper = Props { major: 9, clusters: 7, ..props(132, 232_448) };
        assert_eq!(choose(&hopper, &layer(DType::BF16, 64, 512)), None);
        assert_eq!(choose(&hopper, &layer(DType::F16, 32, 1024)), None);
        assert_eq!(choose(&hopper, &layer(DType::F32, 256, 512)), None);
        assert!(choose(&hopper, &layer(DType::F16, 65, 1024)).is_some());
        let blackwell = Props { major: 10, ..hopper };
        assert_eq!(choose(&blackwell, &layer(DType::BF16, 256, 512)), None);
    }
}
