//! The instances of a program, lent to one caller at a time, first come first served.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::instance::Instance;
use crate::pool::lock;

#[derive(Debug)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    freed: Condvar,
    /// The time of the latest run. Unknown counts as long: the first run of a program touches
    /// cold memory.
    nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Instance>,
    waiting: VecDeque<u64>,
    tickets: u64,
}

impl Lanes {
    pub fn new(instances: Vec<Instance>) -> Arc<Self> {
        let state = State { free: instances, ..State::default() };
        let nanos = AtomicU64::new(u64::MAX);
        Arc::new(Lanes { state: Mutex::new(state), freed: Condvar::new(), nanos })
    }

    /// An instance, if one is free and nobody waits already.
    pub fn try_take(self: &Arc<Self>) -> Option<Held> {
        let mut state = lock(&self.state);
        if !state.waiting.is_empty() {
            return None;
        }
        let instance = state.free.pop()?;
        Some(Held { lanes: Arc::clone(self), instance: Some(instance) })
    }

    /// An instance, after everybody who asked before.
    pub fn take(self: &Arc<Self>) -> Held {
        let mut state = lock(&self.state);
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.push_back(ticket);
        loop {
            if state.waiting.front() == Some(&ticket)
                && let Some(instance) = state.free.pop()
            {
                state.waiting.pop_front();
                // The next in the queue may find another free instance.
                self.wake(&state);
                return Held { lanes: Arc::clone(self), instance: Some(instance) };
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Where nobody waits, and so in a frame, it costs no call to the system.
    fn wake(&self, state: &State) {
        if !state.waiting.is_empty() {
            self.freed.notify_all();
        }
    }

    pub fn last_run(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    pub fn note_run(&self, took: Duration) {
        self.nanos.store(took.as_nanos().min(u64::MAX as u128) as u64, Ordering::Relaxed);
    }
}

/// An instance on loan; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Held {
    lanes: Arc<Lanes>,
    instance: Option<Instance>,
}

impl Held {
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }
}

impl Deref for Held {
    type Target = Instance;

    #[allow(clippy::expect_used)] // Only Drop takes it.
    fn deref(&self) -> &Instance {
        self.instance.as_ref().expect("an instance on loan")
    }
}

impl DerefMut for Held {
    #[allow(clippy::expect_used)] // Only Drop takes it.
    fn deref_mut(&mut self) -> &mut Instance {
        self.instance.as_mut().expect("an instance on loan")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            let mut state = lock(&self.lanes.state);
            state.free.push(instance);
            self.lanes.wake(&state);
        }
    }
}
