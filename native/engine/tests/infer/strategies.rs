//! Ops, specs and lists of inputs at random, and lists that an op might well take.

use nitrox_engine::op::*;
use nitrox_engine::{DType, Spec};
use proptest::prelude::*;
use proptest::sample::select;

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::Tanh];

pub fn length() -> impl Strategy<Value = usize> {
    let huge = vec![
        1 << 20,
        1 << 31,
        (1 << 31) - 1,
        1 << 32,
        1 << 40,
        (1 << 61) - 1,
        1 << 62,
        isize::MAX as usize,
        usize::MAX - 1,
        usize::MAX,
    ];
    prop_oneof![6 => 0..6usize, 1 => select(huge)]
}

pub fn dtype() -> impl Strategy<Value = DType> {
    select(DType::ALL.to_vec())
}

/// A spec of any type and of 0 to 8 axes, whatever of those fits the address space.
pub fn any_spec() -> impl Strategy<Value = Spec> {
    (dtype(), prop::collection::vec(length(), 0..9))
        .prop_filter_map("overflows", |(dtype, shape)| Spec::new(dtype, shape).ok())
}

pub fn axis() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -9..9i64, 1 => select(vec![i64::MIN, i64::MAX, 1 << 32])]
}

pub fn number() -> impl Strategy<Value = f64> {
    select(vec![0.0, 1e-5, 0.5, 1.0, -1.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])
}

pub fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(length(), 0..10)
}

pub fn starts() -> impl Strategy<Value = Vec<i64>> {
    let start = prop_oneof![4 => -9..9i64, 1 => select(vec![i64::MIN, i64::MAX])];
    prop::collection::vec(start, 0..10)
}

pub fn sequence_op() -> impl Strategy<Value = Op> {
    let kind = select(vec![None, Some(NormKind::LayerNorm), Some(NormKind::RmsNorm)]);
    prop_oneof![
        select(ACTIVATIONS.to_vec())
            .prop_map(|activation| Op::CausalConv1d(CausalConv1d { activation })),
        select(ACTIVATIONS.to_vec()).prop_map(|activation| Op::GatedMlp(GatedMlp { activation })),
        (number(), number(), prop::option::of(length()), any::<bool>()).prop_map(
            |(base, scale, dims, interleaved)| Op::Rope(Rope { base, scale, dims, interleaved })
        ),
        (any::<bool>(), prop::option::of((number(), number())), kind, number()).prop_map(
            |(dt_softplus, dt_clamp, norm, epsilon)| {
                Op::SelectiveScan(SelectiveScan { dt_softplus, dt_clamp, norm, epsilon })
            }
        ),
    ]
}

pub fn flash_attention() -> impl Strategy<Value = FlashAttention> {
    let rare = || prop::option::weighted(0.2, number());
    let many = || prop::option::of(length());
    let start = prop::option::weighted(0.2, axis());
    let options = (rare(), any::<bool>(), many(), many(), rare(), start);
    (options, any::<bool>()).prop_map(|((scale, causal, left, right, softcap, offset), lse)| {
        FlashAttention { scale, causal, left, right, softcap, offset, lse }
    })
}

fn dot() -> impl Strategy<Value = Dot> {
    let axes = || prop::collection::vec(length(), 0..4);
    let batch = || (0..3usize).prop_map(|n| (0..n).collect::<Vec<_>>());
    let any =
        (axes(), axes(), axes(), axes()).prop_map(|(contract_a, batch_a, contract_b, batch_b)| {
            Dot { contract_a, batch_a, contract_b, batch_b }
        });
    let likely = (batch(), 0..3usize).prop_map(|(batch, at)| Dot {
        contract_a: vec![batch.len() + at],
        batch_a: batch.clone(),
        contract_b: vec![batch.len()],
        batch_b: batch,
    });
    prop_oneof![any, likely]
}

fn conv() -> impl Strategy<Value = Conv> {
    let ends = vec![0, 1, 3, -1, -2, i64::MAX, i64::MIN, i64::from(i32::MAX)];
    let padding = prop::collection::vec(prop::collection::vec(select(ends), 2), 0..4);
    let steps = || prop_oneof![3 => Just(vec![1]), 1 => lengths()];
    let padding = prop_oneof![3 => Just(vec![vec![1, 2]]), 1 => padding];
    (steps(), padding, steps(), steps(), 0..4usize, 0..4usize).prop_map(
        |(strides, padding, input_dilation, kernel_dilation, feature_groups, batch_groups)| Conv {
            strides,
            padding,
            input_dilation,
            kernel_dilation,
            feature_groups,
            batch_groups,
        },
    )
}

/// The ops that make, order and address elements by their place.
fn placed_op() -> impl Strategy<Value = Op> {
    let fold = || select(vec![FoldKind::Sum, FoldKind::Max]);
    let axes = || prop::collection::vec(axis(), 0..4);
    let pairs = prop::collection::vec((axis(), axis()), 0..5);
    let three = || prop::collection::vec(length(), 0..5);
    prop_oneof![
        (dtype(), lengths(), prop::option::of(axis()))
            .prop_map(|(t, shape, axis)| Op::Iota(Iota { r#type: t, shape, axis })),
        (starts(), starts(), starts()).prop_map(|(low, high, interior)| Op::Pad(Pad {
            low,
            high,
            interior
        })),
        axes().prop_map(|axes| Op::Reverse(Reverse { axes })),
        axes().prop_map(|axes| Op::Gather(Indexed { axes })),
        axes().prop_map(|axes| Op::IndexedAdd(Indexed { axes })),
        axes().prop_map(|axes| Op::IndexedPut(Indexed { axes })),
        dtype().prop_map(|t| Op::Bitcast(Cast { r#type: t })),
        (axis(), any::<bool>(), any::<bool>()).prop_map(|(axis, descending, indices)| {
            Op::Sort(Sort { axis, descending, indices })
        }),
        (fold(), axis(), any::<bool>()).prop_map(|(kind, axis, reverse)| {
            Op::Cumulative(Cumulative { kind, axis, reverse })
        }),
        (fold(), three(), three(), pairs, three()).prop_map(
            |(kind, window, strides, padding, dilations)| {
                Op::WindowReduce(WindowReduce { kind, window, strides, padding, dilations })
            }
        ),
        (any::<bool>(), three(), three(), prop::collection::vec((axis(), axis()), 0..5)).prop_map(
            |(min, window, strides, padding)| {
                Op::WindowScatter(WindowScatter { min, window, strides, padding })
            }
        ),
    ]
}

pub fn any_op() -> impl Strategy<Value = Op> {
    use UnaryKind::*;
    let unary = select(vec![Negate, Sign, Exp, Relu, LogicalNot, Round, IsNan, PopulationCount]);
    let binary = {
        use BinaryKind::*;
        select(vec![Add, Divide, Quotient, Remainder, Max, Pow, Less, LogicalXor, Atan2, LeftShift])
    };
    let reduce = {
        use ReduceKind::*;
        select(vec![Sum, Mean, Product, Max, Min, All])
    };
    prop_oneof![
        select(ACTIVATIONS.to_vec())
            .prop_map(|activation| Op::Dense(Dense { activation, norm: None })),
        number().prop_map(|epsilon| Op::LayerNorm(Norm { epsilon })),
        number().prop_map(|epsilon| Op::RmsNorm(Norm { epsilon })),
        any::<bool>().prop_map(|reverse| Op::Lstm(Recurrent { reverse, norm: None })),
        any::<bool>().prop_map(|reverse| Op::Gru(Recurrent { reverse, norm: None })),
        flash_attention().prop_map(Op::FlashAttention),
        Just(Op::Embedding(Embedding {})),
        sequence_op(),
        (axis(), any::<bool>()).prop_map(|(axis, log)| Op::Softmax(Softmax { axis, log })),
        (axis(), any::<bool>()).prop_map(|(axis, keep_axis)| Op::Argmax(Argmax {
            axis,
            keep_axis,
            min: false,
            last: false
        })),
        (number(), prop::option::of(length()), prop::option::of(number()), any::<u64>()).prop_map(
            |(temperature, top_k, top_p, seed)| {
                Op::Sample(Sample { temperature, top_k, top_p, seed })
            }
        ),
        unary.prop_map(|kind| Op::Unary(Unary { kind })),
        binary.prop_map(|kind| Op::Binary(Binary { kind })),
        Just(Op::Select(Select {})),
        dtype().prop_map(|t| Op::Cast(Cast { r#type: t })),
        lengths().prop_map(|shape| Op::Reshape(Reshape { shape })),
        lengths().prop_map(|axes| Op::Transpose(Transpose { axes })),
        lengths().prop_map(|shape| Op::Broadcast(Reshape { shape })),
        (starts(), lengths(), lengths(), axis(), any::<bool>()).prop_map(
            |(starts, lengths, strides, axis, wrap)| {
                Op::Slice(Slice { starts, lengths, strides, axis, wrap })
            }
        ),
        (starts(), axis(), any::<bool>()).prop_map(|(starts, axis, wrap)| Op::PutSlice(PutSlice {
            starts,
            axis,
            wrap
        })),
        axis().prop_map(|axis| Op::Concatenate(Concatenate { axis })),
        (reduce, prop::collection::vec(axis(), 0..4), any::<bool>())
            .prop_map(|(kind, axes, keep_axes)| Op::Reduce(Reduce { kind, axes, keep_axes })),
        dot().prop_map(Op::Dot),
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(lower, left_side, transpose)| {
            Op::TriangularSolve(TriangularSolve { lower, left_side, transpose })
        }),
        conv().prop_map(Op::Conv),
        placed_op(),
    ]
}

/// Inputs that an op might take, of these sizes: most of them fit, unless a size overflows.
pub fn plausible(op: &Op, t: DType, n: [usize; 4], given: u8) -> Option<Vec<Option<Spec>>> {
    let [a, b, c, d] = n;
    let s = |t: DType, shape: &[usize]| Spec::new(t, shape).ok();
    let or = |bit: u8, spec: Option<Spec>| if given >> bit & 1 == 1 { spec } else { None };
    let times = |n: usize, by: usize| n.checked_mul(by);
    let inputs = match op {
        Op::Dense(_) => {
            vec![s(t, &[a, b]), s(t, &[b, c]), or(0, s(t, &[c])), or(1, s(t, &[a, c]))]
        }
        Op::LayerNorm(_) => {
            vec![s(t, &[a, b]), s(t, &[b]), s(t, &[b]), or(0, s(t, &[a, b]))]
        }
        Op::RmsNorm(_) => vec![s(t, &[a, b]), s(t, &[b]), or(0, s(t, &[a, b]))],
        Op::Lstm(_) => vec![
            s(t, &[a, b, c]),
            or(0, s(t, &[a, d])),
            or(0, s(t, &[a, d])),
            s(t, &[c, times(d, 4)?]),
            s(t, &[d, times(d, 4)?]),
            or(1, s(t, &[times(d, 4)?])),
            or(2, s(DType::U8, &[a, b])),
        ],
        Op::Gru(_) => vec![
            s(t, &[a, b, c]),
            or(0, s(DType::F32, &[a, d])),
            s(t, &[c, times(d, 3)?]),
            s(t, &[d, times(d, 3)?]),
            or(1, s(t, &[times(d, 4)?])),
            or(2, s(DType::U8, &[a, b])),
        ],
        Op::FlashAttention(_) => vec![
            s(t, &[a, b, times(c, 2)?, d]),
            s(t, &[a, d, c, d]),
            s(t, &[a, d, c, d]),
            or(0, s(t, &[times(c, 2)?, 1, d])),
            or(1, s(DType::U8, &[a, d])),
            or(2, s(DType::S32, &[a])),
            or(3, s(DType::S32, &[])),
        ],
        Op::CausalConv1d(_) => {
            let kept = d.checked_sub(1)?;
            vec![s(t, &[a, b, c]), s(t, &[d, c]), or(0, s(t, &[c])), or(1, s(t, &[a, kept, c]))]
        }
        Op::SelectiveScan(attrs) => {
            let (row, states, one) = (s(t, &[a, b, c]), s(t, &[a, b, d]), s(t, &[c]));
            let norm = |spec: &Option<Spec>| attrs.norm.and(spec.clone());
            vec![
                row.clone(),
                row.clone(),
                s(if given & 1 == 1 { DType::F32 } else { t }, &[c, d]),
                states.clone(),
                states,
                or(1, one.clone()),
                or(2, row.clone()),
                or(3, s(DType::F32, &[c])),
                or(4, s(DType::F32, &[a, c, d])),
                or(5, row),
                norm(&one),
                norm(&one),
            ]
        }
        Op::Rope(_) => {
            let positions: &[usize] = match given % 3 {
                0 => &[],
                1 => &[b],
                _ => &[a, b],
            };
            vec![s(t, &[a, b, c, d]), s(DType::S32, positions)]
        }
        Op::GatedMlp(_) => {
            let x = s(t, &[a, b]);
            vec![x.clone(), s(t, &[b, c]), s(t, &[b, c]), s(t, &[c, b]), or(0, x)]
        }
        Op::Embedding(_) => vec![s(t, &[a, b]), s(DType::S64, &[c, d])],
        Op::Sample(_) => vec![s(t, &[a, b]), s(DType::S32, &[])],
        Op::Binary(_) => vec![s(t, &[a, 1, b]), s(t, &[c, 1])],
        Op::Select(_) => vec![s(DType::U8, &[d]), s(t, &[a, 1, b]), s(t, &[c, 1])],
        Op::PutSlice(_) => vec![s(t, &[a, b]), s(t, &[a.min(c), b.min(d)])],
        Op::Concatenate(_) => vec![s(t, &[a, b]), s(t, &[a, b]), s(t, &[a, b])],
        Op::Iota(_) => vec![],
        Op::Pad(_) => vec![s(t, &[a, b, c]), s(t, &[])],
        Op::Gather(_) => vec![s(t, &[a, b, c]), s(DType::U16, &[d, 1])],
        Op::IndexedAdd(_) | Op::IndexedPut(_) => {
            vec![s(t, &[a, b, c]), s(DType::S64, &[d, 1]), s(t, &[d, b, c])]
        }
        Op::WindowScatter(_) => vec![s(t, &[a, b, c]), s(t, &[a, b, c]), s(t, &[])],
        Op::Dot(dot) => {
            // The axes that are contracted are c long.
            let (mut left, mut right) = (vec![a, b, d, a], vec![a, b, c, d]);
            let set = |shape: &mut Vec<usize>, axes: &[usize]| {
                axes.iter().filter(|&&i| i < 4).for_each(|&i| shape[i] = c);
            };
            set(&mut left, &dot.contract_a);
            set(&mut right, &dot.contract_b);
            vec![s(t, &left), s(t, &right)]
        }
        Op::TriangularSolve(attrs) => {
            let sides: &[usize] = match (given % 3, attrs.left_side) {
                (0, _) => &[a, b],
                (_, true) => &[a, b, c],
                (_, false) => &[a, c, b],
            };
            vec![s(t, &[a, b, b]), s(t, sides)]
        }
        Op::Conv(conv) => {
            let channels = times(b, conv.feature_groups)?;
            vec![s(t, &[a, channels, c]), s(t, &[times(d, conv.feature_groups)?, b, 2])]
        }
        _ => vec![s(t, &[a, b, c])],
    };
    Some(inputs)
}
