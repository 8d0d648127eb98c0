use nitrox_engine::DType;
use nitrox_engine::op::{Cast, Op};

use crate::harness::Run;
use crate::oracle::{Array, extremes};

#[test]
fn pairs() {
    let mut run = Run::new("cast pairs");
    for from in DType::ALL {
        for to in DType::ALL {
            let op = || Op::Cast(Cast { r#type: to });
            for shape in [&[][..], &[3], &[5, 67], &[4099], &[0, 3]] {
                let x = run.rng.any(from, shape);
                run.check(op(), &[Some(&x)]);
                let bits = run.rng.raw(from, shape);
                run.check(op(), &[Some(&bits)]);
            }
            run.check(op(), &[Some(&extremes(from))]);
        }
    }
    run.finish();
}

/// Around the limits of the integer types, and ties between 16-bit neighbours.
#[test]
fn borders() {
    let mut run = Run::new("cast borders");
    let mut values = Vec::new();
    for bits in [7, 8, 15, 16, 23, 24, 31, 32, 52, 53, 63, 64] {
        let at = 2f64.powi(bits);
        for v in [at - 1.0, at - 0.5, at, at + 0.5, at + 1.0, at * (1.0 - 2f64.powi(-24)), at * 1.5]
        {
            values.extend([v, -v]);
        }
    }
    values.extend([0.9999, -0.9999, 1.9999, -1.9999, 254.99, 255.99]);
    // Just beside a tie of 16-bit neighbours, in bits that only 32 and 64 have.
    for bits in 13..50 {
        for tie in [1.0 + 2f64.powi(-8), 1.0 + 2f64.powi(-11), 3.0 + 2f64.powi(-7)] {
            values.extend([tie + 2f64.powi(-bits), tie - 2f64.powi(-bits)]);
        }
    }
    for k in 0..64 {
        values.push(1.0 + f64::from(k) * 2f64.powi(-9));
        values.push(1.0 + f64::from(k) * 2f64.powi(-12));
        values.push(f64::from(k) * 2f64.powi(-26));
        values.push(65504.0 + f64::from(k));
    }
    for from in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let x = Array::floats(from, &[values.len()], &values);
        for to in DType::ALL {
            run.check(Op::Cast(Cast { r#type: to }), &[Some(&x)]);
        }
    }
    run.finish();
}

/// Integers beside a tie of 16-bit and of f32 neighbours.
#[test]
fn integer_ties() {
    let mut run = Run::new("cast integer ties");
    for from in [DType::S64, DType::S32, DType::U32, DType::U64] {
        let mut values = Vec::new();
        for bits in 12..31 {
            for keep in [7, 8, 10, 11, 23, 24] {
                let tie = (1i64 << bits) | (1 << bits >> keep);
                for beside in [-1, 0, 1] {
                    values.extend([tie + beside, -tie - beside]);
                    values.push((tie << 32) + beside);
                }
            }
        }
        let x = Array::ints(from, &[values.len()], &values);
        for to in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            run.check(Op::Cast(Cast { r#type: to }), &[Some(&x)]);
        }
    }
    run.finish();
}
