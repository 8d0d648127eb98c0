//! Parts of rows, read where they lie: the projections of Mamba's window.

use nitrox_engine::op::*;
use nitrox_engine::program::Ref::{Input, Param};
use nitrox_engine::program::{Feed, Graph, Mode, Node, Program, Ref};
use nitrox_engine::{DType, Device, Spec, Tensor};

use crate::{Random, bytes, devices, done, eager, f32s, n, node, options};

/// What a window of Mamba computes between its projections, of `{v, z}` and `{…, b, c}` in the rows of
/// two tensors, and `dt`.
struct Window {
    dtype: DType,
    batch: usize,
    length: usize,
    width: usize,
    states: usize,
    /// What lies in a row before b.
    rank: usize,
}

const SLICES: [usize; 4] = [3, 4, 5, 6];

impl Window {
    fn rows(&self, width: usize) -> Spec {
        f32s(&[self.batch, self.length, width])
    }

    fn part(&self, of: usize, from: usize, width: usize) -> Node {
        let lengths = vec![self.batch, self.length, width];
        let starts = vec![0, 0, from as i64];
        node(
            Op::Slice(Slice { starts, lengths, strides: vec![1; 3], axis: 0, wrap: false }),
            &[n(of)],
        )
    }

    fn inputs(&self) -> Vec<Spec> {
        [2 * self.width, self.rank + 2 * self.states, self.width].map(|w| self.rows(w)).to_vec()
    }

    /// With a norm where the scan's kernels for long windows of whole blocks may have it.
    fn norm(&self) -> Option<NormKind> {
        (self.length >= 512 && self.width.is_multiple_of(64)).then_some(NormKind::RmsNorm)
    }

    fn graph(&self) -> Graph {
        let Window { width, states, rank, .. } = *self;
        let given = |i| node(Op::Cast(Cast { r#type: self.dtype }), &[Input(i)]);
        let conv = Op::CausalConv1d(CausalConv1d { activation: Activation::Silu });
        let scan = Op::SelectiveScan(SelectiveScan {
            dt_softplus: true,
            dt_clamp: None,
            norm: self.norm(),
            epsilon: 1e-5,
        });
        let all = [n(7), n(2), Param(1), n(5), n(6)].map(Some);
        let mut inputs: Vec<_> = all.into_iter().chain([None, Some(n(4))]).collect();
        let mut outputs = vec![n(8), Ref::Node(8, 1), Ref::Node(7, 1)];
        if self.norm().is_some() {
            inputs.extend([None, None, None, Some(Param(2))]);
            outputs.push(Ref::Node(8, 2));
        }
        Graph {
            nodes: vec![
                given(0),
                given(1),
                given(2),
                self.part(0, 0, width),
                self.part(0, width, width),
                self.part(1, rank, states),
                self.part(1, rank + states, states),
                node(conv, &[n(3), Param(0)]),
                Node { op: scan, inputs },
            ],
            inputs: self.inputs(),
            outputs,
            next_state: vec![],
        }
    }

    fn parameters(&self, device: &Device, random: &mut Random) -> Vec<Tensor> {
        let &Window { dtype, width, states, .. } = self;
        let mut of = |shape: &[usize], sign: f32| {
            let floats = random.floats(shape.iter().product());
            let floats: Vec<f32> = floats.iter().map(|x| sign * x.abs()).collect();
            let tensor = Tensor::from_bytes(device, f32s(shape), &bytes(&floats)).unwrap();
            device.run(&Op::Cast(Cast { r#type: dtype }), &[Some(&tensor)]).unwrap().remove(0)
        };
        let mut all = vec![of(&[4, width], 1.0), of(&[width, states], -1.0)];
        all.extend(self.norm().map(|_| of(&[width], 1.0)));
        all
    }

    /// How many of the four slices are steps.
    fn check(&self, device: &Device, random: &mut Random) -> usize {
        let Window { dtype, batch, length, width, states, rank } = *self;
        let what = format!("{dtype:?} {batch}x{length}x{width}, {states} states behind {rank}");
        let graph = self.graph();
        let params = self.parameters(device, random);
        let floats: Vec<_> = graph.inputs.iter().map(|spec| random.floats(spec.len())).collect();
        let feeds: Vec<_> = floats.iter().map(|f| bytes(f)).collect();
        let program =
            Program::compile(device, graph.clone(), params.clone(), vec![], options(false))
                .unwrap();
        let feeds: Vec<_> = feeds.iter().map(|f| Feed::Bytes(f)).collect();
        let outputs = done(program.run(&feeds, Mode::Block).unwrap());
        let inputs: Vec<_> = graph
            .inputs
            .iter()
            .zip(&floats)
            .map(|(spec, f)| Tensor::from_bytes(device, spec.clone(), &bytes(f)).unwrap())
            .collect();
        let (expected, _) = eager(device, &graph, &params, &inputs, &[]);
        for (i, (got, expected)) in outputs.iter().zip(&expected).enumerate() {
            let nitrox_engine::program::Output::Tensor(got) = got else { panic!("{what}: bytes") };
            assert_eq!(got.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{what}: output {i}");
        }
        program.info().steps - (graph.nodes.len() - SLICES.len())
    }
}

#[test]
fn a_part_of_each_row_is_read_where_it_lies() {
    let window = |dtype, batch, length, width, states| Window {
        dtype,
        batch,
        length,
        width,
        states,
        rank: 8,
    };
    let (f32, bf16) = (DType::F32, DType::BF16);
    for device in devices() {
        let cuda = matches!(device, Device::Cuda(_));
        let mut random = Random(19);
        // The window, and the slices that stay where rows are read: those whose rows or places are no
        // whole 16 bytes.
        for (window, copies) in [
            (window(f32, 1, 5, 8, 16), 0),
            (window(f32, 2, 37, 24, 16), 0),
            (window(bf16, 2, 37, 24, 16), 0),
            (window(DType::F16, 3, 65, 64, 16), 0),
            // The window in chunks.
            (window(f32, 1, 521, 8, 16), 0),
            (window(bf16, 1, 521, 8, 8), 0),
            (window(f32, 1, 2000, 8, 16), 0),
            // Many channels on a small card.
            (window(bf16, 3, 515, 600, 16), 0),
            // With a norm, which is in the launch of the scan on a card of four multiprocessors.
            (window(f32, 4, 515, 128, 16), 0),
            (window(bf16, 2, 531, 256, 16), 0),
            // Any number of states; one row of the batch a frame, and several.
            (window(f32, 2, 9, 12, 4), 0),
            (window(f32, 2, 9, 12, 40), 0),
            (window(f32, 3, 1, 8, 16), 0),
            (window(bf16, 5, 1, 16, 8), 0),
            (window(f32, 1, 1, 8, 16), 0),
            // b and c; c alone; z alone; v and z.
            (window(f32, 2, 9, 8, 3), 2),
            (window(f32, 2, 9, 8, 2), 1),
            (window(f32, 2, 9, 6, 4), 1),
            (window(f32, 2, 9, 7, 4), 2),
        ] {
            let steps = window.check(&device, &mut random);
            let dense = window.batch * window.length == 1;
            let expected = if cuda {
                copies
            } else if dense {
                0
            } else {
                4
            };
            assert_eq!(steps, expected, "{:?}", window.graph());
        }
    }
}

#[test]
fn a_part_of_each_row_that_others_read_too_is_copied() {
    let window = Window { dtype: DType::F32, batch: 2, length: 9, width: 8, states: 4, rank: 8 };
    for device in devices() {
        let cuda = matches!(device, Device::Cuda(_));
        let base = window.graph().nodes.len() - SLICES.len();
        let copied = |graph: Graph| {
            let params = window.parameters(&device, &mut Random(3));
            let extra = graph.nodes.len() - window.graph().nodes.len();
            let program = Program::compile(&device, graph, params, vec![], options(false)).unwrap();
            program.info().steps - base - extra
        };
        let all = |on_cuda| if cuda { on_cuda } else { 4 };
        assert_eq!(copied(window.graph()), all(0));
        // z by an op that knows no rows, or by the caller; v by a reshape.
        let negate = Op::Unary(Unary { kind: UnaryKind::Negate });
        for (op, of) in [(negate, 4), (Op::Reshape(Reshape { shape: vec![144] }), 3)] {
            let alias = usize::from(op.is_alias());
            let mut graph = window.graph();
            graph.nodes.push(node(op, &[n(of)]));
            graph.outputs.push(n(9));
            assert_eq!(copied(graph) + alias, all(1));
        }
        let mut graph = window.graph();
        graph.outputs.push(n(4));
        assert_eq!(copied(graph), all(1));
        // A slice of a slice, whose own reader then has the rows of a copy.
        let mut graph = window.graph();
        graph.nodes.push(window.part(4, 4, 4));
        graph.outputs.push(n(9));
        assert_eq!(copied(graph), all(1));
    }
}

mod large {
    use super::*;

    /// Enough channels for the largest GPU.
    #[test]
    fn a_part_of_each_row_of_many_channels() {
        for device in devices() {
            let (batch, length, width) = (8, 513, 1856);
            let window = Window { dtype: DType::BF16, batch, length, width, states: 16, rank: 8 };
            let cuda = matches!(device, Device::Cuda(_));
            assert_eq!(window.check(&device, &mut Random(23)), if cuda { 0 } else { 4 });
        }
    }
}
