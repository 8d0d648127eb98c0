//! What the engine tells: kernels made ready, memory that was short, ops that went a longer way.
//!
//! Where nobody listens an event costs the load of a flag. Else it waits in a queue until it is
//! taken, since the engine knows nobody to send it to.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cuda::cache::Origin;
use crate::device::Id;
use crate::pool::{Stats, lock};

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A module of kernels was loaded, after it was compiled or read from the disk.
    Kernel { module: String, device: Id, origin: Origin, took: Duration },
    /// Idle segments went back to the system.
    Trimmed { device: String, bytes: usize, segments: usize },
    /// An allocation failed, after a trim.
    OutOfMemory { device: String, requested: usize, stats: Box<Stats> },
    /// An op did in several launches what its best variant does in one or two.
    Fallback { op: &'static str, device: Id, why: String },
}

/// Events beyond so many that nobody takes are dropped.
const MOST: usize = 1024;

static LISTENING: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);
static QUEUE: Mutex<Vec<Event>> = Mutex::new(Vec::new());

/// Whether events are kept for [`take`] from now on.
pub fn listen(on: bool) {
    LISTENING.store(on, Ordering::Relaxed);
    if !on {
        take();
    }
}

pub(crate) fn tell(event: impl FnOnce() -> Event) {
    tell_some(|| Some(event()));
}

/// As [`tell`], where there may be nothing to tell.
pub(crate) fn tell_some(event: impl FnOnce() -> Option<Event>) {
    if !LISTENING.load(Ordering::Relaxed) {
        return;
    }
    let Some(event) = event() else { return };
    let mut queue = lock(&QUEUE);
    if queue.len() < MOST {
        queue.push(event);
        WAITING.store(true, Ordering::Release);
    }
}

/// The events since the last time, in their order. Costs the load of a flag where there are none.
#[inline]
pub fn take() -> Vec<Event> {
    if WAITING.load(Ordering::Acquire) { take_waiting() } else { Vec::new() }
}

#[cold]
fn take_waiting() -> Vec<Event> {
    let mut queue = lock(&QUEUE);
    WAITING.store(false, Ordering::Release);
    std::mem::take(&mut *queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, as there is one queue.
    #[test]
    fn events_wait_for_a_listener_up_to_a_bound() {
        let event = |n| Event::Trimmed { device: "events".into(), bytes: n, segments: 1 };
        let ours = || {
            let of = |e: &Event| matches!(e, Event::Trimmed { device, .. } if device == "events");
            take().into_iter().filter(of).collect::<Vec<_>>()
        };
        tell(|| event(1));
        assert_eq!(ours(), []);
        listen(true);
        tell(|| event(2));
        tell(|| event(3));
        assert_eq!(ours(), [event(2), event(3)]);
        assert_eq!(ours(), []);
        (0..2 * MOST).for_each(|n| tell(|| event(n)));
        assert!(ours().len() <= MOST);
        tell(|| event(4));
        listen(false);
        assert_eq!(ours(), []);
    }
}
