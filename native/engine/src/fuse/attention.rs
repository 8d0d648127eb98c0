//! A frame of a layer of attention over a ring of keys and values, from the norm to the second residual,
//! as one node.

use super::parts;
use super::search::{Found, Layer, Search, is_constant};
use crate::op::{Activation, AttentionBlock, FlashAttention, Op, PutSlice};
use crate::program::{Node, Ref};

/// The layer whose attention this is, where all its weights are parameters, nobody else reads any of its
/// inner values, and the ring is a state that nobody reads as it was before.
pub(super) fn block(search: &Search, attend: usize) -> Option<Found> {
    let &Op::FlashAttention(
        attrs @ FlashAttention {
            causal: true,
            left: None,
            right: None,
            softcap: None,
            offset: None,
            lse: false,
            ..
        },
    ) = search.op(attend)
    else {
        return None;
    };
    let [q, k, v, bias, mask, length, number] = std::array::from_fn(|i| search.input(attend, i));
    if bias.or(mask).or(length).is_some() {
        return None;
    }
    let mut inner = vec![attend];

    // Back from attention: the halves of the ring, which the frame's key and value were put into.
    let q_slice = behind(search, q, (attend, 0), &mut inner)?;
    let halves = [(k, 1), (v, 2)].map(|(r, i)| behind(search, r, (attend, i), &mut inner));
    let [Some(keys), Some(values)] = halves else { return None };
    let ring @ Ref::Node(put, 0) = search.input(keys, 0)? else { return None };
    let Op::PutSlice(PutSlice { starts, axis: 2, wrap: true }) = search.op(put) else {
        return None;
    };
    let state @ Ref::State(_) = search.input(put, 0)? else { return None };
    let dead = search.uses.of_value(state) == [(put, 0)] && !search.uses.exported.contains(&state);
    let placed = starts.iter().all(|&s| s == 0) && search.input(put, 2) == Some(number?);
    if !(dead && placed && search.input(values, 0) == Some(ring)) {
        return None;
    }
    inner.push(put);
    let kv_slice = behind(search, search.input(put, 1), (put, 1), &mut inner)?;
    // q, k and v of all rows, one after the other; before, row by row; turned, and the projection.
    let apart = search.input(q_slice, 0)?;
    let order = search.inner(Some(apart), &[(q_slice, 0), (kv_slice, 0)])?;
    inner.push(order);
    let rope = behind(search, search.input(order, 0), (order, 0), &mut inner)?;
    let &Op::Rope(turn) = search.op(rope) else { return None };
    let (turned, places) = (search.input(rope, 0)?, search.input(rope, 1)?);
    let qkv = behind(search, Some(turned), (rope, 0), &mut inner)?;
    let qkv_w = search.product(qkv)?;
    let normed = search.inner(search.input(qkv, 0), &[(qkv, 0)])?;
    inner.push(normed);
    let (norm, x, [gamma, beta]) = parts(&search.graph.nodes[normed])?;

    // On from attention: the projection back, and the second half.
    let mut at = attend;
    let (out, 0) = (loop {
        let (reader, input) = search.reader(at)?;
        match search.op(reader) {
            Op::Reshape(_) => at = reader,
            _ => break (reader, input),
        }
        inner.push(reader);
    }) else {
        return None;
    };
    let sum = Ref::Node(out, 0);
    let &[(a, i), (b, j)] = search.uses.of_value(sum) else { return None };
    let ((second, 0, last, 3) | (last, 3, second, 0)) = (a, i, b, j) else { return None };
    search.inner(Some(sum), &[(second, 0), (last, 3)])?;
    let (ffn_norm, _, [ffn_gamma, ffn_beta]) = parts(&search.graph.nodes[second])?;
    let (up, 0) = search.reader(second)? else { return None };
    search.inner(search.input(last, 0), &[(last, 0)]).filter(|&n| n == up)?;
    inner.extend([out, second, up]);
    let Layer { activation: Activation::None, w: out_w, b: None, residual } = search.layer(out)?
    else {
        return None;
    };
    let Layer { activation, w: up_w, b: up_b, residual: None } = search.layer(up)? else {
        return None;
    };
    let Layer { activation: Activation::None, w: down_w, b: down_b, .. } = search.layer(last)?
    else {
        return None;
    };

    let shape = |r: Ref| search.spec(r).map(|s| s.shape());
    let &[2, rows, context, heads, size] = shape(ring)? else { return None };
    let reordered = match search.op(order) {
        Op::Transpose(transpose) => transpose.axes == [1, 0, 2, 3],
        Op::Reshape(_) => rows == 1,
        _ => false,
    };
    let fits = reordered
        && residual == Some(x)
        && shape(x)? == [rows, 1, heads * size]
        && shape(turned)? == [rows, 3, heads, size]
        && shape(places)? == [3]
        && shape(apart)? == [3, rows, heads, size]
        && shape(search.input(put, 1)?)? == [2, rows, 1, heads, size]
        && shape(q?)? == [rows, 1, heads, size]
        && shape(k?)? == [rows, context, heads, size]
        && search.part(q_slice, 0)? == (0, 1)
        && search.part(kv_slice, 0)? == (1, 2)
        && search.part(keys, 0)? == (0, 1)
        && search.part(values, 0)? == (1, 1);
    let constants = [gamma, beta, ffn_gamma, ffn_beta].into_iter().flatten().all(is_constant);
    if !(fits && constants) {
        return None;
    }
    let op = Op::AttentionBlock(AttentionBlock {
        norm,
        ffn_norm,
        activation,
        rope: turn,
        scale: attrs.scale(size),
    });
    let inputs = vec![
        Some(x),
        Some(qkv_w),
        Some(out_w),
        Some(up_w),
        up_b,
        Some(down_w),
        down_b,
        Some(state),
        Some(places),
        number,
        gamma,
        beta,
        ffn_gamma,
        ffn_beta,
    ];
    let node = Node { op, inputs };
    Some(Found { node, last, inner, moved: vec![(ring, 1)] })
}

/// The node that a value comes from, if need be through reshapes, where nobody but `reader` reads any of
/// it. All these are added to `inner`.
fn behind(
    search: &Search,
    mut value: Option<Ref>,
    mut reader: (usize, usize),
    inner: &mut Vec<usize>,
) -> Option<usize> {
    loop {
        let n = search.inner(value, &[reader])?;
        inner.push(n);
        match search.op(n) {
            Op::Reshape(_) => (value, reader) = (search.input(n, 0), (n, 0)),
            _ => return Some(n),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::fuse::search::replace;
    use crate::op::*;
    use crate::plan::{Plan, Values, plan};
    use crate::program::Graph;
    use crate::spec::{DType, Spec};
    use Ref::{Input, Param, State};

    const HEADS: usize = 2;
    const SIZE: usize = 4;
    const WIDTH: usize = HEADS * SIZE;
    const INNER: usize = 6;
    const CONTEXT: usize = 5;

    /// Where these ops stand in `graph`.
    const NORM: usize = 0;
    const QKV: usize = 1;
    const ROPE: usize = 3;
    const APART: usize = 4;
    const Q: usize = 5;
    const KV: usize = 6;
    const NUMBER: usize = 9;
    const PUT: usize = 10;
    const KEYS: usize = 11;
    const VALUES: usize = 13;
    const ATTEND: usize = 16;
    const OUT: usize = 18;
    const UP: usize = 20;
    const DOWN: usize = 21;
    const ALL: usize = 23;

    fn spec(dtype: DType, shape: &[usize]) -> Spec {
        Spec::new(dtype, shape).unwrap()
    }

    /// gamma, qkv, out, gamma of the second half, up, its bias, down, its bias; what the places of the
    /// next frame are further.
    fn params() -> Vec<Spec> {
        let shapes: [&[usize]; 8] = [
            &[WIDTH],
            &[WIDTH, 3 * WIDTH],
            &[WIDTH, WIDTH],
            &[WIDTH],
            &[WIDTH, INNER],
            &[INNER],
            &[INNER, WIDTH],
            &[WIDTH],
        ];
        let mut all: Vec<_> = shapes.iter().map(|shape| spec(DType::F32, shape)).collect();
        all.push(spec(DType::S32, &[3]));
        all
    }

    fn states(rows: usize) -> [Spec; 2] {
        [spec(DType::F32, &[2, rows, CONTEXT, HEADS, SIZE]), spec(DType::S32, &[3])]
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

    fn reshape(x: Option<Ref>, shape: &[usize]) -> Node {
        node(Op::Reshape(Reshape { shape: shape.to_vec() }), vec![x])
    }

    fn slice(x: Option<Ref>, start: usize, lengths: &[usize]) -> Node {
        let mut starts = vec![0; lengths.len()];
        starts[0] = start as i64;
        let (lengths, strides) = (lengths.to_vec(), vec![1; lengths.len()]);
        node(Op::Slice(Slice { starts, lengths, strides, axis: 0, wrap: false }), vec![x])
    }

    fn dense(activation: Activation, inputs: Vec<Option<Ref>>) -> Node {
        node(Op::Dense(Dense { activation, norm: None }), inputs)
    }

    const ATTENTION: FlashAttention = FlashAttention {
        scale: None,
        causal: true,
        left: None,
        right: None,
        softcap: None,
        offset: None,
        lse: false,
    };
    const TURN: Rope = Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false };
    const RMS: FusedNorm = FusedNorm { centred: false, epsilon: 0.5 };

    fn put() -> PutSlice {
        PutSlice { starts: vec![0; 5], axis: 2, wrap: true }
    }

    /// The ops of a layer for a frame of so many games.
    fn graph(rows: usize) -> Graph {
        let x = Some(Input(0));
        let ring = [1, rows, CONTEXT, HEADS, SIZE];
        let apart = match rows {
            1 => reshape(n(ROPE), &[3, 1, HEADS, SIZE]),
            _ => node(Op::Transpose(Transpose { axes: vec![1, 0, 2, 3] }), vec![n(ROPE)]),
        };
        let norm = Op::RmsNorm(Norm { epsilon: RMS.epsilon });
        let plain = Activation::None;
        let nodes = vec![
            node(norm.clone(), vec![x, p(0)]),
            dense(plain, vec![n(NORM), p(1)]),
            reshape(n(QKV), &[rows, 3, HEADS, SIZE]),
            node(Op::Rope(TURN), vec![n(2), Some(State(1))]),
            apart,
            slice(n(APART), 0, &[1, rows, HEADS, SIZE]),
            slice(n(APART), 1, &[2, rows, HEADS, SIZE]),
            reshape(n(KV), &[2, rows, 1, HEADS, SIZE]),
            slice(Some(State(1)), 0, &[1]),
            reshape(n(8), &[]),
            node(Op::PutSlice(put()), vec![Some(State(0)), n(7), n(NUMBER)]),
            slice(n(PUT), 0, &ring),
            reshape(n(KEYS), &ring[1..]),
            slice(n(PUT), 1, &ring),
            reshape(n(VALUES), &ring[1..]),
            reshape(n(Q), &[rows, 1, HEADS, SIZE]),
            node(
                Op::FlashAttention(ATTENTION),
                vec![n(15), n(12), n(14), None, None, None, n(NUMBER)],
            ),
            reshape(n(ATTEND), &[rows, 1, WIDTH]),
            dense(plain, vec![n(17), p(2), None, x]),
            node(norm, vec![n(OUT), p(3)]),
            dense(Activation::Gelu, vec![n(19), p(4), p(5)]),
            dense(plain, vec![n(UP), p(6), p(7), n(OUT)]),
            node(Op::Binary(Binary { kind: BinaryKind::Add }), vec![Some(State(1)), p(8)]),
        ];
        Graph {
            nodes,
            inputs: vec![spec(DType::F32, &[rows, 1, WIDTH])],
            outputs: vec![Ref::Node(DOWN, 0)],
            next_state: vec![Ref::Node(PUT, 0), Ref::Node(22, 0)],
        }
    }

    fn pass(graph: Graph, rows: usize) -> (Graph, Plan) {
        let (params, states) = (params(), states(rows));
        let values = Values::new(&graph, &params, &states).unwrap();
        let fused = replace(graph.clone(), &values, block, |op, inputs| {
            crate::infer::infer(op, inputs).unwrap();
            true
        });
        let fused = fused.unwrap();
        let plan = plan(&fused, &params, &states, |_, _| Ok(0), |_, _, _, _| false).unwrap();
        (fused, plan)
    }

    #[track_caller]
    fn untouched(graph: Graph) {
        let nodes = graph.nodes.len();
        assert_eq!(pass(graph, 2).0.nodes.len(), nodes);
    }

    fn cast(x: Option<Ref>) -> Node {
        node(Op::Cast(Cast { r#type: DType::F16 }), vec![x])
    }

    #[test]
    fn a_layer_is_one_node() {
        for rows in [1, 3] {
            let mut before = graph(rows);
            // What comes after the layer may read its ring, and the caller may have it.
            before.nodes.extend([cast(n(PUT)), cast(n(DOWN))]);
            before.outputs.extend([Ref::Node(ALL, 0), Ref::Node(ALL + 1, 0), Ref::Node(PUT, 0)]);
            let (got, plan) = pass(before, rows);
            // The number, twice the same, then the layer.
            assert_eq!(got.nodes.len(), 6);
            let op = AttentionBlock {
                norm: RMS,
                ffn_norm: RMS,
                activation: Activation::Gelu,
                rope: TURN,
                scale: 0.5,
            };
            assert_eq!(got.nodes[2].op, Op::AttentionBlock(op));
            let weights = [p(1), p(2), p(4), p(5), p(6), p(7)];
            let frame = [Some(State(0)), Some(State(1)), n(1)];
            let norms = [p(0), None, p(3), None];
            let expected = [&[Some(Input(0))][..], &weights, &frame, &norms].concat();
            assert_eq!(got.nodes[2].inputs, expected);
            let ring = Ref::Node(2, 1);
            assert_eq!(got.nodes[4].inputs, [Some(ring)]);
            assert_eq!(got.nodes[5].inputs, [n(2)]);
            let outputs = [Ref::Node(2, 0), Ref::Node(4, 0), Ref::Node(5, 0), ring];
            assert_eq!(got.outputs, outputs);
            assert_eq!(got.next_state, [ring, Ref::Node(3, 0)]);
            // The ring has one slot, and a run for nobody writes it once more at the same place.
            let [(slots, _), (turns, _)] = &plan.states[..] else { panic!() };
            assert!(slots[0] == slots[1] && turns[0] != turns[1] && plan.repeatable);
        }
    }

    #[test]
    fn a_place_from_an_input_is_not_repeated() {
        let mut placed = graph(2);
        placed.inputs.push(spec(DType::S32, &[]));
        placed.nodes[PUT].inputs[2] = Some(Input(1));
        placed.nodes[ATTEND].inputs[6] = Some(Input(1));
        let (got, plan) = pass(placed, 2);
        assert!(got.nodes.len() < ALL && !plan.repeatable);
    }

    #[test]
    fn what_others_read_keeps_the_ops() {
        for inner in (0..DOWN).filter(|i| ![8, NUMBER, PUT].contains(i)) {
            let mut seen = graph(2);
            seen.outputs.push(Ref::Node(inner, 0));
            untouched(seen);
            let mut read = graph(2);
            read.nodes.push(cast(n(inner)));
            untouched(read);
        }
        // The ring as it was, by a reader, the caller and another state; the new one too early.
        let mut read = graph(2);
        read.nodes.push(cast(Some(State(0))));
        untouched(read);
        let mut seen = graph(2);
        seen.outputs.push(State(0));
        untouched(seen);
        let mut early = graph(2);
        early.nodes.insert(UP, cast(n(PUT)));
        early.nodes[DOWN + 1].inputs[0] = n(UP + 1);
        early.outputs = vec![Ref::Node(DOWN + 1, 0)];
        early.next_state[1] = Ref::Node(ALL, 0);
        untouched(early);
    }

    #[test]
    fn what_is_no_such_layer_keeps_the_ops() {
        let change = |f: &dyn Fn(&mut Graph)| {
            let mut other = graph(2);
            f(&mut other);
            untouched(other);
        };
        // Weights and norms from outside.
        for (at, input) in [(NORM, 1), (QKV, 1), (OUT, 1), (19, 1), (UP, 2), (DOWN, 1), (DOWN, 2)] {
            change(&|g| {
                let Some(Param(i)) = g.nodes[at].inputs[input] else { panic!() };
                g.inputs.push(params().remove(i));
                g.nodes[at].inputs[input] = Some(Input(1));
            });
        }
        // Other attention.
        for attrs in [
            FlashAttention { causal: false, ..ATTENTION },
            FlashAttention { left: Some(3), ..ATTENTION },
            FlashAttention { right: Some(0), ..ATTENTION },
            FlashAttention { softcap: Some(3.0), ..ATTENTION },
        ] {
            change(&|g| g.nodes[ATTEND].op = Op::FlashAttention(attrs));
        }
        change(&|g| {
            g.nodes[ATTEND].op =
                Op::FlashAttention(FlashAttention { offset: Some(2), ..ATTENTION });
            g.nodes[ATTEND].inputs.truncate(3);
        });
        // A mask, and a number of its own.
        change(&|g| {
            g.inputs.push(spec(DType::U8, &[2, CONTEXT]));
            g.nodes[ATTEND].inputs[4] = Some(Input(1));
        });
        change(&|g| {
            g.inputs.push(spec(DType::S32, &[]));
            g.nodes[ATTEND].inputs[6] = Some(Input(1));
        });
        // Another place in the ring.
        change(&|g| g.nodes[PUT].op = Op::PutSlice(PutSlice { wrap: false, ..put() }));
        change(&|g| {
            g.nodes[PUT].op = Op::PutSlice(PutSlice { starts: vec![0, 0, 1, 0, 0], ..put() })
        });
        change(&|g| g.nodes[PUT].op = Op::PutSlice(PutSlice { axis: 1, ..put() }));
        // Keys where values are, and other parts.
        change(&|g| g.nodes.swap(KEYS, VALUES));
        change(&|g| g.nodes[Q] = slice(n(APART), 2, &[1, 2, HEADS, SIZE]));
        change(&|g| g.nodes[KV] = slice(n(APART), 0, &[2, 2, HEADS, SIZE]));
        // Another order, a place for each game.
        change(&|g| g.nodes[APART] = reshape(n(ROPE), &[3, 2, HEADS, SIZE]));
        change(&|g| {
            g.inputs.push(spec(DType::S32, &[2, 3]));
            g.nodes[ROPE].inputs[1] = Some(Input(1));
        });
        // Activations, residuals and biases that it has not.
        let active = |g: &mut Graph, at: usize| {
            g.nodes[at].op = Op::Dense(Dense { activation: Activation::Relu, norm: None });
        };
        for at in [QKV, OUT, DOWN] {
            change(&|g| active(g, at));
        }
        change(&|g| g.nodes[OUT].inputs[2] = p(7));
        change(&|g| g.nodes[OUT].inputs[3] = None);
        change(&|g| g.nodes[DOWN].inputs[3] = Some(Input(0)));
        change(&|g| {
            g.inputs.push(spec(DType::F32, &[2, 1, INNER]));
            g.nodes[UP].inputs.push(Some(Input(1)));
        });
    }
}
