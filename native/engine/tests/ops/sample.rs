use nitrox_engine::DType;
use nitrox_engine::op::{Op, Sample};

use crate::harness::{NETWORK, Run, each_device, outputs};
use crate::oracle::Array;
use crate::oracle::sample::kept;

const PLAIN: Sample = Sample { temperature: 1.0, top_k: None, top_p: None, seed: 0 };

fn counter(value: i32) -> Array {
    Array::ints(DType::S32, &[], &[value.into()])
}

fn check(run: &mut Run, attrs: Sample, logits: &Array) {
    let at = run.rng.bits() as i32;
    run.check(Op::Sample(attrs), &[Some(logits), Some(&counter(at))]);
}

#[test]
fn shapes() {
    let mut run = Run::new("sample shapes");
    for dtype in NETWORK {
        for width in [1, 2, 3, 4, 5, 7, 31, 33, 53, 63, 65, 127, 129, 1000, 1025] {
            for rows in [1, 3, 33] {
                let logits = run.rng.normal(dtype, &[rows, width], 2.0);
                let seed = run.rng.bits();
                check(&mut run, Sample { seed, ..PLAIN }, &logits);
                check(&mut run, Sample { seed, temperature: 0.0, ..PLAIN }, &logits);
                let k = 1 + run.rng.below(width);
                check(&mut run, Sample { seed, top_k: Some(k), ..PLAIN }, &logits);
                let p = run.rng.uniform(0.05, 0.99);
                check(&mut run, Sample { seed, top_p: Some(p), ..PLAIN }, &logits);
                let both =
                    Sample { seed, temperature: 0.7, top_k: Some(k.max(2)), top_p: Some(0.8) };
                check(&mut run, both, &logits);
            }
        }
        for shape in [&[65][..], &[2, 3, 65], &[2, 1, 3, 9], &[0, 5]] {
            let logits = run.rng.normal(dtype, shape, 2.0);
            check(&mut run, Sample { top_k: Some(5), ..PLAIN }, &logits);
            check(&mut run, Sample { temperature: 0.0, ..PLAIN }, &logits);
        }
        let vocabulary = run.rng.normal(dtype, &[2, 50_257], 3.0);
        for (top_k, top_p) in
            [(None, None), (Some(50), None), (Some(1000), Some(0.9)), (None, Some(0.5))]
        {
            check(&mut run, Sample { top_k, top_p, ..PLAIN }, &vocabulary);
        }
    }
    run.finish();
}

#[test]
fn options() {
    let mut run = Run::new("sample options");
    for dtype in NETWORK {
        let logits = run.rng.normal(dtype, &[64, 37], 2.0);
        for temperature in [0.0, 1e-3, 0.1, 0.5, 1.0, 1.5, 10.0, 1e4] {
            for top_k in [None, Some(1), Some(2), Some(10), Some(36), Some(37), Some(1 << 40)] {
                for top_p in [None, Some(1e-9), Some(0.1), Some(0.5), Some(0.95), Some(1.0)] {
                    let seed = run.rng.bits();
                    check(&mut run, Sample { temperature, top_k, top_p, seed }, &logits);
                }
            }
        }
    }
    run.finish();
}

/// Equal logits: the border of top-k and top-p goes to the lowest index.
#[test]
fn equals() {
    let mut run = Run::new("sample equals");
    for dtype in NETWORK {
        for width in [5, 33, 130, 1025] {
            let logits = run.rng.floats(dtype, &[40, width], |r, _| r.below(3) as f64);
            for (top_k, top_p) in
                [(Some(1), None), (Some(3), None), (Some(width / 2), None), (None, Some(0.33))]
            {
                let seed = run.rng.bits();
                check(&mut run, Sample { top_k, top_p, seed, ..PLAIN }, &logits);
            }
            check(&mut run, Sample { temperature: 0.0, ..PLAIN }, &logits);
        }
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("sample extremes");
    let inf = f64::INFINITY;
    for dtype in NETWORK {
        for width in [4, 65, 300] {
            let mut rows = run.rng.normal(dtype, &[6, width], 1.0).to_f64();
            rows[0..width].fill(-inf);
            rows[width..2 * width - 1].fill(-inf);
            rows[3 * width - 2] = inf;
            rows[3 * width - 1] = inf;
            rows[3 * width..4 * width].iter_mut().for_each(|v| *v *= 1e4);
            let logits = Array::floats(dtype, &[6, width], &rows);
            for top_k in [None, Some(1), Some(3)] {
                check(&mut run, Sample { top_k, seed: 7, ..PLAIN }, &logits);
            }
            // Greedy: NaN beats infinity, and the first of either wins.
            rows[4 * width + 1] = f64::NAN;
            rows[4 * width + 3] = f64::NAN;
            rows[4 * width] = inf;
            let logits = Array::floats(dtype, &[6, width], &rows);
            check(&mut run, Sample { temperature: 0.0, ..PLAIN }, &logits);
            // −∞ beside numbers has no share of top-p.
            let mut rows = run.rng.normal(dtype, &[5, width], 1.0).to_f64();
            rows.iter_mut().step_by(2).for_each(|v| *v = -inf);
            let logits = Array::floats(dtype, &[5, width], &rows);
            check(&mut run, Sample { top_p: Some(0.9), seed: u64::MAX, ..PLAIN }, &logits);
        }
    }
    run.finish();
}

/// The counter comes back one larger, and wraps; each value gives its own numbers.
#[test]
fn counters() {
    let mut run = Run::new("sample counters");
    let logits = run.rng.normal(DType::F32, &[50, 11], 1.0);
    for at in [0, 1, -1, i32::MAX, i32::MIN, 123_456_789] {
        for temperature in [0.0, 1.0] {
            let attrs = Sample { temperature, seed: 0x0123_4567_89ab_cdef, ..PLAIN };
            run.check(Op::Sample(attrs), &[Some(&logits), Some(&counter(at))]);
        }
    }
    run.finish();
}

/// Over many rows and counters the frequencies follow the softmax of what top-k and top-p keep,
/// and nothing else is ever picked. The seed is fixed: a device that agrees with the definition
/// passes always.
#[test]
fn frequencies() {
    let logits = [0.3, -1.2, 2.0, 0.0, 1.1, -0.4, 1.9, -3.0, 0.7, 0.2];
    let width = logits.len();
    let rows = 4000;
    let repeated: Vec<f64> = (0..rows).flat_map(|_| logits).collect();
    let batch = Array::floats(DType::F32, &[rows, width], &repeated);
    for (temperature, top_k, top_p) in [
        (1.0, None, None),
        (0.7, None, None),
        (2.0, None, None),
        (1.0, Some(4), None),
        (1.0, None, Some(0.75)),
        (1.5, Some(6), Some(0.9)),
    ] {
        let attrs = Sample { temperature, top_k, top_p, seed: 20_261_120 };
        let z: Vec<f64> = logits.iter().map(|l| l / temperature).collect();
        let (order, lengths) = kept(&attrs, &z);
        assert_eq!(lengths.start(), lengths.end());
        let set = &order[..*lengths.start()];
        let total: f64 = set.iter().map(|&i| z[i].exp()).sum();
        each_device(|device| {
            let mut counts = vec![0usize; width];
            for at in 0..5 {
                let inputs = [Some(&batch), Some(&counter(at))];
                let ids = outputs(device, &Op::Sample(attrs), &inputs).unwrap()[0].to_i64();
                ids.iter().for_each(|&id| counts[id as usize] += 1);
            }
            let drawn = (5 * rows) as f64;
            let mut square = 0.0;
            for (i, &count) in counts.iter().enumerate() {
                if set.contains(&i) {
                    let expected = drawn * z[i].exp() / total;
                    square += (count as f64 - expected).powi(2) / expected;
                } else {
                    assert_eq!(count, 0, "{attrs:?} on {}: {i} is outside {set:?}", device.id());
                }
            }
            // Nine degrees of freedom at most: 40 is exceeded once in 10⁵ tries.
            assert!(square < 40.0, "{attrs:?} on {}: χ² = {square}, {counts:?}", device.id());
        });
    }
}
