//! Attention: which kernel, how many rows a block, and over how many blocks the keys are split.

use super::{Args, Context, Grid, Module, Props};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::infer::attention::bias_strides;
use crate::op::FlashAttention;
use crate::spec::{DType, Spec};

const SOURCE: &str = "attention/attention.cu";
/// What a module is compiled for; smaller heads are padded.
const HEADS: [usize; 3] = [64, 128, 256];
/// Threads of all kernels but `decode`, and the most splits that `combine` takes.
const THREADS: u32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// 128 rows a block.
    Wide,
    /// 64 rows a block.
    Narrow,
    /// 64 rows a block, every option.
    Full,
    /// 16 rows a block, every warp with keys of its own, every option.
    Decode,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Kernel::Wide => "wide",
            Kernel::Narrow => "narrow",
            Kernel::Full => "full",
            Kernel::Decode => "decode",
        }
    }

    fn rows(self) -> usize {
        match self {
            Kernel::Wide => 128,
            Kernel::Narrow | Kernel::Full => 64,
            Kernel::Decode => 16,
        }
    }
}

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    dtype: DType,
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    key_heads: usize,
    head: usize,
}

impl Sizes {
    fn of(inputs: &[Option<&Spec>]) -> Result<Self> {
        let [Some(q), Some(k), ..] = inputs else {
            return Err(Error::Internal("attention without q or k".into()));
        };
        let (&[batch, queries, heads, head], &[_, keys, key_heads, _]) = (q.shape(), k.shape())
        else {
            return Err(Error::Internal("attention on other than four axes".into()));
        };
        Ok(Sizes { dtype: q.dtype, batch, queries, keys, heads, key_heads, head })
    }

    /// Rows of the output.
    fn rows(&self) -> usize {
        self.batch * self.queries * self.heads
    }
}

/// How a call is run: what all functions below go by.
#[derive(Debug, Clone, Copy)]
struct Plan {
    sizes: Sizes,
    kernel: Kernel,
    /// The head size of the module.
    padded: usize,
    /// Rows a query: the heads that one block takes together.
    pack: usize,
    units: usize,
    tiles: usize,
    splits: usize,
    threads: u32,
    shared: u32,
}

impl Plan {
    fn new(props: &Props, attrs: &FlashAttention, inputs: &[Option<&Spec>]) -> Result<Self> {
        let sizes = Sizes::of(inputs)?;
        let Some(padded) = HEADS.into_iter().find(|&h| sizes.head <= h) else {
            return Err(Error::Internal(format!("a head of {}", sizes.head)));
        };
        let (sms, row_bytes) = (props.sms as usize, padded * sizes.dtype.size());
        // At least one, so that a call without heads has a plan as well.
        let group = (sizes.heads / sizes.key_heads).max(1);
        let shared_rows = sizes.queries * group;
        let has = |i: usize| inputs.get(i).is_some_and(Option::is_some);
        let plain = attrs.softcap.is_none() && !has(3) && !has(4) && attrs.scale(sizes.head) > 0.0;
        let small = sizes.batch * sizes.key_heads * shared_rows.div_ceil(16) <= sms;
        let many = 2 * sizes.batch * sizes.heads * sizes.queries.div_ceil(128) >= 3 * sms;
        let kernel = if shared_rows <= 16 || small {
            Kernel::Decode
        } else if !plain {
            Kernel::Full
        } else if has_wide(sizes.dtype, padded) && sizes.queries > 64 && many {
            Kernel::Wide
        } else {
            Kernel::Narrow
        };
        // Heads are packed where a block would otherwise have rows to spare.
        let packs = match kernel {
            Kernel::Decode => true,
            Kernel::Wide => false,
            Kernel::Narrow | Kernel::Full => sizes.queries < 32,
        };
        let pack = if packs { group } else { 1 };
        let units = sizes.batch * (sizes.heads / pack);
        let tiles = (sizes.queries * pack).div_ceil(kernel.rows());
        let (threads, shared, wanted, least) = if kernel == Kernel::Decode {
            // As in the kernel: streams, and the keys of a stream's tile.
            let streams = match row_bytes {
                ..=256 => 4,
                512 => 2,
                _ => 1,
            };
            let keys = if row_bytes == 128 { 32 } else { 16 };
            let shared = 16 * row_bytes + streams * 4 * keys * row_bytes;
            (32 * streams as u32, shared, sms * 2, streams * keys * 2)
        } else {
            let keys = match (sizes.dtype.size(), padded) {
                (2, 64) => 128,
                (2, _) | (_, 64) => 64,
                (_, 128) => 32,
                _ => 16,
            };
            let keys = if kernel == Kernel::Full { keys.min(32) } else { keys };
            (THREADS, (kernel.rows() + 2 * keys) * row_bytes, sms, keys * 8)
        };
        // A second launch puts splits together: only where many multiprocessors are idle.
        let blocks = (units * tiles).max(1);
        let splits = if blocks * 2 <= wanted {
            (wanted / blocks).min(sizes.keys.div_ceil(least)).clamp(1, THREADS as usize)
        } else {
            1
        };
        let shared = shared as u32;
        Ok(Plan { sizes, kernel, padded, pack, units, tiles, splits, threads, shared })
    }

    fn module(&self) -> Module {
        module(self.sizes.dtype, self.padded, self.kernel)
    }

    /// f32 of the splits' parts, and of their lse.
    fn parts(&self) -> (usize, usize) {
        if self.splits == 1 {
            return (0, 0);
        }
        let rows = self.splits * self.sizes.rows();
        ((rows * self.sizes.head).next_multiple_of(64), rows)
    }
}

/// Two tiles of rows a warp pay where a head's sums leave registers for them. For f32, whose
/// operands take twice the registers, they measured no faster.
fn has_wide(dtype: DType, padded: usize) -> bool {
    dtype.size() == 2 && padded < 256
}

fn module(dtype: DType, padded: usize, kernel: Kernel) -> Module {
    let name = kernel.name().to_uppercase();
    Module::of(SOURCE, dtype).define("HEAD", padded).define("KERNEL", name)
}

pub fn explain(
    props: &Props,
    attrs: &FlashAttention,
    inputs: &[Option<&Spec>],
) -> Result<Explanation> {
    let plan = Plan::new(props, attrs, inputs)?;
    let why = match plan.kernel {
        Kernel::Wide => "128 rows a block: enough blocks for every multiprocessor",
        Kernel::Narrow => "64 rows a block",
        Kernel::Full => "64 rows a block, with bias, key mask, soft cap or a scale not above zero",
        Kernel::Decode => "16 rows a block, its warps sharing the keys: few rows in all",
    };
    let precision = match plan.sizes.dtype {
        DType::F32 => "three TF32 products for one in f32",
        _ => "tensor cores",
    };
    let why = format!(
        "{why}; heads of {} in tiles of {}; {precision}; keys split over {} blocks",
        plan.sizes.head, plan.padded, plan.splits
    );
    let launches = if plan.sizes.rows() == 0 { 0 } else { plan.splits.min(2) };
    Ok(Explanation { variant: plan.kernel.name(), why, launches })
}

pub fn modules(
    props: &Props,
    attrs: &FlashAttention,
    inputs: &[Option<&Spec>],
) -> Result<Vec<Module>> {
    Ok(vec![Plan::new(props, attrs, inputs)?.module()])
}

pub fn workspace(props: &Props, attrs: &FlashAttention, inputs: &[Option<&Spec>]) -> Result<usize> {
    let (out, lse) = Plan::new(props, attrs, inputs)?.parts();
    Ok((out + lse) * size_of::<f32>())
}

pub fn all_modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for padded in HEADS {
            for kernel in [Kernel::Wide, Kernel::Narrow, Kernel::Full, Kernel::Decode] {
                if kernel != Kernel::Wide || has_wide(dtype, padded) {
                    modules.push(module(dtype, padded, kernel));
                }
            }
        }
    }
    modules
}

/// The kernels' parameters, as in `online.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    q: u64,
    k: u64,
    v: u64,
    bias: u64,
    key_mask: u64,
    kv_len: u64,
    offset: u64,
    out: u64,
    lse: u64,
    partial: u64,
    partial_lse: u64,
    bias_stride: [i64; 4],
    low: i64,
    high: i64,
    queries: i32,
    keys: i32,
    heads: i32,
    ratio: i32,
    head: i32,
    pack: i32,
    per_batch: i32,
    units: i32,
    tiles: i32,
    group: i32,
    offset_step: i32,
    bias_is_f32: i32,
    scale: f32,
    softcap: f32,
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, attrs: &FlashAttention, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.as_ref().map(|v| v.spec)).collect();
    let plan = Plan::new(cx.props(), attrs, &specs)?;
    let sizes = plan.sizes;
    if sizes.rows() == 0 {
        return Ok(());
    }
    let params = params(cx.props(), &plan, attrs, call)?;
    let module = plan.module();
    let kernel = cx.function(&module, "attend")?;
    let mut grid = Grid::new(plan.units * plan.tiles, plan.threads)?.shared(plan.shared);
    grid.blocks[1] = int(plan.splits)? as u32;
    // SAFETY: the kernel takes these parameters alone; the caller's promise covers the tensors,
    // and the workspace is as large as `workspace` said.
    unsafe { cx.launch(&kernel, grid, Args::new().value(params)) }?;
    if plan.splits > 1 {
        let combine = cx.function(&module, "combine")?;
        let grid = Grid::new(sizes.rows(), THREADS)?;
        // SAFETY: as above.
        unsafe { cx.launch(&combine, grid, Args::new().value(params).i32(int(plan.splits)?)) }?;
    }
    Ok(())
}

fn params(props: &Props, plan: &Plan, attrs: &FlashAttention, call: &Call) -> Result<Params> {
    let sizes = plan.sizes;
    let address = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let (low, high) = attrs.reach(sizes.queries, sizes.keys, call.input(6).is_some());
    let bias = call.input(3).map(|v| v.spec);
    // As many units at a time as leave half of the cache's room for the rest.
    let unit_bytes = 2 * sizes.keys * sizes.head * sizes.dtype.size();
    let together = props.l2 / 2 / unit_bytes.max(1) * (sizes.heads / sizes.key_heads) / plan.pack;
    let (out_parts, _) = plan.parts();
    let part = |at: usize| if plan.splits > 1 { call.workspace + at as u64 } else { 0 };
    Ok(Params {
        q: address(0),
        k: address(1),
        v: address(2),
        bias: address(3),
        key_mask: address(4),
        kv_len: address(5),
        offset: address(6),
        out: call.outputs.first().map_or(0, |v| v.addr),
        lse: call.outputs.get(1).map_or(0, |v| v.addr),
        partial: part(0),
        partial_lse: part(out_parts * size_of::<f32>()),
        bias_stride: bias.map_or([0; 4], bias_strides).map(|s| s as i64),
        low,
        high,
        queries: int(sizes.queries)?,
        keys: int(sizes.keys)?,
        heads: int(sizes.heads)?,
        ratio: int(sizes.heads / sizes.key_heads)?,
        head: int(sizes.head)?,
        pack: int(plan.pack)?,
        per_batch: int(sizes.heads / plan.pack)?,
        units: int(plan.units)?,
        tiles: int(plan.tiles)?,
        group: int(together.clamp(1, plan.units))?,
        offset_step: call.input(6).map_or(0, |v| v.spec.rank() as i32),
        bias_is_f32: bias.map_or(0, |b| i32::from(b.dtype == DType::F32)),
        scale: attrs.scale(sizes.head),
        softcap: attrs.softcap.map_or(0.0, |cap| cap as f32),
    })
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n)
        .map_err(|_| Error::unsupported("flash_attention", format!("{n} rows or blocks")))
}
