//! `embedding`: rows of a table.

use half::{bf16, f16};

use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::spec::DType;

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call) -> Result<()> {
    let (Some(table), Some(ids)) = (call.input(0), call.input(1)) else {
        return Err(Error::Internal("embedding without its inputs".into()));
    };
    let out = call.outputs[0];
    // SAFETY: the caller's promise; `infer` has checked the types.
    unsafe {
        match table.spec.dtype {
            DType::F16 => rows::<f16>(&table, &ids, &out, f16::NAN),
            DType::BF16 => rows::<bf16>(&table, &ids, &out, bf16::NAN),
            _ => rows::<f32>(&table, &ids, &out, f32::NAN),
        }
    }
}

/// # Safety
/// As for [`execute`].
unsafe fn rows<T: Copy + Send + Sync>(table: &View, ids: &View, out: &View, nan: T) -> Result<()> {
    let row = table.spec.last();
    // SAFETY: the caller's promise.
    let (data, to) = unsafe { (table.slice::<T>(), out.slice_mut::<T>()) };
    let id = |i: usize| -> i64 {
        // SAFETY: the caller's promise; each type is that of the spec.
        unsafe {
            match ids.spec.dtype {
                DType::U8 => i64::from(ids.slice::<u8>()[i]),
                DType::U16 => i64::from(ids.slice::<u16>()[i]),
                DType::U32 => i64::from(ids.slice::<u32>()[i]),
                DType::S8 => i64::from(ids.slice::<i8>()[i]),
                DType::S16 => i64::from(ids.slice::<i16>()[i]),
                DType::S32 => i64::from(ids.slice::<i32>()[i]),
                // A u64 beyond i64 wraps below zero, which is out of range as well.
                _ => ids.slice::<i64>()[i],
            }
        }
    };
    let ns = super::shape::cost(to.len(), size_of::<T>());
    threads::over_rows(to, row, ns, |first, to| {
        for (i, to) in to.chunks_exact_mut(row).enumerate() {
            let at = usize::try_from(id(first + i)).ok().filter(|&r| r < table.spec.rows());
            match at {
                Some(r) => to.copy_from_slice(&data[r * row..(r + 1) * row]),
                None => to.fill(nan),
            }
        }
    });
    Ok(())
}
