//! LSTM and GRU against PyTorch's own outputs.

use std::collections::BTreeSet;
use std::path::Path;

use nitrox_engine::DType;
use nitrox_engine::op::{Op, Recurrent};
use safetensors::{Dtype, SafeTensors};

use crate::harness::{each_device, outputs, same_numbers};
use crate::oracle::{Array, Real, evaluate};

const FIXTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/fixtures/recurrent.safetensors");

/// Each case of `kind`, with the inputs and the outputs under these names.
fn cases(kind: &str, inputs: &[&str], outs: &[&str]) -> Vec<(Vec<Array>, Vec<Array>)> {
    let file = std::fs::read(Path::new(FIXTURE)).expect(FIXTURE);
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let read = |n: &str, name: &str| {
        let view = tensors.tensor(&format!("{kind}.{n}.{name}")).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        let values: Vec<f64> = view
            .data()
            .chunks_exact(4)
            .map(|w| f64::from(f32::from_le_bytes(w.try_into().unwrap())))
            .collect();
        Array::floats(DType::F32, view.shape(), &values)
    };
    let names = tensors.names();
    let numbers: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix(kind)?.strip_prefix('.')?.split('.').next())
        .collect();
    assert!(!numbers.is_empty(), "{FIXTURE} has no {kind}");
    let all = |n: &str, of: &[&str]| of.iter().map(|name| read(n, name)).collect();
    numbers.into_iter().map(|n| (all(n, inputs), all(n, outs))).collect()
}

/// PyTorch's numbers are those of the oracle, and of every device.
fn check(op: &Op, inputs: &[Array], expected: &[Array]) {
    let given: Vec<Option<&Array>> = inputs.iter().map(Some).collect();
    let close = |got: &[Array], who: &str| {
        assert_eq!(got.len(), expected.len());
        for (i, (got, e)) in got.iter().zip(expected).enumerate() {
            let e = Real { spec: e.spec.clone(), values: e.to_f64(), scale: 0.0, slack: None };
            same_numbers(got, &e, 1e-5)
                .unwrap_or_else(|why| panic!("{op:?} on {who}, output {i}: {why}"));
        }
    };
    let oracle: Vec<Array> = evaluate(op, &given)
        .into_iter()
        .map(|e| match e {
            crate::oracle::Expected::Real(r) => {
                Array::floats(DType::F32, r.spec.shape(), &r.values)
            }
            e => panic!("{e:?}"),
        })
        .collect();
    close(&oracle, "the oracle");
    each_device(|device| {
        let got = outputs(device, op, &given).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        close(&got, &device.id().to_string());
    });
}

#[test]
fn lstm() {
    for (inputs, expected) in cases("lstm", &["x", "c0", "h0", "wi", "wh", "b"], &["seq", "c", "h"])
    {
        check(&Op::Lstm(Recurrent { reverse: false, norm: None }), &inputs, &expected);
    }
}

#[test]
fn gru() {
    for (inputs, expected) in cases("gru", &["x", "h0", "wi", "wh", "b"], &["seq", "h"]) {
        check(&Op::Gru(Recurrent { reverse: false, norm: None }), &inputs, &expected);
    }
}
