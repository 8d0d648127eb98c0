//! Whether there is a driver, found out without a panic.

use std::panic::catch_unwind;

use cudarc::driver::sys;
use once_cell::sync::OnceCell;

use super::driver::{Api, code};
use crate::error::{Error, Result};

/// What the driver shows.
#[derive(Clone, Copy)]
pub(crate) struct Probe {
    pub api: &'static Api,
    /// The CUDA version that the driver is for, such as (13, 0).
    pub version: (u32, u32),
    pub devices: u32,
}

/// Opens the driver, once a process; `device` is named in the error where there is none. A failed
/// look is repeated by the next call, so that a driver installed meanwhile is found.
pub(crate) fn probe(device: impl ToString) -> Result<Probe> {
    static PROBE: OnceCell<Probe> = OnceCell::new();
    let found = PROBE.get_or_try_init(|| {
        // cudarc panics where a library goes missing between the look and the opening.
        catch_unwind(look).unwrap_or_else(|_| Err("opening the driver panicked".into()))
    });
    found.copied().map_err(|message| Error::Unavailable { device: device.to_string(), message })
}

fn look() -> Result<Probe, String> {
    // SAFETY: opening the driver's library runs its initialisers and nothing else of ours.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!(
            "no NVIDIA driver: {} {}",
            if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1 and libcuda.so" },
            searched()
        ));
    }
    // SAFETY: as above, and it is present.
    let library = unsafe { sys::culib() };
    let api = Api::load(library).map_err(|missing| {
        format!("the NVIDIA driver is too old: libcuda has no {}", missing.join(", "))
    })?;
    let api: &'static Api = Box::leak(Box::new(api));
    let check = |call: &str, result| match result {
        code::SUCCESS => Ok(()),
        code::NO_DEVICE => Err("the NVIDIA driver is there and shows no GPU".into()),
        other => Err(format!("{call}: {}", api.explain(other))),
    };
    let (mut version, mut devices) = (0, 0);
    // SAFETY: the first call that the driver wants.
    check("cuInit", unsafe { (api.cuInit)(0) })?;
    // SAFETY: `version` is ours to write.
    check("cuDriverGetVersion", unsafe { (api.cuDriverGetVersion)(&mut version) })?;
    // SAFETY: `devices` is ours to write.
    check("cuDeviceGetCount", unsafe { (api.cuDeviceGetCount)(&mut devices) })?;
    let version = version.max(0) as u32;
    let version = (version / 1000, version % 1000 / 10);
    Ok(Probe { api, version, devices: devices.max(0) as u32 })
}

/// Where the loader looked.
fn searched() -> String {
    match std::env::var("LD_LIBRARY_PATH") {
        Ok(path) if !path.is_empty() => {
            format!("were looked for in LD_LIBRARY_PATH ({path}) and the system's library paths")
        }
        _ => "were looked for in the system's library paths (LD_LIBRARY_PATH is not set)".into(),
    }
}
