//! Finding a whole block of ops in a graph, and putting one node in its place.

use std::collections::BTreeSet;

use super::{Uses, without};
use crate::error::Result;
use crate::op::{Activation, Dense, Op, Slice};
use crate::plan::Values;
use crate::program::{Graph, Node, Ref};
use crate::spec::Spec;

pub(super) struct Found {
    /// Its first output is that of `last`.
    pub node: Node,
    /// The op that ends the block, in whose place the node comes.
    pub last: usize,
    /// All others.
    pub inner: Vec<usize>,
    /// Values of these that others may read, and the node's outputs that they become.
    pub moved: Vec<(Ref, usize)>,
}

/// Makes one node of every block that is found from one of its ops on, where the device does it in one
/// launch.
pub(super) fn replace(
    graph: Graph,
    values: &Values,
    find: impl Fn(&Search, usize) -> Option<Found>,
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Graph> {
    let found: Vec<Found> = {
        let search = Search { graph: &graph, values, uses: Uses::of(&graph) };
        let nodes = 0..graph.nodes.len();
        nodes.filter_map(|n| find(&search, n)).filter(|found| search.ends(found)).collect()
    };
    let mut nodes = graph.nodes.clone();
    let (mut gone, mut moved) = (BTreeSet::new(), Vec::new());
    for block in found {
        if can(&block.node.op, &values.specs(&block.node.inputs)?) {
            nodes[block.last] = block.node;
            gone.extend(block.inner);
            moved.extend(block.moved.into_iter().map(|(r, k)| (r, Ref::Node(block.last, k))));
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

/// The node that so many of a row's first layers make, as many as the device does in one launch, and these layers; none
/// where that is less than two.
pub(super) fn longest<L>(
    mut row: Vec<L>,
    values: &Values,
    node: impl Fn(&[L]) -> Option<Node>,
    can: impl Fn(&Op, &[Option<&Spec>]) -> bool,
) -> Result<Option<(Node, Vec<L>)>> {
    while row.len() >= 2 {
        match node(&row) {
            Some(node) if can(&node.op, &values.specs(&node.inputs)?) => {
                return Ok(Some((node, row)));
            }
            _ => row.pop(),
        };
    }
    Ok(None)
}

/// A dense layer of weights that are parameters.
pub(super) struct Layer {
    pub activation: Activation,
    pub w: Ref,
    pub b: Option<Ref>,
    pub residual: Option<Ref>,
}

pub(super) struct Search<'a> {
    pub graph: &'a Graph,
    pub values: &'a Values<'a>,
    pub uses: Uses,
}

impl Search<'_> {
    pub fn op(&self, n: usize) -> &Op {
        &self.graph.nodes[n].op
    }

    pub fn input(&self, n: usize, i: usize) -> Option<Ref> {
        self.graph.nodes[n].inputs.get(i).copied().flatten()
    }

    pub fn spec(&self, r: Ref) -> Option<&Spec> {
        self.values.spec(r).ok()
    }

    /// The node whose first output this is, and which nobody but `readers` reads, once each.
    pub fn inner(&self, r: Option<Ref>, readers: &[(usize, usize)]) -> Option<usize> {
        let Some(value @ Ref::Node(n, 0)) = r else { return None };
        let mut uses = self.uses.of_value(value).to_vec();
        let mut expected = readers.to_vec();
        uses.sort_unstable();
        expected.sort_unstable();
        (uses == expected && !self.uses.exported.contains(&value)).then_some(n)
    }

    /// The one reader of a node's first output, and as which of its inputs.
    pub fn reader(&self, n: usize) -> Option<(usize, usize)> {
        let value = Ref::Node(n, 0);
        let &[reader] = self.uses.of_value(value) else { return None };
        (!self.uses.exported.contains(&value)).then_some(reader)
    }

    pub fn layer(&self, n: usize) -> Option<Layer> {
        let &Op::Dense(Dense { activation, norm: None }) = self.op(n) else { return None };
        let (b, residual) = (self.input(n, 2), self.input(n, 3));
        let w = constant(self.input(n, 1))?;
        b.is_none_or(is_constant).then_some(Layer { activation, w, b, residual })
    }

    /// The weights of a dense layer that does nothing else.
    pub fn product(&self, n: usize) -> Option<Ref> {
        match self.layer(n)? {
            Layer { activation: Activation::None, w, b: None, residual: None } => Some(w),
            _ => None,
        }
    }

    /// Of a slice along one axis: where it begins, and its length.
    pub fn part(&self, n: usize, axis: usize) -> Option<(usize, usize)> {
        let Op::Slice(Slice { starts, lengths, strides, wrap, .. }) = self.op(n) else {
            return None;
        };
        let x = self.spec(self.input(n, 0)?)?;
        let mut others = (0..x.rank()).filter(|&i| i != axis);
        let whole = others.all(|i| starts[i] == 0 && lengths[i] == x.shape()[i]);
        let fixed = self.input(n, 1).is_none() && !wrap && strides.iter().all(|&s| s == 1);
        let (start, length) = (usize::try_from(*starts.get(axis)?).ok()?, lengths[axis]);
        (whole && fixed && start + length <= x.shape()[axis]).then_some((start, length))
    }

    /// Whether what others read of the block is read after it: it is there only then.
    fn ends(&self, found: &Found) -> bool {
        found.moved.iter().all(|&(r, _)| {
            let mut readers = self.uses.of_value(r).iter();
            readers.all(|&(n, _)| n > found.last || found.inner.contains(&n))
        })
    }
}

/// A parameter: its values are those of every run.
pub(super) fn constant(r: Option<Ref>) -> Option<Ref> {
    r.filter(|&r| is_constant(r))
}

pub(super) fn is_constant(r: Ref) -> bool {
    matches!(r, Ref::Param(_))
}
