//! Recurrent layers one upon the other, a window of each, as one node.

use std::collections::BTreeSet;

use super::search::longest;
use super::{Uses, parts, without};
use crate::error::Result;
use crate::op::{FusedNorm, Op, Recurrent, RecurrentStack};
use crate::plan::Values;
use crate::program::{Graph, Node, Ref};
use crate::spec::Spec;

/// Makes one node of layers of one kind and direction whose weights are parameters, where x of each is
/// the seq of the one before, or a norm of it, that nobody else reads; as many of a row as the device
/// does in one launch.
pub(super) fn stacks(
    graph: Graph,
    values: &Values,
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Graph> {
    let search = Search { graph: &graph, uses: Uses::of(&graph) };
    let mut nodes = graph.nodes.clone();
    let (mut gone, mut moved, mut taken) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    for n in 0..graph.nodes.len() {
        if taken.contains(&n) {
            continue;
        }
        let found = longest(search.row(n), values, |row| search.node(row), &can)?;
        let Some((node, row)) = found else { continue };
        let Some(&Layer { at: last, .. }) = row.last() else { continue };
        let states = search.states(n);
        for (l, layer) in row.iter().enumerate() {
            let own = (0..states).map(|k| (layer.at, 1 + k, 1 + l * states + k));
            moved.extend(own.map(|(at, k, to)| (Ref::Node(at, k), Ref::Node(last, to))));
            gone.extend(layer.norm.map(|(norm, ..)| norm));
            gone.insert(layer.at);
            taken.insert(layer.at);
        }
        gone.remove(&last);
        nodes[last] = node;
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

/// A layer of a row.
#[derive(Clone, Copy)]
struct Layer {
    at: usize,
    /// The node of the norm before it, what it does, its gamma and beta.
    norm: Option<(usize, FusedNorm, [Option<Ref>; 2])>,
}

struct Search<'a> {
    graph: &'a Graph,
    uses: Uses,
}

impl Search<'_> {
    /// The layers from a node on, as far as they go.
    fn row(&self, first: usize) -> Vec<Layer> {
        let mut row = Vec::new();
        let mut next = self.fits(first).then_some(Layer { at: first, norm: None });
        while let Some(layer) = next {
            row.push(layer);
            next = self.above(layer.at);
        }
        row
    }

    /// Whether a node is a layer of nothing but parameters, x, a mask and states.
    fn fits(&self, n: usize) -> bool {
        let Node { op, inputs } = &self.graph.nodes[n];
        let wi = match op {
            Op::Lstm(Recurrent { norm: None, .. }) => 3,
            Op::Gru(Recurrent { norm: None, .. }) => 2,
            _ => return false,
        };
        let input = |i: usize| inputs.get(i).copied().flatten();
        let constant = |i| input(i).is_none_or(|r| matches!(r, Ref::Param(_)));
        (wi..wi + 3).all(constant) && input(wi).is_some() && input(wi + 1).is_some()
    }

    /// The layer whose x comes of this one's seq, and of nothing else.
    fn above(&self, n: usize) -> Option<Layer> {
        let (reader, norm) = match self.only_reader(n)? {
            norm if self.fits(norm) => (norm, None),
            norm => {
                let (attrs, _, affine) = parts(&self.graph.nodes[norm])?;
                let constant = |r: &Option<Ref>| r.is_none_or(|r| matches!(r, Ref::Param(_)));
                affine.iter().all(constant).then_some(())?;
                (self.only_reader(norm)?, Some((norm, attrs, affine)))
            }
        };
        let alike = match (&self.graph.nodes[n].op, &self.graph.nodes[reader].op) {
            (Op::Lstm(a), Op::Lstm(b)) | (Op::Gru(a), Op::Gru(b)) => a.reverse == b.reverse,
            _ => false,
        };
        (alike && self.fits(reader)).then_some(Layer { at: reader, norm })
    }

    /// The node that takes this one's first output as its x, where nobody else takes it as anything.
    fn only_reader(&self, n: usize) -> Option<usize> {
        let value = Ref::Node(n, 0);
        match self.uses.of_value(value) {
            &[(reader, 0)] if !self.uses.exported.contains(&value) => Some(reader),
            _ => None,
        }
    }

    /// Final states of a layer.
    fn states(&self, n: usize) -> usize {
        if matches!(self.graph.nodes[n].op, Op::Lstm(_)) { 2 } else { 1 }
    }

    /// The layers as one node in the place of the last; none where a final state is read before that.
    fn node(&self, row: &[Layer]) -> Option<Node> {
        let (first, last) = (row.first()?.at, row.last()?.at);
        let (lstm, attrs) = match &self.graph.nodes[first].op {
            Op::Lstm(attrs) => (true, attrs),
            Op::Gru(attrs) => (false, attrs),
            _ => return None,
        };
        let later = |r: Ref| self.uses.of_value(r).iter().all(|&(reader, _)| reader > last);
        let mut inputs = vec![self.graph.nodes[first].inputs.first().copied().flatten()];
        for layer in row {
            let own = &self.graph.nodes[layer.at].inputs;
            if !(1..=self.states(first)).all(|k| later(Ref::Node(layer.at, k))) {
                return None;
            }
            inputs.extend((!lstm).then_some(None));
            let to_mask = if lstm { 1..7 } else { 1..6 };
            inputs.extend(to_mask.map(|i| own.get(i).copied().flatten()));
            inputs.extend(layer.norm.map_or([None; 2], |(_, _, affine)| affine));
        }
        let norms = row.iter().map(|l| l.norm.map(|(_, norm, _)| norm)).collect();
        let op = Op::RecurrentStack(RecurrentStack { lstm, reverse: attrs.reverse, norms });
        Some(Node { op, inputs })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::op::{Cast, Norm};
    use crate::spec::DType;
    use Ref::{Input, Param, State};

    const TIME: usize = 6;

    fn n(i: usize) -> Option<Ref> {
        Some(Ref::Node(i, 0))
    }

    fn spec(shape: &[usize]) -> Spec {
        Spec::new(DType::F32, shape).unwrap()
    }

    /// gamma, beta, wi, wh and b of LSTMs, then wi and wh of GRUs; all of width 4.
    fn params() -> Vec<Spec> {
        let shapes: [&[usize]; 7] = [&[4], &[4], &[4, 16], &[4, 16], &[16], &[4, 12], &[4, 12]];
        shapes.map(spec).to_vec()
    }

    fn lstm(x: Option<Ref>, state: usize) -> Node {
        let op = Op::Lstm(Recurrent { reverse: false, norm: None });
        let (c, h) = (Some(State(state)), Some(State(state + 1)));
        Node { op, inputs: vec![x, c, h, Some(Param(2)), Some(Param(3)), Some(Param(4))] }
    }

    fn gru(x: Option<Ref>, mask: Option<Ref>) -> Node {
        let op = Op::Gru(Recurrent { reverse: true, norm: None });
        Node { op, inputs: vec![x, None, Some(Param(5)), Some(Param(6)), None, mask] }
    }

    fn layer_norm(x: Option<Ref>) -> Node {
        let op = Op::LayerNorm(Norm { epsilon: 0.5 });
        Node { op, inputs: vec![x, Some(Param(0)), Some(Param(1))] }
    }

    fn cast(x: Ref) -> Node {
        Node { op: Op::Cast(Cast { r#type: DType::F16 }), inputs: vec![Some(x)] }
    }

    /// Two LSTMs with a norm between, a norm after them.
    fn two() -> Graph {
        Graph {
            nodes: vec![lstm(Some(Input(0)), 0), layer_norm(n(0)), lstm(n(1), 2), layer_norm(n(2))],
            inputs: vec![spec(&[2, TIME, 4]), Spec::new(DType::U8, [2, TIME]).unwrap()],
            outputs: vec![Ref::Node(3, 0)],
            next_state: [(0, 1), (0, 2), (2, 1), (2, 2)].map(|(n, k)| Ref::Node(n, k)).to_vec(),
        }
    }

    /// What it comes to on a device that does up to so many layers in a launch.
    fn pass_up_to(most: usize, graph: Graph) -> Graph {
        let (params, states) = (params(), [0; 4].map(|_| spec(&[2, 4])));
        let values = Values::new(&graph, &params, &states).unwrap();
        let fused = stacks(graph.clone(), &values, |op, inputs| {
            crate::infer::infer(op, inputs).unwrap();
            matches!(op, Op::RecurrentStack(op) if op.norms.len() <= most)
        });
        let fused = fused.unwrap();
        crate::plan::plan(&fused, &params, &states, |_, _| Ok(0), |_, _, _, _| false).unwrap();
        fused
    }

    #[track_caller]
    fn untouched(graph: Graph) {
        assert_eq!(pass_up_to(4, graph.clone()).nodes.len(), graph.nodes.len());
    }

    #[test]
    fn layers_and_their_norms_are_one_node() {
        let got = pass_up_to(4, two());
        assert_eq!(got.nodes.len(), 2);
        let norms = vec![None, Some(FusedNorm { centred: true, epsilon: 0.5 })];
        let op = Op::RecurrentStack(RecurrentStack { lstm: true, reverse: false, norms });
        assert_eq!(got.nodes[0].op, op);
        let own = |state: usize, affine: [Option<Ref>; 2]| {
            let [wi, wh, b] = [2, 3, 4].map(|i| Some(Param(i)));
            let [c, h] = [state, state + 1].map(|i| Some(State(i)));
            [&[c, h, wi, wh, b, None][..], &affine].concat()
        };
        let x = vec![Some(Input(0))];
        let affine = [Some(Param(0)), Some(Param(1))];
        assert_eq!(got.nodes[0].inputs, [x, own(0, [None; 2]), own(2, affine)].concat());
        assert_eq!(got.nodes[1].inputs[0], n(0));
        assert_eq!(got.outputs, [Ref::Node(1, 0)]);
        assert_eq!(got.next_state, [1, 2, 3, 4].map(|k| Ref::Node(0, k)));
    }

    #[test]
    fn as_many_as_go_together() {
        let rows = |most: usize| {
            let mut graph = two();
            graph.nodes = (0..5)
                .map(|i| gru(if i == 0 { Some(Input(0)) } else { n(i - 1) }, Some(Input(1))))
                .collect();
            graph.outputs = vec![Ref::Node(4, 0)];
            graph.next_state = [0, 1, 3, 4].map(|i| Ref::Node(i, 1)).to_vec();
            pass_up_to(most, graph)
        };
        let sizes = |graph: &Graph| -> Vec<usize> {
            let size = |node: &Node| match &node.op {
                Op::RecurrentStack(op) => op.norms.len(),
                _ => 1,
            };
            graph.nodes.iter().map(size).collect()
        };
        assert_eq!(sizes(&rows(5)), [5]);
        let three = rows(3);
        assert_eq!(sizes(&three), [3, 2]);
        let states = [(0, 1), (0, 2), (1, 1), (1, 2)].map(|(n, k)| Ref::Node(n, k));
        assert_eq!(three.next_state, states);
        assert_eq!(three.nodes[1].inputs[0], n(0));
        assert_eq!(sizes(&rows(2)), [2, 2, 1]);
        assert_eq!(sizes(&rows(1)), [1; 5]);
    }

    #[test]
    fn what_others_read_stays() {
        for seen in [0, 1] {
            let mut graph = two();
            graph.outputs.push(Ref::Node(seen, 0));
            untouched(graph);
            let mut graph = two();
            graph.nodes.push(cast(Ref::Node(seen, 0)));
            untouched(graph);
        }
        // The last one's may be read by all.
        let mut graph = two();
        graph.outputs.push(Ref::Node(2, 0));
        assert_eq!(pass_up_to(4, graph).outputs, [Ref::Node(1, 0), Ref::Node(0, 0)]);
    }

    #[test]
    fn a_state_that_is_read_before_the_end_stays() {
        // By the layer above, as a decoder's first state; by another between the two.
        let mut decoder = two();
        decoder.nodes[2].inputs[2] = Some(Ref::Node(0, 2));
        untouched(decoder);
        let mut between = two();
        between.nodes[2] = cast(Ref::Node(0, 1));
        between.nodes[3] = lstm(n(1), 2);
        between.outputs = vec![Ref::Node(2, 0), Ref::Node(3, 0)];
        between.next_state =
            [(0, 1), (0, 2), (3, 1), (3, 2)].map(|(n, k)| Ref::Node(n, k)).to_vec();
        untouched(between);
    }

    #[test]
    fn other_layers_stay() {
        // Another direction, another cell, weights that come from outside, a norm with a residual.
        let mut back = two();
        back.nodes[2].op = Op::Lstm(Recurrent { reverse: true, norm: None });
        untouched(back);
        let mut mixed = two();
        mixed.nodes[2] = gru(n(1), None);
        mixed.next_state[2..].copy_from_slice(&[Ref::Node(2, 1), Ref::Node(2, 1)]);
        untouched(mixed);
        let mut fed = two();
        fed.inputs.push(spec(&[4, 16]));
        fed.nodes[2].inputs[3] = Some(Input(2));
        untouched(fed);
        let mut added = two();
        added.nodes[1].inputs.push(Some(Input(0)));
        untouched(added);
    }
}
