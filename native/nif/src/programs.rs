//! Programs and sessions as resources, and their runs.
//!
//! A run is tried on the caller's own scheduler. What would block there is answered with `:heavy`
//! (an instance is in use, or the run is long) or `{:pending, run}` (the GPU has it), and Elixir
//! goes on with a dirty twin. Those that queue for an instance are on the dirty IO schedulers and
//! those that wait for the GPU on the dirty CPU ones, where the VM also collects large heaps: a run
//! that is under way never has to queue behind calls that wait for it.

use std::sync::{Arc, Mutex, PoisonError};

use nitrox_engine::program::{Options, Program, Session};
use nitrox_engine::{Error, Feed, Graph, Mode, Output, Pending, Started, Tensor};
use rustler::{Binary, Encoder, Env, NewBinary, Resource, ResourceArc, Term};

use crate::answer::{Answer, Instead};
use crate::devices;
use crate::tensors::{self, On, each, list};
use crate::term::{DecodeError, decode};

mod atoms {
    rustler::atoms! {
        ok, nil, steps, kernel_nodes, copy_nodes, arena_bytes, parameter_bytes, instances
    }
}

pub struct ProgramHandle(Arc<Program>);
pub struct SessionHandle(Session);
/// A run under way; nothing once its results were taken. Dropping it, as its process's end does,
/// gives the instance back.
pub struct PendingHandle(Mutex<Option<Pending>>);

#[rustler::resource_impl]
impl Resource for ProgramHandle {}
#[rustler::resource_impl]
impl Resource for SessionHandle {}
#[rustler::resource_impl]
impl Resource for PendingHandle {}

/// More feeds than most programs have.
const FEEDS: usize = 4;

fn program<'a>(term: Term<'a>) -> Answer<&'a Arc<Program>> {
    match term.try_get_resource::<ProgramHandle>() {
        Some(handle) => Ok(&handle.0),
        None => Err(DecodeError::expected("a program", term).of("program").into()),
    }
}

fn session<'a>(term: Term<'a>) -> Answer<&'a Session> {
    match term.try_get_resource::<SessionHandle>() {
        Some(handle) => Ok(&handle.0),
        None => Err(DecodeError::expected("a session", term).of("session").into()),
    }
}

fn tensors_of(what: &str, term: Term) -> Answer<Vec<Arc<Tensor>>> {
    let terms = list(what, term)?;
    terms.iter().enumerate().map(|(i, &t)| tensors::get(&format!("{what}[{i}]"), t)).collect()
}

fn owned(tensors: Vec<Arc<Tensor>>) -> Vec<Tensor> {
    tensors.iter().map(|t| Tensor::clone(t)).collect()
}

/// `{program, [{type, shape}]}`, the second the outputs'. `options` is `{readback, instances}`.
pub fn compile<'a>(
    env: Env<'a>,
    device: Term<'a>,
    graph: Term<'a>,
    params: Term<'a>,
    state: Term<'a>,
    options: Term<'a>,
) -> Answer<Term<'a>> {
    let device = devices::get(device)?;
    let graph: Graph = decode("graph", graph)?;
    let params = owned(tensors_of("parameters", params)?);
    let state = owned(tensors_of("state", state)?);
    let Ok((readback, instances)) = options.decode::<(Term, Term)>() else {
        let error = DecodeError::expected("{readback, instances}", options);
        return Err(error.of("options").into());
    };
    let options = Options {
        readback: decode("readback", readback)?,
        instances: decode("instances", instances)?,
    };
    let program = Program::compile(&device, graph, params, state, options)?;
    let outputs: Vec<_> = program.outputs().iter().map(|s| tensors::spec_term(env, s)).collect();
    Ok((ResourceArc::new(ProgramHandle(program)), outputs).encode(env))
}

pub fn program_info<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    let info = program(term)?.info();
    devices::map(
        env,
        &[
            (atoms::steps(), info.steps.encode(env)),
            (atoms::kernel_nodes(), info.kernel_nodes.encode(env)),
            (atoms::copy_nodes(), info.copy_nodes.encode(env)),
            (atoms::arena_bytes(), info.arena_bytes.encode(env)),
            (atoms::parameter_bytes(), info.parameter_bytes.encode(env)),
            (atoms::instances(), info.instances.encode(env)),
        ],
    )
}

/// `[{op, variant, why, launches}]`, a step each.
pub fn program_explain<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    let steps = program(term)?.explain()?.into_iter();
    let steps = steps.map(|(op, e)| (op, e.variant, e.why, e.launches));
    Ok(steps.collect::<Vec<_>>().encode(env))
}

/// One run, of which the results are a list of references or of binaries.
pub fn run<'a>(env: Env<'a>, on: On, term: Term<'a>, feeds: Term<'a>) -> Answer<Term<'a>> {
    let program = program(term)?;
    with_feeds(feeds, |feeds| started(env, program.run(feeds, mode(on))?))
}

/// A step, or what prepares one: its results then, or `nil` where none was made. One NIF for both, so
/// that the code of a step is in the caches when it comes.
pub fn step<'a>(
    env: Env<'a>,
    on: On,
    term: Term<'a>,
    feeds: Term<'a>,
    prepare: Term<'a>,
) -> Answer<Term<'a>> {
    let session = session(term)?;
    let prepare: bool = prepare
        .decode()
        .map_err(|_| DecodeError::expected("true or false", prepare).of("prepare"))?;
    with_feeds(feeds, |feeds| {
        let run = session.run(feeds, mode(on), prepare)?;
        run.map_or(Ok(atoms::nil().to_term(env)), |run| started(env, run))
    })
}

/// The results of a run that was pending.
pub fn wait<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    let Some(handle) = term.try_get_resource::<PendingHandle>() else {
        return Err(DecodeError::expected("a pending run", term).of("run").into());
    };
    let pending = handle.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    match pending {
        Some(pending) => Ok(outputs(env, pending.wait()?)),
        None => Err(Error::argument("wait", "the results of this run were taken already").into()),
    }
}

pub fn pending<'a>(env: Env<'a>, run: Pending) -> Term<'a> {
    ResourceArc::new(PendingHandle(Mutex::new(Some(run)))).encode(env)
}

pub fn session_new<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    Ok(ResourceArc::new(SessionHandle(Session::new(program(term)?)?)).encode(env))
}

/// Copies of the states, a list of references.
pub fn snapshot<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    let copies = session(term)?.snapshot()?;
    Ok(copies.into_iter().map(|t| tensors::make(env, t)).collect::<Vec<_>>().encode(env))
}

pub fn restore<'a>(env: Env<'a>, term: Term<'a>, state: Term<'a>) -> Answer<Term<'a>> {
    session(term)?.restore(&owned(tensors_of("state", state)?))?;
    Ok(atoms::ok().to_term(env))
}

pub fn fork<'a>(env: Env<'a>, term: Term<'a>) -> Answer<Term<'a>> {
    Ok(ResourceArc::new(SessionHandle(session(term)?.fork()?)).encode(env))
}

fn mode(on: On) -> Mode {
    match on {
        On::Normal => Mode::Try,
        On::Dirty => Mode::Block,
    }
}

/// Each feed is a binary or a tensor's reference.
fn with_feeds<'a, T>(feeds: Term<'a>, run: impl FnOnce(&[Feed]) -> Answer<T>) -> Answer<T> {
    enum Held<'a> {
        Bytes(&'a [u8]),
        Tensor(Arc<Tensor>),
    }
    if let Some((few, count)) = few_binaries(feeds) {
        return run(&few[..count]);
    }
    let mut held = Vec::with_capacity(FEEDS);
    each("inputs", feeds, |i, term| {
        held.push(match Binary::from_term(term) {
            Ok(bytes) => Held::Bytes(bytes.as_slice()),
            Err(_) if term.is_ref() => Held::Tensor(tensors::get(&format!("inputs[{i}]"), term)?),
            Err(_) => {
                let error = DecodeError::expected("a tensor or a binary", term);
                return Err(error.at(i).of("inputs").into());
            }
        });
        Ok(())
    })?;
    let mut feeds = Vec::with_capacity(FEEDS);
    feeds.extend(held.iter().map(|h| match h {
        Held::Bytes(bytes) => Feed::Bytes(bytes),
        Held::Tensor(tensor) => Feed::Tensor(tensor),
    }));
    run(&feeds)
}

/// A frame's feeds: a few binaries, for which no memory has to be had. `None` where there is anything else.
fn few_binaries<'a>(feeds: Term<'a>) -> Option<([Feed<'a>; FEEDS], usize)> {
    let (mut few, mut count, mut rest) = ([Feed::Bytes(&[]); FEEDS], 0, feeds);
    while let Ok((term, tail)) = rest.list_get_cell() {
        let bytes = Binary::from_term(term).ok()?;
        *few.get_mut(count)? = Feed::Bytes(bytes.as_slice());
        (count, rest) = (count + 1, tail);
    }
    rest.is_empty_list().then_some((few, count))
}

fn started<'a>(env: Env<'a>, run: Started) -> Answer<Term<'a>> {
    match run {
        Started::Done(results) => Ok(outputs(env, results)),
        Started::Busy => Err(Instead::Heavy),
        Started::Pending(run) => Err(Instead::Pending(Box::new(run))),
    }
}

fn outputs<'a>(env: Env<'a>, outputs: Vec<Output>) -> Term<'a> {
    let empty = Term::list_new_empty(env);
    outputs.into_iter().rev().fold(empty, |list, output| {
        list.list_prepend(match output {
            Output::Tensor(tensor) => tensors::make(env, tensor),
            Output::Bytes(bytes) => NewBinary::from_slice(env, &bytes).into(),
        })
    })
}
