//! Mamba blocks: a launch each for a frame, where they fit.

use nitrox_engine::DType;
use nitrox_engine::op::*;
use nitrox_engine::program::Ref;

use crate::harness::{Builder, DTYPES, Report, cuda};

#[derive(Debug, Clone, Copy)]
struct Sizes {
    width: usize,
    inner: usize,
    states: usize,
    taps: usize,
    rank: usize,
    /// A layer norm, and a convolution without bias.
    centred: bool,
}

fn slice(b: &mut Builder, x: Ref, batch: usize, time: usize, part: [usize; 2]) -> Option<Ref> {
    let attrs = Slice {
        starts: vec![0, 0, part[0] as i64],
        lengths: vec![batch, time, part[1]],
        strides: vec![1; 3],
        axis: 0,
        wrap: false,
    };
    Some(Ref::Node(b.node(Op::Slice(attrs), vec![Some(x)]), 0))
}

fn product(b: &mut Builder, x: Option<Ref>, rows: usize, columns: usize) -> Ref {
    let inputs = vec![x, b.weights(rows, columns)];
    let attrs = Dense { activation: Activation::None, norm: None };
    Ref::Node(b.node(Op::Dense(attrs), inputs), 0)
}

/// A block, as layers of nets have it: its result, and its new states.
fn block(b: &mut Builder, x: Ref, [batch, time]: [usize; 2], state: usize, s: Sizes) -> [Ref; 3] {
    let Sizes { width, inner, states, taps, rank, centred } = s;
    let normed = b.norm(x, width, centred);
    let both = product(b, Some(normed), width, 2 * inner);
    let v = slice(b, both, batch, time, [0, inner]);
    let z = slice(b, both, batch, time, [inner, inner]);
    let w = b.weights(taps, inner);
    let bias = if centred { None } else { b.param(&[inner], 0.0, 0.5) };
    let op = Op::CausalConv1d(CausalConv1d { activation: Activation::Silu });
    let conv = b.node(op, vec![v, w, bias, Some(Ref::State(state))]);
    let v = Some(Ref::Node(conv, 0));
    let projected = product(b, v, inner, rank + 2 * states);
    let dt = slice(b, projected, batch, time, [0, rank]);
    let in_b = slice(b, projected, batch, time, [rank, states]);
    let in_c = slice(b, projected, batch, time, [rank + states, states]);
    let dt = Some(product(b, dt, rank, inner));
    let a = b.param(&[inner, states], -2.0, 1.9);
    let d = b.param(&[inner], 0.0, 1.0);
    let bias = b.param(&[inner], -2.0, 1.0);
    let attrs = SelectiveScan { dt_softplus: true, dt_clamp: None, norm: None, epsilon: 1e-5 };
    let inputs = vec![v, dt, a, in_b, in_c, d, z, bias, Some(Ref::State(state + 1))];
    let scan = b.node(Op::SelectiveScan(attrs), inputs);
    let inputs = vec![Some(Ref::Node(scan, 0)), b.weights(inner, width), None, Some(x)];
    let attrs = Dense { activation: Activation::None, norm: None };
    let out = b.node(Op::Dense(attrs), inputs);
    [Ref::Node(out, 0), Ref::Node(conv, 1), Ref::Node(scan, 1)]
}

fn check(report: &mut Report, b: &mut Builder, rows: [usize; 2], s: Sizes, kernels: [usize; 2]) {
    let [batch, time] = rows;
    let (mut x, mut next) = (Ref::Input(0), Vec::new());
    for layer in 0..2 {
        let [y, frames, h] = block(b, x, rows, 2 * layer, s);
        x = y;
        next.extend([frames, h]);
    }
    let state = (0..2)
        .flat_map(|_| {
            let frames = b.random(&[batch, s.taps - 1, s.inner], 0.0, 1.0);
            [frames, b.random_as(DType::F32, &[batch, s.inner, s.states], 0.0, 1.0)]
        })
        .collect();
    let graph = b.graph(&[batch, time, s.width], vec![x], next);
    let what = format!("{} {rows:?} {s:?}", b.dtype);
    report.check(&what, b, graph, state, kernels);
}

/// Two layers in two launches.
#[test]
fn a_frame_of_a_mamba_block_is_one_launch() {
    let Some(device) = cuda("a_frame_of_a_mamba_block_is_one_launch") else { return };
    let mut report = Report::default();
    let sizes = |width, inner, states, taps, rank, centred| Sizes {
        width,
        inner,
        states,
        taps,
        rank,
        centred,
    };
    for dtype in DTYPES {
        for s in [
            sizes(256, 512, 16, 4, 16, false),
            sizes(128, 256, 16, 4, 8, true),
            sizes(256, 256, 5, 2, 3, false),
            sizes(128, 256, 100, 7, 40, true),
            // By clusters of 12 blocks.
            sizes(192, 384, 16, 4, 12, false),
        ] {
            let mut b = Builder::new(&device, dtype);
            for batch in [1, 3, 8] {
                // Of a single row the slices are no steps.
                let before = if batch == 1 { 2 * 7 } else { 2 * 12 };
                check(&mut report, &mut b, [batch, 1], s, [2, before]);
            }
        }
    }
    report.finish("mamba");
}

/// Windows, many rows and odd widths stay as they are, but for the norms of few rows.
#[test]
fn what_does_not_fit_stays() {
    let Some(device) = cuda("what_does_not_fit_stays") else { return };
    let mut report = Report::default();
    let s = Sizes { width: 256, inner: 512, states: 16, taps: 4, rank: 16, centred: false };
    let mut b = Builder::new(&device, DType::F32);
    check(&mut report, &mut b, [9, 1], s, [14, 24]);
    check(&mut report, &mut b, [2, 3], s, [14, 24]);
    let mut b = Builder::new(&device, DType::F32);
    check(&mut report, &mut b, [1, 1], Sizes { inner: 480, ..s }, [12, 14]);
    report.finish("mamba without");
}
