//! What a device is given to execute: an op, and where its operands lie.

use crate::op::Op;
use crate::spec::Spec;

/// How a tensor lies that is a part of each row of another: so many elements together, and as many
/// from the first of them to the first of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub length: usize,
    pub pitch: usize,
}

/// A tensor at an address of the device's memory: dense, but for the inputs of which the device said
/// that it reads them by rows.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub addr: u64,
    pub spec: &'a Spec,
    /// Whether nothing writes to it while programs run that read it: their parameters.
    pub constant: bool,
    pub rows: Option<Rows>,
}

impl<'a> View<'a> {
    /// Elements from one row of the last axis to the next.
    pub fn pitch(&self) -> usize {
        self.rows.map_or(self.spec.last(), |rows| rows.pitch)
    }

    /// The elements, for a view of host memory.
    ///
    /// # Safety
    /// The address must be that of a live, initialised host buffer of the spec's size, `T` its
    /// type, and nobody may write to it meanwhile.
    pub unsafe fn slice<T>(&self) -> &'a [T] {
        debug_assert_eq!(size_of::<T>(), self.spec.dtype.size());
        debug_assert!(self.rows.is_none());
        if self.spec.is_empty() {
            return &[];
        }
        // SAFETY: the caller's promise; pools align every block to 256 bytes.
        unsafe { std::slice::from_raw_parts(self.addr as *const T, self.spec.len()) }
    }

    /// The elements, for writing.
    ///
    /// # Safety
    /// As for [`View::slice`], and nobody may read it meanwhile either.
    pub unsafe fn slice_mut<T>(&self) -> &'a mut [T] {
        debug_assert_eq!(size_of::<T>(), self.spec.dtype.size());
        debug_assert!(self.rows.is_none());
        if self.spec.is_empty() {
            return &mut [];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.addr as *mut T, self.spec.len()) }
    }
}

/// One op on operands that `infer` has passed. An output never overlaps an input, but for one that an
/// op writes a part of anew, which may be its output.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub op: &'a Op,
    pub inputs: &'a [Option<View<'a>>],
    pub outputs: &'a [View<'a>],
    /// Scratch of as many bytes as the device asked for; 0 where it asked for none.
    pub workspace: u64,
}

impl<'a> Call<'a> {
    pub fn input(&self, i: usize) -> Option<View<'a>> {
        self.inputs.get(i).copied().flatten()
    }

    /// Whether these inputs, as far as they are given, are constant.
    pub fn constant(&self, inputs: impl IntoIterator<Item = usize>) -> bool {
        inputs.into_iter().filter_map(|i| self.input(i)).all(|view| view.constant)
    }
}
