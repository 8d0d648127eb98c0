//! What a device is given to execute: an op, and where its operands lie.

use crate::op::Op;
use crate::spec::Spec;

/// A dense tensor at an address of the device's memory.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub addr: u64,
    pub spec: &'a Spec,
    /// Whether nothing writes to it while programs run that read it: their parameters.
    pub constant: bool,
}

impl<'a> View<'a> {
    /// The elements, for a view of host memory.
    ///
    /// # Safety
    /// The address must be that of a live, initialised host buffer of the spec's size, `T` its
    /// type, and nobody may write to it meanwhile.
    pub unsafe fn slice<T>(&self) -> &'a [T] {
        debug_assert_eq!(size_of::<T>(), self.spec.dtype.size());
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
