use nitrox_engine::op::*;
use nitrox_engine::program::{Graph, Node, Ref};
use nitrox_engine::{DType, Device, Id, Spec, Tensor, infer};
use serde::Deserialize;
use serde::de::value::{Error as Refusal, MapDeserializer};

use crate::harness::{Builder, DTYPES, Report, cuda, floats};

const BATCHES: [usize; 5] = [1, 2, 3, 8, 9];
const WIDTHS: [usize; 7] = [1, 3, 31, 256, 257, 1000, 2048];
/// Of x; the norms' rows come out of a layer.
const FEATURES: usize = 24;
/// Columns of the two heads: whole packs in every type, and none.
const HEADS: [usize; 2] = [64, 53];

/// The units of a recurrent node, by its bias.
fn hidden(b: &Builder, node: &Node) -> usize {
    let at = if matches!(node.op, Op::Lstm(_)) { 5 } else { 4 };
    match node.inputs[at] {
        Some(Ref::Param(i)) => b.params[i].spec().last() / 4,
        _ => panic!("a layer without a bias"),
    }
}

/// Every state is {batch, units}, as an output of a node with such a bias.
fn recurrent_states(b: &mut Builder, graph: &Graph) -> Vec<Tensor> {
    let shape = |next: &Ref| {
        let Ref::Node(n, _) = next else { panic!("a state that is no node's") };
        [graph.inputs[0].shape()[0], hidden(b, &graph.nodes[*n])]
    };
    let shapes: Vec<_> = graph.next_state.iter().map(shape).collect();
    shapes.into_iter().map(|shape| b.random(&shape, 0.0, 1.0)).collect()
}

fn recurrent_programs(
    name: &str,
    device: &Device,
    gates: usize,
    batches: &[usize],
    widths: &[usize],
) {
    let mut report = Report::default();
    for dtype in DTYPES {
        for &width in widths {
            let mut b = Builder::new(device, dtype);
            let second = if width <= 257 { width } else { 40 };
            let states = gates - 2;
            for &batch in batches {
                let x = b.reshape(Ref::Input(0), &[batch, 1, FEATURES]);
                let first = b.recurrent(x, gates, 0, FEATURES, width);
                let x = b.norm(Ref::Node(first, 0), width, gates == 4);
                let last = b.recurrent(x, gates, states, width, second);
                let x = b.norm(Ref::Node(last, 0), second, gates == 3);
                let x = b.reshape(x, &[batch, second]);
                let head = b.dense(x, second, HEADS[gates - 3]);
                let next = |n: usize| (0..states).map(move |k| Ref::Node(n, k + 1));
                let graph = b.graph(
                    &[batch, FEATURES],
                    vec![head],
                    next(first).chain(next(last)).collect(),
                );
                let rows = if batch == 1 { 1 } else { 8 };
                let layer = batch <= 8 && (width + second) * rows <= 4096;
                // The head of a window's rows takes its norm where its rows and w's are whole packs.
                let packs = dtype == DType::F32
                    && second.is_multiple_of(4)
                    && HEADS[gates - 3].is_multiple_of(4);
                let kernels = 5 - usize::from(layer) - usize::from(batch <= 8 || packs);
                let what = format!("{name} {dtype} batch {batch} width {width}");
                let state = recurrent_states(&mut b, &graph);
                report.check(&what, &mut b, graph, state, [kernels, 5]);
            }
        }
    }
    report.finish(name);
}

#[test]
fn lstm_norm_lstm_norm_dense() {
    let name = "lstm_norm_lstm_norm_dense";
    let Some(device) = cuda(name) else { return };
    recurrent_programs(name, &device, 4, &BATCHES, &WIDTHS);
}

#[test]
fn gru_norm_gru_norm_dense() {
    let name = "gru_norm_gru_norm_dense";
    let Some(device) = cuda(name) else { return };
    recurrent_programs(name, &device, 3, &BATCHES, &WIDTHS);
}

/// Layers whose steps are clusters', one upon the other, each with the norm of the one before. Of
/// width 1000 the norm is of more values than a block has threads, and than it multiplies.
#[test]
fn steps_by_clusters_that_begin_early() {
    let name = "steps_by_clusters_that_begin_early";
    let Some(device) = cuda(name) else { return };
    let specs = [&[1, 1, 256][..], &[1, 256], &[256, 768], &[256, 768]]
        .map(|shape| Spec::new(DType::F32, shape).unwrap());
    let inputs = specs.iter().map(Some).collect::<Vec<_>>();
    let op = Op::Gru(Recurrent { reverse: false, norm: None });
    let why = device.explain(&op, &inputs).unwrap().why;
    if !why.contains("by clusters of") {
        // As is right where the card has none: `NITROX_CLUSTERS=0`.
        let Device::Cuda(cuda) = &device else { panic!("{device:?}") };
        assert_eq!(cuda.props().clusters, 0, "{why}");
    }
    for gates in [3, 4] {
        recurrent_programs(name, &device, gates, &[1, 2], &[8, 40, 256, 1000]);
    }
}

#[test]
fn dense_norm_two_heads() {
    let name = "dense_norm_two_heads";
    let Some(device) = cuda(name) else { return };
    let mut report = Report::default();
    for dtype in DTYPES {
        for (width, centred) in WIDTHS.into_iter().flat_map(|w| [(w, true), (w, false)]) {
            let mut b = Builder::new(&device, dtype);
            for batch in BATCHES {
                let x = b.dense(Ref::Input(0), FEATURES, width);
                let x = b.norm(x, width, centred);
                let heads = HEADS.map(|columns| b.dense(x, width, columns)).to_vec();
                let graph = b.graph(&[batch, FEATURES], heads, vec![]);
                // The kernel for columns that are no whole packs holds one row or eight.
                let rows = if batch == 1 { 1 } else { 8 };
                let fused = batch <= 8 && width * rows <= 4096;
                let what = format!("{name} {dtype} batch {batch} width {width} {centred}");
                let kernels = 4 - usize::from(fused);
                report.check(&what, &mut b, graph, vec![], [kernels, 4]);
            }
        }
    }
    report.finish(name);
}

/// Rows of a window in f32, whose norm goes into the product up to 128 of them.
#[test]
fn dense_norm_two_heads_of_a_window() {
    let name = "dense_norm_two_heads_of_a_window";
    let Some(device) = cuda(name) else { return };
    let mut report = Report::default();
    for (width, centred) in
        [512, 4, 20, 64, 100, 256, 1000].into_iter().flat_map(|w| [(w, true), (w, false)])
    {
        let mut b = Builder::new(&device, DType::F32);
        for rows in [60, 9, 16, 17, 33, 127, 128, 129] {
            let x = b.dense(Ref::Input(0), FEATURES, width);
            let x = b.norm(x, width, centred);
            let heads = [64, 132].map(|columns| b.dense(x, width, columns)).to_vec();
            let graph = b.graph(&[rows, FEATURES], heads, vec![]);
            let kernels = if rows <= 128 && holds(&device, width) { 3 } else { 4 };
            let what = format!("{name} rows {rows} width {width} {centred}");
            report.check(&what, &mut b, graph, vec![], [kernels, 4]);
        }
    }
    report.finish(name);
}

/// Whether rows of so many f32 are shared out over clusters, or fit one block where there are none: 16 of
/// them, and 64 columns of the weights.
fn holds(device: &Device, width: usize) -> bool {
    let Device::Cuda(cuda) = device else { panic!("{device:?}") };
    let (card, needed) = (cuda.props(), 4 * (16 + 68) * width + (8 << 10));
    card.clusters > 0 || needed <= card.shared_optin as usize
}

/// Rows that are far from zero, that have an outlier or one value only, that are large, small or no
/// numbers: as the norm and the product are in f64, and a row has no part in another.
#[test]
fn a_window_of_awkward_rows() {
    let Some(device) = cuda("a_window_of_awkward_rows") else { return };
    let b = Builder::new(&device, DType::F32);
    for (inner, columns) in [(512, 64), (64, 68), (12, 4), (240, 132)] {
        if !holds(&device, inner) {
            continue;
        }
        for centred in [true, false] {
            let rows = 24;
            let unit = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
            let x: Vec<f32> = (0..rows * inner)
                .map(|i| match (i / inner, i % inner) {
                    (0, _) => 100.0 + unit(i),
                    (1, _) => 1e4 + unit(i),
                    (2, 0) | (3, 9) => 1e4,
                    (4, _) => 3.7,
                    (5, _) => 1e15 * unit(i),
                    (6, _) => 1e-20 * unit(i),
                    (7, 3) => f32::NAN,
                    (8, _) => 0.0,
                    _ => unit(i),
                })
                .collect();
            let w: Vec<f32> =
                (0..inner * columns).map(|i| unit(i * 31) / (inner as f32).sqrt()).collect();
            let gamma: Vec<f32> = (0..inner).map(|i| 1.0 + 0.5 * unit(i * 3)).collect();
            let beta: Vec<f32> = (0..inner).map(|i| unit(i * 5)).collect();
            let tensor = |shape: &[usize], values: &[f32]| {
                let bytes: Vec<_> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
                Tensor::from_bytes(b.device, Spec::new(DType::F32, shape).unwrap(), &bytes).unwrap()
            };
            let (xt, wt) = (tensor(&[rows, inner], &x), tensor(&[inner, columns], &w));
            let (gt, bt) = (tensor(&[inner], &gamma), tensor(&[inner], &beta));
            let norm = Some(FusedNorm { centred, epsilon: 1e-5 });
            let op = Op::Dense(Dense { activation: Activation::None, norm });
            let last = centred.then_some(&bt);
            let got =
                device.run(&op, &[Some(&xt), Some(&wt), None, None, Some(&gt), last]).unwrap();
            let got = floats(&device, &got[0]);
            for r in 0..rows {
                let row: Vec<f64> = x[r * inner..][..inner].iter().map(|&v| f64::from(v)).collect();
                let mean = if centred { row.iter().sum::<f64>() / inner as f64 } else { 0.0 };
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / inner as f64;
                let normed = |i: usize| {
                    let shift = if centred { f64::from(beta[i]) } else { 0.0 };
                    (row[i] - mean) / (variance + 1e-5).sqrt() * f64::from(gamma[i]) + shift
                };
                let (mut off, mut size) = (0.0, 0.0);
                for c in 0..columns {
                    let terms = (0..inner).map(|i| normed(i) * f64::from(w[i * columns + c]));
                    let y: f64 = terms.sum();
                    off += (f64::from(got[r * columns + c]) - y).powi(2);
                    size += y * y;
                }
                let error = (off / size.max(1e-30)).sqrt();
                let what = format!("{inner} x {columns}, centred {centred}, row {r}: {error:.1e}");
                assert!(if r == 7 { error.is_nan() } else { error < 1e-5 }, "{what}");
            }
        }
    }
}

/// A dense op with a norm of x in it: the op, and the specs of its inputs.
fn fused_dense(rows: usize, beta: bool) -> (Op, Vec<Option<Spec>>) {
    let norm = Some(FusedNorm { centred: true, epsilon: 1e-5 });
    let spec = |shape: &[usize]| Some(Spec::new(DType::F32, shape).unwrap());
    let beta = if beta { spec(&[8]) } else { None };
    let inputs = vec![spec(&[rows, 8]), spec(&[8, 16]), None, None, spec(&[8]), beta];
    (Op::Dense(Dense { activation: Activation::None, norm }), inputs)
}

#[test]
fn a_fused_norm_has_its_inputs_checked() {
    let specs = |inputs: &[Option<Spec>]| {
        let (op, _) = fused_dense(2, true);
        infer(&op, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
    };
    let (_, inputs) = fused_dense(2, true);
    assert_eq!(specs(&inputs).unwrap()[0].shape(), [2, 16]);
    assert!(specs(&inputs[..4]).unwrap_err().to_string().contains("gamma"));
    assert!(specs(&inputs[..5]).unwrap_err().to_string().contains("beta"));
    let mut long = inputs.clone();
    long[5] = Some(Spec::new(DType::F32, [9]).unwrap());
    assert!(specs(&long).is_err());
    let plain = Op::Dense(Dense { activation: Activation::None, norm: None });
    assert!(infer(&plain, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>()).is_err());
}

#[test]
fn a_fused_norm_comes_from_no_caller() {
    type Fields =
        MapDeserializer<'static, std::vec::IntoIter<(&'static str, &'static str)>, Refusal>;
    let fields = |more: &[(&'static str, &'static str)]| -> Fields {
        let all = [&[("activation", "relu")], more].concat();
        MapDeserializer::new(all.into_iter())
    };
    let plain = Dense { activation: Activation::Relu, norm: None };
    assert_eq!(Dense::deserialize(fields(&[])).unwrap(), plain);
    let refused = Dense::deserialize(fields(&[("norm", "layer")])).unwrap_err().to_string();
    assert!(refused.contains("unknown field `norm`"), "{refused}");
}

#[test]
fn the_cpu_takes_no_fused_norm() {
    let device = Device::open(Id::Cpu, None).unwrap();
    assert_eq!(run_fused(&device, 2), "internal");
}

/// The reason of the error that an eager fused op gives.
fn run_fused(device: &Device, rows: usize) -> &'static str {
    let (op, inputs) = fused_dense(rows, true);
    let zeros =
        |spec: Spec| Tensor::from_bytes(device, spec.clone(), &vec![0; spec.bytes()]).unwrap();
    let inputs: Vec<_> = inputs.into_iter().map(|spec| spec.map(zeros)).collect();
    let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
    device.run(&op, &inputs).map_or_else(|error| error.reason(), |_| "none")
}

#[test]
fn the_gpu_says_what_it_does_and_refuses_what_it_cannot() {
    let Some(device) = cuda("the_gpu_says_what_it_does_and_refuses_what_it_cannot") else { return };
    let explain = |rows| {
        let (op, inputs) = fused_dense(rows, true);
        device.explain(&op, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
    };
    let explanation = explain(2).unwrap();
    assert_eq!(explanation.launches, 1);
    let ends = "with the layer norm of x in its prologue";
    assert!(explanation.why.ends_with(ends), "{}", explanation.why);
    // What a block holds, and in f32 a window's rows.
    assert_eq!(explain(60).unwrap().variant, "few");
    assert_eq!(explain(129).unwrap_err().reason(), "internal");
    assert_eq!(
        [8, 9, 128, 129].map(|n| run_fused(&device, n)),
        ["none", "none", "none", "internal"]
    );
}
