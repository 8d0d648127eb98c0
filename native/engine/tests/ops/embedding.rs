use nitrox_engine::DType;
use nitrox_engine::op::{Embedding, Op};

use crate::harness::Run;
use crate::oracle::Array;

const IDS: [DType; 4] = [DType::U8, DType::U32, DType::S32, DType::S64];

#[test]
fn rows() {
    let mut run = Run::new("embedding rows");
    for table_type in [DType::F32, DType::F16, DType::BF16] {
        for (v, e) in [(1, 1), (7, 33), (53, 256), (129, 127), (1000, 3), (200, 1001)] {
            let table = run.rng.normal(table_type, &[v, e], 1.0);
            for ids_type in IDS {
                for shape in [&[][..], &[1], &[60], &[3, 7], &[2, 1, 3]] {
                    let ids = run.rng.ints(ids_type, shape, 0, (v as i64 - 1).min(255));
                    run.check(Op::Embedding(Embedding {}), &[Some(&table), Some(&ids)]);
                }
            }
        }
        for (v, e, n) in [(0, 5, 3), (5, 0, 3), (5, 4, 0)] {
            let table = run.rng.normal(table_type, &[v, e], 1.0);
            let ids = Array::ints(DType::S32, &[n], &vec![0; n]);
            run.check(Op::Embedding(Embedding {}), &[Some(&table), Some(&ids)]);
        }
    }
    run.finish();
}

#[test]
fn out_of_range() {
    let mut run = Run::new("embedding out of range");
    for table_type in [DType::F32, DType::F16, DType::BF16] {
        let mut values = run.rng.normal(table_type, &[10, 9], 1.0).to_f64();
        values[..4].copy_from_slice(&[f64::INFINITY, f64::NAN, 1e-40, -0.0]);
        let table = Array::floats(table_type, &[10, 9], &values);
        for ids_type in IDS {
            let ids: &[i64] = match ids_type {
                DType::U8 => &[0, 9, 10, 255, 3],
                DType::U32 => &[0, 9, 10, u32::MAX as i64, 1 << 31, 3],
                DType::S32 => &[0, 9, 10, -1, -10, i32::MIN as i64, i32::MAX as i64, 3],
                _ => &[0, 9, 10, -1, i64::MIN, i64::MAX, 1 << 32, (1 << 32) + 3, -(1 << 32), 3],
            };
            let ids = Array::ints(ids_type, &[ids.len()], ids);
            run.check(Op::Embedding(Embedding {}), &[Some(&table), Some(&ids)]);
        }
    }
    run.finish();
}
