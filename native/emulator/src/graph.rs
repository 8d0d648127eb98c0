//! Captures, and the graphs that they give.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};

use crate::code::{Code, Result};
use crate::device::Device;
use crate::handle::{Handles, lock};
use crate::stream::{Event, Stream, Work};

/// `CUstreamCaptureMode`: which threads may not make unsafe calls during a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Global,
    /// The one that captures.
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub fn new(number: u32) -> Result<Self> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed]
            .get(number as usize)
            .copied()
            .ok_or(Code::INVALID_VALUE)
    }
}

/// `CUgraphNodeType`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Kernel = 0,
    Copy = 1,
    Set = 2,
    Graph = 4,
}

#[derive(Debug, Clone)]
pub struct Node {
    work: Work,
    /// Earlier nodes that it comes after.
    after: Vec<usize>,
}

impl Node {
    pub fn kind(&self) -> Kind {
        match self.work {
            Work::Kernel { .. } => Kind::Kernel,
            Work::Copy { .. } | Work::Upload { .. } => Kind::Copy,
            Work::Set { .. } => Kind::Set,
            Work::Graph(..) | Work::Record(..) | Work::Wait(..) => Kind::Graph,
        }
    }
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    mode: Mode,
    thread: ThreadId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    broken: bool,
    ended: bool,
}

/// A stream's, or an event's, place in a capture.
#[derive(Debug, Clone)]
pub struct Captured {
    pub capture: Arc<Capture>,
    /// Whether the capture began here.
    origin: bool,
    after: Vec<usize>,
}

thread_local! {
    /// What the thread asks of captures, its own and others'.
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

static UNDER_WAY: Mutex<Vec<Weak<Capture>>> = Mutex::new(Vec::new());

/// Sets the calling thread's mode; gives what it was.
pub fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// For calls that may wait for the device or queue work of their own: refused where a capture that
/// forbids them is under way, which is then lost.
pub fn unsafe_call() -> Result<()> {
    let mode = MODE.get();
    let forbids = |c: &Arc<Capture>| {
        c.mode != Mode::Relaxed && c.thread == thread::current().id()
            || mode == Mode::Global && c.mode == Mode::Global
    };
    if mode == Mode::Relaxed {
        return Ok(());
    }
    let all: Vec<_> = lock(&UNDER_WAY).iter().filter_map(Weak::upgrade).filter(forbids).collect();
    for capture in &all {
        capture.invalidate(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    if all.is_empty() { Ok(()) } else { Err(Code::STREAM_CAPTURE_UNSUPPORTED) }
}

impl Capture {
    /// Nothing more can come of it; `why`, for the call that broke it.
    pub fn invalidate(&self, why: Code) -> Code {
        lock(&self.state).broken = true;
        why
    }

    pub fn check(&self) -> Result<()> {
        let state = lock(&self.state);
        if state.broken || state.ended {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        Ok(())
    }
}

impl Captured {
    pub fn add(&mut self, work: Work) -> Result<()> {
        self.capture.check()?;
        let mut state = lock(&self.capture.state);
        let number = state.nodes.len();
        let after = std::mem::replace(&mut self.after, vec![number]);
        state.nodes.push(Node { work, after });
        Ok(())
    }

    /// What comes next here comes after what `other` stands for, too.
    pub fn join(&mut self, other: &Captured) {
        let new = other.after.iter().filter(|n| !self.after.contains(n)).copied();
        self.after.extend(new.collect::<Vec<_>>());
    }

    /// As an event or another stream takes part in it.
    pub fn fork(&self) -> Self {
        Captured { origin: false, ..self.clone() }
    }
}

pub fn begin(stream: &Stream, mode: Mode) -> Result<()> {
    let mut place = lock(&stream.capture);
    if place.is_some() {
        return Err(Code::ILLEGAL_STATE);
    }
    let capture = Capture { mode, thread: thread::current().id(), state: Mutex::default() };
    let capture = Arc::new(capture);
    let mut under_way = lock(&UNDER_WAY);
    under_way.retain(|c| c.strong_count() > 0);
    under_way.push(Arc::downgrade(&capture));
    *place = Some(Captured { capture, origin: true, after: Vec::new() });
    Ok(())
}

pub fn end(stream: &Stream) -> Result<Graph> {
    let captured = lock(&stream.capture).clone().ok_or(Code::ILLEGAL_STATE)?;
    let capture = Arc::clone(&captured.capture);
    if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
        return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
    }
    if !captured.origin {
        return Err(capture.invalidate(Code::STREAM_CAPTURE_UNMATCHED));
    }
    let mut last = Vec::new();
    for other in stream.device.streams() {
        let mut place = lock(&other.capture);
        if let Some(part) = place.take_if(|p| Arc::ptr_eq(&p.capture, &capture)) {
            last.extend(part.after);
        }
    }
    lock(&UNDER_WAY).retain(|c| !std::ptr::eq(c.as_ptr(), Arc::as_ptr(&capture)));
    let mut state = lock(&capture.state);
    state.ended = true;
    if state.broken {
        return Err(Code::STREAM_CAPTURE_INVALIDATED);
    }
    let nodes = std::mem::take(&mut state.nodes);
    let (mut joined, mut next) = (BTreeSet::new(), captured.after);
    while let Some(node) = next.pop() {
        if joined.insert(node) {
            next.extend(&nodes[node].after);
        }
    }
    if last.iter().any(|n| !joined.contains(n)) {
        return Err(Code::STREAM_CAPTURE_UNJOINED);
    }
    Ok(Graph::new(stream.device, nodes))
}

/// What a capture wrote down.
#[derive(Debug)]
pub struct Graph {
    pub device: &'static Device,
    nodes: Vec<Node>,
    /// The nodes' handles.
    pub handles: Vec<usize>,
}

/// The nodes of all graphs.
pub static NODES: Handles<Kind> = Handles::new();

impl Graph {
    fn new(device: &'static Device, nodes: Vec<Node>) -> Self {
        let handle = |node: &Node| NODES.insert::<()>(Arc::new(node.kind())).addr();
        let handles = nodes.iter().map(handle).collect();
        Graph { device, nodes, handles }
    }

    pub fn instantiate(&self) -> Exec {
        // The order of the calls is one that the edges allow.
        let work = self.nodes.iter().map(|n| n.work.clone()).collect();
        Exec { device: self.device, work, turn: Arc::default() }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        for &handle in &self.handles {
            let _ = NODES.remove(handle as *mut ());
        }
    }
}

/// A graph that can be launched.
#[derive(Debug)]
pub struct Exec {
    pub device: &'static Device,
    work: Arc<[Work]>,
    /// One launch at a time.
    turn: Arc<Event>,
}

impl Exec {
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        let all = Work::Graph(Arc::clone(&self.work));
        if lock(&stream.capture).is_some() {
            return stream.submit(all);
        }
        let (before, after) = self.turn.turn();
        [before, all, after].into_iter().for_each(|work| {
            stream.push(work);
        });
        Ok(())
    }
}
