//! Memory of the device for its pool, and pinned memory of the host.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE};

use super::driver::{Dead, Driver, code, cu};
use super::stream::{Event, Stream};
use crate::device::Id;
use crate::error::{Error, Result};
use crate::pool::{Source, lock};

/// Segments of the device's memory.
#[derive(Debug)]
pub(super) struct Segments(pub Arc<Driver>);

impl Source for Segments {
    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.0.reap();
        let api = self.0.enter()?;
        let mut addr = 0;
        // SAFETY: `addr` is ours to write.
        match unsafe { (api.cuMemAlloc)(&mut addr, bytes) } {
            code::OUT_OF_MEMORY => Ok(None),
            other => self.0.check("cuMemAlloc", other).map(|()| Some(addr)),
        }
    }

    fn free(&self, addr: u64, _bytes: usize) {
        // SAFETY: the pool gives back what `allocate` gave. The driver waits for the work queued
        // so far; an error is of that work, and the next call on the device says it.
        let _ = unsafe { cu!(self.0, cuMemFree(addr)) };
    }
}

/// Page-locked memory of the host, which the device reads and writes on its own.
pub struct Pinned {
    driver: Arc<Driver>,
    host: *mut u8,
    device: u64,
    bytes: usize,
}

// SAFETY: plain memory, owned. Through `&self` it is reached by raw pointer alone.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(driver: &Arc<Driver>, bytes: usize) -> Result<Self> {
        const FLAGS: u32 = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        driver.reap();
        let (mut host, mut device) = (ptr::null_mut(), 0);
        // SAFETY: `host` is ours to write. At least one byte, for the driver refuses none.
        unsafe { cu!(driver, cuMemHostAlloc(&mut host, bytes.max(1), FLAGS)) }?;
        let mut pinned = Pinned { driver: Arc::clone(driver), host: host.cast(), device, bytes };
        // SAFETY: mapped just now; `device` is ours to write.
        unsafe { cu!(driver, cuMemHostGetDevicePointer(&mut device, host, 0)) }?;
        pinned.device = device;
        // SAFETY: so many bytes were just allocated, and the device knows nothing of them yet.
        unsafe { ptr::write_bytes(pinned.host, 0, bytes) };
        Ok(pinned)
    }

    /// Where the host finds it. To read or write there while the device does is a data race.
    pub fn host(&self) -> *mut u8 {
        self.host
    }

    /// Where the device finds it.
    pub fn device(&self) -> u64 {
        self.device
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.driver.bury(Dead::Host(self.host.cast()));
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({:p}, {} bytes)", self.host, self.bytes)
    }
}

/// Pinned buffers through which small copies go: a write returns before the device has it, and the
/// caller's bytes are free at once.
#[derive(Debug)]
pub(super) struct Staging {
    driver: Arc<Driver>,
    /// Those that no thread holds. The device may still be reading from one.
    idle: Mutex<Vec<Slot>>,
}

#[derive(Debug)]
struct Slot {
    pinned: Pinned,
    /// After the last copy out of it.
    done: Event,
}

impl Staging {
    /// Bytes that a copy through here may have. Above it the driver's own staging of pageable
    /// memory, which works in pieces, hides the copying by the host.
    pub const LARGEST: usize = 256 << 10;
    const SLOTS: usize = 8;

    pub fn new(driver: &Arc<Driver>) -> Result<Self> {
        let slot = || {
            let pinned = Pinned::new(driver, Self::LARGEST)?;
            Ok(Slot { pinned, done: Event::new(driver)? })
        };
        let idle = (0..Self::SLOTS).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Staging { driver: Arc::clone(driver), idle: Mutex::new(idle) })
    }

    /// Queues a write; `false` where no buffer is free or the bytes are too many.
    pub fn write(&self, stream: &Stream, addr: u64, bytes: &[u8]) -> Result<bool> {
        let Some(slot) = self.take(bytes.len())? else { return Ok(false) };
        // SAFETY: the slot is large enough, and neither the device nor another thread uses it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), slot.pinned.host, bytes.len()) };
        let (from, raw) = (slot.pinned.host.cast(), stream.raw());
        // SAFETY: the slot is not written again before `done`, and the caller knows `addr`.
        unsafe { cu!(self.driver, cuMemcpyHtoDAsync(addr, from, bytes.len(), raw)) }?;
        // An error on the way here loses the slot: whether the device uses it is not known then.
        slot.done.record(stream)?;
        lock(&self.idle).push(slot);
        Ok(true)
    }

    /// Reads, waiting for the stream; `false` as for `write`.
    pub fn read(&self, stream: &Stream, addr: u64, into: &mut [u8]) -> Result<bool> {
        let Some(slot) = self.take(into.len())? else { return Ok(false) };
        let (to, raw) = (slot.pinned.host.cast(), stream.raw());
        // SAFETY: the slot is large enough and used by nobody else, and the caller knows `addr`.
        unsafe { cu!(self.driver, cuMemcpyDtoHAsync(to, addr, into.len(), raw)) }?;
        stream.synchronize()?;
        // SAFETY: the copy is done.
        unsafe { ptr::copy_nonoverlapping(slot.pinned.host, into.as_mut_ptr(), into.len()) };
        lock(&self.idle).push(slot);
        Ok(true)
    }

    /// A slot that the device is done with.
    fn take(&self, bytes: usize) -> Result<Option<Slot>> {
        if bytes > Self::LARGEST {
            return Ok(None);
        }
        let mut idle = lock(&self.idle);
        for i in 0..idle.len() {
            // An error here is the device's, not the slot's.
            if idle[i].done.query()? {
                return Ok(Some(idle.swap_remove(i)));
            }
        }
        Ok(None)
    }
}

/// The start and bytes of the allocation that `addr` lies in, whoever made it.
pub(super) fn allocation(driver: &Driver, op: &'static str, addr: u64) -> Result<(u64, usize)> {
    // CUpointer_attribute and CUmemorytype of the driver's header.
    const MEMORY_TYPE: u32 = 2;
    const DEVICE_ORDINAL: u32 = 9;
    const RANGE_START_ADDR: u32 = 11;
    const RANGE_SIZE: u32 = 12;
    const MEMORYTYPE_DEVICE: u32 = 2;

    let api = driver.enter()?;
    let (mut kind, mut ordinal, mut start, mut bytes) = (0_u32, 0_i32, 0_u64, 0_usize);
    let asked: [(u32, *mut c_void); 4] = [
        (MEMORY_TYPE, ptr::from_mut(&mut kind).cast()),
        (DEVICE_ORDINAL, ptr::from_mut(&mut ordinal).cast()),
        (RANGE_START_ADDR, ptr::from_mut(&mut start).cast()),
        (RANGE_SIZE, ptr::from_mut(&mut bytes).cast()),
    ];
    for (attribute, value) in asked {
        // SAFETY: each value is of its attribute's type and ours to write. An address that the
        // driver does not know is a code, and no mistake of the context's.
        let result = unsafe { (api.cuPointerGetAttribute)(value, attribute, addr) };
        if result != code::SUCCESS {
            return Err(Error::argument(
                op,
                format!("{addr:#x} is no memory that the driver knows"),
            ));
        }
    }
    if kind != MEMORYTYPE_DEVICE || u32::try_from(ordinal) != Ok(driver.ordinal()) {
        let id = Id::Cuda(driver.ordinal());
        return Err(Error::argument(op, format!("{addr:#x} is no memory of {id}")));
    }
    Ok((start, bytes))
}

/// Free and total bytes of the device's memory, over all processes.
pub(super) fn info(driver: &Driver) -> Result<(usize, usize)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are ours to write.
    unsafe { cu!(driver, cuMemGetInfo(&mut free, &mut total)) }?;
    if free > total {
        return Err(Error::Internal(format!("{free} bytes free of {total}")));
    }
    Ok((free, total))
}
