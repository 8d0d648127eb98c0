//! Loads and stores of a warp's lanes in the shared memory of their own block, all at once: where each
//! lane's bytes are inside of it and aligned. What is not so goes lane by lane, in `access.rs`.

use super::Context;
use super::access::Done;
use super::file::{ALL, LANES, Value, each};
use super::shared::Access;
use super::warp::Warp;
use crate::ptx::body::SHARED_BASE;
use crate::ptx::instruction::{Reg, Ty};

/// Where each lane's bytes begin in the block's shared memory.
pub type Places = [u32; LANES];

/// Up to 16 bytes of each lane.
pub type Bytes = [[u8; 16]; LANES];

impl Context<'_> {
    /// The places of `bytes` bytes at the addresses, where all are such.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn own_places(
        &self,
        warp: &Warp,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Option<Places> {
        if bytes > 16 {
            return None;
        }
        let all = self.blocks[warp.block].shared.bytes.len();
        let last = u32::try_from(all.checked_sub(bytes)?).ok()?;
        let (mut places, mut high, mut bits, mut most) = ([0; LANES], 0, 0, 0);
        for lane in 0..LANES {
            let at = addresses[lane].wrapping_sub(SHARED_BASE);
            let at = if mask >> lane & 1 != 0 { at } else { 0 };
            places[lane] = at as u32;
            high |= at >> 32;
            bits |= at as u32;
            most = most.max(at as u32);
        }
        (high == 0 && most <= last && bits & (bytes as u32 - 1) == 0).then_some(places)
    }

    /// What the lanes read, after it is noted that they do.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn read<const N: usize>(
        &mut self,
        warp: &Warp,
        places: &Places,
        mask: u32,
    ) -> Result<Bytes, super::warp::Trouble> {
        let (first, now) = (mask.trailing_zeros() as usize, self.clock);
        let shared = &mut self.blocks[warp.block].shared;
        let same = (0..LANES).fold(0, |bits, lane| {
            let apart = places[lane] ^ places[first];
            bits | if mask >> lane & 1 != 0 { apart } else { 0 }
        });
        let mut out = [[0; 16]; LANES];
        if same == 0 {
            let last = 31 - mask.leading_zeros() as usize;
            let at = places[first] as usize;
            let by = [warp.thread(first), warp.thread(last)];
            if let Err(other) = shared.read_by_all(at, N, by, &warp.since, now) {
                return Err(self.race(last, Access::Read, N, at, other));
            }
            let mut one = [0; 16];
            one[..N].copy_from_slice(&shared.bytes[at..at + N]);
            return Ok([one; LANES]);
        }
        let (me, mut raced) = (warp.thread(0), None);
        each(mask, |lane| {
            let at = places[lane] as usize;
            let thread = me + lane as u16;
            if let Err(other) = shared.touch(at, N, thread, &warp.since, now, Access::Read, false) {
                raced = Some((lane, at, other));
            }
            out[lane][..N].copy_from_slice(&shared.bytes[at..at + N]);
        });
        match raced {
            Some((lane, at, other)) => Err(self.race(lane, Access::Read, N, at, other)),
            None => Ok(out),
        }
    }

    /// Writes what each lane has.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn write<const N: usize>(
        &mut self,
        warp: &Warp,
        places: &Places,
        mask: u32,
        new: &Bytes,
    ) -> Done {
        let (me, now, mut raced) = (warp.thread(0), self.clock, None);
        let shared = &mut self.blocks[warp.block].shared;
        each(mask, |lane| {
            let at = places[lane] as usize;
            let thread = me + lane as u16;
            let same = shared.bytes[at..at + N] == new[lane][..N];
            if let Err(other) = shared.touch(at, N, thread, &warp.since, now, Access::Write, same) {
                raced = Some((lane, at, other));
            }
            shared.bytes[at..at + N].copy_from_slice(&new[lane][..N]);
        });
        match raced {
            Some((lane, at, other)) => Err(self.race(lane, Access::Write, N, at, other)),
            None => Ok(()),
        }
    }

    /// `read` into registers of a type.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn load_own(
        &mut self,
        warp: &mut Warp,
        places: &Places,
        mask: u32,
        ty: Ty,
        d: &[Reg],
    ) -> Done {
        let size = ty.bytes();
        let bytes = match size * d.len() {
            1 => self.read::<1>(warp, places, mask)?,
            2 => self.read::<2>(warp, places, mask)?,
            4 => self.read::<4>(warp, places, mask)?,
            8 => self.read::<8>(warp, places, mask)?,
            _ => self.read::<16>(warp, places, mask)?,
        };
        for (k, &d) in d.iter().enumerate() {
            match size {
                4 if !d.is_wide() && mask == ALL => {
                    let row = u32::row_mut(&mut warp.file, d);
                    for lane in 0..LANES {
                        row[lane] = word::<4>(&bytes[lane], k) as u32;
                    }
                }
                1 => put(warp, ty, d, mask, bytes.each_ref().map(|b| word::<1>(b, k))),
                2 => put(warp, ty, d, mask, bytes.each_ref().map(|b| word::<2>(b, k))),
                4 => put(warp, ty, d, mask, bytes.each_ref().map(|b| word::<4>(b, k))),
                _ => put(warp, ty, d, mask, bytes.each_ref().map(|b| word::<8>(b, k))),
            }
        }
        Ok(())
    }

    /// `write` from registers of a type.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    pub fn store_own(
        &mut self,
        warp: &Warp,
        places: &Places,
        mask: u32,
        size: usize,
        a: &[Reg],
    ) -> Done {
        let mut new = [[0; 16]; LANES];
        for (k, &a) in a.iter().enumerate() {
            match size {
                1 => take::<1>(warp, a, k, &mut new),
                2 => take::<2>(warp, a, k, &mut new),
                4 => take::<4>(warp, a, k, &mut new),
                _ => take::<8>(warp, a, k, &mut new),
            }
        }
        match size * a.len() {
            1 => self.write::<1>(warp, places, mask, &new),
            2 => self.write::<2>(warp, places, mask, &new),
            4 => self.write::<4>(warp, places, mask, &new),
            8 => self.write::<8>(warp, places, mask, &new),
            _ => self.write::<16>(warp, places, mask, &new),
        }
    }
}

/// The k-th word of `N` bytes.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; 16], k: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&bytes[k * N..][..N]);
    u64::from_le_bytes(word)
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn put(warp: &mut Warp, ty: Ty, d: Reg, mask: u32, bits: [u64; LANES]) {
    let bits = if ty.is_signed() { bits.map(|b| super::access::extend(b, ty)) } else { bits };
    warp.file.set_bits(d, &bits, mask);
}

#[inline(always)]
fn take<const N: usize>(warp: &Warp, a: Reg, k: usize, new: &mut Bytes) {
    let bits = warp.file.bits(a);
    for lane in 0..LANES {
        new[lane][k * N..][..N].copy_from_slice(&bits[lane].to_le_bytes()[..N]);
    }
}
