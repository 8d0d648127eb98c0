//! `embedding`: a copy of table rows, one launch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, cover, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::Embedding;
use crate::spec::{DType, Spec};

const SOURCE: &str = "embedding/embedding.cu";

struct Plan {
    module: Module,
    entry: &'static str,
    grid: Grid,
    /// Packs, or elements where rows are no whole packs.
    items: usize,
    width: usize,
    vocabulary: usize,
    ids: DType,
}

fn plan(inputs: &[Option<&Spec>]) -> Result<Plan> {
    let [Some(table), Some(ids)] = inputs else { return stray("embedding") };
    let pack = 16 / table.dtype.size();
    let (pack, entry) =
        if table.last() % pack == 0 { (pack, "embed_packs") } else { (1, "embed_elements") };
    let width = table.last() / pack;
    let items = ids.len() * width;
    Ok(Plan {
        module: Module::of(SOURCE, table.dtype),
        entry,
        grid: cover(items)?,
        items,
        width,
        vocabulary: table.rows(),
        ids: ids.dtype,
    })
}

pub fn explain(_: &Props, _: &Embedding, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(inputs)?;
    let (variant, why) = match plan.entry {
        "embed_packs" => ("packs", "rows are whole 16-byte packs"),
        _ => ("elements", "rows are no whole number of 16-byte packs"),
    };
    Ok(Explanation { variant, why: why.into(), launches: usize::from(plan.items > 0) })
}

pub fn modules(_: &Props, _: &Embedding, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, _: &Embedding, call: &Call) -> Result<()> {
    let (Some(table), Some(ids), Some(out)) = (call.input(0), call.input(1), call.outputs.first())
    else {
        return stray("embedding");
    };
    let plan = plan(&[Some(table.spec), Some(ids.spec)])?;
    if plan.items == 0 {
        return Ok(());
    }
    let mut args = Args::new();
    args.ptr(table.addr).ptr(ids.addr).ptr(out.addr);
    args.u64(plan.items as u64).i64(plan.vocabulary as i64);
    args.value(Divisor::new(plan.width)).u32(plan.ids as u32);
    let function = cx.function(&plan.module, plan.entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid.early_if_small(), &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    DType::ALL.into_iter().filter(|t| t.is_network()).map(|t| Module::of(SOURCE, t)).collect()
}
