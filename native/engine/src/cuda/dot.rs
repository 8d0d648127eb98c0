//! `dot`: by the row where one of the operands is a vector, and else by [`super::gemm`].

use super::dense::{self, Operands, Product};
use super::gemm::{self, Gemm, Strides};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::Prologue;
use super::props::Props;
use super::shape;
use super::walk::stray;
use crate::call::{Call, View};
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::product::{Matrices, Operand};
use crate::op::{Activation, Dot, Op, Transpose};
use crate::pool::{ALIGNMENT, round_up};
use crate::spec::{DType, Spec};

const ROWS: &str = "dot/rows.cu";
const ROWS_THREADS: usize = 256;
/// Rows up to which the kernel of `dense` that reads w once is the one.
const FEW: usize = 8;

/// How it is computed.
enum Kernel {
    /// No elements to compute.
    Nothing,
    /// Nothing to sum up.
    Zeros,
    /// A few vectors by a matrix whose rows they weigh, as `dense` does it; whether the matrix is a.
    Few(Product, bool),
    /// A vector with each row of a matrix; whether the matrix is a.
    Rows(bool),
    Gemm(Gemm),
}

struct Plan {
    matrices: Matrices,
    kernel: Kernel,
    dtype: DType,
    /// Bytes of the copies of a and of b, whose axes are put in order first.
    copies: [usize; 2],
}

fn plan(op: &Dot, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let [Some(a), Some(b), ..] = inputs else { return stray("dot") };
    let matrices = Matrices::of(op, a, b);
    let Matrices { batch, rows, inner, columns, .. } = matrices;
    let dtype = a.dtype;
    let copies = [(&matrices.a, a), (&matrices.b, b)].map(|(operand, spec)| match operand.order {
        Some(_) => round_up(spec.bytes(), ALIGNMENT).unwrap_or(usize::MAX),
        None => 0,
    });
    let (a_is, b_is) = (&matrices.a, &matrices.b);
    let product = |rows: usize, columns: usize| Product {
        rows,
        inner,
        columns,
        dtype,
        to_f32: false,
        norm: false,
        gated: false,
    };
    // Whether what is summed, or what is not, lies densely.
    let summed = |operand: &Operand| operand.inner == 1 || inner == 1;
    let dense_rows =
        |operand: &Operand, n: usize| summed(operand) && (n == 1 || operand.free == inner);
    let free = |operand: &Operand, n: usize| {
        (operand.free == 1 || n == 1) && (inner == 1 || operand.inner == n)
    };
    let weighs = |n: usize| batch == 1 && dtype.is_network() && n <= i32::MAX as usize / 2;
    let kernel = if batch == 0 || rows == 0 || columns == 0 {
        Kernel::Nothing
    } else if inner == 0 {
        Kernel::Zeros
    } else if weighs(columns.max(inner))
        && rows <= FEW
        && dense_rows(a_is, rows)
        && free(b_is, columns)
    {
        Kernel::Few(product(rows, columns), false)
    } else if weighs(rows.max(inner)) && columns == 1 && summed(b_is) && free(a_is, rows) {
        Kernel::Few(product(1, rows), true)
    } else if columns == 1 && summed(a_is) && summed(b_is) && rows <= u32::MAX as usize {
        Kernel::Rows(true)
    } else if rows == 1 && summed(a_is) && summed(b_is) && columns <= u32::MAX as usize {
        Kernel::Rows(false)
    } else {
        Kernel::Gemm(Gemm {
            batch,
            rows,
            inner,
            columns,
            a: Strides::of(a_is),
            b: Strides::of(b_is),
            y_batch: rows * columns,
            dtype,
            alignment: ALIGNMENT as u32,
        })
    };
    Ok(Plan { matrices, kernel, dtype, copies })
}

impl Plan {
    fn copied(&self) -> impl Iterator<Item = &Operand> {
        [&self.matrices.a, &self.matrices.b].into_iter().filter(|o| o.order.is_some())
    }
}

/// The transpose that puts an operand's axes in order.
fn transpose(order: &[usize]) -> Op {
    Op::Transpose(Transpose { axes: order.to_vec() })
}

pub fn explain(props: &Props, op: &Dot, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(op, inputs)?;
    let (variant, mut why) = match &plan.kernel {
        Kernel::Nothing => ("nothing", "no elements".into()),
        Kernel::Zeros => ("zeros", "nothing is summed".into()),
        Kernel::Few(product, _) => dense::explain_product(props, product)?,
        Kernel::Rows(_) => {
            ("rows", "each row of a matrix by a vector, which is read densely".into())
        }
        Kernel::Gemm(gemm) => gemm.explain(props),
    };
    let copies = match plan.kernel {
        Kernel::Nothing | Kernel::Zeros => 0,
        _ => plan.copied().count(),
    };
    if copies > 0 {
        why.push_str(&format!("; {copies} operand(s) transposed first"));
    }
    let launches = copies + usize::from(!matches!(plan.kernel, Kernel::Nothing | Kernel::Zeros));
    Ok(Explanation { variant, why, launches })
}

pub fn modules(props: &Props, op: &Dot, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let plan = plan(op, inputs)?;
    let mut all = match &plan.kernel {
        Kernel::Nothing | Kernel::Zeros => return Ok(Vec::new()),
        Kernel::Few(product, _) => vec![dense::product_module(props, product)?],
        Kernel::Rows(_) => vec![Module::of(ROWS, plan.dtype)],
        Kernel::Gemm(gemm) => gemm.modules(props),
    };
    for (operand, spec) in [&plan.matrices.a, &plan.matrices.b].into_iter().zip(inputs) {
        if let Some(order) = &operand.order {
            all.extend(shape::modules(props, &transpose(order), &[*spec])?);
        }
    }
    Ok(all)
}

/// Whether a launch has nothing of the library's to open or load.
pub fn is_warm(props: &Props, op: &Dot, inputs: &[Option<&Spec>]) -> Result<bool> {
    Ok(match plan(op, inputs)?.kernel {
        Kernel::Gemm(gemm) => gemm.is_warm(props),
        _ => true,
    })
}

/// The copies, then what the product needs.
pub fn workspace(props: &Props, op: &Dot, inputs: &[Option<&Spec>]) -> Result<usize> {
    let plan = plan(op, inputs)?;
    let product = match &plan.kernel {
        Kernel::Nothing | Kernel::Zeros => return Ok(0),
        Kernel::Gemm(gemm) => gemm.workspace(props),
        _ => 0,
    };
    Ok(plan.copies.iter().fold(product, |sum, bytes| sum.saturating_add(*bytes)))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Dot, call: &Call) -> Result<()> {
    let (Some(a), Some(b), Some(y)) = (call.input(0), call.input(1), call.outputs.first()) else {
        return stray("dot");
    };
    let plan = plan(op, &[Some(a.spec), Some(b.spec)])?;
    match plan.kernel {
        Kernel::Nothing => return Ok(()),
        // SAFETY: the caller vouches for y.
        Kernel::Zeros => return unsafe { cx.memset_zero(y.addr, y.spec.bytes()) },
        _ => {}
    }
    let [a_bytes, b_bytes] = plan.copies.map(|bytes| bytes as u64);
    // SAFETY: the caller vouches for the views and for the workspace, which holds both copies and
    // then what the product needs.
    unsafe {
        let a_at = in_order(cx, &plan.matrices.a, a, call.workspace)?;
        let b_at = in_order(cx, &plan.matrices.b, b, call.workspace + a_bytes)?;
        match &plan.kernel {
            Kernel::Nothing | Kernel::Zeros => Ok(()),
            Kernel::Few(product, swapped) => {
                let Matrices { a, b, .. } = &plan.matrices;
                let (x, w, matrix, i) = match swapped {
                    true => (b_at, a_at, a, 0),
                    false => (a_at, b_at, b, 1),
                };
                let norm = Prologue::default();
                let constant = matrix.order.is_none() && call.constant([i]);
                let y = y.addr;
                let at = Operands { x, w, up: 0, bias: 0, residual: 0, y, norm, constant };
                dense::launch_product(cx, product, Activation::None, at)
            }
            Kernel::Rows(swapped) => {
                let Matrices { a, b, .. } = &plan.matrices;
                let [matrix, vector] = match swapped {
                    true => [(a_at, a), (b_at, b)],
                    false => [(b_at, b), (a_at, a)],
                };
                launch_rows(cx, &plan, matrix, vector, y.addr)
            }
            Kernel::Gemm(gemm) => {
                gemm.launch(cx, [a_at, b_at, y.addr], call.workspace + a_bytes + b_bytes)
            }
        }
    }
}

/// The operand's address, after it was copied to `to` where its axes are put in order first.
///
/// # Safety
/// As for [`crate::Device::execute`]; `to` has room for it.
unsafe fn in_order(cx: &Context, operand: &Operand, view: View, to: u64) -> Result<u64> {
    let Some(order) = &operand.order else { return Ok(view.addr) };
    let lengths: Vec<_> = order.iter().map(|&axis| view.spec.shape()[axis]).collect();
    let spec = view.spec.with_shape(lengths)?;
    let op = transpose(order);
    let outputs = [View { addr: to, spec: &spec, constant: false, rows: None }];
    let call = Call { op: &op, inputs: &[Some(view)], outputs: &outputs, workspace: 0 };
    // SAFETY: the caller's promise.
    unsafe { shape::launch(cx, &op, &call) }?;
    Ok(to)
}

/// # Safety
/// The addresses are those of the plan's operands and output.
unsafe fn launch_rows(
    cx: &Context,
    plan: &Plan,
    (a, matrix): (u64, &Operand),
    (x, vector): (u64, &Operand),
    y: u64,
) -> Result<()> {
    let Matrices { batch, rows, inner, columns, .. } = plan.matrices;
    let rows = rows * columns;
    let outputs = batch * rows;
    let pack = 16 / plan.dtype.size();
    let pitch = if rows == 1 { inner } else { matrix.free };
    let steps = if batch == 1 { [0, 0] } else { [matrix.batch, vector.batch] };
    let whole = [inner, pitch, steps[0], steps[1]].iter().all(|n| n % pack == 0);
    // A warp a row, or a block where warps would not fill the GPU.
    let warps = outputs >= cx.props().sms as usize * 8 || inner <= 1024;
    let (entry, lanes) = match (warps, whole) {
        (true, true) => ("warp_packs", 32),
        (true, false) => ("warp_odd", 32),
        (false, true) => ("block_packs", ROWS_THREADS),
        (false, false) => ("block_odd", ROWS_THREADS),
    };
    let blocks = outputs.div_ceil(ROWS_THREADS / lanes);
    let function = cx.function(&Module::of(ROWS, plan.dtype), entry)?;
    let mut args = Args::new();
    args.ptr(a).ptr(x).ptr(y).i64(steps[0] as i64).i64(pitch as i64).i64(steps[1] as i64);
    args.u32(rows as u32).u64(outputs as u64).i64(inner as i64);
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, Grid::new(blocks, ROWS_THREADS as u32)?, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    let mut all = gemm::all_modules();
    all.extend(DType::ALL.map(|dtype| Module::of(ROWS, dtype)));
    all
}
