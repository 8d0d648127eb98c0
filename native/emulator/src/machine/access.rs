//! Loads, stores and atomics: each address is looked at before anything is touched.

use super::file::{LANES, Value, each, lanes};
use super::shared::{Access, Thread, place_of, word};
use super::warp::{Trouble, Warp};
use super::{Context, FaultKind};
use crate::ptx::instruction::{Address, Reg, Space, Ty};

/// Where shared and local memory lie among generic addresses: far from what a process has.
pub const SHARED_WINDOW: u64 = 1 << 56;
pub const LOCAL_WINDOW: u64 = 1 << 57;
/// Where the shared memory of a cluster's blocks lies, one after the other, from the first on. Below
/// is a block's own.
pub const BLOCK_WINDOW: u64 = 1 << 24;

pub type Done = Result<(), Trouble>;

pub fn trouble(kind: FaultKind, lane: usize, what: String) -> Trouble {
    Trouble { kind, lane, what }
}

/// Loads from a process address.
///
/// # Safety
/// `size` bytes there are allocated, and the address is a multiple of it.
#[inline(always)]
unsafe fn read(address: u64, size: usize) -> u64 {
    // SAFETY: the caller's promise. Volatile, since the host may write there meanwhile.
    unsafe {
        match size {
            1 => u64::from((address as *const u8).read_volatile()),
            2 => u64::from((address as *const u16).read_volatile()),
            4 => u64::from((address as *const u32).read_volatile()),
            _ => (address as *const u64).read_volatile(),
        }
    }
}

/// Stores to a process address.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn write(address: u64, size: usize, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => (address as *mut u8).write_volatile(bits as u8),
            2 => (address as *mut u16).write_volatile(bits as u16),
            4 => (address as *mut u32).write_volatile(bits as u32),
            _ => (address as *mut u64).write_volatile(bits),
        }
    }
}

pub fn extend(bits: u64, ty: Ty) -> u64 {
    match ty {
        Ty::S8 => bits as i8 as u64,
        Ty::S16 => bits as i16 as u64,
        Ty::S32 => bits as i32 as u64,
        _ => bits,
    }
}

impl Context<'_> {
    /// Checks that all lanes' `bytes` lie in what is allocated, aligned.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn check(&mut self, addresses: &[u64; LANES], mask: u32, bytes: usize) -> Done {
        if mask == 0 {
            return Ok(());
        }
        // Mostly all are in one range.
        let (first, end) = self.range(addresses[mask.trailing_zeros() as usize]);
        if let Some(last) = (end - first).checked_sub(bytes as u64) {
            let (mut bits, mut over) = (0, 0);
            for (lane, &at) in addresses.iter().enumerate() {
                let here = mask >> lane & 1 != 0;
                let offset = if here { at.wrapping_sub(first) } else { 0 };
                bits |= if here { at } else { 0 };
                // The highest bit is set where the offset is more than the last one, or negative.
                over |= offset | last.wrapping_sub(offset);
            }
            if bits & (bytes as u64 - 1) == 0 && over >> 63 == 0 {
                return Ok(());
            }
        }
        for lane in lanes(mask) {
            let at = addresses[lane];
            if !at.is_multiple_of(bytes as u64) {
                let what = format!("{bytes} bytes at {at:#x}, which is not aligned");
                return Err(trouble(FaultKind::Alignment, lane, what));
            }
            if !self.is_inside(at, at.wrapping_add(bytes as u64)) {
                return Err(trouble(FaultKind::Address, lane, self.outside(at, bytes)));
            }
        }
        Ok(())
    }

    /// Notes what is read before a kernel waits for those ahead of it.
    fn note(&mut self, addresses: &[u64; LANES], mask: u32, bytes: usize) {
        if let Some(reads) = &mut self.ahead {
            reads.extend(lanes(mask).map(|lane| (addresses[lane], addresses[lane] + bytes as u64)));
        }
    }

    pub fn is_no_write_ahead(&self, mask: u32) -> Done {
        if self.ahead.is_none() || mask == 0 {
            return Ok(());
        }
        let what = "a write before the kernel waits for those ahead of it".to_owned();
        Err(trouble(FaultKind::Race, mask.trailing_zeros() as usize, what))
    }

    /// The range that an address is in, or an empty one.
    fn range(&mut self, at: u64) -> (u64, u64) {
        if let Some(&range) = self.ranges.iter().find(|&&(first, end)| at >= first && at < end) {
            return range;
        }
        let Some(range) = self.memory.range(at) else { return (0, 0) };
        self.ranges[self.next_range] = range;
        self.next_range = self.next_range % (self.ranges.len() - 1) + 1;
        range
    }

    fn is_inside(&mut self, low: u64, end: u64) -> bool {
        let range = self.range(low);
        low >= range.0 && end <= range.1 && end > low
    }

    fn outside(&self, at: u64, bytes: usize) -> String {
        match self.memory.range(at) {
            Some((first, end)) => format!(
                "{bytes} bytes at {at:#x}, past the end of the {} bytes at {first:#x}",
                end - first
            ),
            None => format!("{bytes} bytes at {at:#x}, where nothing is allocated"),
        }
    }

    /// The block, among those that run, and the place in its shared memory.
    pub fn shared_place(
        &self,
        warp: &Warp,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Result<(usize, usize), Trouble> {
        let own = &self.blocks[warp.block];
        if let Some(at) = own.shared.place(address, bytes)
            && at % bytes == 0
        {
            return Ok((warp.block, at));
        }
        let rank = (address / BLOCK_WINDOW) as usize;
        let block = if rank == 0 { Some(warp.block) } else { self.in_cluster(own, rank - 1) };
        let place = block.and_then(|block| {
            let at = self.blocks[block].shared.place(address % BLOCK_WINDOW, bytes)?;
            Some((block, at))
        });
        let (block, at) = place.ok_or_else(|| {
            let all = own.shared.bytes.len();
            let what = format!(
                "{bytes} bytes at {address:#x} of shared memory, which has {all} bytes from {:#x} on",
                crate::ptx::body::SHARED_BASE
            );
            trouble(FaultKind::Address, lane, what)
        })?;
        if at % bytes != 0 {
            let what = format!("{bytes} bytes at {address:#x} of shared memory: not aligned");
            return Err(trouble(FaultKind::Alignment, lane, what));
        }
        Ok((block, at))
    }

    /// Notes a touch of shared memory, or tells of the race.
    pub fn touch(
        &mut self,
        warp: &Warp,
        lane: usize,
        (block, at): (usize, usize),
        bytes: usize,
        access: Access,
        same: bool,
    ) -> Done {
        let (thread, now) = (warp.thread(lane), self.clock);
        let shared = &mut self.blocks[block].shared;
        let noted = shared.touch(at, bytes, thread, &warp.since, now, access, same);
        noted.map_err(|other| self.race(lane, access, bytes, at, other))
    }

    #[cold]
    pub fn race(
        &self,
        lane: usize,
        access: Access,
        bytes: usize,
        at: usize,
        other: Thread,
    ) -> Trouble {
        let (rank, index) = place_of(other);
        let what = format!(
            "{access:?} of {bytes} bytes of shared memory, {at:#x} bytes from its start: \
             thread {index} of the block of rank {rank} was there with no barrier between"
        );
        trouble(FaultKind::Race, lane, what)
    }
}

/// The address of each lane.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn addresses(warp: &Warp, at: Address) -> [u64; LANES] {
    match at.base {
        None => [at.offset as u64; LANES],
        Some(base) if base.is_wide() => {
            warp.file.bits(base).map(|x| x.wrapping_add(at.offset as u64))
        }
        Some(base) => {
            warp.file.bits(base).map(|x| u64::from((x as u32).wrapping_add(at.offset as u32)))
        }
    }
}

/// Splits generic addresses by where they lead.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn resolve(space: Space, addresses: &mut [u64; LANES], mask: u32) -> [(Space, u32); 3] {
    if space != Space::Generic {
        return [(space, mask), (Space::Local, 0), (Space::Shared, 0)];
    }
    let (mut any, mut all) = (0, u64::MAX);
    for (lane, &at) in addresses.iter().enumerate() {
        let here = mask >> lane & 1 != 0;
        any |= if here { at } else { 0 };
        all &= if here { at } else { u64::MAX };
    }
    // Mostly all lead to one space.
    if any < SHARED_WINDOW {
        return [(Space::Global, mask), (Space::Cluster, 0), (Space::Local, 0)];
    }
    if any < LOCAL_WINDOW && all & SHARED_WINDOW != 0 {
        *addresses = addresses.map(|at| at.wrapping_sub(SHARED_WINDOW));
        return [(Space::Cluster, mask), (Space::Global, 0), (Space::Local, 0)];
    }
    let (mut global, mut shared, mut local) = (0, 0, 0);
    for lane in lanes(mask) {
        let at = &mut addresses[lane];
        if *at & LOCAL_WINDOW != 0 && *at < LOCAL_WINDOW * 2 {
            *at -= LOCAL_WINDOW;
            local |= 1 << lane;
        } else if *at & SHARED_WINDOW != 0 && *at < LOCAL_WINDOW {
            *at -= SHARED_WINDOW;
            shared |= 1 << lane;
        } else {
            global |= 1 << lane;
        }
    }
    [(Space::Global, global), (Space::Cluster, shared), (Space::Local, local)]
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn load(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    space: Space,
    ty: Ty,
    d: &[Reg],
    at: Address,
) -> Done {
    let mut addresses = addresses(warp, at);
    for (space, mask) in resolve(space, &mut addresses, mask) {
        if mask != 0 {
            load_from(warp, context, mask, space, ty, d, &addresses)?;
        }
    }
    Ok(())
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn load_from(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    space: Space,
    ty: Ty,
    d: &[Reg],
    addresses: &[u64; LANES],
) -> Done {
    let size = ty.bytes();
    let all = size * d.len();
    let put = |warp: &mut Warp, k: usize, mut bits: [u64; LANES]| {
        if ty.is_signed() && size < 8 {
            bits = bits.map(|bits| extend(bits, ty));
        }
        warp.file.set_bits(d[k], &bits, mask);
    };
    let word = |bytes: &[u8], k: usize| word(&bytes[k * size..(k + 1) * size], size);
    match space {
        Space::Global | Space::Generic => {
            context.check(addresses, mask, all)?;
            context.note(addresses, mask, all);
            for (k, &d) in d.iter().enumerate() {
                if size == 4 && !d.is_wide() {
                    let row = u32::row_mut(&mut warp.file, d);
                    each(mask, |lane| {
                        let at = addresses[lane] + 4 * k as u64;
                        // SAFETY: checked above, and aligned to the whole vector.
                        row[lane] = unsafe { read(at, 4) } as u32;
                    });
                    continue;
                }
                // SAFETY: as above.
                let bits = unsafe { gather(addresses, mask, (k * size) as u64, size) };
                put(warp, k, bits);
            }
        }
        Space::Shared | Space::Cluster => {
            if let Some(places) = context.own_places(warp, addresses, mask, all) {
                return context.load_own(warp, &places, mask, ty, d);
            }
            let mut places = [(0, 0); LANES];
            for lane in lanes(mask) {
                places[lane] = context.shared_place(warp, lane, addresses[lane], all)?;
                context.touch(warp, lane, places[lane], all, Access::Read, false)?;
            }
            for k in 0..d.len() {
                let mut bits = [0; LANES];
                for lane in lanes(mask) {
                    let (block, at) = places[lane];
                    bits[lane] = context.blocks[block].shared.load(at + k * size, size);
                }
                put(warp, k, bits);
            }
        }
        Space::Local => {
            let mut bits = [[0; LANES]; 4];
            for lane in lanes(mask) {
                let bytes = warp.local(lane, addresses[lane], all)?;
                (0..d.len()).for_each(|k| bits[k][lane] = word(bytes, k));
            }
            (0..d.len()).for_each(|k| put(warp, k, bits[k]));
        }
        Space::Param => {
            let params = &context.launch.params;
            let one = |lane: usize| {
                let at = addresses[lane] as usize;
                params.get(at..at.saturating_add(all)).ok_or_else(|| {
                    let what = format!("{all} bytes at {at} of {} of parameters", params.len());
                    trouble(FaultKind::Address, lane, what)
                })
            };
            let first = one(mask.trailing_zeros() as usize % LANES)?;
            let same = addresses.iter().all(|&at| at == addresses[0]);
            for k in 0..d.len() {
                let mut bits = [word(first, k); LANES];
                if !same {
                    for lane in lanes(mask) {
                        bits[lane] = word(one(lane)?, k);
                    }
                }
                put(warp, k, bits);
            }
        }
    }
    Ok(())
}

/// Loads `size` bytes for each lane of a mask.
///
/// # Safety
/// As for [`read`], at each address and so far behind it.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn gather(addresses: &[u64; LANES], mask: u32, behind: u64, size: usize) -> [u64; LANES] {
    let mut bits = [0; LANES];
    macro_rules! read_each {
        ($size:expr) => {
            each(mask, |lane| {
                // SAFETY: the caller's promise.
                bits[lane] = unsafe { read(addresses[lane] + behind, $size) };
            })
        };
    }
    match size {
        1 => read_each!(1),
        2 => read_each!(2),
        4 => read_each!(4),
        _ => read_each!(8),
    }
    bits
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn store(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    space: Space,
    ty: Ty,
    a: &[Reg],
    at: Address,
) -> Done {
    let mut addresses = addresses(warp, at);
    context.progress = true;
    for (space, mask) in resolve(space, &mut addresses, mask) {
        if mask != 0 {
            store_to(warp, context, mask, space, ty.bytes(), a, &addresses)?;
        }
    }
    Ok(())
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn store_to(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    space: Space,
    size: usize,
    a: &[Reg],
    addresses: &[u64; LANES],
) -> Done {
    let all = size * a.len();
    match space {
        Space::Global | Space::Generic => {
            context.check(addresses, mask, all)?;
            context.is_no_write_ahead(mask)?;
            for (k, &a) in a.iter().enumerate() {
                let bits = warp.file.bits(a);
                // SAFETY: checked above, and aligned to the whole vector.
                unsafe { scatter(addresses, mask, (k * size) as u64, size, &bits) };
            }
        }
        Space::Shared | Space::Cluster => {
            if let Some(places) = context.own_places(warp, addresses, mask, all) {
                return context.store_own(warp, &places, mask, size, a);
            }
            for lane in lanes(mask) {
                let place = context.shared_place(warp, lane, addresses[lane], all)?;
                let (block, at) = place;
                let old = &context.blocks[block].shared;
                let same = a.iter().enumerate().all(|(k, &a)| {
                    let new = warp.file.lane(a, lane) & (u64::MAX >> (64 - 8 * size));
                    old.load(at + k * size, size) == new
                });
                context.touch(warp, lane, place, all, Access::Write, same)?;
                let shared = &mut context.blocks[block].shared;
                for (k, &a) in a.iter().enumerate() {
                    shared.store(at + k * size, size, warp.file.lane(a, lane));
                }
            }
        }
        Space::Local => {
            for (k, &a) in a.iter().enumerate() {
                let bits = warp.file.bits(a);
                for lane in lanes(mask) {
                    let bytes = warp.local(lane, addresses[lane], all)?;
                    bytes[k * size..(k + 1) * size]
                        .copy_from_slice(&bits[lane].to_le_bytes()[..size]);
                }
            }
        }
        Space::Param => {
            let what = "a store to a parameter".to_owned();
            return Err(trouble(FaultKind::Instruction, 0, what));
        }
    }
    Ok(())
}

/// Stores `size` bytes of each lane of a mask.
///
/// # Safety
/// As for [`write`], at each address and so far behind it.
#[inline(always)]
unsafe fn scatter(
    addresses: &[u64; LANES],
    mask: u32,
    behind: u64,
    size: usize,
    bits: &[u64; LANES],
) {
    macro_rules! write_each {
        ($size:expr) => {
            each(mask, |lane| {
                // SAFETY: the caller's promise.
                unsafe { write(addresses[lane] + behind, $size, bits[lane]) };
            })
        };
    }
    match size {
        1 => write_each!(1),
        2 => write_each!(2),
        4 => write_each!(4),
        _ => write_each!(8),
    }
}

/// A copy to shared memory that has not landed.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    lane: u8,
    size: u8,
    /// The group of its lane that it is of.
    group: u32,
    at: usize,
    bytes: [u8; 16],
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn copy(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    size: usize,
    [to, from]: [Address; 2],
    count: Option<Reg>,
) -> Done {
    let (to, mut from) = (addresses(warp, to), addresses(warp, from));
    for (space, _) in resolve(Space::Generic, &mut from, mask).iter().filter(|r| r.1 != 0) {
        if *space != Space::Global {
            let what = "an asynchronous copy from what is not global memory".to_owned();
            return Err(trouble(FaultKind::Instruction, 0, what));
        }
    }
    for lane in lanes(mask) {
        let count = count.map_or(size, |reg| warp.file.lane(reg, lane) as u32 as usize);
        if count > size || !matches!(size, 4 | 8 | 16) {
            let what = format!("a copy of {count} of {size} bytes");
            return Err(trouble(FaultKind::Instruction, lane, what));
        }
        let (block, at) = context.shared_place(warp, lane, to[lane], size)?;
        context.touch(warp, lane, (block, at), size, Access::Write, false)?;
        let mut bytes = [0; 16];
        if count > 0 {
            if from[lane] % size as u64 != 0 {
                let what = format!("{size} bytes at {:#x}, which is not aligned", from[lane]);
                return Err(trouble(FaultKind::Alignment, lane, what));
            }
            // Only what is copied need be there.
            let end = from[lane].wrapping_add(count as u64);
            if !context.is_inside(from[lane], end) {
                let what = context.outside(from[lane], count);
                return Err(trouble(FaultKind::Address, lane, what));
            }
            context.note(&from, 1 << lane, count);
            for (i, word) in bytes[..count / 4 * 4].chunks_exact_mut(4).enumerate() {
                // SAFETY: inside of what is allocated, as was checked, and aligned to 4 bytes at least.
                let bits = unsafe { read(from[lane] + 4 * i as u64, 4) } as u32;
                word.copy_from_slice(&bits.to_le_bytes());
            }
            let rest = from[lane] + (count / 4 * 4) as u64;
            for (byte, at) in bytes[count / 4 * 4..count].iter_mut().zip(rest..) {
                // SAFETY: as above.
                *byte = unsafe { read(at, 1) } as u8;
            }
        }
        let group = warp.committed[lane];
        warp.copies.push(Copy { lane: lane as u8, size: size as u8, group, at, bytes });
    }
    Ok(())
}

/// Lets copies land, until at most `pending` groups of each lane are under way.
pub fn land(
    warp: &mut Warp,
    context: &mut Context<'_>,
    mask: u32,
    pending: u32,
    all: bool,
) -> Done {
    context.progress = true;
    let mut copies = std::mem::take(&mut warp.copies);
    let mut kept = 0;
    for i in 0..copies.len() {
        let copy = copies[i];
        let (lane, size) = (usize::from(copy.lane), usize::from(copy.size));
        let due = all || copy.group + pending < warp.committed[lane];
        if mask >> lane & 1 == 0 || !due {
            copies[kept] = copy;
            kept += 1;
            continue;
        }
        context.touch(warp, lane, (warp.block, copy.at), size, Access::Write, false)?;
        let shared = &mut context.blocks[warp.block].shared.bytes;
        shared[copy.at..copy.at + size].copy_from_slice(&copy.bytes[..size]);
    }
    copies.truncate(kept);
    warp.copies = copies;
    Ok(())
}
