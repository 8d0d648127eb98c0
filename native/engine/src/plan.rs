//! Where every value of a program lies: one arena for inputs, states, temporaries and outputs.
//!
//! A temporary's bytes are used again once its last reader has run. A state has two slots, read
//! from one and written to the other by turns, so that no step has to copy it; where its new value
//! is the old one with a part written anew, by a `put_slice` or an op that has one in it, and nobody
//! reads the old one afterwards, one slot is enough and only the part is written. A `reshape` is no
//! step, and neither is a `slice` whose elements lie together: it is read where they are. One that
//! takes a part of each row is no step either where all its readers find the rows themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::call::Rows;
use crate::error::{Error, Result};
use crate::infer::infer;
use crate::op::{Cast, Op, Slice};
use crate::pool::ALIGNMENT;
use crate::program::{Graph, Ref};
use crate::spec::Spec;

/// The bytes of an output that may be read over the bus by the step that samples from it, say:
/// one trip, which a copy node takes as well.
const SMALL: usize = 1024;

/// What a slice has to begin at a multiple of to be read where it lies: the widest load of a kernel.
const WIDEST: usize = 16;

/// Where a value lies in a run: a parameter, or the arena at one offset a parity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Param(usize),
    Arena([usize; 2]),
}

/// What a step reads.
#[derive(Debug)]
pub(crate) struct Operand {
    pub place: Place,
    pub spec: Spec,
    /// None where it is dense.
    pub rows: Option<Rows>,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub op: Op,
    pub inputs: Vec<Option<Operand>>,
    pub outputs: Vec<(Place, Spec)>,
    /// Offset of the scratch.
    pub workspace: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    /// Bytes.
    pub arena: usize,
    /// The inputs' offsets; they lie behind one another, from the start of the arena.
    pub inputs: Vec<(usize, Spec)>,
    pub input_bytes: usize,
    /// By parity: the slot that a run reads. It writes the other one, which may be the same.
    pub states: Vec<([usize; 2], Spec)>,
    /// Whether any state has two slots.
    pub alternates: bool,
    pub outputs: Vec<(Place, Spec)>,
    /// The part of the arena that holds outputs which no step reads, or which are small: a device
    /// may put these elsewhere altogether.
    pub exported: Range<usize>,
    /// Whether an input is also an output.
    pub echoes: bool,
    /// Whether a run whose results are thrown away changes nothing for the next one.
    pub repeatable: bool,
}

impl Plan {
    /// Where an output lies that has a place of its own in the arena: no parameter, input or state.
    pub fn own_output(&self, place: Place) -> Option<usize> {
        match place {
            Place::Arena([a, b]) if a == b && a >= self.exported.start => Some(a),
            _ => None,
        }
    }
}

/// What holds a value's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Storage {
    Param(usize),
    Input(usize),
    State(usize),
    /// First written by output `.1` of node `.0`.
    Node(usize, usize),
}

/// A value that lies in another's storage: all of it, or a part.
#[derive(Debug, Clone, Copy)]
struct Alias {
    storage: Storage,
    part: Option<Part>,
}

/// Where a part begins, in bytes, and how it lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    at: usize,
    rows: Option<Rows>,
}

/// A program's values, before they have places.
pub(crate) struct Values<'a> {
    graph: &'a Graph,
    params: &'a [Spec],
    states: &'a [Spec],
    /// Each node's output specs.
    nodes: Vec<Vec<Spec>>,
    /// Where the outputs of nodes lie that have no storage of their own.
    aliases: BTreeMap<(usize, usize), Alias>,
}

impl<'a> Values<'a> {
    /// Infers the specs of all nodes.
    pub fn new(graph: &'a Graph, params: &'a [Spec], states: &'a [Spec]) -> Result<Self> {
        let (nodes, aliases) = (Vec::new(), BTreeMap::new());
        let mut values = Values { graph, params, states, nodes, aliases };
        for node in &graph.nodes {
            let outputs = infer(&node.op, &values.specs(&node.inputs)?)?;
            values.nodes.push(outputs);
        }
        Ok(values)
    }

    /// The specs of a node's inputs.
    pub fn specs(&self, inputs: &[Option<Ref>]) -> Result<Vec<Option<&Spec>>> {
        inputs.iter().map(|r| r.map(|r| self.spec(r)).transpose()).collect()
    }

    pub fn spec(&self, r: Ref) -> Result<&Spec> {
        let (found, what) = match r {
            Ref::Param(i) => (self.params.get(i), "parameter"),
            Ref::Input(i) => (self.graph.inputs.get(i), "input"),
            Ref::State(i) => (self.states.get(i), "state"),
            Ref::Node(n, k) => (self.nodes.get(n).and_then(|o| o.get(k)), "node"),
        };
        found.ok_or_else(|| Error::argument("program", format!("no {what} for {r:?} yet")))
    }

    fn storage(&self, r: Ref) -> Storage {
        self.alias(r).storage
    }

    /// Whether a node is only another view of its input.
    fn is_no_step(&self, n: usize) -> bool {
        let op = &self.graph.nodes[n].op;
        let view = op.is_alias() || matches!(op, Op::Slice(_));
        view && self.aliases.contains_key(&(n, 0))
    }

    fn alias(&self, r: Ref) -> Alias {
        let storage = match r {
            Ref::Param(i) => Storage::Param(i),
            Ref::Input(i) => Storage::Input(i),
            Ref::State(i) => Storage::State(i),
            Ref::Node(n, k) => match self.aliases.get(&(n, k)) {
                Some(&alias) => return alias,
                None => Storage::Node(n, k),
            },
        };
        Alias { storage, part: None }
    }
}

/// Plans a program. `workspace` gives the scratch an op needs on its inputs, and `reads_rows` says
/// whether it reads one of them, of which number is told, by rows.
pub(crate) fn plan(
    graph: &Graph,
    params: &[Spec],
    states: &[Spec],
    workspace: impl Fn(&Op, &[Option<&Spec>]) -> Result<usize>,
    reads_rows: impl Fn(&Op, &[Option<&Spec>], usize, Rows) -> bool,
) -> Result<Plan> {
    let mut values = Values::new(graph, params, states)?;
    check_states(&values)?;
    for &r in &graph.outputs {
        values.spec(r)?;
    }
    let last_use = alias(&mut values, reads_rows)?;

    // What is written at the end of a run: the next states, by the storage that can be the slot
    // itself, and the copies for those that cannot.
    let mut slot_of: BTreeMap<Storage, usize> = BTreeMap::new();
    let mut single = vec![false; states.len()];
    let mut copies = Vec::new();
    for (i, &next) in graph.next_state.iter().enumerate() {
        match values.storage(next) {
            Storage::State(j) if j == i => single[i] = true,
            own @ Storage::Node(..) if !slot_of.contains_key(&own) => {
                slot_of.insert(own, i);
            }
            _ => copies.push((i, next)),
        }
    }

    let mut arena = Arena::default();
    let mut inputs = Vec::new();
    for spec in &graph.inputs {
        inputs.push((arena.take(spec.bytes())?, spec.clone()));
    }
    let input_bytes = arena.size;
    let mut slots = Vec::new();
    for (i, spec) in states.iter().enumerate() {
        let first = arena.take(spec.bytes())?;
        let second = if single[i] { first } else { arena.take(spec.bytes())? };
        slots.push(([first, second], spec.clone()));
    }
    // Outputs lie behind one another too, so that they are read back in one copy.
    let read: BTreeSet<Storage> = graph
        .nodes
        .iter()
        .flat_map(|n| n.inputs.iter().flatten())
        .map(|&r| values.storage(r))
        .collect();
    let mut offsets: BTreeMap<Storage, usize> = BTreeMap::new();
    let mut exported = arena.size..arena.size;
    for inside in [false, true] {
        for &r in &graph.outputs {
            let storage = values.storage(r);
            let own = matches!(storage, Storage::Node(..)) && !slot_of.contains_key(&storage);
            let bytes = values.spec(r)?.bytes();
            let reread = read.contains(&storage) && bytes > SMALL;
            if own && reread == inside && !offsets.contains_key(&storage) {
                offsets.insert(storage, arena.take(bytes)?);
            }
        }
        if !inside {
            exported.end = arena.size;
        }
    }
    let kept: Vec<Storage> = offsets.keys().copied().collect();

    let place = |r: Ref, offsets: &BTreeMap<Storage, usize>| -> Result<Place> {
        let Alias { storage, part } = values.alias(r);
        let slot = |i: usize, write: bool| {
            let [a, b] = slots[i].0;
            Place::Arena(if write { [b, a] } else { [a, b] })
        };
        let whole = match storage {
            Storage::Param(i) => Place::Param(i),
            Storage::Input(i) => Place::Arena([inputs[i].0; 2]),
            Storage::State(i) => slot(i, false),
            Storage::Node(..) => match (slot_of.get(&storage), offsets.get(&storage)) {
                (Some(&i), _) => slot(i, true),
                (None, Some(&at)) => Place::Arena([at; 2]),
                (None, None) => return Err(Error::Internal(format!("{storage:?} has no place"))),
            },
        };
        match (whole, part) {
            (Place::Arena(at), Some(part)) => Ok(Place::Arena(at.map(|at| at + part.at))),
            (whole, None) => Ok(whole),
            (Place::Param(_), Some(_)) => {
                Err(Error::Internal(format!("{r:?} is a parameter's part")))
            }
        }
    };

    let mut steps = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        if values.is_no_step(n) {
            continue;
        }
        let input_specs = values.specs(&node.inputs)?;
        let mut fresh = Vec::new();
        for (k, spec) in values.nodes[n].iter().enumerate() {
            let storage = values.storage(Ref::Node(n, k));
            let own = storage == Storage::Node(n, k) && !slot_of.contains_key(&storage);
            if own && !offsets.contains_key(&storage) {
                offsets.insert(storage, arena.take(spec.bytes())?);
                fresh.push((storage, spec.bytes()));
            }
        }
        let scratch = match workspace(&node.op, &input_specs)? {
            0 => None,
            bytes => Some((arena.take(bytes)?, bytes)),
        };
        let inputs = node
            .inputs
            .iter()
            .zip(&input_specs)
            .map(|(r, spec)| match (r, spec) {
                (Some(r), Some(spec)) => Ok(Some(Operand {
                    place: place(*r, &offsets)?,
                    spec: (*spec).clone(),
                    rows: values.alias(*r).part.and_then(|part| part.rows),
                })),
                _ => Ok(None),
            })
            .collect::<Result<Vec<_>>>()?;
        let outputs = values.nodes[n]
            .iter()
            .enumerate()
            .map(|(k, spec)| Ok((place(Ref::Node(n, k), &offsets)?, spec.clone())))
            .collect::<Result<Vec<_>>>()?;
        steps.push(Step {
            op: node.op.clone(),
            inputs,
            outputs,
            workspace: scratch.map(|(at, _)| at),
        });
        if let Some((at, bytes)) = scratch {
            arena.give(at, bytes);
        }
        // Free what nobody reads after this step, its own unused outputs among it.
        let dying: Vec<_> = offsets
            .keys()
            .copied()
            .filter(|s| !kept.contains(s))
            .filter(|s| last_use.get(s).copied().unwrap_or(n) <= n)
            .collect();
        for storage in dying {
            if let (Some(at), Storage::Node(m, k)) = (offsets.remove(&storage), storage) {
                arena.give(at, values.nodes[m][k].bytes());
            }
        }
    }
    for (i, next) in copies {
        let spec = states[i].clone();
        let from = place(next, &offsets)?;
        let [a, b] = slots[i].0;
        steps.push(Step {
            op: Op::Cast(Cast { r#type: spec.dtype }),
            inputs: vec![Some(Operand { place: from, spec: spec.clone(), rows: None })],
            outputs: vec![(Place::Arena([b, a]), spec)],
            workspace: None,
        });
    }
    let outputs = graph
        .outputs
        .iter()
        .map(|&r| Ok((place(r, &offsets)?, values.spec(r)?.clone())))
        .collect::<Result<Vec<_>>>()?;
    Ok(Plan {
        steps,
        arena: arena.size,
        inputs,
        input_bytes,
        alternates: slots.iter().any(|([a, b], _)| a != b),
        states: slots,
        outputs,
        exported,
        repeatable: repeatable(&values),
        echoes: graph.outputs.iter().any(|&r| matches!(values.storage(r), Storage::Input(_))),
    })
}

fn check_states(values: &Values) -> Result<()> {
    let (have, next) = (values.states.len(), values.graph.next_state.len());
    if have != next {
        return Err(Error::argument("program", format!("{have} states come in and {next} go out")));
    }
    for (i, (&r, state)) in values.graph.next_state.iter().zip(values.states).enumerate() {
        let spec = values.spec(r)?;
        if spec != state {
            return Err(Error::argument(
                "program",
                format!("state {i} is {state} and its next value is {spec}: they must agree"),
            ));
        }
    }
    Ok(())
}

/// Decides which node outputs share the storage of an input (every reshape, each slice that may be
/// read where it lies, and each update that may be in place), and gives the last step that reads each
/// storage.
fn alias(
    values: &mut Values,
    reads_rows: impl Fn(&Op, &[Option<&Spec>], usize, Rows) -> bool,
) -> Result<BTreeMap<Storage, usize>> {
    let graph = values.graph;
    // Readers of a value are counted on what it is at the end, outputs and next states included,
    // so the uses are collected for every value first and joined by storage below.
    let mut last_read: BTreeMap<Ref, usize> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        for r in node.inputs.iter().flatten() {
            last_read.insert(*r, n);
        }
    }
    for &r in graph.outputs.iter().chain(&graph.next_state) {
        last_read.insert(r, usize::MAX);
    }
    // What is no step reads its input for as long as anybody reads it. What the caller gets, or the
    // next run, has storage of its own size.
    let mut parts = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate().rev() {
        let Some(Some(x)) = node.inputs.first() else { continue };
        let read = last_read.get(&Ref::Node(n, 0)).copied().unwrap_or(n);
        if let (Op::Slice(slice), Ok(spec)) = (&node.op, values.spec(*x))
            && node.inputs[1..].iter().all(Option::is_none)
            && read < usize::MAX
        {
            let part = match together(slice, spec) {
                Some(at) => Some(Part { at, rows: None }),
                None => match by_rows(slice, spec) {
                    Some(part) if all_read_rows(values, n, part, &reads_rows)? => Some(part),
                    _ => None,
                },
            };
            parts.extend(part.map(|part| (n, part)));
        }
        if parts.contains_key(&n) || node.op.is_alias() {
            let of_x = last_read.entry(*x).or_insert(n);
            *of_x = (*of_x).max(read);
        }
    }
    for (n, node) in graph.nodes.iter().enumerate() {
        let update = node.op.update();
        let (input, output) = update.map_or((0, 0), |u| (u.input, u.output));
        let Some(&Some(x)) = node.inputs.get(input) else { continue };
        let Alias { storage, part } = values.alias(x);
        let shared = match node.op {
            Op::Reshape(_) | Op::Bitcast(_) => true,
            Op::Slice(_) => parts.contains_key(&n) && !matches!(storage, Storage::Param(_)),
            _ if update.is_some() => {
                let others = node.inputs.iter().enumerate().filter(|&(i, _)| i != input);
                let others = others.filter_map(|(_, &r)| r).any(|r| values.storage(r) == storage);
                let writable = matches!(storage, Storage::State(_) | Storage::Node(..));
                // Every value of this storage so far must have had its last reader by now.
                let read_later = last_read.iter().any(|(&r, &last)| {
                    let before = !matches!(r, Ref::Node(m, _) if m >= n);
                    before && last > n && values.storage(r) == storage
                });
                writable && part.is_none() && !others && !read_later
            }
            _ => false,
        };
        if shared {
            let part = match parts.get(&n) {
                Some(own) => Some(Part { at: part.map_or(0, |part| part.at) + own.at, ..*own }),
                None => part,
            };
            values.aliases.insert((n, output), Alias { storage, part });
        }
    }
    let mut last_use = BTreeMap::new();
    for (&r, &last) in &last_read {
        let of = last_use.entry(values.storage(r)).or_insert(last);
        *of = (*of).max(last);
    }
    Ok(last_use)
}

/// Whether all that read a node's value can do so by rows. Another view of it cannot.
fn all_read_rows(
    values: &Values,
    n: usize,
    part: Part,
    reads_rows: impl Fn(&Op, &[Option<&Spec>], usize, Rows) -> bool,
) -> Result<bool> {
    let Some(rows) = part.rows else { return Ok(true) };
    for node in &values.graph.nodes {
        let reads = |&i: &usize| node.inputs[i] == Some(Ref::Node(n, 0));
        let read: Vec<usize> = (0..node.inputs.len()).filter(reads).collect();
        if read.is_empty() {
            continue;
        }
        let specs = values.specs(&node.inputs)?;
        if !read.into_iter().all(|i| reads_rows(&node.op, &specs, i, rows)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A state with two slots is as it was until the next run is over. One that is written in place must
/// be written at the same place again, before anybody reads it: once a run, and the place is not
/// from an input.
fn repeatable(values: &Values) -> bool {
    let in_place = |n: usize| {
        let update = values.graph.nodes[n].op.update()?;
        let Alias { storage, .. } = values.aliases.get(&(n, update.output))?;
        matches!(storage, Storage::State(_)).then_some(*storage)
    };
    let written: BTreeSet<Storage> = (0..values.graph.nodes.len()).filter_map(in_place).collect();
    let mut pending = written.clone();
    let mut from_input = Vec::new();
    for (n, node) in values.graph.nodes.iter().enumerate() {
        // Whether it may be another value when the run is made again.
        let fresh = |r: &Ref| match r {
            Ref::Input(_) => true,
            Ref::Node(m, _) if from_input[*m] => true,
            other => written.contains(&values.storage(*other)),
        };
        let own = in_place(n);
        let reads_early = |r: &Ref| {
            let storage = values.storage(*r);
            pending.contains(&storage) && Some(storage) != own && !values.is_no_step(n)
        };
        let place = node.op.update().and_then(|u| node.inputs.get(u.place)?.as_ref());
        let placed_freely = own.is_some() && place.is_some_and(fresh);
        if placed_freely || node.inputs.iter().flatten().any(reads_early) {
            return false;
        }
        from_input.push(node.inputs.iter().flatten().any(fresh));
        // A second slice would be there already where the first one's readers look.
        if own.is_some_and(|storage| !pending.remove(&storage)) {
            return false;
        }
    }
    true
}

/// Where in `x` a slice begins, in bytes, if its elements lie behind one another and it may be read
/// there.
fn together(slice: &Slice, x: &Spec) -> Option<usize> {
    let (dims, lengths) = (x.shape(), &slice.lengths);
    // All axes before the last one that is cut have a single place left.
    let cut = (0..dims.len()).rev().find(|&i| lengths[i] != dims[i]).unwrap_or(0);
    if lengths[..cut].iter().any(|&n| n != 1) {
        return None;
    }
    first(slice, x)
}

/// A slice that is a part of each row of `x`.
fn by_rows(slice: &Slice, x: &Spec) -> Option<Part> {
    let (&length, others) = slice.lengths.split_last()?;
    let (&pitch, rest) = x.shape().split_last()?;
    if others != rest || !(pitch * x.dtype.size()).is_multiple_of(WIDEST) {
        return None;
    }
    first(slice, x).map(|at| Part { at, rows: Some(Rows { length, pitch }) })
}

/// Where in `x` the first element of a slice lies, in bytes, if it leaves out none between two that
/// it has along an axis, and a kernel may begin to read there.
fn first(slice: &Slice, x: &Spec) -> Option<usize> {
    let (dims, lengths) = (x.shape(), &slice.lengths);
    let apart = slice.strides.iter().zip(lengths).any(|(&step, &length)| step != 1 && length > 1);
    if x.is_empty() || apart || lengths.contains(&0) {
        return None;
    }
    let mut at = 0;
    for (i, stride) in x.strides().into_iter().enumerate() {
        let most = (dims[i] - lengths[i]) as i64;
        let start = slice.starts[i];
        if slice.wrap && !(0..=most).contains(&start) {
            return None;
        }
        at += start.clamp(0, most) as usize * stride;
    }
    Some(at * x.dtype.size()).filter(|at| at.is_multiple_of(WIDEST))
}

/// Offsets by best fit; grows at the end.
#[derive(Default)]
struct Arena {
    free: BTreeMap<usize, usize>,
    size: usize,
}

impl Arena {
    fn take(&mut self, bytes: usize) -> Result<usize> {
        let overflow = || Error::argument("program", "the arena's size overflows");
        let bytes = crate::pool::round_up(bytes.max(1), ALIGNMENT).ok_or_else(overflow)?;
        let fit =
            self.free.iter().filter(|&(_, &size)| size >= bytes).min_by_key(|&(_, &size)| size);
        if let Some((&at, &size)) = fit {
            self.free.remove(&at);
            if size > bytes {
                self.free.insert(at + bytes, size - bytes);
            }
            return Ok(at);
        }
        // A free block at the end is grown instead of left behind.
        let at = match self.free.last_key_value() {
            Some((&at, &size)) if at + size == self.size => {
                self.free.remove(&at);
                at
            }
            _ => self.size,
        };
        self.size = at.checked_add(bytes).ok_or_else(overflow)?;
        Ok(at)
    }

    fn give(&mut self, mut at: usize, bytes: usize) {
        let mut size = bytes.max(1).next_multiple_of(ALIGNMENT);
        if let Some((&before, &length)) = self.free.range(..at).next_back()
            && before + length == at
        {
            self.free.remove(&before);
            at = before;
            size += length;
        }
        if let Some(length) = self.free.remove(&(at + size)) {
            size += length;
        }
        self.free.insert(at, size);
    }
}
