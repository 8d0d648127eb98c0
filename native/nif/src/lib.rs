//! The NIF library of Nitrox: decodes terms, holds resources, encodes results. No logic.
//!
//! A call that may take long on a normal scheduler answers `:heavy`, and Elixir asks its twin
//! `…_dirty`, the same body on a dirty scheduler.

mod answer;
mod devices;
mod doctor;
mod events;
mod programs;
mod tensors;
mod term;
mod weights;

use std::time::Instant;

use rustler::schedule::consume_timeslice;
use rustler::{Env, Term};

use answer::answer;
use tensors::On::{Dirty, Normal};

/// Has the VM count the time of a call on a normal scheduler, by its end. A process that calls one
/// after the other would else keep its scheduler, since to the VM each call is as good as nothing:
/// frames back to back held up others for 30 ms.
struct Turn<'a> {
    env: Env<'a>,
    began: Option<Instant>,
}

impl<'a> Turn<'a> {
    fn begin(env: Env<'a>, normal: bool) -> Self {
        Turn { env, began: normal.then(Instant::now) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        /// A turn is of 4000 reductions, for which Erlang's own code takes some 0.3 ms.
        const MICROS_A_PERCENT: u128 = 3;
        let Some(began) = self.began else { return };
        let percent = began.elapsed().as_micros() / MICROS_A_PERCENT;
        if percent > 0 {
            consume_timeslice(self.env, percent.min(100) as i32);
        }
    }
}

macro_rules! nifs {
    ($($schedule:literal $name:ident($($arg:ident),*) => $body:path $(, $on:ident)?;)*) => {
        $(
            #[rustler::nif(schedule = $schedule)]
            fn $name<'a>(env: Env<'a>, $($arg: Term<'a>),*) -> Term<'a> {
                let _turn = Turn::begin(env, $schedule == "Normal");
                answer(env, || $body(env, $($on,)? $($arg),*))
            }
        )*
    };
}

nifs! {
    "DirtyIo" open(device, memory_limit) => devices::open;
    "DirtyIo" cuda_count() => devices::cuda_count;
    "Normal" device_info(device) => devices::device_info;
    "DirtyIo" warmup(device, pid) => devices::warmup;
    "DirtyIo" synchronize(device) => devices::synchronize;
    "DirtyIo" trim(device) => devices::trim;
    "DirtyIo" memory_stats(device) => devices::memory_stats;
    "DirtyIo" survey() => doctor::survey;
    "Normal" listen(pid) => events::listen;

    "Normal" from_binary(device, spec, bytes) => tensors::from_binary, Normal;
    "DirtyIo" from_binary_dirty(device, spec, bytes) => tensors::from_binary, Dirty;
    "Normal" to_binary(tensor, limit) => tensors::to_binary, Normal;
    "DirtyIo" to_binary_dirty(tensor, limit) => tensors::to_binary, Dirty;
    "Normal" copy(tensor, device) => tensors::copy, Normal;
    "DirtyIo" copy_dirty(tensor, device) => tensors::copy, Dirty;
    "Normal" deallocate(tensor) => tensors::deallocate;
    "DirtyIo" address(tensor) => tensors::address;
    "DirtyIo" adopt(device, spec, address, owner) => tensors::adopt;

    "Normal" run(device, op, inputs) => tensors::run, Normal;
    "DirtyCpu" run_dirty(device, op, inputs) => tensors::run, Dirty;
    "Normal" infer(op, specs) => tensors::infer_specs;
    "DirtyCpu" explain(device, op, specs) => tensors::explain;

    "DirtyIo" compile(device, graph, params, state, options) => programs::compile;
    "Normal" program_info(program) => programs::program_info;
    "DirtyCpu" program_explain(program) => programs::program_explain;
    "Normal" program_run(program, feeds) => programs::run, Normal;
    "DirtyIo" program_run_dirty(program, feeds) => programs::run, Dirty;
    "DirtyCpu" session_new(program) => programs::session_new;
    "Normal" session_step(session, feeds, prepare) => programs::step, Normal;
    "DirtyIo" session_step_dirty(session, feeds, prepare) => programs::step, Dirty;
    "DirtyIo" session_snapshot(session) => programs::snapshot;
    "DirtyIo" session_restore(session, state) => programs::restore;
    "DirtyIo" session_fork(session) => programs::fork;
    "DirtyCpu" wait(run) => programs::wait;

    "DirtyIo" weights_open(path) => weights::open;
    "DirtyIo" weights_fetch(weights, name, device) => weights::fetch;
}

rustler::init!("Elixir.Nitrox.Native");
