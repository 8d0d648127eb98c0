use nitrox_engine::DType;
use nitrox_engine::op::{Dot, Op};

use crate::harness::Run;
use crate::oracle::Array;
use crate::rng::Rng;

/// Numbers whose products do not cancel to nothing, and integers that wrap.
fn draw(rng: &mut Rng, dtype: DType, shape: &[usize]) -> Array {
    match dtype.is_float() {
        true => rng.normal(dtype, shape, 1.0),
        false => rng.raw(dtype, shape),
    }
}

/// The batch axes come first and are given by their number.
fn check(
    run: &mut Run,
    dtype: DType,
    [a, b]: [&[usize]; 2],
    [contract_a, contract_b]: [&[usize]; 2],
    batch: usize,
) {
    let (a, b) = (draw(&mut run.rng, dtype, a), draw(&mut run.rng, dtype, b));
    let dot = Dot {
        contract_a: contract_a.to_vec(),
        batch_a: (0..batch).collect(),
        contract_b: contract_b.to_vec(),
        batch_b: (0..batch).collect(),
    };
    run.check(Op::Dot(dot), &[Some(&a), Some(&b)]);
}

const SIZES: [usize; 11] = [1, 2, 3, 4, 7, 8, 16, 31, 33, 64, 65];

/// Every layout of two matrices: neither, either or both of them transposed.
#[test]
fn matrices() {
    let mut run = Run::new("dot matrices");
    for dtype in DType::ALL {
        for &size in &SIZES {
            for place in 0..3 {
                let mut mkn = [0; 3].map(|_| *run.rng.pick(&SIZES));
                mkn[place] = size;
                let [m, k, n] = mkn;
                for [left, right] in [[false, false], [false, true], [true, false], [true, true]] {
                    let (a, at) = if left { ([k, m], 0) } else { ([m, k], 1) };
                    let (b, bt) = if right { ([n, k], 1) } else { ([k, n], 0) };
                    check(&mut run, dtype, [&a, &b], [&[at], &[bt]], 0);
                }
            }
        }
        // Vectors on either side, and numbers.
        for k in [1, 5, 129, 1000] {
            check(&mut run, dtype, [&[k], &[k]], [&[0], &[0]], 0);
            check(&mut run, dtype, [&[k], &[k, 17]], [&[0], &[0]], 0);
            check(&mut run, dtype, [&[k], &[17, k]], [&[0], &[1]], 0);
            check(&mut run, dtype, [&[9, k], &[k]], [&[1], &[0]], 0);
            check(&mut run, dtype, [&[k, 9], &[k]], [&[0], &[0]], 0);
        }
        check(&mut run, dtype, [&[], &[]], [&[], &[]], 0);
        check(&mut run, dtype, [&[3], &[]], [&[], &[]], 0);
        // No axis contracted: all products.
        check(&mut run, dtype, [&[7], &[9]], [&[], &[]], 0);
        check(&mut run, dtype, [&[2, 3], &[5, 4]], [&[], &[]], 0);
    }
    run.finish();
}

#[test]
fn axes() {
    let mut run = Run::new("dot axes");
    for dtype in DType::ALL {
        for (shapes, contracted, batch) in [
            // Batches of matrices in each layout.
            ([&[5, 7, 9][..], &[5, 9, 8][..]], [&[2][..], &[1][..]], 1),
            ([&[5, 9, 7], &[5, 8, 9]], [&[1], &[2]], 1),
            ([&[2, 3, 7, 9], &[2, 3, 9, 8]], [&[3], &[2]], 2),
            ([&[2, 3, 9, 7], &[2, 3, 9, 8]], [&[2], &[2]], 2),
            ([&[2, 1, 3, 4], &[2, 1, 4, 5]], [&[3], &[2]], 2),
            // Batches of vectors and of numbers.
            ([&[6, 33], &[6, 33]], [&[1], &[1]], 1),
            ([&[6, 4, 33], &[6, 33]], [&[2], &[1]], 1),
            ([&[6, 33], &[6, 4, 33]], [&[1], &[2]], 1),
            ([&[6], &[6]], [&[], &[]], 1),
            ([&[6, 3], &[6, 5]], [&[], &[]], 1),
            // Several axes contracted, beside each other or not, in the same order or not.
            ([&[4, 5, 6], &[5, 6, 7]], [&[1, 2], &[0, 1]], 0),
            ([&[4, 5, 6], &[5, 6, 7]], [&[2, 1], &[1, 0]], 0),
            ([&[4, 5, 6], &[6, 5, 7]], [&[1, 2], &[1, 0]], 0),
            ([&[4, 5, 6], &[6, 5, 7]], [&[2, 1], &[0, 1]], 0),
            ([&[5, 4, 6], &[5, 7, 6]], [&[0, 2], &[0, 2]], 0),
            ([&[3, 4, 5], &[3, 4, 5]], [&[0, 1, 2], &[0, 1, 2]], 0),
            ([&[3, 4, 5], &[5, 3, 4]], [&[0, 1, 2], &[1, 2, 0]], 0),
            ([&[2, 3, 4, 5, 6], &[2, 5, 7, 3, 2]], [&[1, 3], &[3, 1]], 1),
            // An axis in the middle: the free ones lie on both sides of it.
            ([&[4, 9, 5], &[3, 9, 2]], [&[1], &[1]], 0),
            ([&[2, 4, 9, 5], &[2, 3, 9, 2]], [&[2], &[2]], 1),
            // Lengths of 1 join with anything.
            ([&[1, 9, 1, 5], &[9, 1, 4]], [&[1], &[0]], 0),
            ([&[4, 1, 9], &[1, 9, 1, 3]], [&[1, 2], &[0, 1]], 0),
            // Attention's two products with heads behind the sequence.
            ([&[2, 3, 6, 8], &[2, 3, 7, 8]], [&[3], &[3]], 2),
            ([&[2, 3, 6, 7], &[2, 3, 7, 8]], [&[3], &[2]], 2),
            // Nothing there, or nothing to sum.
            ([&[0, 4], &[4, 3]], [&[1], &[0]], 0),
            ([&[3, 0], &[0, 5]], [&[1], &[0]], 0),
            ([&[2, 3, 0], &[2, 0, 5]], [&[2], &[1]], 1),
            ([&[0, 3, 4], &[0, 4, 5]], [&[2], &[1]], 1),
            ([&[4, 0, 6], &[0, 6, 7]], [&[1, 2], &[0, 1]], 0),
        ] {
            check(&mut run, dtype, shapes, contracted, batch);
        }
    }
    run.finish();
}

/// Random ranks, axes and lengths.
#[test]
fn any() {
    let mut run = Run::new("dot any");
    for case in 0..300 {
        let dtype = DType::ALL[case % DType::ALL.len()];
        let (batch, contracted) = (run.rng.below(3), run.rng.below(4));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let lengths = [1, 2, 3, 4, 5, 8];
        for _ in 0..batch {
            a.push(*run.rng.pick(&lengths));
        }
        b.extend(&a);
        // The contracted axes of b are a's in another order, with others between them.
        let summed: Vec<usize> = (0..contracted).map(|_| *run.rng.pick(&lengths)).collect();
        let mut axes = [vec![0; contracted], vec![0; contracted]];
        for (side, shape) in [&mut a, &mut b].into_iter().enumerate() {
            let mut left: Vec<_> = (0..contracted).collect();
            while !left.is_empty() || (shape.len() < 6 && run.rng.coin()) {
                if !left.is_empty() && run.rng.coin() {
                    let pair = left.remove(run.rng.below(left.len()));
                    axes[side][pair] = shape.len();
                    shape.push(summed[pair]);
                } else if shape.len() + left.len() < 6 {
                    shape.push(*run.rng.pick(&lengths));
                }
            }
        }
        if a.len() + b.len() - batch - 2 * contracted <= 8 {
            check(&mut run, dtype, [&a, &b], [&axes[0], &axes[1]], batch);
        }
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("dot extremes");
    for dtype in DType::ALL.into_iter().filter(|t| t.is_float()) {
        for m in [1, 6, 33] {
            let (k, n) = (37, 41);
            let mut a = run.rng.normal(dtype, &[m, k], 1.0).to_f64();
            // One row for each kind of trouble; the rows beside it are untouched by it.
            for (row, value) in
                [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e4, 1e-30, 0.0].iter().enumerate()
            {
                if row < m {
                    a[row * k + row] = *value;
                }
            }
            let a = Array::floats(dtype, &[m, k], &a);
            let b = run.rng.normal(dtype, &[k, n], 1.0);
            let dot = |contract_a, contract_b| {
                let (contract_a, contract_b) = (vec![contract_a], vec![contract_b]);
                Op::Dot(Dot { contract_a, batch_a: vec![], contract_b, batch_b: vec![] })
            };
            run.check(dot(1, 0), &[Some(&a), Some(&b)]);
            run.check(dot(0, 1), &[Some(&b), Some(&a)]);
        }
    }
    run.finish();
}
