//! A device: its card, its memory, its streams, and the error that lost it, if one did.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::card::Card;
use crate::code::{Code, Result};
use crate::handle::lock;
use crate::machine::{Fault, FaultKind};
use crate::memory::Memory;
use crate::stream::Stream;

/// All allocations are aligned to so many bytes, as the driver's are.
const ALIGNMENT: usize = 512;
/// Bytes before and after an allocation that belong to no other one.
const MARGIN: usize = 8 << 10;
/// What memory of the device holds before anyone wrote to it: NaN in each type of floats.
const GARBAGE: u8 = 0xff;

#[derive(Debug)]
pub struct Device {
    pub ordinal: u32,
    pub card: Card,
    /// What its kernels may touch.
    pub memory: Memory,
    allocations: Mutex<Allocations>,
    streams: Mutex<Vec<Weak<Stream>>>,
    fault: OnceLock<Code>,
}

#[derive(Debug, Default)]
struct Allocations {
    live: BTreeMap<u64, Allocation>,
    /// Bytes of the device's memory in use.
    used: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    pub start: u64,
    pub bytes: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device,
    /// Page-locked memory of the host, which kernels see at the same address.
    Host,
}

thread_local! {
    static CURRENT: Cell<Option<&'static Device>> = const { Cell::new(None) };
}

/// The devices, made at the first call.
pub fn devices() -> Result<&'static [Device]> {
    static DEVICES: OnceLock<Option<Vec<Device>>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| match Card::from_env() {
        Ok((count, card)) => Some((0..count).map(|i| Device::new(i, card.clone())).collect()),
        Err(why) => {
            eprintln!("emulator: {why}");
            None
        }
    });
    devices.as_deref().ok_or(Code::NO_DEVICE)
}

pub fn device(ordinal: i32) -> Result<&'static Device> {
    let at = usize::try_from(ordinal).map_err(|_| Code::INVALID_DEVICE)?;
    devices()?.get(at).ok_or(Code::INVALID_DEVICE)
}

/// The calling thread's device, as the context that is current; the code that lost it, if one did.
pub fn current() -> Result<&'static Device> {
    let device = CURRENT.get().ok_or(Code::INVALID_CONTEXT)?;
    device.check()?;
    Ok(device)
}

pub fn current_or_none() -> Option<&'static Device> {
    CURRENT.get()
}

pub fn set_current(device: Option<&'static Device>) {
    CURRENT.set(device);
}

impl Device {
    fn new(ordinal: u32, card: Card) -> Self {
        let (memory, allocations, streams, fault) = Default::default();
        Device { ordinal, card, memory, allocations, streams, fault }
    }

    /// Its primary context's handle.
    pub fn context<P>(&'static self) -> *mut P {
        ptr::from_ref(self).cast_mut().cast()
    }

    pub fn of_context<P>(context: *mut P) -> Result<&'static Self> {
        devices()?.iter().find(|d| d.context::<P>() == context).ok_or(Code::INVALID_CONTEXT)
    }

    /// The code that lost the context: every later call gives the same.
    pub fn check(&self) -> Result<()> {
        self.fault.get().map_or(Ok(()), |&code| Err(code))
    }

    /// A kernel's fault loses the context. Only the first one tells anything.
    pub fn poison(&self, fault: &Fault) {
        let code = match fault.kind {
            FaultKind::Address => Code::ILLEGAL_ADDRESS,
            FaultKind::Alignment => Code::MISALIGNED_ADDRESS,
            FaultKind::Race | FaultKind::Deadlock | FaultKind::Instruction => Code::LAUNCH_FAILED,
        };
        self.fault.get_or_init(|| {
            eprintln!("emulator: {fault}");
            code.because(&fault.message)
        });
    }

    pub fn allocate(&self, bytes: usize, kind: Kind) -> Result<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut allocations = lock(&self.allocations);
        if kind == Kind::Device && bytes > self.card.memory - allocations.used {
            return Err(Code::OUT_OF_MEMORY);
        }
        let layout = layout(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        // SAFETY: the layout is of more than no bytes.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        // SAFETY: the margins are part of the layout.
        let start = unsafe {
            let start = base.add(MARGIN);
            start.write_bytes(GARBAGE, bytes);
            start.expose_provenance() as u64
        };
        if kind == Kind::Device {
            allocations.used += bytes;
        }
        allocations.live.insert(start, Allocation { start, bytes, kind });
        self.memory.insert(start, bytes as u64);
        Ok(start)
    }

    /// Waits for the work queued so far, then frees.
    pub fn free(&self, start: u64, kind: Kind) -> Result<()> {
        let found = lock(&self.allocations).live.get(&start).copied();
        let bytes = found.filter(|a| a.kind == kind).ok_or(Code::INVALID_VALUE)?.bytes;
        self.synchronize()?;
        let mut allocations = lock(&self.allocations);
        if allocations.live.remove(&start).is_none() {
            return Err(Code::INVALID_VALUE);
        }
        self.memory.remove(start);
        if kind == Kind::Device {
            allocations.used -= bytes;
        }
        let layout = layout(bytes).ok_or(Code::UNKNOWN)?;
        let base = ptr::with_exposed_provenance_mut::<u8>(start as usize - MARGIN);
        // SAFETY: allocated with this layout, and just taken out of those that live.
        unsafe { dealloc(base, layout) };
        Ok(())
    }

    /// The allocation around an address.
    pub fn allocation(&self, address: u64) -> Option<Allocation> {
        let allocations = lock(&self.allocations);
        let (_, &found) = allocations.live.range(..=address).next_back()?;
        (address < found.start + found.bytes as u64).then_some(found)
    }

    /// Whether all of so many bytes lie in one allocation.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        self.memory.range(address).is_some_and(|(_, end)| bytes as u64 <= end - address)
    }

    pub fn free_bytes(&self) -> usize {
        self.card.memory - lock(&self.allocations).used
    }

    pub fn enter(&self, stream: Weak<Stream>) {
        let mut streams = lock(&self.streams);
        streams.retain(|s| s.strong_count() > 0);
        streams.push(stream);
    }

    pub fn streams(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams).iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits for the work of all streams.
    pub fn synchronize(&self) -> Result<()> {
        self.streams().iter().for_each(|s| s.drain());
        self.check()
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    let size = bytes.checked_add(2 * MARGIN)?;
    Layout::from_size_align(size, ALIGNMENT).ok()
}
