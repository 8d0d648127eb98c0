//! A frame of a Mamba block, from the norm to the projection back, as one node.

use super::parts;
use super::search::{Found, Layer, Search, constant, is_constant};
use crate::op::{Activation, CausalConv1d, MambaBlock, Op, SelectiveScan};
use crate::program::{Node, Ref};

/// The block whose scan this is, where all its weights are parameters and nobody else reads any of its
/// inner values.
pub(super) fn block(search: &Search, scan: usize) -> Option<Found> {
    let Op::SelectiveScan(SelectiveScan { dt_softplus: true, dt_clamp: None, norm: None, .. }) =
        search.op(scan)
    else {
        return None;
    };
    let [v, dt, a, b, c, d, z, bias, state, added] = std::array::from_fn(|i| search.input(scan, i));
    if added.is_some() {
        return None;
    }
    // Back from the scan: the projections to dt, b and c, and the convolution before them.
    let dt_dense = search.inner(dt, &[(scan, 1)])?;
    let dt_w = search.product(dt_dense)?;
    let dt_slice = search.inner(search.input(dt_dense, 0), &[(dt_dense, 0)])?;
    let (b_slice, c_slice) = (search.inner(b, &[(scan, 3)])?, search.inner(c, &[(scan, 4)])?);
    let projected = search.input(dt_slice, 0);
    let x_dense = search.inner(projected, &[(dt_slice, 0), (b_slice, 0), (c_slice, 0)])?;
    let x_w = search.product(x_dense)?;
    let conv = search.inner(v, &[(scan, 0), (x_dense, 0)])?;
    let silu = CausalConv1d { activation: Activation::Silu };
    (*search.op(conv) == Op::CausalConv1d(silu)).then_some(())?;
    // And back from the convolution: the projection to v and z, and the norm.
    let (v_slice, z_slice) =
        (search.inner(search.input(conv, 0), &[(conv, 0)])?, search.inner(z, &[(scan, 6)])?);
    let in_dense = search.inner(search.input(v_slice, 0), &[(v_slice, 0), (z_slice, 0)])?;
    let in_w = search.product(in_dense)?;
    let normed = search.inner(search.input(in_dense, 0), &[(in_dense, 0)])?;
    let (norm, x, [gamma, beta]) = parts(&search.graph.nodes[normed])?;
    // On from the scan: the projection back.
    let (last, 0) = search.reader(scan)? else { return None };
    let Layer { activation: Activation::None, w: out_w, b: None, residual } = search.layer(last)?
    else {
        return None;
    };

    let spec = |r: Ref| search.spec(r);
    let (channels, states, rank) = (spec(a?)?.rows(), spec(a?)?.last(), spec(dt_w)?.rows());
    let fits = spec(x)?.rank() == 3
        && spec(x)?.shape()[1] == 1
        && search.part(v_slice, 2)? == (0, channels)
        && search.part(z_slice, 2)? == (channels, channels)
        && search.part(dt_slice, 2)? == (0, rank)
        && search.part(b_slice, 2)? == (rank, states)
        && search.part(c_slice, 2)? == (rank + states, states);
    let optional = [search.input(conv, 2), bias, d, gamma, beta];
    let constants = optional.into_iter().flatten().all(is_constant);
    if !(fits && constants) {
        return None;
    }
    let conv_w = constant(search.input(conv, 1))?;
    let inputs = vec![
        Some(x),
        Some(in_w),
        Some(conv_w),
        search.input(conv, 2),
        Some(x_w),
        Some(dt_w),
        bias,
        Some(constant(a)?),
        d,
        Some(out_w),
        residual,
        search.input(conv, 3),
        state,
        gamma,
        beta,
    ];
    let node = Node { op: Op::MambaBlock(MambaBlock { norm }), inputs };
    let inner = vec![
        normed, in_dense, v_slice, z_slice, conv, x_dense, dt_slice, b_slice, c_slice, dt_dense,
        scan,
    ];
    // The new states.
    let moved = vec![(Ref::Node(conv, 1), 1), (Ref::Node(scan, 1), 2)];
    Some(Found { node, last, inner, moved })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::fuse::search::replace;
    use crate::op::{Dense, FusedNorm, Norm, Slice};
    use crate::plan::Values;
    use crate::program::Graph;
    use crate::spec::{DType, Spec};
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
        let fused = replace(graph.clone(), &values, block, |op, inputs| {
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
