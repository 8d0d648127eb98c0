use nitrox_engine::DType;
use nitrox_engine::op::{NormKind, Op, SelectiveScan};

use crate::harness::{NETWORK, Run};
use crate::oracle::Array;

#[derive(Debug, Clone, Copy)]
struct Options {
    d: bool,
    z: bool,
    bias: bool,
    state: bool,
    residual: bool,
    softplus: bool,
    clamp: bool,
    /// a, d and dt_bias are f32 whatever x is.
    exact: bool,
    norm: Option<NormKind>,
}

const PLAIN: Options = Options {
    d: false,
    z: false,
    bias: false,
    state: false,
    residual: false,
    softplus: false,
    clamp: false,
    exact: true,
    norm: None,
};
const MAMBA: Options =
    Options { d: true, z: true, bias: true, state: true, softplus: true, ..PLAIN };

fn random(run: &mut Run) -> Options {
    let mut coin = || run.rng.coin();
    Options {
        d: coin(),
        z: coin(),
        bias: coin(),
        state: coin(),
        residual: coin(),
        softplus: coin(),
        clamp: coin(),
        exact: coin(),
        norm: match (coin(), coin()) {
            (false, _) => None,
            (true, true) => Some(NormKind::LayerNorm),
            (true, false) => Some(NormKind::RmsNorm),
        },
    }
}

/// Batch, length, channels, states.
fn check(run: &mut Run, dtype: DType, [batch, length, channels, states]: [usize; 4], o: Options) {
    let parameters = if o.exact { DType::F32 } else { dtype };
    let row = [batch, length, channels];
    let x = run.rng.normal(dtype, &row, 1.0);
    let dt = match o.softplus {
        true => run.rng.normal(dtype, &row, 1.0),
        false => run.rng.floats(dtype, &row, |r, _| r.uniform(0.01, 0.5)),
    };
    // From slow to fast, as S4D's −1, −2, …
    let a = run.rng.floats(parameters, &[channels, states], |r, i| {
        -((i % states.max(1) + 1) as f64) * r.uniform(0.2, 1.0)
    });
    let b = run.rng.normal(dtype, &[batch, length, states], 1.0);
    let c = run.rng.normal(dtype, &[batch, length, states], 1.0 / (states.max(1) as f64).sqrt());
    let d = run.rng.normal(parameters, &[channels], 1.0);
    let z = run.rng.normal(dtype, &row, 1.0);
    // A step that is negative would make the state grow.
    let (low, high) = if o.softplus { (-2.0, 0.0) } else { (0.0, 0.2) };
    let bias = run.rng.floats(parameters, &[channels], |r, _| r.uniform(low, high));
    let state = run.rng.normal(DType::F32, &[batch, channels, states], 1.0);
    // Neighbours well apart: the norm of a row of near equals is ill-conditioned.
    let residual = run
        .rng
        .floats(dtype, &row, |r, i| (if i % 2 == 0 { 2.0 } else { -2.0 }) + r.uniform(-0.25, 0.25));
    let gamma = run.rng.floats(dtype, &[channels], |r, _| r.uniform(0.5, 1.5));
    let beta = run.rng.normal(dtype, &[channels], 0.5);
    let shifts = o.norm == Some(NormKind::LayerNorm) || (o.norm.is_some() && run.rng.coin());
    let attrs = SelectiveScan {
        dt_softplus: o.softplus,
        dt_clamp: o.clamp.then_some((0.05, 0.3)),
        norm: o.norm,
        epsilon: 1e-5,
    };
    let inputs = [
        Some(&x),
        Some(&dt),
        Some(&a),
        Some(&b),
        Some(&c),
        o.d.then_some(&d),
        o.z.then_some(&z),
        o.bias.then_some(&bias),
        o.state.then_some(&state),
        o.residual.then_some(&residual),
        o.norm.map(|_| &gamma),
        shifts.then_some(&beta),
    ];
    run.check(Op::SelectiveScan(attrs), &inputs);
}

#[test]
fn shapes() {
    let mut run = Run::new("selective_scan shapes");
    for dtype in NETWORK {
        for shape in [
            [1, 1, 1, 1],
            [1, 1, 512, 16],
            [1, 60, 512, 16],
            [3, 1, 33, 16],
            [2, 7, 31, 3],
            [2, 129, 65, 16],
            [1, 1000, 127, 16],
            [5, 33, 8, 4],
            [1, 17, 9, 64],
            [2, 40, 24, 100],
            [1, 50, 7, 128],
            [1, 9, 5, 129],
            [1, 70, 3, 256],
            [7, 2, 64, 5],
            [33, 4, 129, 16],
            [1, 500, 1, 1],
            [1, 64, 2, 2],
            [140, 3, 20, 16],
            [40, 21, 100, 8],
            // Frames shared out among the warps of a block: a part of what they go through at once,
            // all of it, one more, and many times that; for few channels, and for more.
            [1, 2, 1, 16],
            [1, 31, 3, 16],
            [1, 32, 1, 16],
            [2, 37, 5, 16],
            [1, 127, 33, 16],
            [3, 128, 12, 16],
            [2, 129, 7, 16],
            [2, 300, 21, 16],
            [1, 511, 6, 16],
            [1, 1030, 10, 16],
            [1, 63, 531, 16],
            [1, 64, 545, 16],
            [2, 65, 301, 16],
            [1, 131, 1053, 16],
            [1, 33, 2113, 16],
            // Many channels, and fewer; and windows that are cut.
            [1, 5, 29_601, 16],
            [1, 35, 15_001, 16],
            [1, 20, 7501, 16],
            [2, 600, 50, 16],
            [1, 2000, 20, 16],
            [1, 2017, 70, 16],
            [1, 513, 20, 5],
        ] {
            check(&mut run, dtype, shape, PLAIN);
            check(&mut run, dtype, shape, MAMBA);
            let any = random(&mut run);
            check(&mut run, dtype, shape, Options { norm: None, ..any });
        }
    }
    run.finish();
}

#[test]
fn options() {
    let mut run = Run::new("selective_scan options");
    for dtype in NETWORK {
        for shape in
            [[1, 1, 64, 16], [2, 3, 33, 16], [1, 60, 512, 16], [2, 25, 48, 5], [1, 77, 10, 16]]
        {
            for bits in 0..256 {
                let [d, z, bias, state, residual, softplus, clamp, exact] =
                    [0, 1, 2, 3, 4, 5, 6, 7].map(|b| bits >> b & 1 == 1);
                // The large shape only now and then.
                if shape[2] > 64 && bits % 16 != 5 {
                    continue;
                }
                let o = Options { d, z, bias, state, residual, softplus, clamp, exact, norm: None };
                check(&mut run, dtype, shape, o);
            }
        }
    }
    run.finish();
}

/// Rows that fit a block and rows that do not, few of them and many.
#[test]
fn norms() {
    let mut run = Run::new("selective_scan norms");
    for dtype in NETWORK {
        for shape in [
            [1, 1, 64, 16],
            [1, 1, 512, 16],
            [4, 1, 33, 16],
            [2, 3, 31, 7],
            [1, 60, 512, 16],
            [1, 1, 1100, 16],
            [1, 300, 100, 16],
            [3, 5, 1500, 4],
            [150, 9, 40, 16],
            [1, 2, 129, 64],
            [1, 1, 9, 200],
            [1, 1, 5000, 2],
        ] {
            for norm in [NormKind::LayerNorm, NormKind::RmsNorm] {
                for residual in [true, false] {
                    let norm = Some(norm);
                    check(&mut run, dtype, shape, Options { norm, residual, ..MAMBA });
                }
                let any = random(&mut run);
                let o = Options { norm: Some(norm), residual: true, ..any };
                check(&mut run, dtype, shape, o);
            }
        }
    }
    run.finish();
}

/// Windows of many channels, whose norm is in the launch of the scan where the card has as many
/// multiprocessors as these ask for: 4 and 6 here, which the emulator has if asked to; and those whose
/// rows are no whole blocks.
#[test]
fn norms_of_long_windows() {
    let mut run = Run::new("selective_scan norms of long windows");
    for dtype in NETWORK {
        for shape in [
            [1, 512, 512, 16],
            [2, 513, 256, 16],
            [8, 527, 64, 16],
            [7, 543, 64, 16],
            [1, 576, 704, 16],
            [4, 545, 128, 16],
            [1, 1000, 500, 16],
            [3, 514, 127, 16],
        ] {
            for norm in [NormKind::LayerNorm, NormKind::RmsNorm] {
                let norm = Some(norm);
                check(&mut run, dtype, shape, Options { norm, residual: true, ..MAMBA });
                let any = random(&mut run);
                check(&mut run, dtype, shape, Options { norm, ..any });
            }
        }
    }
    run.finish();
}

#[test]
fn empty() {
    let mut run = Run::new("selective_scan empty");
    for dtype in NETWORK {
        // No frames: the state goes through.
        for shape in [[2, 0, 8, 16], [0, 3, 8, 16], [2, 3, 0, 16], [2, 3, 8, 0], [1, 0, 5, 3]] {
            for o in [PLAIN, MAMBA] {
                for norm in [None, Some(NormKind::LayerNorm), Some(NormKind::RmsNorm)] {
                    check(&mut run, dtype, shape, Options { norm, residual: true, ..o });
                }
            }
        }
    }
    run.finish();
}

#[test]
fn long() {
    let mut run = Run::new("selective_scan long");
    check(&mut run, DType::F32, [1, 8192, 24, 16], MAMBA);
    check(&mut run, DType::BF16, [1, 8192, 24, 16], MAMBA);
    check(&mut run, DType::F32, [2, 1000, 70, 16], Options { residual: true, ..MAMBA });
    run.finish();
}

/// Many channels as well, by lines where they are a whole number of 16 bytes.
#[test]
fn lines() {
    let mut run = Run::new("selective_scan lines");
    for dtype in NETWORK {
        for shape in [[3, 515, 600, 16], [1, 528, 1801, 16]] {
            check(&mut run, dtype, shape, MAMBA);
            let any = random(&mut run);
            check(&mut run, dtype, shape, Options { norm: None, residual: true, ..any });
            if dtype != DType::F32 {
                check(&mut run, dtype, shape, PLAIN);
                check(&mut run, dtype, shape, Options { residual: true, clamp: true, ..MAMBA });
            }
        }
    }
    run.finish();
}

/// Steps that forget everything, steps of nothing, a state that grows, and a NaN that stays in its
/// channel.
#[test]
fn extremes() {
    let mut run = Run::new("selective_scan extremes");
    for dtype in NETWORK {
        for states in [5, 16] {
            let shape = [2, 40, 12];
            let mut dt = run.rng.floats(dtype, &shape, |r, _| r.uniform(0.0, 0.1)).to_f64();
            for (i, v) in [(5, 1e4), (30, 0.0), (100, 60.0), (101, -40.0), (300, -1e4)] {
                dt[i] = v;
            }
            let mut x = run.rng.normal(dtype, &shape, 1.0).to_f64();
            x[7] = f64::NAN;
            x[12 * 40 + 3] = f64::INFINITY;
            let (dt, x) = (Array::floats(dtype, &shape, &dt), Array::floats(dtype, &shape, &x));
            // The last channel's state grows.
            let a = run.rng.floats(DType::F32, &[12, states], |r, i| {
                if i >= 11 * states { 0.5 } else { -r.uniform(0.5, 20.0) }
            });
            let row = [2, 40, states];
            let b = run.rng.floats(dtype, &row, |r, _| r.uniform(0.5, 1.0));
            let c = run.rng.floats(dtype, &row, |r, _| r.uniform(0.5, 1.0));
            let op = |dt_clamp| {
                Op::SelectiveScan(SelectiveScan {
                    dt_softplus: true,
                    dt_clamp,
                    norm: None,
                    epsilon: 1e-5,
                })
            };
            run.check(op(Some((0.0, 0.2))), &[&x, &dt, &a, &b, &c].map(Some));
            let finite = run.rng.floats(dtype, &shape, |r, _| r.uniform(-0.1, 0.1));
            run.check(op(None), &[&finite, &dt, &a, &b, &c].map(Some));
        }
    }
    run.finish();
}

mod large {
    use super::*;

    /// Enough channels for the largest GPU.
    #[test]
    fn lines() {
        let mut run = Run::new("large selective_scan");
        for dtype in NETWORK {
            check(&mut run, dtype, [8, 523, 1856, 16], Options { residual: true, ..MAMBA });
        }
        run.finish();
    }

    /// Whose blocks are all on an H200 at once, and one more than that.
    #[test]
    fn norms() {
        let mut run = Run::new("large selective_scan norms");
        for dtype in NETWORK {
            for [batch, length, channels] in
                [[8, 513, 1856], [4, 530, 4096], [264, 512, 64], [265, 515, 64]]
            {
                for norm in [NormKind::LayerNorm, NormKind::RmsNorm] {
                    let o = Options { norm: Some(norm), residual: true, ..MAMBA };
                    check(&mut run, dtype, [batch, length, channels, 16], o);
                }
            }
        }
        run.finish();
    }
}
