//! What the engine knows of the machine, for `Nitrox.Doctor`.

use nitrox_engine::Error;
use nitrox_engine::cpu::Cpu;
use nitrox_engine::cuda::Nvrtc;
use nitrox_engine::cuda::cache::Cache;
use nitrox_engine::cuda::nvml::{self, Usage};
use nitrox_engine::cuda::props;
use nitrox_engine::cuda::survey::{self, Gpu, Libraries};
use rustler::{Atom, Encoder, Env, Term};

use crate::answer::Answer;
use crate::devices::map;

mod atoms {
    rustler::atoms! {
        ok, error, nil, bus_id, bytes, cache, capability, cpu, cublas, cublaslt, cudnn, damaged, drafts, driver, driver_version,
        entries, folder, folders, found, free, gpus, instruction_set, memory, name, nvml, nvrtc, places,
        processes, threads, total, used, version
    }
}

/// A map of `cpu`, `driver`, `gpus`, `nvml`, `nvrtc`, `cublaslt`, `cublas`, `cudnn` and `cache`. What could not
/// be found out is `{:error, why}`.
pub fn survey<'a>(env: Env<'a>) -> Answer<Term<'a>> {
    let (threads, instruction_set) = Cpu::about();
    let cpu = map(
        env,
        &[
            (atoms::threads(), threads.encode(env)),
            (atoms::instruction_set(), instruction_set.encode(env)),
        ],
    )?;
    let (driver, gpus) = match survey::survey() {
        Ok(found) => (Ok(found.version), found.gpus),
        Err(Error::Unavailable { message, .. }) => (Err(message), Vec::new()),
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    // The compiler has to suit the first GPU; without one, any that serves the oldest will do.
    let arch = match gpus.first() {
        Some(Ok(gpu)) => props::arch(gpu.major, gpu.minor),
        _ => "sm_80".into(),
    };
    let compiler = library(env, Nvrtc::survey(driver.as_ref().ok().copied(), &arch))?;
    let products = library(env, survey::cublaslt())?;
    let systems = library(env, survey::cublas())?;
    let convolutions = library(env, survey::cudnn())?;
    let ids: Vec<_> =
        gpus.iter().map(|g| g.as_ref().map(|g| g.bus_id.clone()).unwrap_or_default()).collect();
    let (nvml, mut usages) = match nvml::report(&ids) {
        Ok(report) => (Ok(report.driver), report.cards),
        Err(why) => (Err(why.clone()), vec![Err(why); ids.len()]),
    };
    let cards: Vec<_> = gpus
        .into_iter()
        .zip(usages.drain(..))
        .map(|(gpu, usage)| card(env, gpu, usage))
        .collect::<Answer<_>>()?;
    map(
        env,
        &[
            (atoms::cpu(), cpu),
            (atoms::driver(), result(env, driver)),
            (atoms::gpus(), cards.encode(env)),
            (atoms::nvml(), result(env, nvml)),
            (atoms::nvrtc(), compiler),
            (atoms::cublaslt(), products),
            (atoms::cublas(), systems),
            (atoms::cudnn(), convolutions),
            (atoms::cache(), cache(env)?),
        ],
    )
}

fn result<'a>(env: Env<'a>, result: Result<impl Encoder, String>) -> Term<'a> {
    match result {
        Ok(value) => (atoms::ok(), value).encode(env),
        Err(why) => (atoms::error(), why).encode(env),
    }
}

/// A map with its `memory` as a map, or `{:error, why}`.
fn card<'a>(
    env: Env<'a>,
    gpu: Result<Gpu, String>,
    usage: Result<Usage, String>,
) -> Answer<Term<'a>> {
    let gpu = match gpu {
        Ok(gpu) => gpu,
        Err(why) => return Ok((atoms::error(), why).encode(env)),
    };
    let memory = match usage {
        Ok(usage) => map(
            env,
            &[
                (atoms::total(), usage.total.encode(env)),
                (atoms::free(), usage.free.encode(env)),
                (atoms::used(), usage.used.encode(env)),
                (atoms::processes(), result(env, usage.processes)),
            ],
        )?,
        Err(why) => (atoms::error(), why).encode(env),
    };
    map(
        env,
        &[
            (atoms::name(), gpu.name.encode(env)),
            (atoms::capability(), (gpu.major, gpu.minor).encode(env)),
            (atoms::total(), gpu.memory.encode(env)),
            (atoms::bus_id(), gpu.bus_id.encode(env)),
            (atoms::memory(), memory),
        ],
    )
}

fn library<'a>(env: Env<'a>, survey: Libraries) -> Answer<Term<'a>> {
    let folders: Vec<_> = survey.folders.iter().map(|f| f.display().to_string()).collect();
    map(
        env,
        &[
            (atoms::found(), survey.found.encode(env)),
            (atoms::places(), survey.places.encode(env)),
            (atoms::folders(), folders.encode(env)),
        ],
    )
}

fn cache<'a>(env: Env<'a>) -> Answer<Term<'a>> {
    let cache = Cache::from_env();
    let folder: (Atom, Term) = match cache.folder() {
        Some(folder) => (atoms::folder(), folder.display().to_string().encode(env)),
        None => (atoms::folder(), atoms::nil().to_term(env)),
    };
    match cache.survey() {
        Ok(survey) => {
            let damaged: Vec<_> = survey.damaged.iter().map(|p| p.display().to_string()).collect();
            map(
                env,
                &[
                    folder,
                    (atoms::entries(), survey.entries.encode(env)),
                    (atoms::bytes(), survey.bytes.encode(env)),
                    (atoms::damaged(), damaged.encode(env)),
                    (atoms::drafts(), survey.drafts.encode(env)),
                ],
            )
        }
        Err(error) => map(env, &[folder, (atoms::error(), error.to_string().encode(env))]),
    }
}
