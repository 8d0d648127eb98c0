//! Tensors: handles on reference-counted device buffers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::call::View;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::foreign::{Foreign, Owner};
use crate::pool::{Block, lock};
use crate::spec::{DType, Spec};

/// A dense, row-major tensor on a device. Cloning it, or reshaping it, shares the buffer; the last
/// handle to go returns the memory to the device's pool, or lets go of its owner.
#[derive(Debug, Clone)]
pub struct Tensor {
    device: Device,
    memory: Arc<Memory>,
    spec: Spec,
}

#[derive(Debug)]
pub(crate) enum Memory {
    Ours(Block),
    Foreign(Foreign),
}

/// By type and bytes.
type ByValue = HashMap<(DType, Vec<u8>), Arc<Memory>>;

/// The scalars that a device was given, by type and bytes.
#[derive(Debug, Default)]
pub(crate) struct Scalars(Mutex<ByValue>);

impl Scalars {
    /// As many as take a megabyte. Then it begins anew: what is in use stays with its tensors.
    const MOST: usize = 4096;

    fn get(&self, dtype: DType, bytes: &[u8]) -> Option<Arc<Memory>> {
        lock(&self.0).get(&(dtype, bytes.to_vec())).map(Arc::clone)
    }

    fn keep(&self, dtype: DType, bytes: &[u8], memory: &Arc<Memory>) {
        let mut kept = lock(&self.0);
        if kept.len() >= Self::MOST {
            kept.clear();
        }
        kept.insert((dtype, bytes.to_vec()), Arc::clone(memory));
    }

    pub fn forget(&self) {
        lock(&self.0).clear();
    }
}

impl Tensor {
    /// A tensor with whatever the memory holds.
    pub fn uninit(device: &Device, spec: Spec) -> Result<Self> {
        let block = device.pool().allocate(spec.bytes())?;
        Ok(Tensor { device: device.clone(), memory: Arc::new(Memory::Ours(block)), spec })
    }

    /// A tensor of another library's memory, which `owner` keeps there. See [`Foreign::new`] for
    /// what is refused.
    ///
    /// # Safety
    /// At `addr` on `device` there are the elements of `spec`. Nobody writes to them, and they stay
    /// there until `owner` is dropped.
    pub unsafe fn adopt(device: &Device, spec: Spec, addr: u64, owner: Owner) -> Result<Self> {
        let foreign = Foreign::new(device, &spec, addr, owner)?;
        Ok(Tensor { device: device.clone(), memory: Arc::new(Memory::Foreign(foreign)), spec })
    }

    /// Copies host bytes, native-endian, to the device.
    pub fn from_bytes(device: &Device, spec: Spec, bytes: &[u8]) -> Result<Self> {
        if bytes.len() != spec.bytes() {
            return Err(Error::argument(
                "from_binary",
                format!(
                    "{} {} takes {} bytes, got {}",
                    spec.dtype,
                    spec.shape_text(),
                    spec.bytes(),
                    bytes.len()
                ),
            ));
        }
        let tensor = Tensor::uninit(device, spec)?;
        device.write(tensor.addr(), bytes)?;
        Ok(tensor)
    }

    /// A tensor of no axes. A GPU keeps those that it was given, so that a number is copied to it
    /// once.
    pub fn scalar(device: &Device, dtype: DType, bytes: &[u8]) -> Result<Self> {
        let spec = Spec::scalar(dtype);
        let Device::Cuda(cuda) = device else { return Tensor::from_bytes(device, spec, bytes) };
        if let Some(memory) = cuda.scalars().get(dtype, bytes) {
            return Ok(Tensor { device: device.clone(), memory, spec });
        }
        let scalar = Tensor::from_bytes(device, spec, bytes)?;
        cuda.scalars().keep(dtype, bytes, &scalar.memory);
        Ok(scalar)
    }

    /// Copies the elements to the host, after all work that writes them.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.spec.bytes()];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// As [`Tensor::to_bytes`], into a buffer of exactly the tensor's size.
    pub fn read(&self, into: &mut [u8]) -> Result<()> {
        debug_assert_eq!(into.len(), self.spec.bytes());
        self.device.read(self.addr(), into)
    }

    /// The same buffer under another spec of no more bytes.
    pub fn alias(&self, spec: Spec) -> Result<Self> {
        if spec.bytes() > self.spec.bytes() {
            return Err(Error::Internal(format!("{spec} does not fit {}", self.spec)));
        }
        Ok(Tensor { device: self.device.clone(), memory: Arc::clone(&self.memory), spec })
    }

    /// A copy of its own on `device`, which may be another one.
    pub fn copy_to(&self, device: &Device) -> Result<Self> {
        if device.same(&self.device) {
            let copy = Tensor::uninit(device, self.spec.clone())?;
            device.copy(copy.addr(), self.addr(), self.spec.bytes())?;
            Ok(copy)
        } else {
            Tensor::from_bytes(device, self.spec.clone(), &self.to_bytes()?)
        }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn addr(&self) -> u64 {
        match &*self.memory {
            Memory::Ours(block) => block.addr(),
            Memory::Foreign(foreign) => foreign.addr(),
        }
    }

    pub fn view(&self) -> View<'_> {
        View { addr: self.addr(), spec: &self.spec, constant: false, rows: None }
    }
}
