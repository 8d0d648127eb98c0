//! A frame of a Mamba block, from the norm to the projection back, as one node.

use std::collections::BTreeSet;

use super::{Uses, parts, without};
use crate::error::Result;
use crate::op::{Activation, CausalConv1d, Dense, MambaBlock, Op, SelectiveScan, Slice};
use crate::plan::Values;
use crate::program::{Graph, Node, Ref};
use crate::spec::Spec;

/// Makes one node of every block whose weights are parameters and of whose inner values nobody else
/// reads any, where the device does it in one launch.
pub(super) fn blocks(
    graph: Graph,
    values: &Values,
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Graph> {
    let found: Vec<Found> = {
        let search = Search { graph: &graph, values, uses: Uses::of(&graph) };
        (0..graph.nodes.len()).filter_map(|n| search.block(n)).collect()
    };
    let mut nodes = graph.nodes.clone();
    let (mut gone, mut moved) = (BTreeSet::new(), Vec::new());
    for block in found {
        if can(&block.node.op, &values.specs(&block.node.inputs)?) {
            nodes[block.last] = block.node;
            gone.extend(block.inner);
            moved.extend([
                (Ref::Node(block.conv, 1), Ref::Node(block.last, 1)),
                (Ref::Node(block.scan, 1), Ref::Node(block.last, 2)),
            ]);
        }
    }
    let place = |r: &mut Ref| {
        if let Some(&(_, to)) = moved.iter().find(|(from, _)| from == r) {
            *r = to;
        }
    };
    nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten()).for_each(place);
    let Graph { inputs, mut outputs, mut next_state, .. } = graph;
    outputs.iter_mut().chain(&mut next_state).for_each(place);
    Ok(without(Graph { nodes, inputs, outputs, next_state }, &gone))
}

struct Found {
    node: Node,
    /// The projection back, in whose place it comes.
    last: usize,
    conv: usize,
    scan: usize,
    /// All others.
    inner: Vec<usize>,
}

struct Search<'a> {
    graph: &'a Graph,
    values: &'a Values<'a>,
    uses: Uses,
}

impl Search<'_> {
    fn op(&self, n: usize) -> &Op {
        &self.graph.nodes[n].op
    }

    fn input(&self, n: usize, i: usize) -> Option<Ref> {
        self.graph.nodes[n].inputs.get(i).copied().flatten()
    }

    /// The node whose first output this is, and which nobody but `readers` reads, once each.
    fn inner(&self, r: Option<Ref>, readers: &[(usize, usize)]) -> Option<usize> {
        let Some(value @ Ref::Node(n, 0)) = r else { return None };
        let mut uses = self.uses.of_value(value).to_vec();
        let mut expected = readers.to_vec();
        uses.sort_unstable();
        expected.sort_unstable();
        (uses == expected && !self.uses.exported.contains(&value)).then_some(n)
    }

    /// The weights of a dense that does nothing else, of x.
    fn product(&self, n: usize) -> Option<Ref> {
        let plain = Dense { activation: Activation::None, norm: None };
        let alone = (2..self.graph.nodes[n].inputs.len()).all(|i| self.input(n, i).is_none());
        (*self.op(n) == Op::Dense(plain) && alone).then_some(())?;
        constant(self.input(n, 1))
    }

    /// Of a slice along the last axis: where it begins, and its length.
    fn part(&self, n: usize) -> Option<(usize, usize)> {
        let Op::Slice(Slice { starts, lengths, strides, wrap, .. }) = self.op(n) else {
            return None;
        };
        let x = self.values.spec(self.input(n, 0)?).ok()?;
        let (last, others) = (x.rank().checked_sub(1)?, 0..x.rank() - 1);
        let whole = others.into_iter().all(|i| starts[i] == 0 && lengths[i] == x.shape()[i]);
        let fixed = self.input(n, 1).is_none() && !wrap && strides.iter().all(|&s| s == 1);
        let start = usize::try_from(starts[last]).ok()?;
        (whole && fixed && start + lengths[last] <= x.last()).then_some((start, lengths[last]))
    }

    /// The block whose scan this is.
    fn block(&self, scan: usize) -> Option<Found> {
        let Op::SelectiveScan(SelectiveScan {
            dt_softplus: true, dt_clamp: None, norm: None, ..
        }) = self.op(scan)
        else {
            return None;
        };
        let [v, dt, a, b, c, d, z, bias, state, residual] =
            std::array::from_fn(|i| self.input(scan, i));
        if residual.is_some() {
            return None;
        }
        // Back from the scan: the projections to dt, b and c, and the convolution before them.
        let dt_dense = self.inner(dt, &[(scan, 1)])?;
        let dt_w = self.product(dt_dense)?;
        let dt_slice = self.inner(self.input(dt_dense, 0), &[(dt_dense, 0)])?;
        let (b_slice, c_slice) = (self.inner(b, &[(scan, 3)])?, self.inner(c, &[(scan, 4)])?);
        let projected = self.input(dt_slice, 0);
        let x_dense = self.inner(projected, &[(dt_slice, 0), (b_slice, 0), (c_slice, 0)])?;
        let x_w = self.product(x_dense)?;
        let conv = self.inner(v, &[(scan, 0), (x_dense, 0)])?;
        let silu = CausalConv1d { activation: Activation::Silu };
        (*self.op(conv) == Op::CausalConv1d(silu)).then_some(())?;
        // And back from the convolution: the projection to v and z, and the norm.
        let (v_slice, z_slice) =
            (self.inner(self.input(conv, 0), &[(conv, 0)])?, self.inner(z, &[(scan, 6)])?);
        let in_dense = self.inner(self.input(v_slice, 0), &[(v_slice, 0), (z_slice, 0)])?;
        let in_w = self.product(in_dense)?;
        let normed = self.inner(self.input(in_dense, 0), &[(in_dense, 0)])?;
        let (norm, x, [gamma, beta]) = parts(&self.graph.nodes[normed])?;
        // On from the scan: the projection back.
        let y = Ref::Node(scan, 0);
        let &[(last, 0)] = self.uses.of_value(y) else { return None };
        (!self.uses.exported.contains(&y)).then_some(())?;
        let plain = Dense { activation: Activation::None, norm: None };
        (*self.op(last) == Op::Dense(plain) && self.input(last, 2).is_none()).then_some(())?;
        let out_w = constant(self.input(last, 1))?;

        let spec = |r: Ref| self.values.spec(r).ok();
        let (channels, states, rank) = (spec(a?)?.rows(), spec(a?)?.last(), spec(dt_w)?.rows());
        let fits = spec(x)?.rank() == 3
            && spec(x)?.shape()[1] == 1
            && self.part(v_slice)? == (0, channels)
            && self.part(z_slice)? == (channels, channels)
            && self.part(dt_slice)? == (0, rank)
            && self.part(b_slice)? == (rank, states)
            && self.part(c_slice)? == (rank + states, states);
        // The new states are there only in the end.
        let later = [Ref::Node(conv, 1), Ref::Node(scan, 1)]
            .into_iter()
            .all(|r| self.uses.of_value(r).iter().all(|&(reader, _)| reader > last));
        let optional = [self.input(conv, 2), bias, d, gamma, beta];
        let constants = optional.into_iter().flatten().all(|r| matches!(r, Ref::Param(_)));
        if !(fits && later && constants) {
            return None;
        }
        let conv_w = constant(self.input(conv, 1))?;
        let inputs = vec![
            Some(x),
            Some(in_w),
            Some(conv_w),
            self.input(conv, 2),
            Some(x_w),
            Some(dt_w),
            bias,
            Some(constant(a)?),
            d,
            Some(out_w),
            self.input(last, 3),
            self.input(conv, 3),
            state,
            gamma,
            beta,
        ];
        let node = Node { op: Op::MambaBlock(MambaBlock { norm }), inputs };
        let inner = vec![
            normed, in_dense, v_slice, z_slice, conv, x_dense, dt_slice, b_slice, c_slice,
            dt_dense, scan,
        ];
        Some(Found { node, last, conv, scan, inner })
    }
}

/// A parameter: its values are those of every run.
fn constant(r: Option<Ref>) -> Option<Ref> {
    r.filter(|r| matches!(r, Ref::Param(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::op::{FusedNorm, Norm};
    use crate::spec::DType;
    use Ref::{Input, Param, State};

    const EPSILON: f64 = 0.5;

    /// gamma, in, conv, conv_b, x_proj, dt_proj, dt_bias, a, d and out, of width 4, 8 channels, 3
    /// states, 4 taps and rank 2.
    fn params() -> Vec<Spec> {
        let shapes: [&[usize]; 10] =
            [&[4], &[4, 16], &[4, 8], &[8], &[8, 8], &[2, 8], &[8], &[8, 3], &[8], &[8, 4]];
        shapes.iter().map(|shape| Spec::new(DType::F32, *shape).unwrap()).collect()
    }

    fn node(op: Op, inputs: Vec<Option<Ref>>) -> Node {
        Node { op, inputs }
    }

    fn n(i: usize) -> Option<Ref> {
        Some(Ref::Node(i, 0))
    }

    fn p(i: usize) -> Option<Ref> {
        Some(Param(i))
    }

    const DENSE: Op = Op::Dense(Dense { activation: Activation::None, norm: None });

    fn slice(x: usize, time: usize, [start, length]: [usize; 2]) -> Node {
        let attrs = Slice {
            starts: vec![0, 0, start as i64],
            lengths: vec![1, time, length],
            strides: vec![1; 3],
            axis: 0,
            wrap: false,
        };
        node(Op::Slice(attrs), vec![n(x)])
    }

    /// The twelve ops of a block for a window of `time`.
    fn graph(time: usize) -> Graph {
        let scan = SelectiveScan { dt_softplus: true, dt_clamp: None, norm: None, epsilon: 1e-5 };
        let conv = CausalConv1d { activation: Activation::Silu };
        let nodes = vec![
            node(Op::RmsNorm(Norm { epsilon: EPSILON }), vec![Some(Input(0)), p(0)]),
            node(DENSE, vec![n(0), p(1)]),
            slice(1, time, [0, 8]),
            slice(1, time, [8, 8]),
            node(Op::CausalConv1d(conv), vec![n(2), p(2), p(3), Some(State(0))]),
            node(DENSE, vec![n(4), p(4)]),
            slice(5, time, [0, 2]),
            slice(5, time, [2, 3]),
            slice(5, time, [5, 3]),
            node(DENSE, vec![n(6), p(5)]),
            node(
                Op::SelectiveScan(scan),
                vec![n(4), n(9), p(7), n(7), n(8), p(8), n(3), p(6), Some(State(1))],
            ),
            node(DENSE, vec![n(10), p(9), None, Some(Input(0))]),
        ];
        Graph {
            nodes,
            inputs: vec![Spec::new(DType::F32, [1, time, 4]).unwrap()],
            outputs: vec![Ref::Node(11, 0)],
            next_state: vec![Ref::Node(4, 1), Ref::Node(10, 1)],
        }
    }

    fn pass(graph: Graph) -> Graph {
        let states = [[1, 3, 8], [1, 8, 3]].map(|s| Spec::new(DType::F32, s).unwrap());
        let params = params();
        let values = Values::new(&graph, &params, &states).unwrap();
        let fused = blocks(graph.clone(), &values, |op, inputs| {
            crate::infer::infer(op, inputs).unwrap();
            true
        });
        let fused = fused.unwrap();
        crate::plan::plan(&fused, &params, &states, |_, _| Ok(0), |_, _, _, _| false).unwrap();
        fused
    }

    #[track_caller]
    fn untouched(graph: Graph) {
        assert_eq!(pass(graph.clone()).nodes.len(), graph.nodes.len());
    }

    #[test]
    fn a_block_is_one_node() {
        let mut before = graph(1);
        before.nodes.push(node(
            Op::Unary(crate::op::Unary { kind: crate::op::UnaryKind::Exp }),
            vec![n(11)],
        ));
        before.outputs.push(Ref::Node(12, 0));
        let got = pass(before);
        assert_eq!(got.nodes.len(), 2);
        let norm = FusedNorm { centred: false, epsilon: EPSILON };
        assert_eq!(got.nodes[0].op, Op::MambaBlock(MambaBlock { norm }));
        let x = Some(Input(0));
        let states = [Some(State(0)), Some(State(1))];
        let expected =
            [vec![x], (1..10).map(p).collect(), vec![x], states.to_vec(), vec![p(0), None]]
                .concat();
        assert_eq!(got.nodes[0].inputs, expected);
        assert_eq!(got.nodes[1].inputs, [n(0)]);
        assert_eq!(got.outputs, [Ref::Node(0, 0), Ref::Node(1, 0)]);
        assert_eq!(got.next_state, [Ref::Node(0, 1), Ref::Node(0, 2)]);
    }

    #[test]
    fn what_is_no_whole_block_stays() {
        untouched(graph(2));
        // An inner value that the caller gets too, or that has another reader.
        for inner in 0..11 {
            let mut seen = graph(1);
            seen.outputs.push(Ref::Node(inner, 0));
            untouched(seen);
            let mut read = graph(1);
            read.nodes.push(node(Op::Cast(crate::op::Cast { r#type: DType::F16 }), vec![n(inner)]));
            untouched(read);
        }
        // Weights that come from outside.
        let mut fed = graph(1);
        fed.inputs.push(params().remove(1));
        fed.nodes[1].inputs[1] = Some(Input(1));
        untouched(fed);
        // Other parts, other attributes, a residual in the scan.
        for (at, part) in [(2, [8, 8]), (3, [0, 8]), (7, [5, 3]), (8, [2, 3])] {
            let mut other = graph(1);
            let from = if at < 4 { 1 } else { 5 };
            other.nodes[at] = slice(from, 1, part);
            untouched(other);
        }
        let mut plain = graph(1);
        plain.nodes[4].op = Op::CausalConv1d(CausalConv1d { activation: Activation::None });
        untouched(plain);
        let mut added = graph(1);
        added.nodes[10].inputs.push(n(4));
        untouched(added);
        let mut active = graph(1);
        active.nodes[11].op = Op::Dense(Dense { activation: Activation::Relu, norm: None });
        untouched(active);
    }

    #[test]
    fn a_state_that_is_read_before_the_end_keeps_the_ops() {
        let mut early = graph(1);
        let cast = Op::Cast(crate::op::Cast { r#type: DType::F16 });
        early.nodes[11] = node(cast, vec![Some(Ref::Node(10, 1))]);
        early.nodes.push(node(DENSE, vec![n(10), p(9), None, Some(Input(0))]));
        early.outputs = vec![Ref::Node(12, 0)];
        untouched(early);
    }
}
