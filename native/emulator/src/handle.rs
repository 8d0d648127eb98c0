//! Handles: a number for each thing, never used twice, so that one that is gone is an error.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::code::{Code, Result};

/// Not zero, and no address that anything of the process lies at.
static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

/// The living things of one kind.
#[derive(Debug)]
pub struct Handles<T>(Mutex<BTreeMap<usize, Arc<T>>>);

impl<T> Handles<T> {
    pub const fn new() -> Self {
        Handles(Mutex::new(BTreeMap::new()))
    }

    pub fn insert<P>(&self, thing: Arc<T>) -> *mut P {
        let handle = NEXT.fetch_add(8, Ordering::Relaxed);
        lock(&self.0).insert(handle, thing);
        handle as *mut P
    }

    pub fn get<P>(&self, handle: *mut P) -> Result<Arc<T>> {
        lock(&self.0).get(&handle.cast::<c_void>().addr()).cloned().ok_or(Code::INVALID_HANDLE)
    }

    pub fn remove<P>(&self, handle: *mut P) -> Result<Arc<T>> {
        lock(&self.0).remove(&handle.cast::<c_void>().addr()).ok_or(Code::INVALID_HANDLE)
    }
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles::new()
    }
}

/// A panic under a lock is caught at the border; what was locked is whole all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
