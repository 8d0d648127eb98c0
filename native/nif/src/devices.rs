//! The devices that are open: each is opened once and kept for the life of the VM.

use std::sync::{Mutex, PoisonError, RwLock};

use nitrox_engine::cuda::Cuda;
use nitrox_engine::device::Id;
use nitrox_engine::pool::Stats;
use nitrox_engine::{Device, Error};
use rustler::{Atom, Encoder, Env, LocalPid, Term};

use crate::answer::{Answer, Instead};
use crate::term::{DecodeError, decode};

static OPEN: RwLock<Vec<Device>> = RwLock::new(Vec::new());
/// Held while a device opens, so that none is opened twice and nobody waits on [`OPEN`] for it.
static OPENING: Mutex<()> = Mutex::new(());

mod atoms {
    rustler::atoms! {
        ok, nil, cpu, nitrox_warmup, in_use, peak, reserved, allocations, total_allocations, segments,
        largest_free, fragmentation, limit
    }
}

/// `:cpu` or `{:cuda, n}`.
pub fn id(term: Term) -> Answer<Id> {
    if term.is_atom() && Atom::from_term(term).is_ok_and(|a| a == atoms::cpu()) {
        return Ok(Id::Cpu);
    }
    let expected = ":cpu or {:cuda, n}";
    match decode::<(String, u32)>("device", term) {
        Ok((kind, n)) if kind == "cuda" => Ok(Id::Cuda(n)),
        _ => Err(DecodeError::expected(expected, term).of("device").into()),
    }
}

fn find(id: Id) -> Option<Device> {
    let open = OPEN.read().unwrap_or_else(PoisonError::into_inner);
    open.iter().find(|device| device.id() == id).cloned()
}

/// An open device, or `{:closed, device}`.
pub fn get(term: Term) -> Answer<Device> {
    let id = id(term)?;
    find(id).ok_or(Instead::Closed(id))
}

/// Opens a device with a pool of at most `limit` bytes; one that is open stays as it is.
pub fn open<'a>(env: Env<'a>, device: Term<'a>, limit: Term<'a>) -> Answer<Term<'a>> {
    let id = id(device)?;
    let limit: Option<usize> = decode("memory_limit", limit)?;
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    match find(id) {
        Some(open) if limit.is_some() && open.stats().limit != limit => {
            let message = format!("{id} is open already; its memory_limit can't be changed");
            Err(Error::argument("open", message).into())
        }
        Some(_) => Ok(atoms::ok().to_term(env)),
        None => {
            let device = Device::open(id, limit)?;
            OPEN.write().unwrap_or_else(PoisonError::into_inner).push(device);
            Ok(atoms::ok().to_term(env))
        }
    }
}

/// How many GPUs the driver shows.
pub fn cuda_count<'a>(env: Env<'a>) -> Answer<Term<'a>> {
    Ok(Cuda::count()?.encode(env))
}

/// `{name, memory, {major, minor}}` of an open GPU, `nil` for the CPU.
pub fn device_info<'a>(env: Env<'a>, device: Term<'a>) -> Answer<Term<'a>> {
    Ok(match get(device)? {
        Device::Cpu(_) => atoms::nil().to_term(env),
        Device::Cuda(cuda) => {
            let props = cuda.props();
            (props.name.as_str(), props.memory, (props.major, props.minor)).encode(env)
        }
    })
}

/// Compiles and loads all kernels, and sends `{:nitrox_warmup, what, done, total, µs, ok?}` to `pid`
/// after each. The CPU has none.
pub fn warmup<'a>(env: Env<'a>, device: Term<'a>, pid: Term<'a>) -> Answer<Term<'a>> {
    let device = get(device)?;
    let Ok(pid) = pid.decode::<LocalPid>() else {
        return Err(DecodeError::expected("a pid", pid).of("progress").into());
    };
    if let Device::Cuda(cuda) = device {
        cuda.warmup(|p| {
            let micros = u64::try_from(p.took.as_micros()).unwrap_or(u64::MAX);
            let message = (
                atoms::nitrox_warmup(),
                p.module.to_string(),
                p.done,
                p.total,
                micros,
                p.result.is_ok(),
            );
            // The receiver may be gone, and the kernels are wanted all the same.
            let _ = env.send(&pid, message);
        })?;
    }
    Ok(atoms::ok().to_term(env))
}

pub fn synchronize<'a>(env: Env<'a>, device: Term<'a>) -> Answer<Term<'a>> {
    get(device)?.synchronize()?;
    Ok(atoms::ok().to_term(env))
}

pub fn trim<'a>(env: Env<'a>, device: Term<'a>) -> Answer<Term<'a>> {
    get(device)?.trim();
    Ok(atoms::ok().to_term(env))
}

pub fn memory_stats<'a>(env: Env<'a>, device: Term<'a>) -> Answer<Term<'a>> {
    stats(env, &get(device)?.stats())
}

pub fn stats<'a>(env: Env<'a>, stats: &Stats) -> Answer<Term<'a>> {
    let limit = stats.limit.map_or(atoms::nil().to_term(env), |l| l.encode(env));
    map(
        env,
        &[
            (atoms::in_use(), stats.in_use.encode(env)),
            (atoms::peak(), stats.peak.encode(env)),
            (atoms::reserved(), stats.reserved.encode(env)),
            (atoms::allocations(), stats.allocations.encode(env)),
            (atoms::total_allocations(), stats.total_allocations.encode(env)),
            (atoms::segments(), stats.segments.encode(env)),
            (atoms::largest_free(), stats.largest_free.encode(env)),
            (atoms::fragmentation(), stats.fragmentation.encode(env)),
            (atoms::limit(), limit),
        ],
    )
}

pub fn map<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> Answer<Term<'a>> {
    Term::map_from_pairs(env, pairs)
        .map_err(|_| Error::Internal("two keys of a map are the same".into()).into())
}
