//! Whole blocks of ops that a device does in one launch, and norms in the kernels that read them:
//! `norm → dense` becomes one launch where the device's kernel for the reader holds a whole row of x
//! anyway.
//!
//! A norm goes where all that read it take it as their x and can do it themselves, each for itself;
//! it stays where anything else reads it, the caller included.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::op::{FusedNorm, Op};
use crate::plan::Values;
use crate::program::{Graph, Node, Ref};
use crate::spec::Spec;

mod attention;
mod dense;
mod mamba;
mod search;
mod stack;

/// Makes one node of each frame of a Mamba block and of a layer of attention, and of recurrent layers one
/// upon the other, puts norms into their readers, and makes one node of dense layers one upon the other. `can` says whether the device does such a node in
/// one launch; its op and inputs are already those with all that is fused.
pub(crate) fn fuse(
    graph: Graph,
    params: &[Spec],
    states: &[Spec],
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Graph> {
    let values = Values::new(&graph, params, states)?;
    for &r in graph.outputs.iter().chain(&graph.next_state) {
        values.spec(r)?;
    }
    let graph = search::replace(graph.clone(), &values, mamba::block, &can)?;
    let values = Values::new(&graph, params, states)?;
    let graph = search::replace(graph.clone(), &values, attention::block, &can)?;
    let values = Values::new(&graph, params, states)?;
    let graph = stack::stacks(graph.clone(), &values, &can)?;
    let values = Values::new(&graph, params, states)?;
    let uses = Uses::of(&graph);
    // Numbered as before until all is done: a node keeps its outputs, whatever it reads.
    let mut nodes = graph.nodes.clone();
    let mut gone = BTreeSet::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let Some((norm, x, gamma_beta)) = parts(node) else { continue };
        let value = Ref::Node(n, 0);
        let Some(consumers) = uses.consumers(&graph, &values, value)? else { continue };
        let fused = consumers
            .into_iter()
            .filter_map(|c| Some((c, with_norm(&graph.nodes[c], norm, gamma_beta)?)))
            .collect::<Vec<_>>();
        let mut all = true;
        for (_, node) in &fused {
            all &= can(&node.op, &values.specs(&node.inputs)?);
        }
        if !all {
            continue;
        }
        for (c, node) in fused {
            nodes[c] = node;
        }
        for &(reader, _) in uses.of_value(value) {
            nodes[reader].inputs[0] = Some(x);
        }
        gone.insert(n);
    }
    let graph = without(Graph { nodes, ..graph }, &gone);
    let values = Values::new(&graph, params, states)?;
    dense::stacks(graph.clone(), &values, &can)
}

/// A norm's kind, its x, and its gamma and beta; none of another node, or of a norm that adds a
/// residual: that sum is an output too.
fn parts(node: &Node) -> Option<(FusedNorm, Ref, [Option<Ref>; 2])> {
    let (norm, inputs) = match &node.op {
        Op::LayerNorm(norm) => (FusedNorm { centred: true, epsilon: norm.epsilon }, 3),
        Op::RmsNorm(norm) => (FusedNorm { centred: false, epsilon: norm.epsilon }, 2),
        _ => return None,
    };
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    if input(inputs).is_some() {
        return None;
    }
    Some((norm, input(0)?, [input(1), if norm.centred { input(2) } else { None }]))
}

/// Whether the op may do a norm of its x.
fn takes_norm(op: &Op) -> bool {
    matches!(op, Op::Dense(_) | Op::Lstm(_) | Op::Gru(_))
}

/// The node with the norm in it; none where its op can have none.
fn with_norm(node: &Node, norm: FusedNorm, gamma_beta: [Option<Ref>; 2]) -> Option<Node> {
    let mut node = node.clone();
    let at = node.op.fused_gamma()?;
    match &mut node.op {
        Op::Dense(attrs) => attrs.norm = Some(norm),
        Op::Lstm(attrs) | Op::Gru(attrs) => attrs.norm = Some(norm),
        _ => return None,
    }
    node.inputs.resize(at, None);
    node.inputs.extend(gamma_beta);
    Some(node)
}

/// Who reads what.
struct Uses {
    /// The readers of each value, and as which of their inputs.
    readers: BTreeMap<Ref, Vec<(usize, usize)>>,
    /// Outputs and next states.
    exported: BTreeSet<Ref>,
}

impl Uses {
    fn of(graph: &Graph) -> Self {
        let mut readers: BTreeMap<Ref, Vec<(usize, usize)>> = BTreeMap::new();
        for (n, node) in graph.nodes.iter().enumerate() {
            for (i, r) in node.inputs.iter().enumerate() {
                if let Some(r) = r {
                    readers.entry(*r).or_default().push((n, i));
                }
            }
        }
        let exported = graph.outputs.iter().chain(&graph.next_state).copied().collect();
        Uses { readers, exported }
    }

    fn of_value(&self, value: Ref) -> &[(usize, usize)] {
        self.readers.get(&value).map_or(&[], Vec::as_slice)
    }

    /// The nodes that take a value as their x, if need be under another shape with the same last
    /// axis; none where there are others that read it, or nobody does.
    fn consumers(&self, graph: &Graph, values: &Values, value: Ref) -> Result<Option<Vec<usize>>> {
        let last = values.spec(value)?.last();
        let mut found = Vec::new();
        let mut same = vec![value];
        while let Some(value) = same.pop() {
            let spec = values.spec(value)?;
            if self.exported.contains(&value) || spec.rank() == 0 || spec.last() != last {
                return Ok(None);
            }
            for &(reader, input) in self.of_value(value) {
                let op = &graph.nodes[reader].op;
                match op {
                    Op::Reshape(_) => same.push(Ref::Node(reader, 0)),
                    op if input == 0 && takes_norm(op) => found.push(reader),
                    _ => return Ok(None),
                }
            }
        }
        Ok(if found.is_empty() { None } else { Some(found) })
    }
}

/// The graph without nodes that nobody reads.
fn without(graph: Graph, gone: &BTreeSet<usize>) -> Graph {
    let mut left = 0..;
    let numbers: Vec<usize> = (0..graph.nodes.len())
        .map(|n| if gone.contains(&n) { 0 } else { left.next().unwrap_or(0) })
        .collect();
    let renumber = |r: Ref| match r {
        Ref::Node(n, k) => Ref::Node(numbers[n], k),
        other => other,
    };
    let nodes = graph.nodes.into_iter().enumerate().filter(|(n, _)| !gone.contains(n));
    Graph {
        nodes: nodes
            .map(|(_, Node { op, inputs })| {
                let inputs = inputs.into_iter().map(|r| r.map(renumber)).collect();
                Node { op, inputs }
            })
            .collect(),
        inputs: graph.inputs,
        outputs: graph.outputs.into_iter().map(renumber).collect(),
        next_state: graph.next_state.into_iter().map(renumber).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::op::*;
    use crate::spec::DType;
    use Ref::{Input, Param, State};

    fn spec(shape: &[usize]) -> Spec {
        Spec::new(DType::F32, shape).unwrap()
    }

    fn node(op: Op, inputs: &[Ref]) -> Node {
        Node { op, inputs: inputs.iter().map(|&r| Some(r)).collect() }
    }

    fn n(i: usize) -> Ref {
        Ref::Node(i, 0)
    }

    /// Parameters: gamma, beta, a square w, wi, wh. All of width 4.
    fn params() -> Vec<Spec> {
        vec![spec(&[4]), spec(&[4]), spec(&[4, 4]), spec(&[4, 16]), spec(&[4, 16])]
    }

    fn layer_norm(x: Ref) -> Node {
        node(Op::LayerNorm(Norm { epsilon: 0.5 }), &[x, Param(0), Param(1)])
    }

    fn rms_norm(x: Ref) -> Node {
        node(Op::RmsNorm(Norm { epsilon: 0.25 }), &[x, Param(0)])
    }

    const DENSE: Dense = Dense { activation: Activation::Relu, norm: None };

    fn dense(x: Ref) -> Node {
        node(Op::Dense(DENSE), &[x, Param(2)])
    }

    fn reshape(x: Ref, shape: &[usize]) -> Node {
        node(Op::Reshape(Reshape { shape: shape.to_vec() }), &[x])
    }

    fn lstm(x: Ref) -> Node {
        let op = Op::Lstm(Recurrent { reverse: false, norm: None });
        let inputs = [x, State(0), State(1), Param(3), Param(4)];
        node(op, &inputs)
    }

    const LAYER: FusedNorm = FusedNorm { centred: true, epsilon: 0.5 };
    const RMS: FusedNorm = FusedNorm { centred: false, epsilon: 0.25 };

    /// What `dense(x)` becomes.
    fn fused(x: Ref, norm: FusedNorm) -> Node {
        let beta = if norm.centred { Some(Param(1)) } else { None };
        Node {
            op: Op::Dense(Dense { norm: Some(norm), ..DENSE }),
            inputs: vec![Some(x), Some(Param(2)), None, None, Some(Param(0)), beta],
        }
    }

    fn graph(nodes: Vec<Node>, outputs: &[Ref]) -> Graph {
        let inputs = vec![spec(&[2, 4])];
        Graph { nodes, inputs, outputs: outputs.to_vec(), next_state: vec![] }
    }

    /// The fused graph, which `infer` takes as well, on a device that can do all norms.
    fn pass(graph: Graph, states: &[Spec]) -> Graph {
        let fused = fuse(graph, &params(), states, |op, inputs| {
            crate::infer::infer(op, inputs).unwrap();
            op.fused_norm().is_some()
        });
        let fused = fused.unwrap();
        crate::plan::plan(&fused, &params(), states, |_, _| Ok(0), |_, _, _, _| false).unwrap();
        fused
    }

    fn same(got: &Graph, expected: &Graph) {
        let nodes = |g: &Graph| -> Vec<_> {
            g.nodes.iter().map(|n| (n.op.clone(), n.inputs.clone())).collect()
        };
        assert_eq!(nodes(got), nodes(expected));
        assert_eq!(got.outputs, expected.outputs);
        assert_eq!(got.next_state, expected.next_state);
    }

    #[track_caller]
    fn untouched(before: Graph) {
        same(&pass(before.clone(), &[]), &before);
    }

    #[test]
    fn a_norm_goes_into_all_its_readers() {
        for (norm, attrs) in [(layer_norm(Input(0)), LAYER), (rms_norm(Input(0)), RMS)] {
            // The second reader has what comes after the norm's place, so that numbers move.
            let before = graph(vec![norm, dense(n(0)), dense(n(0)), dense(n(2))], &[n(3), n(1)]);
            let expected = graph(
                vec![fused(Input(0), attrs), fused(Input(0), attrs), dense(n(1))],
                &[n(2), n(0)],
            );
            same(&pass(before, &[]), &expected);
        }
    }

    #[test]
    fn a_norm_that_others_read_stays() {
        let nodes = || vec![layer_norm(Input(0)), dense(n(0))];
        // The caller; by way of a reshape; another op; the same reader's residual; nobody.
        untouched(graph(nodes(), &[n(1), n(0)]));
        let mut shaped = nodes();
        shaped.push(reshape(n(0), &[1, 2, 4]));
        untouched(graph(shaped, &[n(1), n(2)]));
        let mut other = nodes();
        other.push(node(Op::Unary(Unary { kind: UnaryKind::Exp }), &[n(0)]));
        untouched(graph(other, &[n(1), n(2)]));
        let mut residual = nodes();
        residual[1].inputs.extend([None, Some(n(0))]);
        untouched(graph(residual, &[n(1)]));
        untouched(graph(vec![layer_norm(Input(0)), dense(Input(0))], &[n(1)]));
        // A norm as the weights.
        let weights = vec![layer_norm(Param(2)), node(Op::Dense(DENSE), &[Input(0), n(0)])];
        untouched(graph(weights, &[n(1)]));
    }

    #[test]
    fn a_norm_with_a_residual_stays() {
        let mut norm = layer_norm(Input(0));
        norm.inputs.push(Some(Input(0)));
        untouched(graph(vec![norm, dense(n(0))], &[n(1)]));
        let mut norm = rms_norm(Input(0));
        norm.inputs.push(Some(Input(0)));
        untouched(graph(vec![norm, dense(n(0))], &[n(1)]));
        // A residual that is not there is none.
        let mut norm = rms_norm(Input(0));
        norm.inputs.push(None);
        let expected = graph(vec![fused(Input(0), RMS)], &[n(0)]);
        same(&pass(graph(vec![norm, dense(n(0))], &[n(1)]), &[]), &expected);
    }

    #[test]
    fn reshapes_between_stay_on_the_norms_input() {
        let before = graph(
            vec![
                layer_norm(Input(0)),
                reshape(n(0), &[2, 1, 4]),
                reshape(n(1), &[1, 2, 4]),
                dense(n(2)),
                dense(n(1)),
            ],
            &[n(3), n(4)],
        );
        let expected = graph(
            vec![
                reshape(Input(0), &[2, 1, 4]),
                reshape(n(0), &[1, 2, 4]),
                fused(n(1), LAYER),
                fused(n(0), LAYER),
            ],
            &[n(2), n(3)],
        );
        same(&pass(before, &[]), &expected);
        // Another last axis is another row.
        let op = node(Op::Dense(DENSE), &[n(1), Input(0)]);
        untouched(graph(vec![layer_norm(Input(0)), reshape(n(0), &[4, 2]), op], &[n(2)]));
        // Back again is the same row, but what is between is not looked at.
        let back =
            vec![layer_norm(Input(0)), reshape(n(0), &[8]), reshape(n(1), &[2, 4]), dense(n(2))];
        untouched(graph(back, &[n(3)]));
    }

    #[test]
    fn a_norm_of_a_norm_goes_once() {
        let nodes = vec![rms_norm(Input(0)), layer_norm(n(0)), dense(n(1))];
        let expected = graph(vec![rms_norm(Input(0)), fused(n(0), LAYER)], &[n(1)]);
        same(&pass(graph(nodes, &[n(2)]), &[]), &expected);
    }

    #[test]
    fn states_are_renumbered_and_a_norm_that_is_one_stays() {
        let states = [spec(&[2, 4]), spec(&[2, 4])];
        let build = |next_c: Ref| Graph {
            nodes: vec![
                layer_norm(Input(0)),
                reshape(n(0), &[2, 1, 4]),
                lstm(n(1)),
                rms_norm(n(2)),
                dense(n(3)),
            ],
            inputs: vec![spec(&[2, 4])],
            outputs: vec![n(4)],
            next_state: vec![next_c, Ref::Node(2, 2)],
        };
        let got = pass(build(Ref::Node(2, 1)), &states);
        assert_eq!(got.nodes.len(), 3);
        assert_eq!(got.nodes[0].inputs, [Some(Input(0))]);
        let inputs = [n(0), State(0), State(1), Param(3), Param(4)].map(Some);
        let norm = [None, None, Some(Param(0)), Some(Param(1))];
        assert_eq!(got.nodes[1].inputs, [&inputs[..], &norm[..]].concat());
        let op = Op::Lstm(Recurrent { reverse: false, norm: Some(LAYER) });
        assert_eq!(got.nodes[1].op, op);
        assert_eq!(got.nodes[2].op, Op::Dense(Dense { norm: Some(RMS), ..DENSE }));
        assert_eq!(got.nodes[2].inputs[0], Some(n(1)));
        assert_eq!(got.outputs, [n(2)]);
        assert_eq!(got.next_state, [Ref::Node(1, 1), Ref::Node(1, 2)]);
        // The first norm's value as the next c: it is read under its own number.
        let kept = pass(build(n(0)), &states);
        assert_eq!(kept.nodes.len(), 4);
        assert_eq!(kept.next_state, [n(0), Ref::Node(2, 2)]);
    }

    #[test]
    fn where_one_reader_cannot_none_does() {
        let before = graph(vec![layer_norm(Input(0)), dense(n(0)), dense(n(0))], &[n(1), n(2)]);
        let calls = std::cell::Cell::new(0);
        let got = fuse(before.clone(), &params(), &[], |_, _| {
            calls.set(calls.get() + 1);
            calls.get() != 2
        });
        same(&got.unwrap(), &before);
        assert_eq!(calls.get(), 2);
    }

    #[test]
    fn a_graph_that_is_wrong_is_refused() {
        for bad in [n(7), Ref::Node(0, 1), State(0)] {
            let graph = graph(vec![layer_norm(Input(0)), dense(n(0))], &[n(1), bad]);
            assert!(fuse(graph, &params(), &[], |_, _| true).is_err());
        }
    }
}
