//! Memory that is not of our pools: a tensor of another library in the same process.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::pool::ALIGNMENT;
use crate::spec::Spec;

/// What keeps the memory there. It is dropped once nothing of ours reads the memory any more.
pub type Owner = Box<dyn Any + Send + Sync>;

/// A piece of such memory, read and never written.
pub struct Foreign {
    device: Device,
    addr: u64,
    owner: Option<Owner>,
}

impl Foreign {
    /// Refuses an address that can't be that of a tensor of this spec on this device. On a GPU the
    /// driver is asked; in the host's memory only the alignment shows anything.
    pub fn new(device: &Device, spec: &Spec, addr: u64, owner: Owner) -> Result<Self> {
        const OP: &str = "from_pointer";
        // Kernels, and cuBLASLt's, take a block of the pool for granted on a GPU.
        let alignment = match device {
            Device::Cpu(_) => spec.dtype.size(),
            Device::Cuda(_) => ALIGNMENT,
        };
        if addr == 0 || !addr.is_multiple_of(alignment as u64) {
            let id = device.id();
            let message = format!("an address on {id} is a multiple of {alignment}, got {addr:#x}");
            return Err(Error::argument(OP, message));
        }
        if let Device::Cuda(cuda) = device {
            let (start, bytes) = cuda.allocation(OP, addr)?;
            let end = u128::from(addr) + spec.bytes() as u128;
            if end > u128::from(start) + bytes as u128 {
                let message = format!(
                    "{} bytes at {addr:#x} go beyond the {bytes} bytes allocated at {start:#x}",
                    spec.bytes()
                );
                return Err(Error::argument(OP, message));
            }
        }
        Ok(Foreign { device: device.clone(), addr, owner: Some(owner) })
    }

    pub fn addr(&self) -> u64 {
        self.addr
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        match (self.owner.take(), &self.device) {
            // The CPU has done its work before a call returns.
            (None, _) | (Some(_), Device::Cpu(_)) => {}
            (Some(owner), Device::Cuda(_)) => release(self.device.clone(), owner),
        }
    }
}

/// Drops an owner once the GPU has done what is queued. A destructor runs on a scheduler thread of
/// the VM and may not wait, so that is left to a thread of ours.
fn release(device: Device, owner: Owner) {
    static RELEASES: OnceLock<Option<Sender<(Device, Owner)>>> = OnceLock::new();
    let releases = RELEASES.get_or_init(|| {
        let (sender, receiver) = channel::<(Device, Owner)>();
        let work = move || {
            for (device, owner) in receiver {
                // Where it fails the device is lost, and reads no more.
                let _ = device.synchronize();
                drop(owner);
            }
        };
        thread::Builder::new().name("nitrox-release".into()).spawn(work).ok().map(|_| sender)
    });
    let kept = match releases {
        Some(sender) => sender.send((device, owner)).err().map(|e| e.0.1),
        None => Some(owner),
    };
    // Without the thread nobody knows when the memory is read no more: it stays.
    std::mem::forget(kept);
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Foreign({:#x} on {})", self.addr, self.device.id())
    }
}
