//! The kernels' text, embedded. Each family adds its lines.

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../kernels/", $name)))),*]
    };
}

/// Name → text of every `.cu` and `.cuh`. A header is included under its name here.
pub static SOURCES: &[(&str, &str)] = sources![
    "attention/attention.cu",
    "attention/online.cuh",
    "attention/tile.cuh",
    "common/async.cuh",
    "common/mma.cuh",
    "common/types.cuh",
    "common/walk.cuh",
    "common/warp.cuh",
    "common/wide.cuh",
    "conv/conv.cu",
    "dense/epilogue.cuh",
    "dense/tile.cuh",
    "dense/tiled_f32.cu",
    "dense/tiled_mma.cu",
    "dense/vector.cu",
    "elementwise/binary.cu",
    "elementwise/cast.cu",
    "elementwise/math.cuh",
    "elementwise/select.cu",
    "elementwise/unary.cu",
    "embedding/embedding.cu",
    "graph/done.cu",
    "norm/norm.cu",
    "norm/prologue.cuh",
    "recurrent/cell.cuh",
    "recurrent/step.cu",
    "recurrent/window.cuh",
    "recurrent/window_f32.cu",
    "recurrent/window_mma.cu",
    "reduce/argmax.cu",
    "reduce/best.cuh",
    "reduce/lanes.cuh",
    "reduce/reduce.cu",
    "reduce/softmax.cu",
    "rope/rope.cu",
    "sample/philox.cuh",
    "sample/sample.cu",
    "scan/scan.cu",
    "shape/shape.cu",
];

/// The text of one of them.
pub fn source(name: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(n, _)| *n == name).map(|&(_, text)| text)
}

/// What a `.cu` may include.
pub fn headers() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| name.ends_with(".cuh"))
}
