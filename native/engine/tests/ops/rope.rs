use nitrox_engine::DType;
use nitrox_engine::op::{Op, Rope};

use crate::harness::{NETWORK, Run};
use crate::oracle::Array;

const PLAIN: Rope = Rope { base: 10_000.0, scale: 1.0, dims: None, interleaved: false };

/// Positions of {B, S}, of {S} and of {}, up to `last`.
fn check(run: &mut Run, dtype: DType, shape: [usize; 4], attrs: Rope, last: i64) {
    let x = run.rng.normal(dtype, &shape, 1.0);
    for positions in [&shape[..2], &shape[1..2], &[]] {
        let low = if last > 1 << 20 { -last } else { 0 };
        let p = run.rng.ints(DType::S32, positions, low, last);
        run.check(Op::Rope(attrs), &[Some(&x), Some(&p)]);
    }
}

#[test]
fn shapes() {
    let mut run = Run::new("rope shapes");
    for dtype in NETWORK {
        for shape in [
            [1, 1, 1, 2],
            [1, 1, 4, 64],
            [1, 60, 4, 64],
            [2, 7, 3, 10],
            [3, 5, 1, 6],
            [1, 1000, 2, 32],
            [33, 2, 5, 14],
            [2, 3, 8, 256],
            [1, 2, 3, 1030],
            [1, 129, 7, 128],
            [0, 3, 2, 8],
            [2, 0, 2, 8],
            [2, 3, 0, 8],
            [2, 3, 2, 0],
            [1, 8192, 1, 8],
        ] {
            for interleaved in [false, true] {
                check(&mut run, dtype, shape, Rope { interleaved, ..PLAIN }, 2000);
            }
        }
    }
    run.finish();
}

#[test]
fn options() {
    let mut run = Run::new("rope options");
    for dtype in NETWORK {
        for interleaved in [false, true] {
            for dims in [None, Some(0), Some(2), Some(16), Some(22), Some(40)] {
                for (base, scale) in [(10_000.0, 1.0), (500_000.0, 0.25), (100.0, 3.7), (0.5, -1.0)]
                {
                    let attrs = Rope { base, scale, dims, interleaved };
                    check(&mut run, dtype, [2, 9, 3, 40], attrs, 5000);
                }
            }
        }
        // An odd number of features, not all of which turn.
        check(&mut run, dtype, [2, 5, 3, 9], Rope { dims: Some(6), ..PLAIN }, 5000);
    }
    run.finish();
}

/// As many as go by packs of pairs: all features, or some that stay, and more pairs than one launch takes.
#[test]
fn packs() {
    let mut run = Run::new("rope packs");
    for dtype in NETWORK {
        for (shape, dims) in [
            ([2, 1100, 9, 48], Some(32)),
            ([1, 600, 16, 64], None),
            ([1, 70, 17, 1056], Some(1040)),
        ] {
            for interleaved in [false, true] {
                check(&mut run, dtype, shape, Rope { dims, interleaved, ..PLAIN }, 2000);
            }
        }
    }
    run.finish();
}

/// Angles are right however far a position is.
#[test]
fn far() {
    let mut run = Run::new("rope far");
    for dtype in NETWORK {
        for last in [1 << 20, i64::from(i32::MAX)] {
            for shape in [[2, 33, 2, 64], [1, 5, 3, 128]] {
                for interleaved in [false, true] {
                    check(&mut run, dtype, shape, Rope { interleaved, ..PLAIN }, last);
                }
            }
        }
        // The offset counts on over the end.
        let x = run.rng.normal(dtype, &[1, 4, 2, 8], 1.0);
        let at = Array::ints(DType::S32, &[], &[i64::from(i32::MAX) - 1]);
        run.check(Op::Rope(PLAIN), &[Some(&x), Some(&at)]);
    }
    run.finish();
}
