//! Where values lie: outputs, temporaries, slices, states and rings.

use nitrox_engine::op::*;
use nitrox_engine::program::Ref::{Input, Param, State};
use nitrox_engine::program::{Feed, Graph, Mode, Program, Session};

use crate::{
    binary, bytes, devices, done, eager, f32s, floats, n, node, options, put, step, tensor, values,
};

#[test]
fn outputs_outlive_later_runs() {
    for device in devices() {
        for readback in [false, true] {
            let p = tensor(&device, &[3], &[1.0, 2.0, 3.0]);
            let graph = Graph {
                nodes: vec![
                    binary(BinaryKind::Add, Input(0), Param(0)),
                    binary(BinaryKind::Multiply, n(0), n(0)),
                ],
                inputs: vec![f32s(&[3])],
                // A temporary, the input and the parameter themselves, and one value twice.
                outputs: vec![n(1), Input(0), Param(0), n(1)],
                next_state: vec![],
            };
            let program =
                Program::compile(&device, graph, vec![p], vec![], options(readback)).unwrap();
            let run = |x: &[f32]| {
                let x = bytes(x);
                done(program.run(&[Feed::Bytes(&x)], Mode::Block).unwrap())
            };
            let first = run(&[0.0, 0.0, 0.0]);
            let x = tensor(&device, &[3], &[1.0, 1.0, 1.0]);
            let second = done(program.run(&[Feed::Tensor(&x)], Mode::Block).unwrap());
            drop(x);
            for (outputs, x) in [(first, 0.0), (second, 1.0)] {
                let square: Vec<f32> = [1.0, 2.0, 3.0].iter().map(|p| (p + x) * (p + x)).collect();
                assert_eq!(values(&outputs[0]), square);
                assert_eq!(values(&outputs[1]), [x; 3]);
                assert_eq!(values(&outputs[2]), [1.0, 2.0, 3.0]);
                assert_eq!(values(&outputs[3]), square);
            }
        }
    }
}

#[test]
fn temporaries_share_the_arena() {
    for device in devices() {
        let mut nodes = vec![binary(BinaryKind::Add, Input(0), Input(0))];
        for i in 0..20 {
            nodes.push(node(Op::Unary(Unary { kind: UnaryKind::Negate }), &[n(i)]));
        }
        let graph =
            Graph { nodes, inputs: vec![f32s(&[1024])], outputs: vec![n(20)], next_state: vec![] };
        let program = Program::compile(&device, graph, vec![], vec![], options(true)).unwrap();
        // Input, output and two temporaries by turns.
        assert_eq!(program.info().arena_bytes, 4 * 4096);
        let x = bytes(&vec![1.5; 1024]);
        let outputs = done(program.run(&[Feed::Bytes(&x)], Mode::Block).unwrap());
        assert_eq!(values(&outputs[0]), vec![3.0; 1024]);
    }
}

#[test]
fn a_slice_that_lies_together_is_no_step() {
    let slice = |x, starts: &[i64], lengths: &[usize], wrap| {
        let (starts, lengths) = (starts.to_vec(), lengths.to_vec());
        node(Op::Slice(Slice { starts, lengths, strides: vec![1, 1], axis: 1, wrap }), &[x])
    };
    let negate = |x| node(Op::Unary(Unary { kind: UnaryKind::Negate }), &[x]);
    // What is sliced from, how, and the steps: the negation of a part of the sum, or the slice too.
    let cases = [
        ([1, 24], [0, 8], [1, 8], false, 2),
        // Moved back until it fits, to place 16.
        ([1, 24], [0, 20], [1, 8], false, 2),
        // Whole rows.
        ([6, 8], [2, 0], [3, 8], false, 2),
        // Not at a multiple of 16 bytes; in two parts; over the end of a ring; a column; none.
        ([1, 24], [0, 7], [1, 8], false, 3),
        ([2, 24], [0, 8], [2, 8], false, 3),
        ([1, 24], [0, 20], [1, 8], true, 3),
        ([6, 8], [0, 0], [6, 1], false, 3),
        ([6, 8], [0, 0], [0, 8], false, 3),
    ];
    for device in devices() {
        for (shape, starts, lengths, wrap, steps) in cases {
            let nodes = vec![
                binary(BinaryKind::Add, Input(0), Input(0)),
                slice(n(0), &starts, &lengths, wrap),
                negate(n(1)),
            ];
            let graph = Graph {
                nodes,
                inputs: vec![f32s(&shape)],
                outputs: vec![n(2)],
                next_state: vec![],
            };
            let program =
                Program::compile(&device, graph.clone(), vec![], vec![], options(true)).unwrap();
            assert_eq!(program.info().steps, steps, "{shape:?} {starts:?} {lengths:?}");
            let x: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
            let outputs = done(program.run(&[Feed::Bytes(&bytes(&x))], Mode::Block).unwrap());
            let (expected, _) = eager(&device, &graph, &[], &[tensor(&device, &shape, &x)], &[]);
            assert_eq!(
                values(&outputs[0]),
                floats(&expected[0].to_bytes().unwrap()),
                "{shape:?} {starts:?} {lengths:?}"
            );
            // What the caller gets is a slice of its own size.
            let graph = Graph { outputs: vec![n(1)], ..graph };
            let program =
                Program::compile(&device, graph.clone(), vec![], vec![], options(true)).unwrap();
            let outputs = done(program.run(&[Feed::Bytes(&bytes(&x))], Mode::Block).unwrap());
            let (expected, _) = eager(&device, &graph, &[], &[tensor(&device, &shape, &x)], &[]);
            assert_eq!(
                values(&outputs[0]),
                floats(&expected[0].to_bytes().unwrap()),
                "{shape:?} {starts:?} {lengths:?}"
            );
        }
    }
}

#[test]
fn states_swap_pass_through_and_come_out() {
    for device in devices() {
        let state = vec![
            tensor(&device, &[2], &[1.0, 2.0]),
            tensor(&device, &[2], &[10.0, 20.0]),
            tensor(&device, &[2], &[7.0, 8.0]),
            tensor(&device, &[2], &[0.0, 0.0]),
        ];
        let graph = Graph {
            nodes: vec![binary(BinaryKind::Add, State(3), Input(0))],
            inputs: vec![f32s(&[2])],
            outputs: vec![State(0), State(1), State(2), n(0), State(3)],
            next_state: vec![State(1), State(0), State(2), n(0)],
        };
        let program = Program::compile(&device, graph, vec![], state, options(true)).unwrap();
        let session = Session::new(&program).unwrap();
        for i in 0..5 {
            let out = step(&session, &[1.0, 2.0]);
            let (a, b) = ([1.0, 2.0], [10.0, 20.0]);
            let t = i as f32;
            assert_eq!(out[0], if i % 2 == 0 { a } else { b }, "frame {i}");
            assert_eq!(out[1], if i % 2 == 0 { b } else { a }, "frame {i}");
            assert_eq!(out[2], [7.0, 8.0]);
            assert_eq!(out[3], [t + 1.0, 2.0 * (t + 1.0)]);
            assert_eq!(out[4], [t, 2.0 * t]);
        }
    }
}

#[test]
fn a_ring_is_written_in_place_unless_the_old_one_is_read() {
    for device in devices() {
        for old_is_read in [false, true] {
            let ring = tensor(&device, &[64, 16], &[0.0; 1024]);
            let outputs = if old_is_read { vec![n(0), State(0)] } else { vec![n(0)] };
            let graph = Graph {
                nodes: vec![put(State(0), Input(0), &[3, 0])],
                inputs: vec![f32s(&[1, 16])],
                outputs,
                next_state: vec![n(0)],
            };
            let program =
                Program::compile(&device, graph, vec![], vec![ring], options(true)).unwrap();
            let slots = if old_is_read { 2 } else { 1 };
            assert_eq!(program.info().arena_bytes, 256 + slots * 4096);
            let session = Session::new(&program).unwrap();
            let mut expected = vec![0.0; 1024];
            for i in 1..4 {
                let out = step(&session, &[i as f32; 16]);
                if old_is_read {
                    assert_eq!(out[1], expected);
                }
                expected[48..64].fill(i as f32);
                assert_eq!(out[0], expected);
            }
        }
    }
}
