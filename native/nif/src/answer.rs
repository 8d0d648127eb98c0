//! What a NIF answers: `{:ok, value}`, or why not, or who has to be asked instead.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nitrox_engine::{Error, Pending, device::Id};
use rustler::{Atom, Encoder, Env, Term};

use crate::events;
use crate::programs;
use crate::term::DecodeError;

mod atoms {
    rustler::atoms! { ok, error, nil, heavy, closed, pending, cpu, cuda, argument, internal }
}

/// What a NIF answers in place of its result.
#[derive(Debug)]
pub enum Instead {
    /// `{:error, {reason, op, message, hint}}`
    Refused(Error),
    /// The same, for a term that could not be decoded.
    Undecoded(DecodeError),
    /// `:heavy`: the call belongs on a dirty scheduler, to the NIF's twin there.
    Heavy,
    /// `{:closed, device}`: the device has to be opened first, which is no work for this scheduler.
    Closed(Id),
    /// `{:pending, run}`: the GPU is at it, and the results are to be had from `wait`.
    Pending(Box<Pending>),
}

pub type Answer<T> = Result<T, Instead>;

impl From<Error> for Instead {
    fn from(error: Error) -> Self {
        Instead::Refused(error)
    }
}

impl From<DecodeError> for Instead {
    fn from(error: DecodeError) -> Self {
        Instead::Undecoded(error)
    }
}

/// Runs a NIF's body. A panic ends here, as an `:internal` error.
pub fn answer<'a>(env: Env<'a>, body: impl FnOnce() -> Answer<Term<'a>>) -> Term<'a> {
    let answer = catch_unwind(AssertUnwindSafe(body));
    events::pass_on(env);
    match answer {
        Ok(Ok(value)) => (atoms::ok(), value).encode(env),
        Ok(Err(Instead::Refused(error))) => refusal(
            env,
            atom(env, error.reason()),
            error.op().map(|op| atom(env, op)),
            &error.to_string(),
            error.hint(),
        ),
        Ok(Err(Instead::Undecoded(error))) => {
            // The tag came as an atom: asking for it makes no new one.
            let op = error.tag().and_then(|tag| Atom::existing_from_str(env, tag).ok());
            refusal(env, atoms::argument(), op, &error.to_string(), None)
        }
        Ok(Err(Instead::Heavy)) => atoms::heavy().to_term(env),
        Ok(Err(Instead::Closed(id))) => (atoms::closed(), device(env, id)).encode(env),
        Ok(Err(Instead::Pending(run))) => {
            (atoms::pending(), programs::pending(env, *run)).encode(env)
        }
        Err(panic) => {
            let message = format!("internal error: panicked: {}", panic_text(&*panic));
            let hint = "this is a bug in Nitrox; please report it with the call that led to it";
            refusal(env, atoms::internal(), None, &message, Some(hint))
        }
    }
}

/// The most characters of a message: it may quote a word that came with the call.
const MESSAGE: usize = 1000;

fn refusal<'a>(
    env: Env<'a>,
    reason: Atom,
    op: Option<Atom>,
    message: &str,
    hint: Option<&str>,
) -> Term<'a> {
    let nil = atoms::nil();
    let message: String = message.chars().take(MESSAGE).collect();
    let hint = hint.map_or(nil.to_term(env), |h| h.encode(env));
    (atoms::error(), (reason, op.unwrap_or(nil), message, hint)).encode(env)
}

/// For the engine's own words only: atoms are never collected.
pub fn atom(env: Env, word: &'static str) -> Atom {
    Atom::from_str(env, word).unwrap_or_else(|_| atoms::internal())
}

pub fn device<'a>(env: Env<'a>, id: Id) -> Term<'a> {
    match id {
        Id::Cpu => atoms::cpu().to_term(env),
        Id::Cuda(n) => (atoms::cuda(), n).encode(env),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
