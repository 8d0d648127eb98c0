use nitrox_engine::op::{Binary, BinaryKind, Op, Select, Unary, UnaryKind};
use nitrox_engine::{DType, Spec};

use crate::harness::Run;
use crate::oracle::{Array, extremes};

const UNARY: [UnaryKind; 41] = {
    use UnaryKind::*;
    [
        Negate,
        Abs,
        Sign,
        Exp,
        Expm1,
        Log,
        Log1p,
        Sqrt,
        Rsqrt,
        Reciprocal,
        Sin,
        Cos,
        Tanh,
        Erf,
        Floor,
        Ceil,
        Round,
        Sigmoid,
        Relu,
        Silu,
        Gelu,
        GeluTanh,
        Softplus,
        Tan,
        Asin,
        Acos,
        Atan,
        Sinh,
        Cosh,
        Asinh,
        Acosh,
        Atanh,
        Cbrt,
        Erfc,
        ErfInv,
        BitwiseNot,
        PopulationCount,
        CountLeadingZeros,
        LogicalNot,
        IsNan,
        IsInfinity,
    ]
};

const BINARY: [BinaryKind; 24] = {
    use BinaryKind::*;
    [
        Add,
        Subtract,
        Multiply,
        Divide,
        Quotient,
        Remainder,
        Max,
        Min,
        Pow,
        Atan2,
        BitwiseAnd,
        BitwiseOr,
        BitwiseXor,
        LeftShift,
        RightShift,
        Equal,
        NotEqual,
        Less,
        LessEqual,
        Greater,
        GreaterEqual,
        LogicalAnd,
        LogicalOr,
        LogicalXor,
    ]
};

fn takes(kind: UnaryKind, dtype: DType) -> bool {
    use UnaryKind::*;
    match kind {
        Negate | Abs | Sign | Relu => true,
        _ if kind.is_predicate() => true,
        _ => kind.is_bitwise() != dtype.is_float(),
    }
}

fn joins(kind: BinaryKind, dtype: DType) -> bool {
    match kind {
        BinaryKind::Divide => dtype.is_float(),
        BinaryKind::Atan2 => dtype.is_float(),
        BinaryKind::Quotient => !dtype.is_float(),
        _ => !(kind.is_bitwise() && dtype.is_float()),
    }
}

/// Numbers on which a unary op is defined, and some on which it is not.
fn unary_input(run: &mut Run, kind: UnaryKind, dtype: DType, shape: &[usize]) -> Array {
    use UnaryKind::*;
    if !dtype.is_float() {
        // A third of them zeros.
        let far = if kind.is_bitwise() { i64::MAX } else { 1 };
        return run.rng.ints(dtype, shape, -far, far);
    }
    run.rng.floats(dtype, shape, |r, _| {
        let v = 3.0 * r.gauss();
        match kind {
            Log | Sqrt | Rsqrt if r.below(8) > 0 => v.abs(),
            Log1p if r.below(8) > 0 => v.max(-0.9),
            Asin | Acos | Atanh | ErfInv if r.below(8) > 0 => r.uniform(-1.0, 1.0),
            Acosh if r.below(8) > 0 => 1.0 + v.abs(),
            IsNan if r.below(4) == 0 => f64::NAN,
            IsInfinity if r.below(4) == 0 => f64::INFINITY.copysign(v),
            Sign | LogicalNot | Relu if r.below(4) == 0 => 0.0,
            Floor | Ceil | Round if r.below(4) == 0 => v.round() + 0.5,
            _ => v,
        }
    })
}

#[test]
fn unary() {
    let mut run = Run::new("unary");
    for kind in UNARY {
        for dtype in DType::ALL.into_iter().filter(|&t| takes(kind, t)) {
            for shape in [&[][..], &[1], &[3], &[31], &[8, 32], &[3, 5, 67], &[0], &[2, 0], &[4099]]
            {
                let x = unary_input(&mut run, kind, dtype, shape);
                run.check(Op::Unary(Unary { kind }), &[Some(&x)]);
            }
        }
    }
    run.finish();
}

/// Every number of 16 bits but −∞, whose gelu no definition decides, by the functions that are shorter
/// for these types.
#[test]
fn sixteen_bits() {
    let mut run = Run::new("unary of all numbers of 16 bits");
    for (dtype, undecided) in [(DType::F16, 0xfc00), (DType::BF16, 0xff80)] {
        let bits = (0..=u16::MAX).filter(|&bits| bits != undecided);
        let spec = Spec::new(dtype, [(1 << 16) - 1]).unwrap();
        let x = Array::new(spec, bits.flat_map(u16::to_ne_bytes).collect());
        for kind in [UnaryKind::Gelu, UnaryKind::Tanh, UnaryKind::Sin, UnaryKind::Cos] {
            run.check(Op::Unary(Unary { kind }), &[Some(&x)]);
        }
    }
    run.finish();
}

#[test]
fn unary_extremes() {
    let mut run = Run::new("unary extremes");
    for kind in UNARY {
        for dtype in DType::ALL.into_iter().filter(|&t| takes(kind, t)) {
            let x = extremes(dtype);
            // x·σ(x) and its kin at −∞ are 0·∞, which no definition decides.
            let undecided = matches!(kind, UnaryKind::Silu | UnaryKind::Gelu | UnaryKind::GeluTanh);
            let x = if undecided && dtype.is_float() {
                let finite: Vec<f64> =
                    x.to_f64().into_iter().filter(|&v| v != f64::NEG_INFINITY).collect();
                Array::floats(dtype, &[finite.len()], &finite)
            } else {
                x
            };
            run.check(Op::Unary(Unary { kind }), &[Some(&x)]);
        }
    }
    run.finish();
}

/// Random operands that meet: equal ones now and then, zeros too.
fn operand(run: &mut Run, kind: BinaryKind, dtype: DType, shape: &[usize], second: bool) -> Array {
    use BinaryKind::*;
    let whole = matches!(kind, Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual)
        || matches!(kind, LogicalAnd | LogicalOr | LogicalXor);
    if dtype.is_float() {
        return run.rng.floats(dtype, shape, |r, _| match kind {
            Pow if !second && r.below(8) > 0 => r.uniform(0.1, 3.0),
            Pow if second && r.coin() => r.below(7) as f64 - 3.0,
            _ if whole => r.below(4) as f64 - 1.0,
            _ => 3.0 * r.gauss(),
        });
    }
    match kind {
        _ if whole => run.rng.ints(dtype, shape, 0, 2),
        Pow if second => run.rng.ints(dtype, shape, -2, 9),
        Pow => run.rng.ints(dtype, shape, -9, 9),
        Quotient | Remainder if second => run.rng.ints(dtype, shape, -5, 5),
        LeftShift | RightShift if second => run.rng.ints(dtype, shape, -3, 70),
        _ => run.rng.ints(dtype, shape, i64::MIN, i64::MAX),
    }
}

#[test]
fn binary() {
    let mut run = Run::new("binary");
    for kind in BINARY {
        for dtype in DType::ALL.into_iter().filter(|&t| joins(kind, t)) {
            for [a, b] in [
                [&[][..], &[]],
                [&[33], &[33]],
                [&[1003], &[]],
                [&[], &[65]],
                [&[31, 67], &[67]],
                [&[31, 67], &[31, 1]],
                [&[7, 1], &[1, 9]],
                [&[0, 3], &[3]],
            ] {
                let a = operand(&mut run, kind, dtype, a, false);
                let b = operand(&mut run, kind, dtype, b, true);
                run.check(Op::Binary(Binary { kind }), &[Some(&a), Some(&b)]);
            }
        }
    }
    run.finish();
}

/// All pairs of the extremes.
#[test]
fn binary_extremes() {
    let mut run = Run::new("binary extremes");
    for kind in BINARY {
        for dtype in DType::ALL.into_iter().filter(|&t| joins(kind, t)) {
            let all = extremes(dtype);
            let n = all.len();
            let column = Array::new(all.spec.with_shape([n, 1]).unwrap(), all.bytes.clone());
            run.check(Op::Binary(Binary { kind }), &[Some(&column), Some(&all)]);
            run.check(Op::Binary(Binary { kind }), &[Some(&all), Some(&all)]);
        }
    }
    run.finish();
}

/// Two shapes that broadcast: on each axis both long, or either of them 1, or one of them short.
fn broadcasting(rank: usize, pattern: &mut dyn FnMut() -> usize) -> [Vec<usize>; 3] {
    let lengths = [3, 2, 5, 7, 4];
    let mut shapes = [vec![], vec![], vec![]];
    for &length in &lengths[lengths.len() - rank..] {
        let ones = pattern();
        for (i, shape) in shapes.iter_mut().enumerate() {
            shape.push(if ones >> i & 1 == 1 { 1 } else { length });
        }
    }
    shapes
}

/// Drops leading axes of length 1 from some of the shapes, so that ranks differ.
fn shorten(run: &mut Run, shapes: &mut [Vec<usize>; 3]) {
    for shape in shapes {
        while shape.first() == Some(&1) && run.rng.coin() {
            shape.remove(0);
        }
    }
}

#[test]
fn broadcasts() {
    let mut run = Run::new("broadcasts");
    let check = |run: &mut Run, [a, b, p]: &[Vec<usize>; 3]| {
        let dtype = *run.rng.pick(&DType::ALL);
        let (x, y) = (run.rng.any(dtype, a), run.rng.any(dtype, b));
        let kind = *run.rng.pick(&[BinaryKind::Subtract, BinaryKind::Less]);
        run.check(Op::Binary(Binary { kind }), &[Some(&x), Some(&y)]);
        let p = run.rng.ints(DType::U8, p, 0, 1);
        run.check(Op::Select(Select {}), &[Some(&p), Some(&x), Some(&y)]);
    };
    // Every pattern up to three axes, then a draw of those of four and five.
    for rank in 0..=3usize {
        for code in 0..8usize.pow(rank as u32) {
            let mut rest = code;
            let mut shapes = broadcasting(rank, &mut || {
                let digit = rest % 8;
                rest /= 8;
                digit
            });
            check(&mut run, &shapes);
            shorten(&mut run, &mut shapes);
            check(&mut run, &shapes);
        }
    }
    for rank in [4, 5] {
        for _ in 0..150 {
            let mut rng = run.rng.clone();
            let mut shapes = broadcasting(rank, &mut || rng.below(8));
            run.rng.bits();
            shorten(&mut run, &mut shapes);
            check(&mut run, &shapes);
        }
    }
    // Up to the most axes there can be.
    let deep = [vec![2, 1, 2, 1, 2, 1, 2, 1], vec![1, 2, 1, 2, 1, 2, 1, 2], vec![2]];
    check(&mut run, &deep);
    for long in [
        [vec![127, 129], vec![129], vec![127, 1]],
        [vec![127, 1], vec![127, 129], vec![1]],
        [vec![5, 1, 1000], vec![1, 7, 1000], vec![7, 1]],
        [vec![4, 1], vec![1, 2048], vec![4, 2048]],
    ] {
        check(&mut run, &long);
    }
    run.finish();
}

#[test]
fn select() {
    let mut run = Run::new("select");
    for dtype in DType::ALL {
        for shape in [&[][..], &[1], &[33], &[3, 65], &[4099], &[0, 3]] {
            // Any byte but zero chooses the first; bits pass as they are.
            let p = run.rng.ints(DType::U8, shape, -2, 2);
            let (a, b) = (run.rng.raw(dtype, shape), run.rng.raw(dtype, shape));
            run.check(Op::Select(Select {}), &[Some(&p), Some(&a), Some(&b)]);
            let one = run.rng.raw(dtype, &[]);
            run.check(Op::Select(Select {}), &[Some(&p), Some(&a), Some(&one)]);
            run.check(Op::Select(Select {}), &[Some(&p), Some(&one), Some(&b)]);
        }
    }
    run.finish();
}
