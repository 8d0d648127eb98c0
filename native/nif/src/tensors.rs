//! Tensors as resources, and the ops on them.

use std::sync::{Arc, Mutex, PoisonError};

use nitrox_engine::{DType, Device, Error, Op, Spec, Tensor, Weight, infer};
use rustler::{Binary, Encoder, Env, OwnedBinary, OwnedEnv, Resource, ResourceArc, Term};

use crate::answer::{Answer, Instead, atom};
use crate::devices;
use crate::term::{DecodeError, decode};

/// The most bytes that are copied on a normal scheduler: some ten microseconds' worth.
const INLINE_BYTES: usize = 64 << 10;

mod atoms {
    rustler::atoms! { ok, nil }
}

/// Where a NIF runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Normal,
    Dirty,
}

/// What a tensor's reference in Elixir holds; nothing once it was deallocated. Dropping it only
/// puts its block on the pool's list.
pub struct Handle(Mutex<Option<Arc<Tensor>>>);

#[rustler::resource_impl]
impl Resource for Handle {}

impl Handle {
    fn get(&self) -> Result<Arc<Tensor>, Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Deallocated)
    }
}

pub fn make<'a>(env: Env<'a>, tensor: Tensor) -> Term<'a> {
    ResourceArc::new(Handle(Mutex::new(Some(Arc::new(tensor))))).encode(env)
}

/// The tensor behind a reference, which messages call `what`.
pub fn get(what: &str, term: Term) -> Answer<Arc<Tensor>> {
    match term.try_get_resource::<Handle>() {
        Some(handle) => Ok(handle.get()?),
        None => Err(DecodeError::expected("a tensor", term).of(what).into()),
    }
}

/// The elements of a proper list.
pub fn list<'a>(what: &str, term: Term<'a>) -> Answer<Vec<Term<'a>>> {
    let mut elements = Vec::new();
    each(what, term, |_, element| {
        elements.push(element);
        Ok(())
    })?;
    Ok(elements)
}

/// Gives `take` each element of a proper list, with its place.
pub fn each<'a>(
    what: &str,
    term: Term<'a>,
    mut take: impl FnMut(usize, Term<'a>) -> Answer<()>,
) -> Answer<()> {
    let (mut rest, mut place) = (term, 0);
    while let Ok((head, tail)) = rest.list_get_cell() {
        take(place, head)?;
        (rest, place) = (tail, place + 1);
    }
    match rest.is_empty_list() {
        true => Ok(()),
        false => Err(DecodeError::expected("a list", rest).of(what).into()),
    }
}

/// As [`list`], each element read by `read`; `nil` stands for `None`.
fn optional<'a, T>(
    what: &str,
    term: Term<'a>,
    read: impl Fn(&str, Term<'a>) -> Answer<T>,
) -> Answer<Vec<Option<T>>> {
    let mut values = Vec::new();
    for (i, element) in list(what, term)?.into_iter().enumerate() {
        values.push(match is_nil(element) {
            true => None,
            false => Some(read(&format!("{what}[{i}]"), element)?),
        });
    }
    Ok(values)
}

pub fn is_nil(term: Term) -> bool {
    term.is_atom() && rustler::Atom::from_term(term).is_ok_and(|a| a == atoms::nil())
}

/// `{{:f, 32}, [1, 288]}`. `what` is empty or ends in a dot.
pub fn spec(what: &str, term: Term) -> Answer<Spec> {
    let Ok((dtype, shape)) = term.decode::<(Term, Term)>() else {
        let error = DecodeError::expected("{type, shape}, the shape a list", term);
        return Err(error.of(what.trim_end_matches('.')).into());
    };
    let dtype: DType = decode(&format!("{what}type"), dtype)?;
    let shape: Vec<usize> = decode(&format!("{what}shape"), shape)?;
    Ok(Spec::new(dtype, shape)?)
}

/// `{:f, 32}`
pub fn dtype<'a>(env: Env<'a>, dtype: DType) -> Term<'a> {
    let (kind, bits) = dtype.pair();
    (atom(env, kind), bits).encode(env)
}

/// `{{:f, 32}, {1, 288}}`, as tensors in Elixir have it.
pub fn spec_term<'a>(env: Env<'a>, spec: &Spec) -> Term<'a> {
    let axes: Vec<_> = spec.shape().iter().map(|axis| axis.encode(env)).collect();
    (dtype(env, spec.dtype), rustler::types::tuple::make_tuple(env, &axes)).encode(env)
}

/// Copies are done here where they are short and need no driver.
fn copies_inline(on: On, device: &Device, bytes: usize) -> Answer<()> {
    match (on, device) {
        (On::Dirty, _) => Ok(()),
        (On::Normal, Device::Cpu(_)) if bytes <= INLINE_BYTES => Ok(()),
        _ => Err(Instead::Heavy),
    }
}

pub fn from_binary<'a>(
    env: Env<'a>,
    on: On,
    device: Term<'a>,
    spec_of: Term<'a>,
    bytes: Term<'a>,
) -> Answer<Term<'a>> {
    let device = devices::get(device)?;
    let spec = spec("", spec_of)?;
    let bytes = Binary::from_term(bytes)
        .map_err(|_| DecodeError::expected("a binary", bytes).of("from_binary"))?;
    copies_inline(on, &device, bytes.as_slice().len())?;
    Ok(make(env, Tensor::from_bytes(&device, spec, bytes.as_slice())?))
}

/// The first `limit` bytes, all where it is `nil`.
pub fn to_binary<'a>(env: Env<'a>, on: On, tensor: Term<'a>, limit: Term<'a>) -> Answer<Term<'a>> {
    let tensor = get("tensor", tensor)?;
    let limit: Option<usize> = decode("limit", limit)?;
    let bytes = tensor.spec().bytes().min(limit.unwrap_or(usize::MAX));
    copies_inline(on, tensor.device(), bytes)?;
    let mut binary = OwnedBinary::new(bytes);
    tensor.device().read(tensor.addr(), binary.as_mut_slice())?;
    Ok(binary.release(env).to_term(env))
}

pub fn copy<'a>(env: Env<'a>, on: On, tensor: Term<'a>, device: Term<'a>) -> Answer<Term<'a>> {
    let tensor = get("tensor", tensor)?;
    let device = devices::get(device)?;
    copies_inline(on, tensor.device(), tensor.spec().bytes())?;
    copies_inline(on, &device, tensor.spec().bytes())?;
    Ok(make(env, tensor.copy_to(&device)?))
}

pub fn deallocate<'a>(env: Env<'a>, tensor: Term<'a>) -> Answer<Term<'a>> {
    match tensor.try_get_resource::<Handle>() {
        Some(handle) => {
            handle.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            Ok(atoms::ok().to_term(env))
        }
        None => Err(DecodeError::expected("a tensor", tensor).of("tensor").into()),
    }
}

/// Where a tensor's elements are, once the work that writes them is done, and their bytes.
pub fn address<'a>(env: Env<'a>, tensor: Term<'a>) -> Answer<Term<'a>> {
    let tensor = get("tensor", tensor)?;
    tensor.device().synchronize()?;
    Ok((tensor.addr(), tensor.spec().bytes()).encode(env))
}

/// A tensor of memory that is not ours. `owner` is any term, kept for as long as the memory is
/// read; what else keeps that memory there is the caller's word.
pub fn adopt<'a>(
    env: Env<'a>,
    device: Term<'a>,
    spec_of: Term<'a>,
    address: Term<'a>,
    owner: Term<'a>,
) -> Answer<Term<'a>> {
    let device = devices::get(device)?;
    let spec = spec("", spec_of)?;
    let address: u64 = decode("address", address)?;
    let kept = OwnedEnv::new();
    kept.save(owner);
    // SAFETY: the word of who calls `Nx.from_pointer`.
    let tensor = unsafe { Tensor::adopt(&device, spec, address, Box::new(Mutex::new(kept))) }?;
    Ok(make(env, tensor))
}

/// A tensor's reference, or `{type, bytes}`: a number, as a tensor of no axes.
fn operand(device: &Device, what: &str, term: Term) -> Answer<Arc<Tensor>> {
    let Ok((dtype, bytes)) = term.decode::<(Term, Term)>() else { return get(what, term) };
    let dtype: DType = decode(&format!("{what}.type"), dtype)?;
    let bytes =
        Binary::from_term(bytes).map_err(|_| DecodeError::expected("a binary", bytes).of(what))?;
    Ok(Arc::new(Tensor::scalar(device, dtype, bytes.as_slice())?))
}

/// Runs one op: `[{reference, {type, shape}}]`.
pub fn run<'a>(
    env: Env<'a>,
    on: On,
    device: Term<'a>,
    op: Term<'a>,
    inputs: Term<'a>,
) -> Answer<Term<'a>> {
    let device = devices::get(device)?;
    let op: Op = decode("op", op)?;
    let tensors = optional("inputs", inputs, |what, term| operand(&device, what, term))?;
    let inputs: Vec<_> = tensors.iter().map(Option::as_deref).collect();
    if on == On::Normal {
        let specs: Vec<_> = inputs.iter().map(|t| t.map(Tensor::spec)).collect();
        infer(&op, &specs)?;
        if device.weight(&op, &specs)? == Weight::Heavy {
            return Err(Instead::Heavy);
        }
    }
    let outputs: Vec<_> = device
        .run(&op, &inputs)?
        .into_iter()
        .map(|tensor| {
            let spec = spec_term(env, tensor.spec());
            (make(env, tensor), spec)
        })
        .collect();
    Ok(outputs.encode(env))
}

/// The specs of an op's outputs: `[{type, shape}]`.
pub fn infer_specs<'a>(env: Env<'a>, op: Term<'a>, specs: Term<'a>) -> Answer<Term<'a>> {
    let op: Op = decode("op", op)?;
    let specs = optional("inputs", specs, |what, term| spec(&format!("{what}."), term))?;
    let inputs: Vec<_> = specs.iter().map(Option::as_ref).collect();
    let outputs: Vec<_> = infer(&op, &inputs)?.iter().map(|s| spec_term(env, s)).collect();
    Ok(outputs.encode(env))
}

/// `{variant, why, launches}`
pub fn explain<'a>(
    env: Env<'a>,
    device: Term<'a>,
    op: Term<'a>,
    specs: Term<'a>,
) -> Answer<Term<'a>> {
    let device = devices::get(device)?;
    let op: Op = decode("op", op)?;
    let specs = optional("inputs", specs, |what, term| spec(&format!("{what}."), term))?;
    let inputs: Vec<_> = specs.iter().map(Option::as_ref).collect();
    let explanation = device.explain(&op, &inputs)?;
    Ok((explanation.variant, explanation.why, explanation.launches).encode(env))
}
