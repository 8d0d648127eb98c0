//! Dense layers one upon the other, with their norms, as one node.

use std::collections::BTreeSet;

use super::search::{Search, is_constant, longest};
use super::{Uses, without};
use crate::error::Result;
use crate::op::{Dense, DenseStack, Op};
use crate::plan::Values;
use crate::program::{Graph, Node};
use crate::spec::Spec;

/// Makes one node of layers whose weights are parameters, where x of each is what the one before gives, which
/// nobody else reads; as many of a row as the device does in one launch.
pub(super) fn stacks(
    graph: Graph,
    values: &Values,
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Graph> {
    let search = Search { graph: &graph, values, uses: Uses::of(&graph) };
    let mut nodes = graph.nodes.clone();
    let mut gone = BTreeSet::new();
    let mut taken: BTreeSet<usize> = BTreeSet::new();
    for n in 0..graph.nodes.len() {
        if taken.contains(&n) {
            continue;
        }
        let found = longest(row(&search, n), values, |row| node(&search, row), &can)?;
        let Some((node, row)) = found else { continue };
        let Some((&last, inner)) = row.split_last() else { continue };
        gone.extend(inner);
        taken.extend(&row);
        nodes[last] = node;
    }
    Ok(without(Graph { nodes, ..graph }, &gone))
}

/// What kind of layer a node is, where it is a dense one of parameters.
fn layer(search: &Search, n: usize) -> Option<Dense> {
    let &Op::Dense(layer) = search.op(n) else { return None };
    let constant = |i| search.input(n, i).is_none_or(is_constant);
    (search.input(n, 1).is_some() && [1, 2, 4, 5].into_iter().all(constant)).then_some(layer)
}

/// The layers from a node on, as far as they go; behind a residual goes none.
fn row(search: &Search, first: usize) -> Vec<usize> {
    let mut row = Vec::new();
    let mut next = layer(search, first).map(|_| first);
    while let Some(n) = next {
        row.push(n);
        next = match search.reader(n) {
            Some((reader, 0)) if search.input(n, 3).is_none() => {
                layer(search, reader).map(|_| reader)
            }
            _ => None,
        };
    }
    row
}

/// The layers as one node in the place of the last.
fn node(search: &Search, row: &[usize]) -> Option<Node> {
    let layers = row.iter().map(|&n| layer(search, n)).collect::<Option<Vec<_>>>()?;
    let own = row.iter().flat_map(|&n| (1..=DenseStack::EACH).map(move |i| search.input(n, i)));
    let inputs = std::iter::once(search.input(*row.first()?, 0)).chain(own).collect();
    Some(Node { op: Op::DenseStack(DenseStack { layers }), inputs })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::op::{Activation, FusedNorm};
    use crate::program::Ref;
    use crate::spec::DType;
    use Ref::{Input, Param};

    const RELU: Dense = Dense { activation: Activation::Relu, norm: None };

    /// A square w, b, gamma and beta, of width 4.
    fn params() -> Vec<Spec> {
        [&[4, 4][..], &[4], &[4], &[4]].map(|shape| Spec::new(DType::F32, shape).unwrap()).to_vec()
    }

    fn n(i: usize) -> Ref {
        Ref::Node(i, 0)
    }

    fn dense(x: Ref) -> Node {
        Node { op: Op::Dense(RELU), inputs: vec![Some(x), Some(Param(0)), Some(Param(1))] }
    }

    fn graph(nodes: Vec<Node>, outputs: &[Ref]) -> Graph {
        let inputs = vec![Spec::new(DType::F32, [2, 4]).unwrap(); 2];
        Graph { nodes, inputs, outputs: outputs.to_vec(), next_state: vec![] }
    }

    /// The layers of each node that is left, of a device that does up to so many at once, and 1 for another op.
    fn pass(graph: &Graph, most: usize) -> (Vec<usize>, Graph) {
        let params = params();
        let values = Values::new(graph, &params, &[]).unwrap();
        let passed = stacks(graph.clone(), &values, |op, inputs| {
            crate::infer::infer(op, inputs).unwrap();
            matches!(op, Op::DenseStack(stack) if stack.layers.len() <= most)
        });
        let passed = passed.unwrap();
        crate::plan::plan(&passed, &params, &[], |_, _| Ok(0), |_, _, _, _| false).unwrap();
        let layers = passed.nodes.iter().map(|node| match &node.op {
            Op::DenseStack(stack) => stack.layers.len(),
            _ => 1,
        });
        (layers.collect(), passed)
    }

    #[test]
    fn a_row_is_one_node_as_far_as_the_device_goes() {
        let four = graph(
            (0..4).map(|i| dense(if i == 0 { Input(0) } else { n(i - 1) })).collect(),
            &[n(3)],
        );
        let (layers, passed) = pass(&four, 9);
        assert_eq!(layers, [4]);
        let own = [Some(Param(0)), Some(Param(1)), None, None, None];
        let expected: Vec<_> = [Some(Input(0))].into_iter().chain([own; 4].concat()).collect();
        assert_eq!(passed.nodes[0].inputs, expected);
        assert_eq!(passed.outputs, [n(0)]);
        assert_eq!(pass(&four, 3).0, [3, 1]);
        assert_eq!(pass(&four, 2).0, [2, 2]);
        assert_eq!(pass(&four, 1).0, [1; 4]);
    }

    #[test]
    fn norms_go_with_their_layers_and_a_residual_ends_a_row() {
        let norm = Some(FusedNorm { centred: true, epsilon: 0.5 });
        let mut normed = dense(n(0));
        normed.op = Op::Dense(Dense { norm, ..RELU });
        normed.inputs.extend([None, Some(Param(2)), Some(Param(3))]);
        let mut added = dense(n(1));
        added.inputs.push(Some(Input(1)));
        let (layers, passed) =
            pass(&graph(vec![dense(Input(0)), normed, added, dense(n(2))], &[n(3)]), 9);
        assert_eq!(layers, [3, 1]);
        let inputs = &passed.nodes[0].inputs;
        assert_eq!(inputs[DenseStack::places(1)[3]], Some(Param(2)));
        assert_eq!(inputs[DenseStack::places(1)[4]], Some(Param(3)));
        assert_eq!(inputs[DenseStack::places(2)[2]], Some(Input(1)));
        let Op::DenseStack(stack) = &passed.nodes[0].op else { panic!("no stack") };
        assert_eq!(stack.layers.iter().map(|l| l.norm).collect::<Vec<_>>(), [None, norm, None]);
    }

    #[test]
    fn what_others_read_or_change_stays() {
        // An output, two readers, a residual that is the layer before, and weights that are no parameters.
        let two = || vec![dense(Input(0)), dense(n(0))];
        assert_eq!(pass(&graph(two(), &[n(0), n(1)]), 9).0, [1, 1]);
        let mut three = two();
        three.push(dense(n(0)));
        assert_eq!(pass(&graph(three, &[n(1), n(2)]), 9).0, [1; 3]);
        let mut twice = two();
        twice[1].inputs.push(Some(n(0)));
        assert_eq!(pass(&graph(twice, &[n(1)]), 9).0, [1, 1]);
        let mut given = two();
        given[1].inputs[2] = None;
        given[1].inputs[1] = Some(n(0));
        given[0].inputs[0] = Some(Param(0));
        assert_eq!(pass(&graph(given, &[n(1)]), 9).0, [1, 1]);
    }
}
