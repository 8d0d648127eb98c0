//! What the driver shows without a context of ours on any GPU: for those who look before they use.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::driver::{Api, code};
use super::search;
use super::{blas, dnn, probe, trsm};
use crate::error::Result;

pub use search::Survey as Libraries;

/// Where cuBLASLt is looked for, and what came of it.
pub fn cublaslt() -> Libraries {
    blas::survey()
}

/// Where cuBLAS is looked for, and what came of it.
pub fn cublas() -> Libraries {
    trsm::survey()
}

/// Where cuDNN is looked for, and what came of it.
pub fn cudnn() -> Libraries {
    dnn::survey()
}

/// A GPU that the driver shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// Compute capability.
    pub major: u32,
    pub minor: u32,
    /// Bytes, all there are.
    pub memory: usize,
    /// PCI bus id, such as `0000:1B:00.0`.
    pub bus_id: String,
}

/// What the driver says of itself and of its GPUs, each of them or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The CUDA version that the driver is for, such as (13, 0).
    pub version: (u32, u32),
    pub gpus: Vec<Result<Gpu, String>>,
}

/// Asks the driver; the error says what was looked for.
pub fn survey() -> Result<Survey> {
    let probe::Probe { api, version, devices } = probe::probe("CUDA")?;
    Ok(Survey { version, gpus: (0..devices).map(|n| gpu(api, n)).collect() })
}

fn gpu(api: &Api, ordinal: u32) -> Result<Gpu, String> {
    let check = |call: &str, result| match result {
        code::SUCCESS => Ok(()),
        other => Err(format!("{call}: {}", api.explain(other))),
    };
    let mut device = 0;
    // SAFETY: `device` is ours to write.
    check("cuDeviceGet", unsafe { (api.cuDeviceGet)(&mut device, ordinal as c_int) })?;
    type Text = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> u32;
    let text = |call: &str, ask: Text| {
        let mut text = [0 as c_char; 256];
        // SAFETY: the driver writes at most so many bytes, the ending zero among them.
        check(call, unsafe { ask(text.as_mut_ptr(), text.len() as c_int - 1, device) })?;
        // SAFETY: the last byte was left zero.
        Ok::<_, String>(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    };
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: `value` is ours to write.
        let result = unsafe { (api.cuDeviceGetAttribute)(&mut value, which as u32, device) };
        check("cuDeviceGetAttribute", result).map(|()| value.max(0) as u32)
    };
    let mut memory = 0;
    // SAFETY: `memory` is ours to write.
    check("cuDeviceTotalMem", unsafe { (api.cuDeviceTotalMem)(&mut memory, device) })?;
    Ok(Gpu {
        name: text("cuDeviceGetName", api.cuDeviceGetName)?,
        major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        memory,
        bus_id: text("cuDeviceGetPCIBusId", api.cuDeviceGetPCIBusId)?,
    })
}
