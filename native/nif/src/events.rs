//! The engine's events, sent to the process that asked for them.
//!
//! Whoever calls a NIF next passes on what has happened: no thread of ours is needed for it, and
//! where nothing has happened it costs the load of a flag.

use std::sync::{Mutex, PoisonError};

use nitrox_engine::cuda::cache::Origin;
use nitrox_engine::device::Id;
use nitrox_engine::events::{self, Event};
use rustler::{Encoder, Env, LocalPid, Term};

use crate::answer::{self, Answer};
use crate::devices;
use crate::tensors::is_nil;
use crate::term::DecodeError;

static LISTENER: Mutex<Option<LocalPid>> = Mutex::new(None);

mod atoms {
    rustler::atoms! {
        ok, nil, nitrox_event, kernel, trimmed, out_of_memory, fallback, cache, compiler
    }
}

/// From now on events go to `pid` as `{:nitrox_event, kind, device, …}`; `nil` stops them.
pub fn listen<'a>(env: Env<'a>, pid: Term<'a>) -> Answer<Term<'a>> {
    let listener = match (is_nil(pid), pid.decode::<LocalPid>()) {
        (true, _) => None,
        (_, Ok(pid)) => Some(pid),
        _ => return Err(DecodeError::expected("a pid or nil", pid).of("events").into()),
    };
    events::listen(listener.is_some());
    *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    Ok(atoms::ok().to_term(env))
}

/// Sends what has happened since the last time.
pub fn pass_on(env: Env) {
    let events = events::take();
    if events.is_empty() {
        return;
    }
    let listener = *LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(listener) = listener else { return };
    for event in events {
        // The listener may be gone, and its successor will ask again.
        let _ = env.send(&listener, message(env, event));
    }
}

fn message<'a>(env: Env<'a>, event: Event) -> Term<'a> {
    let tag = atoms::nitrox_event();
    match event {
        Event::Kernel { module, device, origin, took } => {
            let origin = match origin {
                Origin::Disk => atoms::cache(),
                Origin::Compiler => atoms::compiler(),
            };
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let device = answer::device(env, device);
            (tag, atoms::kernel(), device, module, origin, nanos).encode(env)
        }
        Event::Trimmed { device, bytes, segments } => {
            (tag, atoms::trimmed(), named(env, &device), bytes, segments).encode(env)
        }
        Event::OutOfMemory { device, requested, stats } => {
            let stats = devices::stats(env, &stats).unwrap_or(atoms::nil().to_term(env));
            (tag, atoms::out_of_memory(), named(env, &device), requested, stats).encode(env)
        }
        Event::Fallback { op, device, why } => {
            let (op, device) = (answer::atom(env, op), answer::device(env, device));
            (tag, atoms::fallback(), device, op, why).encode(env)
        }
    }
}

/// The device of a pool.
fn named<'a>(env: Env<'a>, device: &str) -> Term<'a> {
    match device.parse::<Id>() {
        Ok(id) => answer::device(env, id),
        Err(()) => atoms::nil().to_term(env),
    }
}
