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
/// Hidden units of a block. The weights of 32 are in shared memory for the greater part of a half.
const UNITS: [usize; 2] = [16, 32];
/// Sixteens of rows of weights that are in registers.
const HELD: usize = 4;
/// 32s of h that a warp multiplies, which has an eighth of them: what its registers hold.
const TILES: [usize; 4] = [1, 2, 3, 4];
/// 8s of columns that the kernel is compiled for, with 16 units.
const COLUMNS: [usize; 3] = [1, 2, 4];
/// Buffers of h, that take turns.
const BUFFERS: usize = 64;

/// How a window is shared out: the batch over parts of the grid, the hidden units over their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// Of a block.
    units: usize,
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

/// The 8s of columns that the kernel is compiled for.
fn columns(units: usize, gates: usize, tiles: usize) -> &'static [usize] {
    match units {
        16 => &COLUMNS,
        // An LSTM of more than 768 units has no registers for 16 columns.
        _ if gates == 4 && tiles > 3 => &COLUMNS[..1],
        _ => &COLUMNS[..2],
    }
}

/// None where wh or the batch does not fit, or the types are others.
pub(super) fn choose(props: &Props, layer: &Layer) -> Option<Parts> {
    // Every block reads h of all its rows in each step, and a step waits for that. Twice the units leave
    // half of the rows, and are the quicker where the columns of products are half as many then: on an
    // H200 1061 against 1132 µs at f16-b32t512h1024 of an LSTM, but 1867 against 1624 at b16t1024h768, where
    // they are not.
    let all = UNITS.into_iter().filter_map(|units| fit(props, layer, units));
    all.min_by_key(|parts| parts.columns)
}

fn fit(props: &Props, layer: &Layer, units: usize) -> Option<Parts> {
    let tiles = TILES.into_iter().find(|t| t * 32 * WARPS >= layer.hidden)?;
    let blocks = layer.hidden.div_ceil(units);
    // One block a multiprocessor: all have to be there at once.
    let most = (props.sms as usize / blocks).min(layer.batch);
    if layer.dtype == DType::F32 || !props.cooperative || most == 0 {
        return None;
    }
    let exact = layer.state == DType::F32;
    let share = layer.batch.div_ceil(most);
    let mut columns = columns(units, layer.gates, tiles).iter().copied();
    let columns = columns.find(|c| c * if exact { 4 } else { 8 } >= share)?;
    let parts = layer.batch.div_ceil(share);
    let chosen = Parts { units, tiles, columns, blocks, share, parts, exact };
    let fits = chosen.shared(layer.gates) + DECLARED <= props.shared_optin as usize;
    fits.then_some(chosen)
}

impl Parts {
    /// Bytes of shared memory, as the kernel lays it out.
    fn shared(&self, gates: usize) -> usize {
        let row = gates * self.units * 2;
        let staged = row + if row % 128 == 112 { 32 } else { 16 };
        let strips = self.units / 16 * gates;
        let kept = WARPS * self.tiles * strips.saturating_sub(HELD) * 2 * 512;
        kept + (WARPS * 32 * staged).max(WARPS * 8 * self.columns * (self.units + 1) * 16)
    }

    /// Whether blocks have more units than their registers have weights.
    pub fn is_wide(&self) -> bool {
        self.units > UNITS[0]
    }

    pub fn exchange_bytes(&self) -> usize {
        BUFFERS * self.parts * self.tiles * WARPS * self.columns * 512
    }

    pub fn module(&self, layer: &Layer) -> Module {
        module(layer.dtype, layer.gates, self.units, self.tiles, self.columns)
    }

    pub fn why(&self, layer: &Layer) -> String {
        let Parts { blocks, share, parts, .. } = self;
        let steps = layer.steps;
        let memory = if self.is_wide() { " and the shared memory" } else { "" };
        format!(
            "{steps} steps in one cooperative launch: wh stays in the registers{memory} of {blocks} \
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

fn module(dtype: DType, gates: usize, units: usize, tiles: usize, columns: usize) -> Module {
    Module::of("recurrent/grid_mma.cu", dtype)
        .define("GATES", gates)
        .define("UNITS", units)
        .define("TILES", tiles)
        .define("COLUMNS", columns)
}

pub(super) fn all_modules(dtype: DType, gates: usize) -> Vec<Module> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let all = UNITS.into_iter().flat_map(|units| TILES.map(|tiles| (units, tiles)));
    all.flat_map(|(units, tiles)| {
        let columns = columns(units, gates, tiles).iter();
        columns.map(move |&columns| module(dtype, gates, units, tiles, columns))
    })
    .collect()
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
                        assert!((hidden..=reduced).contains(&(p.blocks * p.units)), "{all}");
                        assert!(p.columns * if p.exact { 4 } else { 8 } >= p.share, "{all}");
                        assert!(all_modules(DType::BF16, 4).contains(&p.module(&layer)), "{all}");
                    }
                }
            }
        }
        assert!(chosen > 100);
    }

    /// 32 units where that halves the columns, and what the kernels have no registers for is left out.
    #[test]
    fn many_rows_get_wide_blocks() {
        let props = props(132, 232_448);
        let units = |gates, batch, hidden| {
            let layer = Layer { gates, ..layer(DType::F16, batch, hidden) };
            choose(&props, &layer).map(|p| (p.units, p.columns))
        };
        assert_eq!(units(4, 16, 768), Some((16, 1)));
        assert_eq!(units(4, 32, 768), Some((32, 1)));
        assert_eq!(units(4, 32, 1024), Some((32, 1)));
        assert_eq!(units(4, 64, 1024), Some((16, 4)));
        assert_eq!(units(3, 64, 1024), Some((32, 2)));
        assert_eq!(units(3, 80, 768), Some((32, 2)));
        assert_eq!(units(3, 81, 768), None);
    }
}
