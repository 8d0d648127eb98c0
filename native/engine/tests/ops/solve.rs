use nitrox_engine::DType;
use nitrox_engine::op::{Op, TriangularSolve};

use crate::harness::{Run, each_device, outputs};
use crate::oracle::{Array, Expected, evaluate};

const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

fn forms() -> impl Iterator<Item = TriangularSolve> {
    (0..8).map(|bits| TriangularSolve {
        lower: bits & 1 == 0,
        left_side: bits & 2 == 0,
        transpose: bits & 4 != 0,
    })
}

/// The shape of the right sides; none for a vector.
fn sides(
    attrs: TriangularSolve,
    batch: &[usize],
    size: usize,
    columns: Option<usize>,
) -> Vec<usize> {
    match (columns, attrs.left_side) {
        (None, _) => [batch, &[size]].concat(),
        (Some(n), true) => [batch, &[size, n]].concat(),
        (Some(n), false) => [batch, &[n, size]].concat(),
    }
}

/// How far from the diagonal the larger elements are: around the edges of blocks and tiles.
const FAR: [usize; 10] = [1, 2, 7, 31, 32, 33, 64, 65, 97, 128];

/// A triangle whose solution is bounded whatever is drawn: what stands beside the diagonal comes to at
/// most half of it, along rows and along columns. What is not read is NaN.
fn triangle(
    run: &mut Run,
    attrs: TriangularSolve,
    dtype: DType,
    batch: &[usize],
    size: usize,
) -> Array {
    run.rng.floats(dtype, &[batch, &[size, size]].concat(), |r, at| {
        let (i, k) = (at / size % size, at % size);
        let most = match FAR.contains(&i.abs_diff(k)) {
            _ if i == k => 2.0,
            _ if (k < i) != attrs.lower => f64::NAN,
            true => 0.25 / FAR.len() as f64,
            false => 0.25 / size as f64,
        };
        let sign = if r.coin() { 1.0 } else { -1.0 };
        sign * most * r.uniform(0.5, 1.0)
    })
}

fn check(
    run: &mut Run,
    attrs: TriangularSolve,
    dtype: DType,
    batch: &[usize],
    size: usize,
    columns: Option<usize>,
) {
    let a = triangle(run, attrs, dtype, batch, size);
    let b = run.rng.normal(dtype, &sides(attrs, batch, size, columns), 1.0);
    run.check(Op::TriangularSolve(attrs), &[Some(&a), Some(&b)]);
}

#[test]
fn triangular() {
    let mut run = Run::new("triangular solve");
    for size in [33, 1, 2, 3, 7, 31, 32, 63, 65, 127, 129, 300] {
        for dtype in FLOATS {
            for attrs in forms() {
                check(&mut run, attrs, dtype, &[], size, None);
                check(&mut run, attrs, dtype, &[2], size, Some(1 + size % 5));
                check(&mut run, attrs, dtype, &[], size, Some(19));
            }
        }
    }
    run.finish();
}

/// Many small ones, and right sides beyond what is solved together.
#[test]
fn many() {
    let mut run = Run::new("many triangular solves");
    for (batch, size, columns) in [
        (&[70][..], 3, None),
        (&[3, 5], 4, Some(6)),
        (&[2, 2, 3], 40, None),
        (&[2, 2], 37, Some(9)),
        (&[], 5, Some(131)),
        (&[], 100, Some(131)),
        (&[], 700, Some(2)),
        (&[0], 5, None),
        (&[2], 0, Some(3)),
        (&[2], 4, Some(0)),
    ] {
        for dtype in FLOATS {
            for attrs in forms() {
                check(&mut run, attrs, dtype, batch, size, columns);
            }
        }
    }
    run.finish();
}

/// Single ones of many rows, which are cuBLAS's where it is there.
#[test]
fn large_ones() {
    let mut run = Run::new("large triangles");
    for (size, columns) in [(256, None), (257, Some(1)), (400, Some(3)), (520, Some(130))] {
        for dtype in [DType::F32, DType::F64] {
            for attrs in forms() {
                check(&mut run, attrs, dtype, &[], size, columns);
            }
        }
    }
    run.finish();
}

/// A zero on the diagonal of a large one: the rows before it are as ever, and none is finite that
/// depends on it; but where a quotient is infinite, a library may find no number.
#[test]
fn singular_and_large() {
    let mut run = Run::new("singular large triangles");
    let (size, at) = (300, 150);
    for dtype in [DType::F32, DType::F64] {
        for (attrs, columns) in forms().flat_map(|attrs| [(attrs, None), (attrs, Some(9))]) {
            let mut values = triangle(&mut run, attrs, dtype, &[], size).to_f64();
            values[at * size + at] = 0.0;
            let a = Array::floats(dtype, &[size, size], &values);
            let b = run.rng.normal(dtype, &sides(attrs, &[], size, columns), 1.0);
            let (op, inputs) = (Op::TriangularSolve(attrs), [Some(&a), Some(&b)]);
            let [Expected::Real(expected)] = &evaluate(&op, &inputs)[..] else {
                panic!("one output of numbers")
            };
            each_device(|device| {
                let got = outputs(device, &op, &inputs).unwrap()[0].to_f64();
                for (i, (got, e)) in got.iter().zip(&expected.values).enumerate() {
                    let same = match e.is_finite() {
                        true => (got - e).abs() <= 1e-4 * (1.0 + e.abs()),
                        false => !got.is_finite(),
                    };
                    assert!(same, "{dtype:?} {attrs:?} {columns:?}, {i}: {got}, expected {e}");
                }
            });
        }
    }
}

/// A zero on the diagonal gives what it divides: the rows before it are as ever, and none is finite
/// that depends on it.
#[test]
fn singular() {
    let mut run = Run::new("singular triangles");
    for (size, at) in [(40, 36), (1, 0), (5, 2), (70, 40)] {
        for dtype in FLOATS {
            for attrs in forms() {
                let mut values = triangle(&mut run, attrs, dtype, &[], size).to_f64();
                values[at * size + at] = 0.0;
                let a = Array::floats(dtype, &[size, size], &values);
                for columns in [None, Some(9)] {
                    let b = run.rng.normal(dtype, &sides(attrs, &[], size, columns), 1.0);
                    run.check(Op::TriangularSolve(attrs), &[Some(&a), Some(&b)]);
                }
            }
        }
    }
    run.finish();
}
