//! What the handles of cuBLASLt, cuBLAS and cuDNN have in common: a device has one of each, that is opened
//! when it is first asked for.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A device's handle; `None` where there is no device. Two are equal where they are one device's.
pub(super) struct OfDevice<D>(Option<Arc<D>>);

impl<D> OfDevice<D> {
    pub fn new(device: D) -> Self {
        OfDevice(Some(Arc::new(device)))
    }
}

impl<D> Deref for OfDevice<D> {
    type Target = Option<Arc<D>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<D> Clone for OfDevice<D> {
    fn clone(&self) -> Self {
        OfDevice(self.0.clone())
    }
}

impl<D> Default for OfDevice<D> {
    fn default() -> Self {
        OfDevice(None)
    }
}

impl<D> PartialEq for OfDevice<D> {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
    }
}

impl<D> Eq for OfDevice<D> {}

impl<D: fmt::Debug> fmt::Debug for OfDevice<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_ref() {
            Some(device) => device.fmt(f),
            None => f.write_str("no device"),
        }
    }
}
