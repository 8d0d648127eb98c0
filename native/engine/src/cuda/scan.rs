//! `selective_scan`: a window by one of the kernels of `scan_way.rs`, one frame by a kernel of its own,
//! with the norm over D in it. Two launches for a window that is cut; and one more for the norm of a
//! window, but for long ones of many channels, whose blocks tell each other what the norm needs.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm;
use super::props::Props;
use super::scan_way::{self, Normed, Shape, WARP, Window};
use super::walk::stray;
use crate::call::{Call, Rows};
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{NormKind, SelectiveScan};
use crate::spec::{DType, Spec};

const STEP: &str = "scan/step.cu";
/// The kernels count a tile's bytes in 32 bits, and a grid has no more blocks along y.
const CHANNELS: usize = (1 << 19) - 1;
/// Inputs that are read by rows: b, c and z.
const BY_ROWS: [usize; 3] = [3, 4, 6];
/// Of a step's blocks, as in `scan/step.cu`.
const STEP_THREADS: usize = 256;
const STEP_CLUSTER: usize = 8;
/// Channels of a block whose row the step's norm holds.
const STEP_HOLDS: usize = 8 << 10;

/// As in `scan/window.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Scan {
    x: u64,
    dt: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    z: u64,
    bias: u64,
    state: u64,
    residual: u64,
    y: u64,
    h: u64,
    carry: u64,
    elapsed: u64,
    length: i64,
    chunk: i64,
    pitches: [i64; 3],
    channels: i32,
    states: i32,
    chunks: i32,
    a_f32: i32,
    d_f32: i32,
    bias_f32: i32,
    softplus: i32,
    clamp: i32,
    low: f32,
    high: f32,
}

/// As in `scan/step.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Step {
    x: u64,
    dt: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    z: u64,
    bias: u64,
    state: u64,
    residual: u64,
    gamma: u64,
    beta: u64,
    y: u64,
    normed: u64,
    h: u64,
    pitches: [i64; 3],
    channels: i32,
    states: i32,
    width: i32,
    lanes: i32,
    a_f32: i32,
    d_f32: i32,
    bias_f32: i32,
    softplus: i32,
    clamp: i32,
    centred: i32,
    low: f32,
    high: f32,
    epsilon: f32,
    padding: i32,
}

/// As in `scan/normed.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Norm {
    gamma: u64,
    beta: u64,
    normed: u64,
    shares: u64,
    rows: u64,
    epsilon: f32,
    whole: f32,
    centred: i32,
    padding: i32,
}

fn step_module(dtype: DType) -> Module {
    Module::of(STEP, dtype).define("CLUSTER", STEP_CLUSTER)
}

fn shape(inputs: &[Option<&Spec>]) -> Result<Shape> {
    let [Some(x), Some(_), Some(a), ..] = inputs else { return stray("selective_scan") };
    let &[batch, length, channels] = x.shape() else { return stray("selective_scan") };
    if channels > CHANNELS {
        return Err(Error::unsupported("selective_scan", "at most 2^19 - 1 channels"));
    }
    Ok(Shape { dtype: x.dtype, batch, length, channels, states: a.last() })
}

/// How the card's threads share the work.
#[derive(Debug, Clone, Copy)]
enum Way {
    Window(Window),
    /// With the norm.
    Normed(Window, Normed),
    /// One frame: channels of a block, lanes of a channel.
    Step {
        width: usize,
        lanes: usize,
    },
}

struct Plan {
    shape: Shape,
    way: Way,
    grid: Grid,
    /// The norm is done in the same launch, or in one more.
    norm_inside: bool,
    norm_after: bool,
    why: String,
}

fn plan(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let shape = shape(inputs)?;
    let Shape { batch, length, channels, states, .. } = shape;
    let has_norm = op.norm.is_some() && batch * length * channels > 0;
    // A cluster has a row from sm_90 on, a block before.
    let cluster = if props.major >= 9 { STEP_CLUSTER } else { 1 };
    let held = channels.div_ceil(cluster) <= STEP_HOLDS;
    let (way, blocks, threads, mut why);
    if length == 1 {
        let lanes = states.div_ceil(4).max(1).next_power_of_two().min(WARP);
        let width =
            if has_norm && held { channels.div_ceil(cluster) } else { STEP_THREADS / lanes };
        why = format!("one frame: {lanes} lane(s) a channel, {width} channel(s) a block");
        way = Way::Step { width, lanes };
        threads = STEP_THREADS;
        blocks = match has_norm && held {
            true => [batch.saturating_mul(cluster), 1, 1],
            false => [batch, channels.div_ceil(width), 1],
        };
    } else {
        let window = scan_way::window(props, &shape);
        why = window.why(&shape);
        threads = window.threads();
        blocks = [batch, channels.div_ceil(window.channels()), window.chunks(&shape)];
        let normed = has_norm.then(|| scan_way::normed(props, &shape, window)).flatten();
        way = normed.map_or(Way::Window(window), |normed| Way::Normed(window, normed));
    }
    let norm_inside = has_norm && (held && length == 1 || matches!(way, Way::Normed(..)));
    match (has_norm, norm_inside, length) {
        (false, ..) => {}
        (_, true, 2..) => why.push_str(
            "; the norm in the same cooperative launch, as the blocks of a row tell each other",
        ),
        (_, true, _) if cluster > 1 => {
            why.push_str(&format!("; the norm in the same launch, a row in {cluster} blocks"))
        }
        (_, true, _) => why.push_str("; the norm in the same launch, a row in a block"),
        (_, _, 1) => why.push_str("; the norm in one more launch, as a row is too long"),
        _ => why.push_str("; the norm in one more launch, as a window's rows lie across blocks"),
    }
    let threads = match way {
        Way::Normed(_, normed) => normed.threads(),
        _ => threads,
    };
    let grid = Grid::new_3d(blocks, threads as u32)?;
    let grid = match way {
        Way::Normed(_, normed) => grid.shared(normed.shared as u32).cooperative(),
        Way::Step { width, .. } if norm_inside => {
            grid.shared(4 * width as u32).clusters(cluster as u32)
        }
        _ => grid,
    };
    Ok(Plan { shape, way, grid, norm_inside, norm_after: has_norm && !norm_inside, why })
}

impl Plan {
    fn module(&self) -> Module {
        match self.way {
            Way::Window(window) => window.module(self.shape.dtype),
            Way::Normed(_, normed) => normed.module(self.shape.dtype),
            Way::Step { .. } => step_module(self.shape.dtype),
        }
    }

    fn chunks(&self) -> usize {
        match self.way {
            Way::Window(window) => window.chunks(&self.shape),
            Way::Normed(..) | Way::Step { .. } => 1,
        }
    }

    fn variant(&self) -> &'static str {
        match self.way {
            Way::Step { .. } if self.norm_inside => "step_norm",
            Way::Step { .. } => "step",
            Way::Normed(Window::Staged, _) => "staged_norm",
            Way::Normed(..) => "channels_norm",
            Way::Window(Window::Spread(_)) => "spread",
            Way::Window(Window::Staged) => "staged",
            Way::Window(_) if self.chunks() > 1 => "chunks",
            Way::Window(_) => "channels",
        }
    }

    /// The kernels, one after the other; whether any of b, c and z lies by rows.
    fn entries(&self, by_rows: bool) -> &'static [&'static str] {
        match (self.way, by_rows) {
            (Way::Step { .. }, _) if self.norm_inside => &["step_norm"],
            (Way::Step { .. }, _) => &["step"],
            (Way::Normed(Window::Staged, _), false) => &["scan_staged_norm"],
            (Way::Normed(Window::Staged, _), true) => &["scan_staged_norm_rows"],
            (Way::Normed(..), false) => &["scan_norm"],
            (Way::Normed(..), true) => &["scan_norm_rows"],
            (Way::Window(Window::Spread(_)), _) => &["scan_spread"],
            (Way::Window(Window::Staged), false) => &["scan_staged"],
            (Way::Window(Window::Staged), true) => &["scan_staged_rows"],
            (Way::Window(_), false) if self.chunks() > 1 => &["scan_carry", "scan_y"],
            (Way::Window(_), true) if self.chunks() > 1 => &["scan_carry_rows", "scan_y_rows"],
            (Way::Window(_), false) => &["scan_y"],
            (Way::Window(_), true) => &["scan_y_rows"],
        }
    }

    /// Bytes of what chunks hand on, and of their times; or of what blocks tell each other for the norm.
    fn carries(&self) -> [usize; 2] {
        if let Way::Normed(_, normed) = self.way {
            return normed.exchange(self.shape.batch);
        }
        if self.chunks() == 1 {
            return [0; 2];
        }
        let Shape { batch, channels, states, .. } = self.shape;
        let cells = batch.saturating_mul(self.chunks()).saturating_mul(channels);
        [cells.saturating_mul(states.saturating_mul(4)), cells.saturating_mul(4)]
            .map(|bytes| bytes.saturating_add(255) & !255)
    }
}

pub fn explain(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(props, op, inputs)?;
    // Without frames or states there is nothing to scan, but h and y have to be written all the same.
    let launches = match plan.grid.blocks.contains(&0) {
        true => 0,
        false => plan.entries(false).len() + usize::from(plan.norm_after),
    };
    Ok(Explanation { variant: plan.variant(), why: plan.why, launches })
}

/// Whether input `i` may be a part of each row of another tensor.
pub fn reads_rows(i: usize, rows: Rows) -> bool {
    BY_ROWS.contains(&i) && rows.pitch <= 2 * CHANNELS
}

/// Why the norm takes a launch of its own.
pub fn fallback(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Option<String> {
    plan(props, op, inputs).ok().filter(|plan| plan.norm_after).map(|plan| plan.why)
}

pub fn modules(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let plan = plan(props, op, inputs)?;
    let mut modules = vec![plan.module()];
    if plan.norm_after {
        modules.push(norm::rows_module(plan.shape.dtype));
    }
    Ok(modules)
}

pub fn workspace(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<usize> {
    Ok(plan(props, op, inputs)?.carries().into_iter().fold(0, usize::saturating_add))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &SelectiveScan, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = plan(cx.props(), op, &specs)?;
    if plan.grid.blocks.contains(&0) {
        return Ok(());
    }
    let (y, normed, h) = match (op.norm, call.outputs) {
        (None, [y, h]) => (y, 0, h),
        (Some(_), [normed, sum, h]) => (sum, normed.addr, h),
        _ => return stray("selective_scan"),
    };
    let shape = plan.shape;
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let is_f32 = |i: usize| i32::from(call.input(i).is_some_and(|v| v.spec.dtype == DType::F32));
    let [x, dt, a, b, c, d, z, bias, state, residual, gamma, beta] = std::array::from_fn(addr);
    let [a_f32, d_f32, bias_f32] = [2, 5, 7].map(is_f32);
    let (low, high) = op.dt_clamp.unwrap_or((0.0, 0.0));
    let [low, high] = [low, high].map(|v| v as f32);
    let (softplus, clamp) = (i32::from(op.dt_softplus), i32::from(op.dt_clamp.is_some()));
    let centred = op.norm == Some(NormKind::LayerNorm);
    let (channels, states) = (shape.channels as i32, shape.states as i32);
    let (y_addr, h) = (y.addr, h.addr);
    let pitches = BY_ROWS.map(|i| call.input(i).map_or(0, |v| v.pitch() as i64));
    let by_rows = BY_ROWS.iter().any(|&i| call.input(i).is_some_and(|v| v.rows.is_some()));
    let mut args = Args::new();
    let chunks = plan.chunks();
    match plan.way {
        Way::Window(window) | Way::Normed(window, _) => args.value(Scan {
            x,
            dt,
            a,
            b,
            c,
            d,
            z,
            bias,
            state,
            residual,
            y: y_addr,
            h,
            carry: call.workspace,
            elapsed: call.workspace + plan.carries()[0] as u64,
            length: shape.length as i64,
            chunk: window.chunk(&shape) as i64,
            pitches,
            channels,
            states,
            chunks: chunks as i32,
            a_f32,
            d_f32,
            bias_f32,
            softplus,
            clamp,
            low,
            high,
        }),
        Way::Step { width, lanes } => args.value(Step {
            x,
            dt,
            a,
            b,
            c,
            d,
            z,
            bias,
            state,
            residual,
            gamma,
            beta,
            y: y_addr,
            normed,
            h,
            pitches,
            channels,
            states,
            width: width as i32,
            lanes: lanes as i32,
            a_f32,
            d_f32,
            bias_f32,
            softplus,
            clamp,
            centred: i32::from(centred),
            low,
            high,
            epsilon: op.epsilon as f32,
            padding: 0,
        }),
    };
    if let Way::Normed(..) = plan.way {
        let [shares, rows] = plan.carries();
        args.value(Norm {
            gamma,
            beta,
            normed,
            shares: call.workspace,
            rows: call.workspace + shares as u64,
            epsilon: op.epsilon as f32,
            whole: 1.0 / shape.channels as f32,
            centred: i32::from(centred),
            padding: 0,
        });
        // SAFETY: the workspace holds what blocks tell each other.
        unsafe { cx.memset_zero(call.workspace, shares + rows) }?;
    }
    let module = plan.module();
    // A kernel that fills the card is spread less evenly where the one ahead still has a part of it.
    let at_once = match plan.way {
        Way::Window(Window::Spread(kernel)) => kernel.blocks as u32,
        _ => 1,
    };
    let small = plan.grid.count() <= at_once * cx.props().sms;
    let early = small && !plan.grid.cooperative && call.constant([2, 5, 7]);
    let grid = plan.grid.early(early);
    for entry in plan.entries(by_rows) {
        let function = cx.function(&module, entry)?;
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, &mut args) }?;
    }
    if plan.norm_after {
        let at = norm::Rows { x: y.addr, gamma, beta, y: normed };
        // SAFETY: the caller vouches for the addresses.
        unsafe { norm::launch_rows(cx, y.spec, at, centred, op.epsilon) }?;
    }
    Ok(())
}

pub fn all_modules() -> Vec<Module> {
    let types = [DType::F32, DType::BF16, DType::F16];
    types
        .into_iter()
        .flat_map(|t| scan_way::modules(t).into_iter().chain([step_module(t)]))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::window::tests::props;
    use super::*;

    const PLAIN: SelectiveScan =
        SelectiveScan { dt_softplus: true, dt_clamp: None, norm: None, epsilon: 1e-5 };

    fn plan_of(dtype: DType, [batch, length, channels, states]: [usize; 4]) -> Plan {
        let row = Spec::new(dtype, [batch, length, channels]).unwrap();
        let a = Spec::new(DType::F32, [channels, states]).unwrap();
        let b = Spec::new(dtype, [batch, length, states]).unwrap();
        let inputs = [Some(&row), Some(&row), Some(&a), Some(&b), Some(&b)];
        plan(&props(132, 232_448), &PLAIN, &inputs).unwrap()
    }

    #[test]
    fn variants() {
        for (shape, expected) in [
            ([1, 60, 512, 16], "spread"),
            ([1, 2, 1, 16], "channels"),
            ([32, 60, 1024, 16], "channels"),
            ([1, 0, 512, 16], "channels"),
            ([1, 1, 512, 16], "step"),
            ([1, 4096, 512, 16], "chunks"),
            ([8, 2048, 2048, 16], "staged"),
        ] {
            assert_eq!(plan_of(DType::BF16, shape).variant(), expected, "{shape:?}");
        }
    }

    /// The norm goes with the scan where all blocks of a row are whole and on the card at once: a whole
    /// number of them, whose words fit the workspace.
    #[test]
    fn norms_in_the_launch() {
        let all = all_modules();
        let op = SelectiveScan { norm: Some(NormKind::RmsNorm), ..PLAIN };
        let h200 = Props { shared_per_sm: 233_472, ..props(132, 232_448) };
        for (dtype, shape, expected) in [
            (DType::F32, [8, 2048, 2048, 16], "channels_norm"),
            (DType::BF16, [8, 2048, 2048, 16], "staged_norm"),
            (DType::F16, [4, 512, 4096, 16], "staged_norm"),
            (DType::F32, [264, 512, 64, 16], "channels_norm"),
            (DType::F32, [265, 512, 64, 16], "channels"),
            (DType::F32, [8, 511, 2048, 16], "channels"),
            (DType::F32, [8, 2048, 2047, 16], "channels"),
            (DType::BF16, [8, 2048, 4096, 16], "staged"),
            (DType::F32, [8, 2048, 1024, 16], "channels"),
            (DType::F32, [1, 60, 512, 16], "spread"),
        ] {
            let row = Spec::new(dtype, shape[..3].to_vec()).unwrap();
            let a = Spec::new(DType::F32, [shape[2], shape[3]]).unwrap();
            let b = Spec::new(dtype, [shape[0], shape[1], shape[3]]).unwrap();
            let inputs = [Some(&row), Some(&row), Some(&a), Some(&b), Some(&b)];
            let chosen = plan(&h200, &op, &inputs).unwrap();
            assert_eq!(chosen.variant(), expected, "{dtype:?} {shape:?}");
            assert!(all.contains(&chosen.module()), "{shape:?}");
            let one = chosen.norm_inside;
            assert_eq!(one, expected.ends_with("norm"), "{shape:?}");
            let explained = explain(&h200, &op, &inputs).unwrap();
            assert_eq!(explained.launches, if one { 1 } else { 2 }, "{shape:?}");
            let words = shape[0] * 8 * 32 * (shape[2] / 64 + 2) * 8;
            assert_eq!(workspace(&h200, &op, &inputs).unwrap(), if one { words } else { 0 });
            // A card that holds one such block a multiprocessor has too few of them.
            let small = Props { shared_per_sm: 102_400, ..props(132, 101_376) };
            assert!(plan(&small, &op, &inputs).unwrap().norm_after, "{shape:?}");
            let alone = Props { cooperative: false, ..h200.clone() };
            assert!(plan(&alone, &op, &inputs).unwrap().norm_after, "{shape:?}");
        }
    }

    /// Whatever is chosen covers the window, and is among the modules that are made ahead.
    #[test]
    fn blocks_cover_the_channels() {
        let all = all_modules();
        for batch in [1, 3, 40] {
            for length in [2, 63, 511, 512, 5000] {
                for channels in [1, 5, 64, 513, 5000] {
                    for states in [1, 16, 200] {
                        let shape = [batch, length, channels, states];
                        let plan = plan_of(DType::BF16, shape);
                        let window = match plan.way {
                            Way::Window(window) => window,
                            _ => unreachable!("{shape:?}"),
                        };
                        let of = window.channels();
                        let [x, y, z] = plan.grid.blocks.map(|b| b as usize);
                        assert!(x == batch && y * of >= channels, "{shape:?}");
                        assert!((y - 1) * of < channels && z == plan.chunks(), "{shape:?}");
                        assert!(z * window.chunk(&plan.shape) >= length, "{shape:?}");
                        assert!(all.contains(&plan.module()), "{shape:?}");
                    }
                }
            }
        }
    }
}
