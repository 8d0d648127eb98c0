//! Ops that move elements: `transpose`, `broadcast`, `reverse`, `slice`, `put_slice`, `concatenate`,
//! and `reshape` and `bitcast` where a copy is asked for. One launch each, `concatenate` one for 16 tensors.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Dim, Divisor, Walk, broadcast_strides, collapse, cover, packable, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::infer::{distinct_axes, infer, normalize_axis};
use crate::op::{Concatenate, Op, PutSlice, Slice};
use crate::spec::{MAX_RANK, Spec};

const SOURCE: &str = "shape/shape.cu";

/// Tensors that one launch of `concatenate` takes.
const PIECES: usize = 16;

/// Axes shorter than this fill too little of a transpose's tile.
const TILED_FROM: usize = 8;

/// As in `shape.cu`. The address of the position is filled in at the launch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    position: u64,
    start: i64,
    length: u64,
    reach: u64,
    unit: i64,
    step: u64,
    axis: i32,
    ring: i32,
}

impl Place {
    /// A window that begins where the walk does.
    const NONE: Place =
        Place { position: 0, start: 0, length: 0, reach: 0, unit: 0, step: 1, axis: -1, ring: 0 };

    /// A window of `reach` elements from `start` on, on an axis of `length`, before a position
    /// that is added on the device.
    fn new(start: i64, length: usize, reach: usize, ring: bool) -> Self {
        let (end, far) = (length as i64, 1 << 31);
        // What a 32-bit position can't make up for is cut off, so that the sum can't overflow.
        let start = if ring { start.rem_euclid(end.max(1)) } else { start.clamp(-far, end + far) };
        let (length, reach) = (length as u64, reach as u64);
        Place { start, length, reach, ring: ring.into(), ..Place::NONE }
    }

    /// Where it begins without a position, as the kernel finds it.
    fn fixed(&self) -> usize {
        if self.ring != 0 {
            return self.start as usize;
        }
        self.start.clamp(0, self.length.saturating_sub(self.reach) as i64) as usize
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    start: [u64; MAX_RANK],
    length: [u64; MAX_RANK],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tiles {
    rows: u64,
    columns: u64,
    x_pitch: i64,
    y_pitch: i64,
    down: Divisor,
    across: Divisor,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pieces {
    n: u64,
    width: Divisor,
    pitch: u64,
    count: u32,
    start: [u64; PIECES + 1],
    from: [u64; PIECES],
}

/// What is launched. `base` is an offset in elements.
#[derive(Debug, PartialEq)]
enum Kernel {
    Nothing,
    /// The result in order, from anywhere in x.
    Gather {
        pack: usize,
        walk: Walk,
        place: Place,
        base: usize,
    },
    /// A slice to anywhere in the result.
    Scatter {
        pack: usize,
        walk: Walk,
        place: Place,
        base: usize,
    },
    Overlay {
        pack: usize,
        walk: Walk,
        place: Place,
        window: Window,
    },
    Transpose {
        tiles: Tiles,
        walk: Walk,
        blocks: usize,
    },
    Concatenate {
        pack: usize,
        widths: Vec<usize>,
        rows: usize,
    },
}

fn plan(op: &Op, inputs: &[Option<&Spec>], in_place: bool) -> Result<Kernel> {
    let outputs = infer(op, inputs)?;
    let (Some(Some(x)), Some(out)) = (inputs.first(), outputs.first()) else {
        return stray(op.name());
    };
    if out.is_empty() {
        return Ok(Kernel::Nothing);
    }
    let pack = 16 / out.dtype.size();
    match op {
        Op::Reshape(_) | Op::Bitcast(_) => {
            Ok(gather(&[Dim { length: out.len(), strides: [1] }], pack))
        }
        Op::Broadcast(_) => {
            let strides = broadcast_strides(x.shape(), out.rank());
            Ok(gather(&collapse(dims(out.shape(), &strides)), pack))
        }
        Op::Transpose(attrs) => {
            let strides = x.strides();
            let strides: Vec<_> = attrs.axes.iter().map(|&a| strides[a]).collect();
            Ok(transpose(out, &strides, pack))
        }
        Op::Reverse(attrs) => {
            Ok(reverse(x, &distinct_axes(op.name(), &attrs.axes, x.rank())?, pack))
        }
        Op::Slice(attrs) => slice(attrs, x, inputs.get(1).is_some_and(Option::is_some), pack),
        Op::PutSlice(attrs) => {
            let Some(Some(s)) = inputs.get(1) else { return stray(op.name()) };
            put_slice(attrs, x, s, inputs.get(2).is_some_and(Option::is_some), pack, in_place)
        }
        Op::Concatenate(attrs) => concatenate(attrs, inputs, out, pack),
        _ => stray(op.name()),
    }
}

fn dims(shape: &[usize], strides: &[usize]) -> Vec<Dim<1>> {
    shape.iter().zip(strides).map(|(&length, &s)| Dim { length, strides: [s] }).collect()
}

fn gather(dims: &[Dim<1>], pack: usize) -> Kernel {
    let pack = if packable(dims, pack) { pack } else { 1 };
    Kernel::Gather { pack, walk: Walk::new(dims, pack), place: Place::NONE, base: 0 }
}

fn reverse(x: &Spec, axes: &[usize], pack: usize) -> Kernel {
    // Neighbours that go the same way are one axis.
    let mut all: Vec<(Dim<1>, bool)> = Vec::with_capacity(x.rank());
    for (a, (&length, stride)) in x.shape().iter().zip(x.strides()).enumerate() {
        let backwards = axes.contains(&a);
        match all.last_mut() {
            _ if length == 1 => {}
            Some((last, way)) if *way == backwards => {
                *last = Dim { length: last.length * length, strides: [stride] };
            }
            _ => all.push((Dim { length, strides: [stride] }, backwards)),
        }
    }
    let dims: Vec<_> = all.iter().map(|a| a.0).collect();
    let whole = packable(&dims, pack) && !all.last().is_some_and(|a| a.1);
    let pack = if whole { pack } else { 1 };
    let mut walk = Walk::new(&dims, pack);
    let mut base = 0;
    for (i, (dim, _)) in all.iter().enumerate().filter(|(_, a)| a.1) {
        walk.reverse(i);
        base += (dim.length - 1) * dim.strides[0];
    }
    Kernel::Gather { pack, walk, place: Place::NONE, base }
}

fn transpose(out: &Spec, strides: &[usize], pack: usize) -> Kernel {
    let both = out.shape().iter().zip(strides).zip(out.strides());
    let mut all = collapse(both.map(|((&length, &x), y)| Dim { length, strides: [x, y] }));
    let gathered = |all: &[Dim<2>]| {
        let x: Vec<_> =
            all.iter().map(|d| Dim { length: d.length, strides: [d.strides[0]] }).collect();
        gather(&x, pack)
    };
    let inner = all.iter().position(|d| d.strides[0] == 1);
    let (Some(inner), Some(last)) = (inner, all.last().copied()) else { return gathered(&all) };
    let first = all[inner];
    if inner + 1 == all.len() || first.length < TILED_FROM || last.length < TILED_FROM {
        return gathered(&all);
    }
    all.pop();
    all.remove(inner);
    let (down, across) = (first.length.div_ceil(32), last.length.div_ceil(32));
    let tiles = Tiles {
        rows: first.length as u64,
        columns: last.length as u64,
        x_pitch: last.strides[0] as i64,
        y_pitch: first.strides[1] as i64,
        down: Divisor::new(down),
        across: Divisor::new(across),
    };
    let batch: usize = all.iter().map(|d| d.length).product();
    Kernel::Transpose { tiles, walk: Walk::new(&all, 1), blocks: batch * down * across }
}

/// The elements from the first of `length` to the last, `step` apart.
fn reach(length: usize, step: usize) -> usize {
    if length == 0 { 0 } else { (length - 1) * step + 1 }
}

/// The walk over a window of `lengths` in `x`, `steps` apart: its base, and the place of what the
/// host can't know.
struct Cut {
    dims: Vec<Dim<1>>,
    place: Place,
    base: usize,
}

fn cut(
    x: &Spec,
    lengths: &[usize],
    steps: &[usize],
    starts: &[i64],
    axis: usize,
    wrap: bool,
    dynamic: bool,
) -> Cut {
    let strides = x.strides();
    let strided: Vec<_> = (0..x.rank())
        .map(|i| Dim { length: lengths[i], strides: [strides[i] * steps[i]] })
        .collect();
    let place =
        |i: usize, ring| Place::new(starts[i], x.shape()[i], reach(lengths[i], steps[i]), ring);
    let mut base = 0;
    for (i, stride) in strides.iter().enumerate().filter(|&(i, _)| i != axis) {
        base += place(i, false).fixed() * stride;
    }
    let mut along = place(axis, wrap);
    along.unit = strides[axis] as i64;
    along.step = steps[axis] as u64;
    // A window that may run around the ring keeps the axis to itself, so that it can begin again.
    let runs_on = along.fixed() as u64 + along.reach > along.length;
    if wrap && lengths[axis] > 1 && (dynamic || runs_on) {
        let mut dims = collapse(strided[..axis].iter().copied());
        along.axis = dims.len() as i32;
        dims.push(strided[axis]);
        dims.extend(collapse(strided[axis + 1..].iter().copied()));
        return Cut { dims, place: along, base };
    }
    if !dynamic {
        base += along.fixed() * strides[axis];
        along = Place::NONE;
    }
    Cut { dims: collapse(strided), place: along, base }
}

impl Cut {
    fn pack(&self, pack: usize) -> usize {
        let whole = |n: usize| n.is_multiple_of(pack);
        let fits = packable(&self.dims, pack)
            && whole(self.base)
            && whole(self.place.unit as usize)
            && self.place.axis + 1 != self.dims.len() as i32;
        if fits { pack } else { 1 }
    }
}

fn slice(attrs: &Slice, x: &Spec, dynamic: bool, pack: usize) -> Result<Kernel> {
    let axis = normalize_axis("slice", attrs.axis, x.rank())?;
    let (lengths, steps) = (&attrs.lengths, &attrs.strides);
    let cut = cut(x, lengths, steps, &attrs.starts, axis, attrs.wrap, dynamic);
    let pack = cut.pack(pack);
    let walk = Walk::new(&cut.dims, pack);
    Ok(Kernel::Gather { pack, walk, place: cut.place, base: cut.base })
}

fn put_slice(
    attrs: &PutSlice,
    x: &Spec,
    s: &Spec,
    dynamic: bool,
    pack: usize,
    in_place: bool,
) -> Result<Kernel> {
    let axis = normalize_axis("put_slice", attrs.axis, x.rank())?;
    match (s.is_empty(), in_place) {
        (true, true) => Ok(Kernel::Nothing),
        (true, false) => Ok(gather(&[Dim { length: x.len(), strides: [1] }], pack)),
        (false, true) => {
            let steps = [1; MAX_RANK];
            let cut = cut(x, s.shape(), &steps, &attrs.starts, axis, attrs.wrap, dynamic);
            let pack = cut.pack(pack);
            let walk = Walk::new(&cut.dims, pack);
            Ok(Kernel::Scatter { pack, walk, place: cut.place, base: cut.base })
        }
        (false, false) => Ok(overlay(attrs, x, s, axis, dynamic, pack)),
    }
}

/// An axis of x with the part of it that the slice covers.
#[derive(Clone, Copy)]
struct Covered {
    length: usize,
    start: usize,
    count: usize,
    /// Of the slice.
    stride: usize,
    /// Where the start is for the kernel to find.
    place: Option<Place>,
}

impl Covered {
    fn whole(&self) -> bool {
        self.count == self.length && self.place.is_none()
    }
}

fn overlay(
    attrs: &PutSlice,
    x: &Spec,
    s: &Spec,
    axis: usize,
    dynamic: bool,
    pack: usize,
) -> Kernel {
    let strides = s.strides();
    let mut axes: Vec<Covered> = Vec::with_capacity(x.rank());
    for (i, (&length, &count)) in x.shape().iter().zip(s.shape()).enumerate() {
        if length == 1 {
            continue;
        }
        let ring = attrs.wrap && i == axis;
        let place = Place { unit: 1, ..Place::new(attrs.starts[i], length, count, ring) };
        let found = i == axis && (dynamic || ring) && (ring || count < length);
        let place = (place.fixed(), found.then_some(place));
        let next = Covered { length, start: place.0, count, stride: strides[i], place: place.1 };
        match axes.last_mut() {
            Some(last) if next.whole() => {
                *last = Covered {
                    length: last.length * length,
                    start: last.start * length,
                    count: last.count * length,
                    stride: next.stride,
                    place: last.place.map(|p| Place { unit: p.unit * length as i64, ..p }),
                };
            }
            _ => axes.push(next),
        }
    }
    let by_pack = axes.split_last().is_none_or(|(last, outer)| {
        let unit = last.place.map_or(last.start, |p| p.unit as usize);
        [last.length, last.count, unit].iter().all(|n| n % pack == 0)
            && last.stride <= 1
            && outer.iter().all(|a| a.stride % pack == 0)
    });
    let pack = if by_pack && !axes.is_empty() { pack } else { 1 };
    let dims: Vec<_> = axes.iter().map(|a| Dim { length: a.length, strides: [a.stride] }).collect();
    let mut place = Place::NONE;
    // Without axes there is one element, and the slice covers it.
    let mut window = Window { start: [0; MAX_RANK], length: [1; MAX_RANK] };
    for (i, a) in axes.iter().enumerate() {
        let by = if i + 1 == axes.len() { pack } else { 1 };
        window.start[i] = (a.start / by) as u64;
        window.length[i] = (a.count / by) as u64;
        if let Some(p) = a.place {
            place = Place { axis: i as i32, unit: p.unit / by as i64, ..p };
        }
    }
    Kernel::Overlay { pack, walk: Walk::new(&dims, pack), place, window }
}

fn concatenate(
    attrs: &Concatenate,
    inputs: &[Option<&Spec>],
    out: &Spec,
    pack: usize,
) -> Result<Kernel> {
    let axis = normalize_axis("concatenate", attrs.axis, out.rank())?;
    let rows = out.shape()[..axis].iter().product();
    let width = |s: &Spec| s.shape()[axis..].iter().product::<usize>();
    let widths: Vec<_> = inputs.iter().map(|s| s.map_or(0, width)).collect();
    let pack = if widths.iter().all(|w| w % pack == 0) { pack } else { 1 };
    Ok(Kernel::Concatenate { pack, widths: widths.iter().map(|w| w / pack).collect(), rows })
}

/// The launches of a concatenation: which inputs each takes, in groups that are not empty.
fn groups(widths: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let mut left = (0..widths.len()).filter(|&i| widths[i] > 0).peekable();
    std::iter::from_fn(move || {
        left.peek()?;
        Some(left.by_ref().take(PIECES).collect())
    })
}

pub fn explain(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let by = |pack: usize| if pack > 1 { "16 bytes a thread" } else { "an element a thread" };
    let (variant, why, launches) = match plan(op, inputs, false)? {
        Kernel::Nothing => ("nothing", "the result is empty".to_string(), 0),
        Kernel::Gather { pack, .. } => ("gather", by(pack).into(), 1),
        Kernel::Scatter { pack, .. } => ("scatter", by(pack).into(), 1),
        Kernel::Overlay { pack, .. } => {
            let why = format!("{}; in place, only the slice is written", by(pack));
            ("overlay", why, 1)
        }
        Kernel::Transpose { .. } => {
            ("transpose", "tiles of 32 by 32 through shared memory".into(), 1)
        }
        Kernel::Concatenate { pack, widths, .. } => {
            let why = format!("{}, {PIECES} tensors a launch", by(pack));
            ("concatenate", why, groups(&widths).count())
        }
    };
    Ok(Explanation { variant, why, launches })
}

fn module(spec: &Spec) -> Module {
    Module::new(SOURCE).define("SIZE", spec.dtype.size())
}

pub fn modules(_: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let Some(Some(x)) = inputs.first() else { return stray(op.name()) };
    Ok(vec![module(x)])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (Some(x), Some(y)) = (call.input(0), call.outputs.first()) else {
        return stray(op.name());
    };
    let (module, size) = (module(x.spec), x.spec.dtype.size());
    let position = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let mut args = Args::new();
    let (entry, grid) = match plan(op, &specs, x.addr == y.addr)? {
        Kernel::Nothing => return Ok(()),
        Kernel::Gather { pack, walk, mut place, base } => {
            if place != Place::NONE && matches!(op, Op::Slice(_)) {
                place.position = position(1);
            }
            args.ptr(x.addr + (base * size) as u64).ptr(y.addr).value(walk).value(place);
            let entry = if pack > 1 { "gather_packs" } else { "gather_elements" };
            (entry, cover(walk.len().div_ceil(pack))?.early_if_small())
        }
        Kernel::Scatter { pack, walk, mut place, base } => {
            if place != Place::NONE {
                place.position = position(2);
            }
            let slice = position(1);
            args.ptr(slice).ptr(y.addr + (base * size) as u64).value(walk).value(place);
            let entry = if pack > 1 { "scatter_packs" } else { "scatter_elements" };
            (entry, cover(walk.len().div_ceil(pack))?.early_if_small())
        }
        Kernel::Overlay { pack, walk, mut place, window } => {
            if place != Place::NONE {
                place.position = position(2);
            }
            args.ptr(x.addr).ptr(position(1)).ptr(y.addr);
            args.value(walk).value(place).value(window);
            let entry = if pack > 1 { "overlay_packs" } else { "overlay_elements" };
            (entry, cover(walk.len().div_ceil(pack))?.early_if_small())
        }
        Kernel::Transpose { tiles, walk, blocks } => {
            args.ptr(x.addr).ptr(y.addr).value(tiles).value(walk);
            ("transpose", Grid::new(blocks, 256)?)
        }
        Kernel::Concatenate { pack, widths, rows } => {
            // SAFETY: the caller's promise.
            return unsafe { launch_concatenate(cx, call, &module, pack, &widths, rows) };
        }
    };
    let function = cx.function(&module, entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, &mut args) }
}

/// # Safety
/// As for [`launch`].
unsafe fn launch_concatenate(
    cx: &Context,
    call: &Call,
    module: &Module,
    pack: usize,
    widths: &[usize],
    rows: usize,
) -> Result<()> {
    let entry = if pack > 1 { "concatenate_packs" } else { "concatenate_elements" };
    let function = cx.function(module, entry)?;
    let Some(y) = call.outputs.first() else { return stray("concatenate") };
    let bytes = pack * y.spec.dtype.size();
    let pitch: usize = widths.iter().sum();
    let mut before = 0;
    for group in groups(widths) {
        let mut pieces = Pieces {
            n: 0,
            width: Divisor::new(1),
            pitch: pitch as u64,
            count: group.len() as u32,
            start: [0; PIECES + 1],
            from: [0; PIECES],
        };
        let mut width = 0;
        for (k, &i) in group.iter().enumerate() {
            width += widths[i];
            pieces.start[k + 1] = width as u64;
            pieces.from[k] = call.input(i).map_or(0, |v| v.addr);
        }
        pieces.width = Divisor::new(width);
        pieces.n = (rows * width) as u64;
        let mut args = Args::new();
        args.ptr(y.addr + (before * bytes) as u64).value(pieces);
        before += width;
        // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, cover(rows * width)?, &mut args) }?;
    }
    Ok(())
}

pub fn all_modules() -> Vec<Module> {
    [1, 2, 4, 8].map(|size| Module::new(SOURCE).define("SIZE", size)).into()
}
