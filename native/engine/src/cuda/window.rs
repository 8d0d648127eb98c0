//! A whole window of a recurrent layer in one cooperative launch: `kernels/recurrent/window*.cu`.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::recurrent::Layer;
use crate::call::Call;
use crate::error::Result;
use crate::spec::DType;

const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Bytes from the counter of one share to the next.
const COUNTER_PITCH: usize = 128;
/// Rows of a pass of the tensor core kernel.
const MMA_ROWS: usize = 16;
/// Rows of a share up to which values travel with the number of their step.
const WORD_ROWS: usize = 2;
/// `UNITS` that the kernels are compiled for.
const F32_UNITS: [usize; 4] = [1, 2, 4, 8];
const MMA_UNITS: [usize; 4] = [2, 4, 8, 16];

/// How a window is shared out. The batch is cut into shares of rows, the hidden units into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Hidden units a block owns.
    units: usize,
    /// `ROWS` that the kernel is compiled for; 1 where values travel with their step's number.
    rows: usize,
    /// f32: lanes of a warp that stand along the rows.
    groups: usize,
    /// Rows of a pass.
    tile: usize,
    share: usize,
    shares: usize,
    /// Blocks of a share.
    blocks: usize,
    /// Bytes of shared memory.
    shared: usize,
}

/// The quickest that this GPU holds; none where wh does not fit.
pub(super) fn choose(props: &Props, layer: &Layer) -> Option<Window> {
    let units = if layer.dtype == DType::F32 { F32_UNITS } else { MMA_UNITS };
    let fitting = units.into_iter().filter_map(|units| Window::new(props, layer, units));
    fitting.min_by_key(|w| w.cost(layer))
}

impl Window {
    fn new(props: &Props, layer: &Layer, units: usize) -> Option<Self> {
        let (sms, most) = (props.sms as usize, props.shared_optin as usize);
        let blocks = layer.hidden.div_ceil(units);
        // One block a multiprocessor: all have to be there at once.
        let share = layer.batch.div_ceil((sms / blocks.max(1)).clamp(1, layer.batch.max(1)));
        let words = share <= WORD_ROWS;
        let window = |rows, groups, tile| {
            let shares = layer.batch.div_ceil(share);
            let shared = usize::MAX;
            let w = Window { units, rows, groups, tile, share, shares, blocks, shared };
            Window { shared: w.shared_bytes(layer), ..w }
        };
        let fits = |w: &Window| blocks <= sms && w.shared <= most;
        if layer.dtype != DType::F32 {
            return Some(window(if words { 1 } else { 16 }, 1, MMA_ROWS)).filter(fits);
        }
        let rows = if words { 1 } else { 4 };
        let most_groups = share.div_ceil(rows).next_power_of_two().min(32 / units);
        // Fewer rows a pass take less shared memory for h. One pass has to do for words.
        let least_groups = if words { most_groups } else { 1 };
        let groups = std::iter::successors(Some(most_groups), |g| Some(g / 2));
        groups.take_while(|&g| g >= least_groups).map(|g| window(rows, g, g * rows)).find(fits)
    }

    /// As the kernels lay it out.
    fn shared_bytes(&self, layer: &Layer) -> usize {
        let (hidden, units, tile) = (layer.hidden, self.units, self.tile);
        let states = self.share * units * 8;
        if layer.dtype == DType::F32 {
            let h = (hidden * tile).next_multiple_of(4) * 4;
            hidden * units * 16 + h + WARPS * tile * units * 16 + states
        } else {
            let chunks = hidden.div_ceil(16);
            let h = 2 * tile * (chunks * 16 + 8) * 2;
            chunks * (units / 2) * 256 + h + WARPS * tile * (units * 4 + 4) * 4 + states
        }
    }

    /// Clocks a step takes, roughly: fitted to an H200 for the order of the choices only.
    fn cost(&self, layer: &Layer) -> usize {
        let (hidden, units, share) = (layer.hidden, self.units, self.share);
        let passes = share.div_ceil(self.tile);
        let value = if self.rows == 1 { 8 } else { 4 };
        let exchange = share * hidden * value / 48;
        let meeting = if self.rows == 1 { 0 } else { 2000 } + self.blocks * 4;
        let compute = if layer.dtype == DType::F32 {
            share * units * hidden / 25 + hidden * units / 8
        } else {
            passes * hidden * units / 5
        };
        exchange + meeting + compute + passes * 700
    }

    /// Values of h that a share hands around, whole 16-byte packs of them.
    fn share_values(&self, layer: &Layer) -> usize {
        (self.share.next_multiple_of(self.tile) * layer.hidden).next_multiple_of(4)
    }

    fn counter_bytes(&self) -> usize {
        (self.shares * COUNTER_PITCH).next_multiple_of(256)
    }

    /// Counters, then two buffers of h.
    pub fn exchange_bytes(&self, layer: &Layer) -> usize {
        let value = if self.rows == 1 { 8 } else { 4 };
        self.counter_bytes() + 2 * self.shares * self.share_values(layer) * value
    }

    pub fn module(&self, layer: &Layer) -> Module {
        module(layer.dtype, layer.gates, self.units, self.rows)
    }

    pub fn why(&self, layer: &Layer) -> String {
        format!(
            "{} steps in one cooperative launch: wh stays in the shared memory of {} blocks of {} \
             units for each of {} share(s) of the batch",
            layer.steps, self.blocks, self.units, self.shares
        )
    }

    /// # Safety
    /// The call's views and workspace are those of `layer`, and the workspace starts with the
    /// projection.
    pub unsafe fn launch(&self, cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
        let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
        let out = |i: usize| call.outputs.get(i).map_or(0, |v| v.addr);
        let arrived = call.workspace + layer.projection_bytes() as u64;
        let (c, c_out) = layer.c.map_or((0, 0), |c| (addr(c), out(1)));
        let mut args = Args::new();
        args.value(Parameters {
            wh: addr(layer.wi + 1),
            b: addr(layer.wi + 2),
            projected: call.workspace,
            c,
            h: addr(layer.h),
            mask: addr(layer.wi + 3),
            seq: out(0),
            c_out,
            h_out: out(if layer.c.is_some() { 2 } else { 1 }),
            exchange: arrived + self.counter_bytes() as u64,
            arrived,
            share_values: self.share_values(layer) as i64,
            batch: layer.batch as i32,
            steps: layer.steps as i32,
            hidden: layer.hidden as i32,
            state_f32: i32::from(layer.state == DType::F32),
            reverse: i32::from(layer.reverse),
            share: self.share as i32,
            row_groups: self.groups as i32,
            padding: 0,
        });
        let zeroed = match self.rows {
            1 => self.exchange_bytes(layer),
            _ => self.counter_bytes(),
        };
        let function = cx.function(&self.module(layer), "window")?;
        let grid = Grid::new_3d([self.blocks, self.shares, 1], THREADS as u32)?
            .shared(self.shared as u32)
            .cooperative();
        // SAFETY: the workspace holds the exchange; this is the entry's parameter, and the caller
        // vouches for the addresses.
        unsafe {
            cx.memset_zero(arrived, zeroed)?;
            cx.launch(&function, grid, &mut args)
        }
    }
}

/// As in `recurrent/window.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Parameters {
    wh: u64,
    b: u64,
    projected: u64,
    c: u64,
    h: u64,
    mask: u64,
    seq: u64,
    c_out: u64,
    h_out: u64,
    exchange: u64,
    arrived: u64,
    share_values: i64,
    batch: i32,
    steps: i32,
    hidden: i32,
    state_f32: i32,
    reverse: i32,
    share: i32,
    row_groups: i32,
    padding: i32,
}

fn module(dtype: DType, gates: usize, units: usize, rows: usize) -> Module {
    let source = match dtype {
        DType::F32 => "recurrent/window_f32.cu",
        _ => "recurrent/window_mma.cu",
    };
    Module::of(source, dtype).define("GATES", gates).define("UNITS", units).define("ROWS", rows)
}

pub(super) fn all_modules(dtype: DType, gates: usize) -> Vec<Module> {
    let (all_units, all_rows) = match dtype {
        DType::F32 => (F32_UNITS, [1, 4]),
        _ => (MMA_UNITS, [1, 16]),
    };
    all_units.iter().flat_map(|&u| all_rows.map(|r| module(dtype, gates, u, r))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn props(sms: u32, shared_optin: u32) -> Props {
        Props {
            name: "test".into(),
            major: 8,
            minor: 0,
            sms,
            shared_optin,
            shared_per_sm: shared_optin + 1024,
            registers_per_sm: 65_536,
            threads_per_sm: 2048,
            l2: 0,
            memory: 0,
            cooperative: true,
            blas: Default::default(),
            dnn: Default::default(),
            trsm: Default::default(),
            clusters: 0,
        }
    }

    pub fn layer(dtype: DType, batch: usize, hidden: usize) -> Layer {
        let (steps, input) = (60, 64);
        let (gates, c, h, wi, reverse) = (4, Some(1), 2, 3, false);
        Layer {
            gates,
            dtype,
            state: dtype,
            batch,
            steps,
            input,
            hidden,
            reverse,
            norm: None,
            c,
            h,
            wi,
        }
    }

    /// Whatever is chosen is there at once, covers the layer, and keeps to what the kernels take.
    #[test]
    fn a_window_fits_and_covers() {
        for (sms, shared) in [(132, 232_448), (108, 166_912), (68, 101_376), (1, 101_376)] {
            for dtype in [DType::F32, DType::BF16] {
                for batch in [1, 2, 3, 4, 7, 32, 33, 200, 512] {
                    for hidden in [1, 2, 7, 33, 64, 256, 512, 768, 1000, 1024, 2048, 4096] {
                        let layer = layer(dtype, batch, hidden);
                        let Some(w) = choose(&props(sms, shared), &layer) else { continue };
                        let all = format!("{sms} {shared} {layer:?} {w:?}");
                        assert!(w.blocks * w.shares <= sms as usize, "{all}");
                        assert!(w.shared <= shared as usize, "{all}");
                        assert!(
                            w.blocks * w.units >= hidden && w.shares * w.share >= batch,
                            "{all}"
                        );
                        assert!((w.shares - 1) * w.share < batch, "an empty share: {all}");
                        // A thread finishes one unit of one row of a pass.
                        assert!(w.tile * w.units <= THREADS, "{all}");
                        if dtype == DType::F32 {
                            assert!(32 % (w.units * w.groups) == 0, "{all}");
                        }
                        if w.rows == 1 {
                            assert!(w.share <= WORD_ROWS && w.share <= w.tile, "{all}");
                        } else {
                            assert!(w.tile % 4 == 0, "rows are read in fours: {all}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_fits_an_h200() {
        let h200 = props(132, 232_448);
        for (dtype, batch, hidden, units) in [
            (DType::F32, 1, 512, 4),
            (DType::F32, 32, 512, 8),
            (DType::F32, 1, 1024, 8),
            (DType::BF16, 1, 512, 4),
            (DType::BF16, 32, 512, 8),
            (DType::F16, 32, 1024, 8),
        ] {
            let chosen = choose(&h200, &layer(dtype, batch, hidden)).map(|w| w.units);
            assert_eq!(chosen, Some(units), "{dtype} {batch} {hidden}");
        }
        assert_eq!(choose(&h200, &layer(DType::F32, 1, 4096)), None);
    }
}
