//! The kernels' text, embedded. Each family adds its lines.

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../kernels/", $name)))),*]
    };
}

/// Name → text of every `.cu` and `.cuh`. A header is included under its name here.
pub static SOURCES: &[(&str, &str)] = sources![
    "attention/attention.cu",
    "attention/block.cu",
    "attention/online.cuh",
    "attention/tile.cuh",
    "common/early.cuh",
    "common/full.cuh",
    "common/async.cuh",
    "common/cluster.cuh",
    "common/integer.cuh",
    "common/mma.cuh",
    "common/short.cuh",
    "common/types.cuh",
    "common/walk.cuh",
    "common/warp.cuh",
    "common/wide.cuh",
    "conv/conv.cu",
    "convolution/columns.cu",
    "convolution/direct.cu",
    "convolution/windows.cuh",
    "dense/after.cu",
    "dense/epilogue.cuh",
    "dense/tile.cuh",
    "dense/tiled_f32.cu",
    "dense/tiled_mma.cu",
    "dense/vector.cu",
    "dot/product.cuh",
    "dot/rows.cu",
    "dot/tiled.cu",
    "elementwise/binary.cu",
    "elementwise/cast.cu",
    "elementwise/math.cuh",
    "elementwise/select.cu",
    "elementwise/unary.cu",
    "embedding/embedding.cu",
    "graph/done.cu",
    "graph/gate.cu",
    "index/add.cu",
    "index/address.cuh",
    "index/gather.cu",
    "index/iota.cu",
    "index/places.cu",
    "norm/norm.cu",
    "norm/prologue.cuh",
    "order/cumulative.cu",
    "order/fold.cuh",
    "order/key.cuh",
    "order/sort.cu",
    "pool/window.cu",
    "recurrent/cell.cuh",
    "recurrent/cells_f32.cuh",
    "recurrent/cells_mma.cuh",
    "recurrent/cluster.cuh",
    "recurrent/cluster_f32.cu",
    "recurrent/cluster_mma.cu",
    "recurrent/gates.cuh",
    "recurrent/grid_mma.cu",
    "recurrent/halves.cuh",
    "recurrent/layer.cuh",
    "recurrent/operands.cuh",
    "recurrent/packs.cuh",
    "recurrent/remote.cuh",
    "recurrent/ring.cuh",
    "recurrent/stack.cuh",
    "recurrent/stack_f32.cu",
    "recurrent/stack_mma.cu",
    "recurrent/step.cu",
    "recurrent/step.cuh",
    "recurrent/step_cluster.cu",
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
    "scan/block.cu",
    "scan/math.cuh",
    "scan/scan.cu",
    "scan/spread.cu",
    "scan/step.cu",
    "scan/window.cuh",
    "shape/pad.cu",
    "shape/shape.cu",
    "solve/triangular.cu",
];

/// The text of one of them.
pub fn source(name: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(n, _)| *n == name).map(|&(_, text)| text)
}

/// What a `.cu` may include.
pub fn headers() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| name.ends_with(".cuh"))
}
