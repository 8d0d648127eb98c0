use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nitrox_engine::DType;
use nitrox_engine::op::{Op, Recurrent};

use crate::harness::{NETWORK, Run, in_order};
use crate::oracle::Array;

/// Batch, time, features, hidden.
const SHAPES: [[usize; 4]; 18] = [
    [1, 1, 1, 1],
    [1, 1, 288, 256],
    [1, 60, 65, 63],
    [3, 7, 31, 33],
    [7, 33, 1, 129],
    [33, 3, 127, 1],
    [2, 129, 7, 60],
    [1, 1000, 3, 31],
    [129, 2, 3, 7],
    [1, 60, 64, 256],
    [5, 4, 2, 2],
    [16, 3, 33, 65],
    [4, 20, 128, 128],
    [1, 2, 1000, 3],
    [64, 1, 10, 127],
    [1, 3, 5, 512],
    // More frames than are projected at a time.
    [1000, 40, 3, 7],
    [1, 38_000, 2, 7],
];

/// Windows that the variants share out in different ways: more or fewer rows than a cluster or a part
/// of a grid has, units of several blocks and odd numbers of them, more steps than there are buffers.
const WINDOWS: [[usize; 4]; 19] = [
    [1, 70, 9, 512],
    [5, 9, 24, 500],
    [8, 6, 40, 300],
    [33, 5, 7, 512],
    [70, 5, 9, 264],
    [130, 4, 8, 96],
    [300, 4, 3, 40],
    [2, 140, 8, 520],
    [9, 5, 8, 1024],
    [40, 4, 5, 777],
    // Blocks of 32 units, for one eight of columns and for two.
    [20, 5, 8, 1024],
    [60, 4, 5, 700],
    [68, 4, 4, 776],
    // By warpgroups: odd units, halves of the reduction, several launches.
    [161, 37, 8, 96],
    [200, 5, 9, 512],
    [260, 3, 8, 301],
    [520, 3, 4, 512],
    [100, 4, 5, 600],
    [130, 3, 4, 1000],
];

fn work([batch, time, features, hidden]: [usize; 4]) -> usize {
    batch * time * hidden * (features + hidden)
}

#[derive(Debug, Clone, Copy)]
enum Mask {
    Missing,
    Random,
    All,
    None,
}

#[derive(Debug, Clone, Copy)]
struct Options {
    reverse: bool,
    bias: bool,
    states: bool,
    /// f32 states beside 16-bit x.
    exact: bool,
    mask: Mask,
}

const PLAIN: Options =
    Options { reverse: false, bias: true, states: true, exact: false, mask: Mask::Missing };

fn check(run: &mut Run, dtype: DType, [batch, time, features, hidden]: [usize; 4], o: Options) {
    let weights = |run: &mut Run, inner: usize, outer: usize| {
        run.rng.normal(dtype, &[inner, outer], 1.0 / (inner.max(1) as f64).sqrt())
    };
    let state_type = if o.exact { DType::F32 } else { dtype };
    let states =
        |run: &mut Run| o.states.then(|| run.rng.normal(state_type, &[batch, hidden], 0.5));
    let x = run.rng.normal(dtype, &[batch, time, features], 1.0);
    let mask = match o.mask {
        Mask::Missing => None,
        // Any byte but zero keeps the state.
        Mask::Random => {
            let n = batch * time;
            let bytes: Vec<i64> = (0..n)
                .map(|_| if run.rng.coin() { 0 } else { 1 + run.rng.below(255) as i64 })
                .collect();
            Some(Array::ints(DType::U8, &[batch, time], &bytes))
        }
        Mask::All => Some(run.rng.ints(DType::U8, &[batch, time], 1, 255)),
        Mask::None => Some(run.rng.ints(DType::U8, &[batch, time], 0, 0)),
    };
    let attrs = Recurrent { reverse: o.reverse, norm: None };
    let b = o.bias.then(|| run.rng.normal(dtype, &[4 * hidden], 0.5));

    let (c0, h0) = (states(run), states(run));
    let (wi, wh) = (weights(run, features, 4 * hidden), weights(run, hidden, 4 * hidden));
    let inputs =
        [Some(&x), c0.as_ref(), h0.as_ref(), Some(&wi), Some(&wh), b.as_ref(), mask.as_ref()];
    run.check(Op::Lstm(attrs), &inputs);

    let (wi, wh) = (weights(run, features, 3 * hidden), weights(run, hidden, 3 * hidden));
    let inputs = [Some(&x), h0.as_ref(), Some(&wi), Some(&wh), b.as_ref(), mask.as_ref()];
    run.check(Op::Gru(attrs), &inputs);
}

#[test]
fn shapes() {
    let mut run = Run::new("recurrent shapes");
    for dtype in NETWORK {
        for (_, shape) in in_order(SHAPES, work) {
            check(&mut run, dtype, shape, PLAIN);
            let mask = if run.rng.coin() { Mask::Random } else { Mask::Missing };
            let options = Options {
                reverse: run.rng.coin(),
                bias: run.rng.coin(),
                states: run.rng.coin(),
                exact: run.rng.coin(),
                mask,
            };
            check(&mut run, dtype, shape, options);
        }
    }
    run.finish();
}

fn check_windows(name: &'static str) {
    let mut run = Run::new(name);
    for dtype in NETWORK {
        for (i, shape) in in_order(WINDOWS, work) {
            let mask = if i % 3 == 1 { Mask::Random } else { Mask::Missing };
            let options = Options { reverse: i % 4 == 2, exact: i % 2 == 1, mask, ..PLAIN };
            check(&mut run, dtype, shape, options);
        }
    }
    run.finish();
}

#[test]
fn windows() {
    check_windows("recurrent windows");
}

/// Two processes on one card, both with launches whose blocks wait for each other: neither hangs.
#[test]
fn beside_another_process() {
    const PATIENCE: Duration = Duration::from_secs(300);
    if std::env::var_os("NITROX_TEST_CUDA").is_none() {
        println!("left out: beside_another_process: NITROX_TEST_CUDA is not set");
        return;
    }
    let began = Instant::now();
    let test = std::env::current_exe().unwrap();
    let mut other = Command::new(test)
        .args(["--exact", "recurrent::windows"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (done, wait) = mpsc::channel();
    let ours = thread::spawn(move || {
        check_windows("recurrent windows beside another process");
        done.send(()).unwrap();
    });
    // An error is a failure of ours, which `join` tells.
    let hangs = wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
    let status = loop {
        match other.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if began.elapsed() > PATIENCE => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        other.kill().unwrap();
    }
    assert!(
        !hangs && status.is_some(),
        "a process hangs: ours {hangs}, the other's end {status:?}"
    );
    ours.join().unwrap();
    assert!(status.unwrap().success(), "{status:?}");
}

#[test]
fn options() {
    let mut run = Run::new("recurrent options");
    for dtype in NETWORK {
        for shape in [[1, 1, 5, 9], [2, 5, 3, 33], [3, 6, 8, 64]] {
            for mask in [Mask::Missing, Mask::Random, Mask::All, Mask::None] {
                for bits in 0..16 {
                    let [reverse, bias, states, exact] = [0, 1, 2, 3].map(|b| bits >> b & 1 == 1);
                    check(&mut run, dtype, shape, Options { reverse, bias, states, exact, mask });
                }
            }
        }
    }
    run.finish();
}

#[test]
fn empty() {
    let mut run = Run::new("recurrent empty");
    for dtype in NETWORK {
        // No frames: the states come back as they were. No rows, features or units.
        for shape in [[3, 0, 5, 7], [0, 4, 5, 7], [3, 4, 0, 7], [3, 4, 5, 0], [1, 0, 1, 1]] {
            for mask in [Mask::Missing, Mask::Random] {
                for (states, exact) in [(false, false), (true, false), (true, true)] {
                    let options = Options { states, exact, mask, ..PLAIN };
                    check(&mut run, dtype, shape, options);
                }
            }
        }
    }
    run.finish();
}

/// States one of which is missing: it is zeros.
#[test]
fn one_state() {
    let mut run = Run::new("recurrent one state");
    for dtype in NETWORK {
        let x = run.rng.normal(dtype, &[2, 3, 5], 1.0);
        let wi = run.rng.normal(dtype, &[5, 28], 0.4);
        let wh = run.rng.normal(dtype, &[7, 28], 0.4);
        let s = run.rng.normal(dtype, &[2, 7], 1.0);
        let op = Op::Lstm(Recurrent { reverse: false, norm: None });
        for [c0, h0] in [[Some(&s), None], [None, Some(&s)], [None, None]] {
            let inputs = [Some(&x), c0, h0, Some(&wi), Some(&wh), None, None];
            run.check(op.clone(), &inputs);
            run.check(op.clone(), &inputs[..5]);
        }
    }
    run.finish();
}

/// Gates driven to their limits, a NaN that stays in its row, frames hidden by the mask that hold
/// NaN, and a cell that grows.
#[test]
fn extremes() {
    let mut run = Run::new("recurrent extremes");
    for dtype in NETWORK {
        for reverse in [false, true] {
            let attrs = Recurrent { reverse, norm: None };
            let (batch, time, features, hidden) = (4, 6, 5, 9);
            let mut x = run.rng.normal(dtype, &[batch, time, features], 1.0).to_f64();
            x[0] = 6e4;
            x[7] = -6e4;
            x[time * features] = f64::INFINITY;
            x[2 * time * features + 11] = f64::NAN;
            x[3 * time * features..3 * time * features + features].fill(f64::NAN);
            let x = Array::floats(dtype, &[batch, time, features], &x);
            let mut mask = vec![0; batch * time];
            mask[3 * time] = 1;
            let mask = Array::ints(DType::U8, &[batch, time], &mask);
            let c0 = run.rng.normal(DType::F32, &[batch, hidden], 30.0);
            let h0 = run.rng.normal(DType::F32, &[batch, hidden], 0.5);
            let wi = run.rng.normal(dtype, &[features, 4 * hidden], 0.4);
            let wh = run.rng.normal(dtype, &[hidden, 4 * hidden], 0.3);
            let b = run.rng.normal(dtype, &[4 * hidden], 5.0);
            run.check(
                Op::Lstm(attrs),
                &[Some(&x), Some(&c0), Some(&h0), Some(&wi), Some(&wh), Some(&b), Some(&mask)],
            );
            let wi = run.rng.normal(dtype, &[features, 3 * hidden], 0.4);
            let wh = run.rng.normal(dtype, &[hidden, 3 * hidden], 0.3);
            run.check(
                Op::Gru(attrs),
                &[Some(&x), Some(&h0), Some(&wi), Some(&wh), Some(&b), Some(&mask)],
            );
        }
    }
    run.finish();
}
