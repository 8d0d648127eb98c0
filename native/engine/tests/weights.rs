//! Weights files: what is in them comes back, and a damaged one is refused with its path.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use nitrox_engine::{DType, Device, Error, Id, Weights};
use proptest::prelude::*;

/// A file that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nitrox-weights-{}-{n}.safetensors", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Three tensors: f32 {2, 2}, f16 {3} and one of a type that is not ours.
fn sound() -> Vec<u8> {
    let header = r#"{"__metadata__":{"charset":"ab\n","kind":"mlp"},
        "w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "half":{"dtype":"F16","shape":[3],"data_offsets":[16,22]},
        "odd":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[22,24]}}"#;
    let mut data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    data.extend([0x00, 0x3c, 0x00, 0x40, 0x00, 0xc2, 7, 0]);
    file(header, &data)
}

/// Opens, then fetches whatever the file says it holds: the first error, if there is one.
fn read_all(path: &PathBuf) -> Result<usize, Error> {
    let weights = Weights::open(path)?;
    let device = Device::open(Id::Cpu, Some(1 << 20)).unwrap();
    let entries = weights.entries();
    for entry in &entries {
        weights.fetch(&entry.name, &device)?;
    }
    Ok(entries.len())
}

fn refused(bytes: &[u8], reason: &str) {
    let scratch = Scratch::new(bytes);
    match Weights::open(&scratch.0) {
        Err(Error::File { path, message }) => {
            assert_eq!(path, scratch.0.display().to_string());
            assert!(message.contains(reason), "{message:?} does not say {reason:?}");
        }
        other => panic!("expected a file error, got {other:?}"),
    }
}

#[test]
fn reads_what_is_there() {
    let scratch = Scratch::new(&sound());
    let weights = Weights::open(&scratch.0).unwrap();
    let device = Device::open(Id::Cpu, None).unwrap();

    assert_eq!(weights.metadata(), [("charset", "ab\n"), ("kind", "mlp")]);
    let names: Vec<_> =
        weights.entries().into_iter().map(|e| (e.name, e.stored, e.dtype)).collect();
    let expected = [
        ("half".into(), "F16".into(), Some(DType::F16)),
        ("odd".into(), "F8_E4M3".into(), None),
        ("w".into(), "F32".into(), Some(DType::F32)),
    ];
    assert_eq!(names, expected);

    let w = weights.fetch("w", &device).unwrap();
    assert_eq!((w.spec().dtype, w.spec().shape()), (DType::F32, &[2, 2][..]));
    assert_eq!(w.to_bytes().unwrap(), [1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat());
    let half = weights.fetch("half", &device).unwrap();
    assert_eq!(half.to_bytes().unwrap(), [0x00, 0x3c, 0x00, 0x40, 0x00, 0xc2]);
}

#[test]
fn a_missing_name_and_a_foreign_type_are_errors() {
    let scratch = Scratch::new(&sound());
    let weights = Weights::open(&scratch.0).unwrap();
    let device = Device::open(Id::Cpu, None).unwrap();
    let missing = weights.fetch("wi", &device).unwrap_err().to_string();
    assert!(missing.contains("no tensor named wi"), "{missing}");
    let odd = weights.fetch("odd", &device).unwrap_err().to_string();
    assert!(odd.contains("F8_E4M3"), "{odd}");
    assert_eq!(device.stats().in_use, 0);
}

#[test]
fn damaged_headers_are_refused() {
    let info = |rest: &str| format!(r#"{{"w":{{"dtype":"F32",{rest}}}}}"#);
    refused(b"", "");
    refused(b"abc", "header");
    refused(&u64::MAX.to_le_bytes(), "header");
    refused(&file("{}", b"trailing"), "not fully covered");
    refused(&[&100u64.to_le_bytes()[..], b"{}"].concat(), "header");
    refused(&file("not json", b""), "JSON");
    refused(&file("\u{0}\u{0}", b""), "JSON");
    refused(&[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "UTF-8");
    refused(&file(&"[".repeat(100_000), b""), "JSON");
    refused(&file(&info(r#""shape":[-1],"data_offsets":[0,4]"#), &[0; 4]), "JSON");
    refused(&file(r#"{"w":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]), "JSON");
    // The shape says more bytes than the offsets, the offsets more than the file.
    refused(&file(&info(r#""shape":[2],"data_offsets":[0,4]"#), &[0; 4]), "shape");
    refused(&file(&info(r#""shape":[4],"data_offsets":[0,16]"#), &[0; 4]), "not fully covered");
    refused(&file(&info(r#""shape":[1],"data_offsets":[4,0]"#), &[0; 4]), "offset");
    refused(&file(&info(r#""shape":[1],"data_offsets":[2,6]"#), &[0; 6]), "offset");
}

#[test]
fn sizes_that_overflow_are_refused() {
    let header = |shape: &str, end: u64| {
        format!(r#"{{"w":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    refused(&file(&header("[4294967296,4294967296]", 16), &[0; 16]), "overflow");
    refused(&file(&header("[9223372036854775807,4]", 16), &[0; 16]), "overflow");
    // Fits a u64 as an offset, and no file.
    refused(&file(&header("[2305843009213693951]", 2305843009213693951), &[0; 16]), "");
}

#[test]
fn two_tensors_may_not_overlap() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                     "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused(&file(header, &[0; 6]), "offset");
}

#[test]
fn what_is_no_file_is_refused() {
    let Err(Error::File { path, .. }) = Weights::open("/nonexistent/weights") else {
        panic!("opened a file that is not there");
    };
    assert_eq!(path, "/nonexistent/weights");
    let Err(Error::File { message, .. }) = Weights::open(std::env::temp_dir()) else {
        panic!("opened a folder");
    };
    assert!(message.contains("not a regular file"), "{message}");
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error() {
    let scratch = Scratch::new(&sound());
    let weights = Weights::open(&scratch.0).unwrap();
    let device = Device::open(Id::Cpu, None).unwrap();
    std::fs::OpenOptions::new().write(true).open(&scratch.0).unwrap().set_len(100).unwrap();
    let message = weights.fetch("w", &device).unwrap_err().to_string();
    assert!(message.contains("when it was opened"), "{message}");
}

#[test]
fn more_axes_than_a_tensor_has_are_refused_by_name() {
    let header = r#"{"deep":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#;
    let scratch = Scratch::new(&file(header, &[0]));
    let weights = Weights::open(&scratch.0).unwrap();
    let message = weights.spec("deep").unwrap_err().to_string();
    assert!(message.contains("deep") && message.contains("axes"), "{message}");
}

#[test]
fn a_shape_of_millions_is_refused() {
    let header = |axes: usize| {
        let shape = vec!["1"; axes].join(",");
        format!(r#"{{"long":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#)
    };
    refused(&file(&header(1_000_000), &[0]), "long has 1000000 axes");
    refused(&file(&header(65), &[0]), "65 axes");
    assert!(Weights::open(&Scratch::new(&file(&header(64), &[0])).0).is_ok());
}

#[test]
fn every_prefix_is_refused() {
    let whole = sound();
    for end in 0..whole.len() {
        let scratch = Scratch::new(&whole[..end]);
        assert!(matches!(Weights::open(&scratch.0), Err(Error::File { .. })), "{end} bytes");
    }
}

/// Numbers that a liar would write: small ones, borders, and those whose products overflow.
fn number() -> impl Strategy<Value = u64> {
    let borders = vec![
        u64::MAX,
        u64::MAX - 7,
        i64::MAX as u64,
        1 << 63,
        1 << 62,
        (1 << 61) - 1,
        1 << 32,
        u32::MAX as u64,
        1 << 31,
        65_536,
    ];
    prop_oneof![6 => 0..40u64, 2 => prop::sample::select(borders), 1 => any::<u64>()]
}

/// A tensor's entry: right in form, and as likely as not a lie.
fn entry() -> impl Strategy<Value = String> {
    let types =
        ["F32", "F16", "BF16", "U8", "BOOL", "I64", "F8_E4M3", "F4", "C64", "F33", "f32", ""];
    let dtype = prop::sample::select(types.to_vec());
    let shape = prop::collection::vec(number(), 0..10);
    let name = prop::sample::select(vec!["a", "b", "c", "", "__metadata__", "\\u0000", "ω"]);
    let extra =
        prop::sample::select(vec!["", r#","dtype":"U8""#, r#","x":[[[]]]"#, r#","shape":[]"#]);
    (name, dtype, shape, number(), number(), extra).prop_map(|(name, dtype, shape, a, b, extra)| {
        let shape = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{a},{b}]{extra}}}"#
        )
    })
}

/// What a whole file says of itself, added up: an answer of yes has to agree with the bytes.
fn consistent(path: &PathBuf, data: usize) {
    let Ok(weights) = Weights::open(path) else { return };
    let device = Device::open(Id::Cpu, Some(1 << 20)).unwrap();
    let mut total = 0;
    for entry in weights.entries() {
        if let Ok(tensor) = weights.fetch(&entry.name, &device) {
            let bytes = tensor.to_bytes().unwrap().len();
            assert_eq!(bytes, tensor.spec().bytes());
            assert_eq!(tensor.spec().shape(), entry.shape);
            total += bytes;
        }
    }
    assert!(total <= data, "{total} bytes of tensors in {data}");
}

proptest! {
    /// Whatever bytes are changed, the answer is a tensor or an error.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..300, any::<u8>()), 1..8)) {
        let mut bytes = sound();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let scratch = Scratch::new(&bytes);
        let _ = read_all(&scratch.0);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let scratch = Scratch::new(&bytes);
        let _ = read_all(&scratch.0);
    }

    /// Any header over some data, so that the parser is reached every time.
    #[test]
    fn any_offsets_never_panic(a in any::<u64>(), b in any::<u64>(), dim in any::<u64>()) {
        let header = format!(
            r#"{{"w":{{"dtype":"F32","shape":[{dim}],"data_offsets":[{a},{b}]}}}}"#
        );
        let scratch = Scratch::new(&file(&header, &[0; 64]));
        let _ = read_all(&scratch.0);
    }

    /// Entries that lie about types, shapes and offsets, or tell of the same bytes twice.
    #[test]
    fn lies_never_panic(entries in prop::collection::vec(entry(), 0..5), data in 0..200usize) {
        let header = format!("{{{}}}", entries.join(","));
        let scratch = Scratch::new(&file(&header, &vec![7; data]));
        consistent(&scratch.0, data);
    }

    /// A header whose length is not the one that it has.
    #[test]
    fn lengths_that_lie_never_panic(length in number(), cut in 0..300usize) {
        let mut bytes = sound();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes.truncate(cut.max(8));
        let scratch = Scratch::new(&bytes);
        consistent(&scratch.0, bytes.len());
    }

    /// Deep and broken JSON.
    #[test]
    fn deep_headers_never_panic(
        parts in prop::collection::vec(prop::sample::select(vec![
            "[", "]", "{", "}", "\"a\":", "\"", ",", ":", "1e999", "-0", "null", "{\"a\":", "\\u",
            "\"__metadata__\":", "{\"dtype\":\"F32\",\"shape\":",
        ]), 0..40),
        repeats in prop::sample::select(vec![1usize, 50, 5_000]),
    ) {
        let header = parts.concat().repeat(repeats);
        let scratch = Scratch::new(&file(&header, &[0; 16]));
        consistent(&scratch.0, 16);
    }
}
