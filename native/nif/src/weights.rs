//! Weights files as resources.

use nitrox_engine::Weights;
use rustler::{Encoder, Env, Resource, ResourceArc, Term};

use crate::answer::Answer;
use crate::devices;
use crate::tensors;
use crate::term::{DecodeError, decode};

struct Handle(Weights);

#[rustler::resource_impl]
impl Resource for Handle {}

/// `{reference, [{name, type or the format's word for it, shape}], [{key, value}]}`
pub fn open<'a>(env: Env<'a>, path: Term<'a>) -> Answer<Term<'a>> {
    let path: String = decode("path", path)?;
    let weights = Weights::open(path)?;
    let entries: Vec<_> = weights
        .entries()
        .into_iter()
        .map(|entry| {
            let stored = match entry.dtype {
                Some(dtype) => tensors::dtype(env, dtype),
                None => entry.stored.encode(env),
            };
            let axes: Vec<_> = entry.shape.iter().map(|axis| axis.encode(env)).collect();
            let shape = rustler::types::tuple::make_tuple(env, &axes);
            (entry.name, stored, shape).encode(env)
        })
        .collect();
    let metadata: Vec<_> = weights.metadata().into_iter().map(|pair| pair.encode(env)).collect();
    let entries = entries.encode(env);
    let metadata = metadata.encode(env);
    Ok((ResourceArc::new(Handle(weights)), entries, metadata).encode(env))
}

/// `{reference, {type, shape}}` of a tensor, in the type it is stored as.
pub fn fetch<'a>(
    env: Env<'a>,
    weights: Term<'a>,
    name: Term<'a>,
    device: Term<'a>,
) -> Answer<Term<'a>> {
    let Some(handle) = weights.try_get_resource::<Handle>() else {
        return Err(DecodeError::expected("an open weights file", weights).of("weights").into());
    };
    let name: String = decode("name", name)?;
    let device = devices::get(device)?;
    let tensor = handle.0.fetch(&name, &device)?;
    let spec = tensors::spec_term(env, tensor.spec());
    Ok((tensors::make(env, tensor), spec).encode(env))
}
