//! What a kernel may touch: device memory and mapped host memory, at their addresses in this process.

use std::collections::BTreeMap;
use std::sync::RwLock;

/// The live allocations. A device address is the address in this process.
#[derive(Debug, Default)]
pub struct Memory {
    /// First byte → length.
    live: RwLock<BTreeMap<u64, u64>>,
}

impl Memory {
    /// Makes a range known, which stays allocated until [`Memory::remove`].
    pub fn insert(&self, address: u64, bytes: u64) {
        self.write().insert(address, bytes);
    }

    /// Whether it was there: only the first byte's address names a range.
    pub fn remove(&self, address: u64) -> Option<u64> {
        self.write().remove(&address)
    }

    /// The live range around an address: its first byte and its end.
    pub fn range(&self, address: u64) -> Option<(u64, u64)> {
        let live = self.live.read().unwrap_or_else(|e| e.into_inner());
        let (&first, &bytes) = live.range(..=address).next_back()?;
        (address < first + bytes).then_some((first, first + bytes))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u64, u64>> {
        self.live.write().unwrap_or_else(|e| e.into_inner())
    }
}
