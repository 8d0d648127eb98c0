//! Streams and events. Each stream has a thread of its own, so that a kernel that waits for the host
//! or for another stream keeps nobody else.

use std::collections::VecDeque;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::code::{Code, Result};
use crate::device::Device;
use crate::early;
use crate::graph::{Capture, Captured};
use crate::handle::lock;
use crate::machine::{self, Fault, FaultKind, Launch};
use crate::ptx::Kernel;

/// Those who wait look so often whether the device is lost: a kernel that waits for another one's
/// word then never ends.
const LOOK: Duration = Duration::from_millis(20);

/// What a stream does.
#[derive(Clone)]
pub enum Work {
    Kernel {
        kernel: Arc<Kernel>,
        launch: Arc<Launch>,
        /// Whether it may begin before what is ahead of it has ended.
        early: bool,
    },
    /// A copy between places of which those that are the device's must still be.
    Copy {
        to: Side,
        from: Side,
        bytes: usize,
    },
    /// A copy from memory of the host that was read already.
    Upload {
        to: u64,
        bytes: Arc<[u8]>,
    },
    Set {
        at: u64,
        value: u8,
        bytes: usize,
    },
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
    /// A graph's, in an order that its edges allow.
    Graph(Arc<[Work]>),
}

/// An end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Device(u64),
    /// Memory that is not known to the device.
    Host(u64),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Work::Kernel { kernel, .. } => return write!(f, "Kernel({})", kernel.name),
            Work::Copy { .. } => "Copy",
            Work::Upload { .. } => "Upload",
            Work::Set { .. } => "Set",
            Work::Record(..) => "Record",
            Work::Wait(..) => "Wait",
            Work::Graph(..) => "Graph",
        })
    }
}

/// A queue of work, in order within itself.
#[derive(Debug)]
pub struct Stream {
    pub device: &'static Device,
    queue: Mutex<Queue>,
    moved: Condvar,
    /// The capture that the stream is part of, and the nodes that the next one comes after.
    pub(crate) capture: Mutex<Option<Captured>>,
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<Work>,
    queued: u64,
    done: u64,
    closed: bool,
}

impl Stream {
    pub fn new(device: &'static Device) -> Result<Arc<Self>> {
        /// A kernel's machine runs on it.
        const STACK: usize = 16 << 20;
        let (queue, moved, capture) = Default::default();
        let stream = Arc::new(Stream { device, queue, moved, capture });
        let executor = Arc::clone(&stream);
        thread::Builder::new()
            .name("emulator-stream".into())
            .stack_size(STACK)
            .spawn(move || executor.execute())
            .map_err(|_| Code::OUT_OF_MEMORY)?;
        device.enter(Arc::downgrade(&stream));
        Ok(stream)
    }

    /// Queues, or writes down where the stream is being captured.
    pub fn submit(&self, work: Work) -> Result<()> {
        let mut capture = lock(&self.capture);
        if let Some(captured) = &mut *capture {
            return captured.add(work);
        }
        drop(capture);
        self.push(work);
        Ok(())
    }

    /// Queues, and tells the number of what was queued.
    pub fn push(&self, work: Work) -> u64 {
        let mut queue = lock(&self.queue);
        queue.work.push_back(work);
        queue.queued += 1;
        let number = queue.queued;
        drop(queue);
        self.moved.notify_all();
        number
    }

    /// An error where the stream is being captured, for calls that a capture does not survive.
    pub fn not_captured(&self) -> Result<()> {
        match &*lock(&self.capture) {
            None => Ok(()),
            Some(captured) => Err(captured.capture.invalidate(Code::STREAM_CAPTURE_UNSUPPORTED)),
        }
    }

    pub fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.done == queue.queued
    }

    /// Waits for the work queued so far.
    pub fn drain(&self) {
        let number = lock(&self.queue).queued;
        self.drain_to(number);
    }

    /// Waits for one piece of work and for those before it, or until the device is lost.
    pub fn drain_to(&self, number: u64) {
        let mut queue = lock(&self.queue);
        while queue.done < number && self.device.check().is_ok() {
            queue = self.moved.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was queued is still done.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.moved.notify_all();
    }

    fn execute(&self) {
        loop {
            let mut queue = lock(&self.queue);
            while queue.work.is_empty() && !queue.closed {
                queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(work) = queue.work.pop_front() else { return };
            drop(queue);
            // Who is told by an event finds the stream's record of it done, too.
            if !matches!(work, Work::Record(..)) {
                self.perform(&work);
            }
            lock(&self.queue).done += 1;
            self.moved.notify_all();
            if let Work::Record(event, number) = work {
                event.reach(number);
            }
        }
    }

    fn perform_graph(&self, all: &[Work]) {
        let mut seen = VecDeque::new();
        for (i, work) in all.iter().enumerate() {
            if self.device.check().is_ok() {
                let looked = match seen.pop_front() {
                    Some(seen) => early::Seen::check(&seen),
                    None => early::look(self.device, &all[i..]).map(|all| seen = all),
                };
                if let Err(fault) = looked {
                    self.device.poison(&fault);
                }
            }
            self.perform(work);
        }
    }

    fn perform(&self, work: &Work) {
        match work {
            // Events move on also where the device is lost: those who wait are told by the code.
            Work::Record(event, number) => event.reach(*number),
            Work::Wait(event, number) => event.wait_for(*number, || true),
            Work::Graph(all) => self.perform_graph(all),
            _ if self.device.check().is_err() => {}
            work => {
                let device = self.device;
                // A panic of the machine's is a fault like another, and no hang.
                let done = std::panic::catch_unwind(|| work.run(device)).unwrap_or_else(|_| {
                    let message = format!("{work:?}: the emulator panicked");
                    Err(Fault { kind: FaultKind::Instruction, message })
                });
                if let Err(fault) = done {
                    device.poison(&fault);
                }
            }
        }
    }
}

impl Work {
    fn run(&self, device: &Device) -> std::result::Result<(), Fault> {
        let known = |at: u64, bytes: usize| {
            if device.holds(at, bytes) {
                return Ok(ptr::with_exposed_provenance_mut::<u8>(at as usize));
            }
            let message = format!("{self:?}: {bytes} bytes at {at:#x} are not allocated");
            Err(Fault { kind: FaultKind::Address, message })
        };
        let place = |side, bytes| match side {
            Side::Device(at) => known(at, bytes),
            Side::Host(at) => Ok(ptr::with_exposed_provenance_mut(at as usize)),
        };
        match self {
            Work::Kernel { kernel, launch, .. } => machine::run(kernel, launch, &device.memory)?,
            Work::Copy { to, from, bytes } => {
                let (to, from) = (place(*to, *bytes)?, place(*from, *bytes)?);
                // SAFETY: the device's ends are allocated, and that the host's are is the caller's
                // promise to the driver.
                unsafe { ptr::copy(from, to, *bytes) };
            }
            Work::Upload { to, bytes } => {
                let to = known(*to, bytes.len())?;
                // SAFETY: so many bytes are allocated there.
                unsafe { ptr::copy(bytes.as_ptr(), to, bytes.len()) };
            }
            Work::Set { at, value, bytes } => {
                let at = known(*at, *bytes)?;
                // SAFETY: so many bytes are allocated there.
                unsafe { ptr::write_bytes(at, *value, *bytes) };
            }
            Work::Record(..) | Work::Wait(..) | Work::Graph(..) => {}
        }
        Ok(())
    }
}

/// A point in a stream.
#[derive(Debug, Default)]
pub struct Event {
    state: Mutex<EventState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct EventState {
    /// How often it was recorded, and the latest record that was reached.
    recorded: u64,
    reached: u64,
    captured: Option<Captured>,
}

impl Event {
    pub fn record(self: &Arc<Self>, stream: &Stream) -> Result<()> {
        let captured = lock(&stream.capture);
        if let Some(captured) = &*captured {
            captured.capture.check()?;
            lock(&self.state).captured = Some(captured.fork());
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.captured = None;
        state.recorded += 1;
        let number = state.recorded;
        drop(state);
        stream.push(Work::Record(Arc::clone(self), number));
        Ok(())
    }

    /// The stream goes on after what the event was last recorded after.
    pub fn hold(self: &Arc<Self>, stream: &Stream) -> Result<()> {
        let mut capture = lock(&stream.capture);
        let state = lock(&self.state);
        match (&mut *capture, &state.captured) {
            (None, None) => {
                if state.recorded > 0 {
                    stream.push(Work::Wait(Arc::clone(self), state.recorded));
                }
                Ok(())
            }
            (Some(_), None) if state.recorded == 0 => Ok(()),
            (Some(ours), None) => Err(ours.capture.invalidate(Code::STREAM_CAPTURE_ISOLATION)),
            (None, Some(theirs)) => {
                theirs.capture.check()?;
                *capture = Some(theirs.fork());
                Ok(())
            }
            (Some(ours), Some(theirs)) if Arc::ptr_eq(&ours.capture, &theirs.capture) => {
                ours.join(theirs);
                Ok(())
            }
            (Some(ours), Some(theirs)) => {
                theirs.capture.invalidate(Code::STREAM_CAPTURE_MERGE);
                Err(ours.capture.invalidate(Code::STREAM_CAPTURE_MERGE))
            }
        }
    }

    /// Whether what it was last recorded after is done.
    pub fn is_reached(&self) -> Result<bool> {
        self.not_captured()?;
        let state = lock(&self.state);
        Ok(state.reached >= state.recorded)
    }

    /// Waits for what it was last recorded after, or until the device is lost.
    pub fn synchronize(&self, device: &Device) -> Result<()> {
        self.not_captured()?;
        let number = lock(&self.state).recorded;
        self.wait_for(number, || device.check().is_ok());
        Ok(())
    }

    fn not_captured(&self) -> Result<()> {
        let captured = lock(&self.state).captured.as_ref().map(|c| Arc::clone(&c.capture));
        captured.map_or(Ok(()), |c: Arc<Capture>| Err(c.invalidate(Code::CAPTURED_EVENT)))
    }

    fn reach(&self, number: u64) {
        let mut state = lock(&self.state);
        state.reached = state.reached.max(number);
        drop(state);
        self.moved.notify_all();
    }

    fn wait_for(&self, number: u64, patient: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        while state.reached < number && patient() {
            state = self.moved.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Recorded by the emulator itself, for a graph that runs once at a time: what to wait for
    /// before a launch, and what to record after it.
    pub fn turn(self: &Arc<Self>) -> (Work, Work) {
        let mut state = lock(&self.state);
        let before = state.recorded;
        state.recorded += 1;
        (Work::Wait(Arc::clone(self), before), Work::Record(Arc::clone(self), before + 1))
    }
}
