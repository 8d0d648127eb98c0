//! Runs an op on every device and compares it with the oracle.
//!
//! Before each run the memory that the outputs will get is filled with a pattern, so that an
//! element nobody wrote shows; a second run under another pattern has to give the same bits.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nitrox_engine::op::Activation;
use nitrox_engine::{DType, Device, Error, Id, Op, Result, Spec, Tensor, infer};

use crate::oracle::{Array, Expected, Real, bound, evaluate, round_to};
use crate::rng::{Rng, seed};

/// NaN in every float type, −1 in the signed ones.
const POISON: [u8; 2] = [0xff, 0x5a];

/// The types of layers.
pub const NETWORK: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

pub const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Relu,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Tanh,
    Activation::Sigmoid,
];

/// A single element may be off by as many times the bound, relative to itself and the root mean
/// square of the output together: the norm alone hides one wrong element among many.
const ELEMENT: f64 = 8.0;

/// The cases of one test. Failures are gathered, so that one run shows them all.
pub struct Run {
    name: &'static str,
    pub rng: Rng,
    cases: usize,
    failures: Vec<String>,
    failed: usize,
    choices: usize,
    ties: usize,
    /// The worst error of each type, against its bound.
    worst: BTreeMap<&'static str, f64>,
}

/// Failures shown in full.
const SHOWN: usize = 12;

thread_local! {
    /// One for each test thread, so that no other thread takes the memory that was poisoned.
    static CPU: OnceCell<Device> = const { OnceCell::new() };
}

fn cuda() -> Option<(&'static Device, MutexGuard<'static, ()>)> {
    static CUDA: OnceLock<Option<Device>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = CUDA.get_or_init(|| match std::env::var("NITROX_TEST_CUDA").as_deref() {
        Ok("1") => Some(Device::open(Id::Cuda(0), None).expect("NITROX_TEST_CUDA is set")),
        _ => {
            eprintln!("cuda: left out, NITROX_TEST_CUDA is not set");
            None
        }
    });
    device.as_ref().map(|device| (device, turn))
}

/// Under a sanitizer a launch takes a hundred times as long. With `NITROX_SANITIZE=n` only the
/// first `n` cases of each kernel variant and type run.
fn thinned() -> Option<usize> {
    std::env::var("NITROX_SANITIZE").ok().and_then(|n| n.parse().ok())
}

/// The cases in their order, or, where only the first ones run, the smallest first.
pub fn in_order<C: Copy, const N: usize>(
    cases: [C; N],
    size: impl Fn(C) -> usize,
) -> impl Iterator<Item = (usize, C)> {
    let mut cases: Vec<_> = cases.into_iter().enumerate().collect();
    if thinned().is_some() {
        cases.sort_by_key(|&(_, case)| size(case));
    }
    cases.into_iter()
}

fn is_wanted(op: &Op, inputs: &[Option<&Array>]) -> bool {
    static SEEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());
    let Some(most) = thinned() else { return true };
    let specs: Vec<_> = inputs.iter().map(|a| a.map(|a| &a.spec)).collect();
    let types: Vec<_> = specs.iter().map(|s| s.map(|s| s.dtype.name())).collect();
    let variant = match cuda() {
        Some((device, _)) => device.explain(op, &specs).map_or("refused", |e| e.variant),
        None => "cpu",
    };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = seen.entry(format!("{} {variant} {types:?}", op.name())).or_insert(0usize);
    *count += 1;
    *count <= most
}

/// Calls `f` with each device.
pub fn each_device(mut f: impl FnMut(&Device)) {
    CPU.with(|cpu| f(cpu.get_or_init(|| Device::open(Id::Cpu, None).unwrap())));
    if let Some((device, _turn)) = cuda() {
        f(device);
    }
}

pub fn upload(device: &Device, array: &Array) -> Tensor {
    Tensor::from_bytes(device, array.spec.clone(), &array.bytes).unwrap()
}

/// Fills the memory that the next allocations of these sizes will be given.
fn poison(device: &Device, sizes: &[usize], pattern: u8) -> Result<()> {
    let mut blocks = Vec::new();
    for &bytes in sizes {
        let block = device.pool().allocate(bytes)?;
        device.write(block.addr(), &vec![pattern; bytes])?;
        blocks.push(block);
    }
    Ok(())
}

/// The outputs of one op, each run on poisoned memory.
pub fn outputs(device: &Device, op: &Op, inputs: &[Option<&Array>]) -> Result<Vec<Array>> {
    let tensors: Vec<_> = inputs.iter().map(|a| a.map(|a| upload(device, a))).collect();
    let inputs_given: Vec<_> = tensors.iter().map(Option::as_ref).collect();
    let specs: Vec<_> = inputs.iter().map(|a| a.map(|a| &a.spec)).collect();
    let inferred = infer(op, &specs)?;
    let explained = device.explain(op, &specs)?;
    assert!(!explained.variant.is_empty() && !explained.why.is_empty(), "{explained:?}");

    let mut sizes: Vec<_> = inferred.iter().map(Spec::bytes).collect();
    let scratch = device.workspace(op, &specs)?;
    if scratch > 0 {
        sizes.push(scratch);
    }
    let mut last: Option<Vec<Array>> = None;
    for pattern in POISON {
        if !op.is_alias() {
            poison(device, &sizes, pattern)?;
        }
        let results = device.run(op, &inputs_given)?;
        let arrays: Vec<_> = results
            .iter()
            .map(|t| Ok(Array::new(t.spec().clone(), t.to_bytes()?)))
            .collect::<Result<_>>()?;
        if let Some(last) = &last
            && let Some(i) = (0..arrays.len()).find(|&i| arrays[i].bytes != last[i].bytes)
        {
            let (a, b) = (&last[i].bytes, &arrays[i].bytes);
            let size = arrays[i].dtype().size();
            let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0) / size;
            return Err(Error::Internal(format!(
                "output {i} depends on what its memory held, or differs from run to run: element \
                 {at} was {:02x?}, then {:02x?}",
                last[i].element(at),
                arrays[i].element(at)
            )));
        }
        last = Some(arrays);
    }
    for (i, (tensor, given)) in tensors.iter().zip(inputs).enumerate() {
        if let (Some(tensor), Some(given)) = (tensor, given)
            && tensor.to_bytes()? != given.bytes
        {
            return Err(Error::Internal(format!("input {i} was written to")));
        }
    }
    Ok(last.unwrap_or_default())
}

impl Run {
    pub fn new(name: &'static str) -> Self {
        Run {
            name,
            rng: Rng::new(name),
            cases: 0,
            failures: Vec::new(),
            failed: 0,
            choices: 0,
            ties: 0,
            worst: BTreeMap::new(),
        }
    }

    /// Runs `op` on every device; its outputs have to be the oracle's.
    pub fn check(&mut self, op: Op, inputs: &[Option<&Array>]) {
        self.check_within(op, inputs, None);
    }

    /// As `check`, with a bound of its own where the input's condition asks for one.
    pub fn check_within(&mut self, op: Op, inputs: &[Option<&Array>], within: Option<f64>) {
        if !is_wanted(&op, inputs) {
            return;
        }
        let expected = evaluate(&op, inputs);
        self.check_against(op, inputs, &expected, within);
    }

    pub fn check_against(
        &mut self,
        op: Op,
        inputs: &[Option<&Array>],
        expected: &[Expected],
        within: Option<f64>,
    ) {
        self.cases += 1;
        each_device(|device| {
            let run = || outputs(device, &op, inputs);
            let ran = catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|_| Err(Error::Internal("panicked".into())));
            let outcome = match ran {
                Ok(got) if got.len() != expected.len() => {
                    Err(format!("{} outputs, expected {}", got.len(), expected.len()))
                }
                Ok(got) => {
                    got.iter().zip(expected).enumerate().try_for_each(|(i, (got, expected))| {
                        self.compare(got, expected, within).map_err(|e| format!("output {i}: {e}"))
                    })
                }
                Err(e) => Err(e.to_string()),
            };
            if let Err(why) = outcome {
                self.failed += 1;
                if self.failures.len() < SHOWN {
                    let specs: Vec<_> = inputs
                        .iter()
                        .map(|a| a.map_or("none".into(), |a| a.spec.to_string()))
                        .collect();
                    let at = device.id();
                    self.failures
                        .push(format!("{op:?}\n    on {at} ({})\n    {why}", specs.join(", ")));
                }
            }
        });
    }

    fn compare(
        &mut self,
        got: &Array,
        expected: &Expected,
        within: Option<f64>,
    ) -> std::result::Result<(), String> {
        match expected {
            Expected::Bits(e) => same_bits(got, e),
            Expected::Real(e) => {
                let error = same_numbers(got, e, within.unwrap_or(bound(e.spec.dtype)))?;
                if e.slack.is_some() {
                    return Ok(());
                }
                let worst = self.worst.entry(e.spec.dtype.name()).or_default();
                *worst = worst.max(error / bound(e.spec.dtype));
                Ok(())
            }
            Expected::Choices(rows) => {
                let ids = got.to_i64();
                if ids.len() != rows.len() {
                    return Err(format!("{} ids, expected {}", ids.len(), rows.len()));
                }
                self.choices += rows.len();
                for (r, (id, row)) in ids.iter().zip(rows).enumerate() {
                    if *id != row.best {
                        if !row.close.contains(id) {
                            return Err(format!("row {r}: got id {id}, expected {row:?}"));
                        }
                        self.ties += 1;
                    }
                }
                Ok(())
            }
        }
    }

    /// Fails the test where a case failed.
    pub fn finish(self) {
        let Run { name, cases, failed, choices, ties, worst, .. } = self;
        let worst: Vec<_> = worst.iter().map(|(t, e)| format!("{t} {e:.3}")).collect();
        println!("{name}: {cases} cases; worst error by its bound: {}", worst.join(", "));
        let thinned = std::env::var_os("NITROX_SANITIZE").is_some();
        assert!(cases > 0 || thinned, "{name}: nothing ran");
        assert!(
            failed == 0,
            "{name}: {failed} failures in {cases} cases (NITROX_SEED={})\n\n{}\n",
            seed(),
            self.failures.join("\n\n")
        );
        assert!(ties * 100 <= choices, "{name}: {ties} of {choices} ids were ties in f32");
    }
}

fn same_bits(got: &Array, expected: &Array) -> std::result::Result<(), String> {
    if got.spec != expected.spec {
        return Err(format!("{}, expected {}", got.spec, expected.spec));
    }
    let Some(at) = (0..got.len()).find(|&i| got.element(i) != expected.element(i)) else {
        return Ok(());
    };
    let wrong = (0..got.len()).filter(|&i| got.element(i) != expected.element(i)).count();
    let text = |a: &Array| match a.dtype().is_float() {
        true => format!("{:e} {:02x?}", a.to_f64()[at], a.element(at)),
        false => a.to_ints()[at].to_string(),
    };
    Err(format!(
        "element {at} of {} is {}, expected {}; {wrong} differ",
        got.len(),
        text(got),
        text(expected)
    ))
}

fn least_normal(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-14),
        DType::F64 => f64::MIN_POSITIVE,
        _ => f32::MIN_POSITIVE.into(),
    }
}

/// The relative L2 error, where it and each element are within bounds.
pub fn same_numbers(got: &Array, expected: &Real, bound: f64) -> std::result::Result<f64, String> {
    if got.spec != expected.spec {
        return Err(format!("{}, expected {}", got.spec, expected.spec));
    }
    let dtype = got.dtype();
    let got = got.to_f64();
    let wrong = |i: usize, what: String| {
        Err(format!(
            "element {i} of {} is {:e}, expected {:e}{what}",
            got.len(),
            got[i],
            expected.values[i]
        ))
    };

    // Patterns of NaN and infinity, by the reference as the type would hold it.
    let mut finite = Vec::new();
    for (i, (&g, &e)) in got.iter().zip(&expected.values).enumerate() {
        let e = round_to(dtype, e);
        if e.is_finite() && g.is_finite() {
            finite.push(i);
        } else if !(g == e || (g.is_nan() && e.is_nan())) {
            return wrong(i, String::new());
        }
    }
    if let Some(slack) = &expected.slack {
        let off = |i: usize| (got[i] - expected.values[i]).abs();
        if let Some(&i) = finite.iter().find(|&&i| off(i) > slack[i]) {
            return wrong(i, format!(", off by {:e} where {:e} is allowed", off(i), slack[i]));
        }
        return Ok(0.0);
    }

    let n = finite.len().max(1) as f64;
    // The relative precision of a type ends at its least normal number.
    let floor = expected.scale.max(least_normal(dtype));
    let largest = finite.iter().map(|&i| expected.values[i].abs()).fold(floor, f64::max);
    let rms = |of: &dyn Fn(usize) -> f64| {
        let squares = finite.iter().map(|&i| (of(i) / largest).powi(2));
        (squares.sum::<f64>() / n).sqrt() * largest
    };
    let size = rms(&|i| expected.values[i]).max(floor);
    let error = rms(&|i| got[i] - expected.values[i]) / size;
    let off = |i: usize| (got[i] - expected.values[i]).abs();
    if error > bound {
        let allowed = |i: usize| bound * (expected.values[i].abs() + size);
        let first = finite.iter().copied().find(|&i| off(i) > allowed(i)).unwrap_or(finite[0]);
        return wrong(first, format!("; relative L2 error {error:.3e}, bound {bound:.1e}"));
    }
    let allowed = |i: usize| ELEMENT * bound * (expected.values[i].abs() + size);
    if let Some(&i) = finite.iter().find(|&&i| off(i) > allowed(i)) {
        return wrong(i, format!(", off by {:e} where {:e} is allowed", off(i), allowed(i)));
    }
    Ok(error)
}
