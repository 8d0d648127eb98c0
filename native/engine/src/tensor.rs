//! Tensors: handles on reference-counted device buffers.

use std::sync::Arc;

use crate::call::View;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::pool::Block;
use crate::spec::Spec;

/// A dense, row-major tensor on a device. Cloning it, or reshaping it, shares the buffer; the last
/// handle to go returns the memory to the device's pool.
#[derive(Debug, Clone)]
pub struct Tensor {
    device: Device,
    block: Arc<Block>,
    spec: Spec,
}

impl Tensor {
    /// A tensor with whatever the memory holds.
    pub fn uninit(device: &Device, spec: Spec) -> Result<Self> {
        let block = device.pool().allocate(spec.bytes())?;
        Ok(Tensor { device: device.clone(), block: Arc::new(block), spec })
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
        Ok(Tensor { device: self.device.clone(), block: Arc::clone(&self.block), spec })
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
        self.block.addr()
    }

    pub fn view(&self) -> View<'_> {
        View { addr: self.addr(), spec: &self.spec }
    }
}
