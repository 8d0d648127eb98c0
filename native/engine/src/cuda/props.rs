//! What a variant is chosen by.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::blas::Blas;
use super::dnn::Dnn;
use super::driver::Driver;
use super::trsm::Trsm;
use crate::error::Result;

/// What a GPU has. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Props {
    pub name: String,
    /// Compute capability.
    pub major: u32,
    pub minor: u32,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Shared memory that one block can opt in to.
    pub shared_optin: u32,
    pub shared_per_sm: u32,
    /// 32-bit registers.
    pub registers_per_sm: u32,
    pub threads_per_sm: u32,
    pub l2: usize,
    pub memory: usize,
    /// Whether the blocks of a grid can wait for each other.
    pub cooperative: bool,
    /// The library of matrix products, where it is there.
    pub(super) blas: Blas,
    /// The library of convolutions, where it is there.
    pub(super) dnn: Dnn,
    /// The library of triangular systems, where it is there.
    pub(super) trsm: Trsm,
    /// How many clusters of 16 blocks, each of which has a multiprocessor's shared memory to
    /// itself, run at once; 0 where there are no such clusters.
    pub clusters: u32,
}

impl Props {
    /// The architecture a kernel is compiled for: that of this very chip, with the
    /// instructions that only it has where there are such.
    pub fn arch(&self) -> String {
        arch(self.major, self.minor)
    }

    pub(super) fn read(driver: &Arc<Driver>) -> Result<Self> {
        let attribute = |which: Attribute| attribute(driver, which as u32);
        let mut name = [0 as c_char; 256];
        let api = driver.enter()?;
        // SAFETY: the driver writes at most so many bytes, the ending zero among them.
        let result = unsafe {
            (api.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int - 1, driver.device())
        };
        driver.check("cuDeviceGetName", result)?;
        let mut memory = 0;
        // SAFETY: `memory` is ours to write.
        let result = unsafe { (api.cuDeviceTotalMem)(&mut memory, driver.device()) };
        driver.check("cuDeviceTotalMem", result)?;
        Ok(Props {
            // SAFETY: the last byte was left zero.
            name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_optin: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            shared_per_sm: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            registers_per_sm: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
            )?,
            threads_per_sm: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
            )?,
            l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            memory,
            cooperative: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
            blas: Blas::new(driver),
            dnn: Dnn::new(driver),
            trsm: Trsm::new(driver),
            // Asked of a kernel, which is not there yet.
            clusters: 0,
        })
    }
}

/// `sm_86`, `sm_90a`
pub fn arch(major: u32, minor: u32) -> String {
    let own = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

fn attribute(driver: &Driver, which: u32) -> Result<u32> {
    let mut value = 0;
    let api = driver.enter()?;
    // SAFETY: `value` is ours to write, and an unknown attribute is an error of the call's.
    let result = unsafe { (api.cuDeviceGetAttribute)(&mut value, which, driver.device()) };
    driver.check("cuDeviceGetAttribute", result)?;
    Ok(value.max(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::arch;

    #[test]
    fn the_chips_own_instructions_from_hopper_on() {
        assert_eq!(arch(8, 0), "sm_80");
        assert_eq!(arch(8, 9), "sm_89");
        assert_eq!(arch(9, 0), "sm_90a");
        assert_eq!(arch(12, 0), "sm_120a");
    }
}
