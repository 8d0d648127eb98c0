//! Weights in safetensors files, memory-mapped: a tensor's bytes are read when it is fetched.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::spec::{DType, Spec};
use crate::tensor::Tensor;

/// Of a tensor in a file, whether Nitrox can have it or not.
const MOST_AXES: usize = 64;

/// An open safetensors file. Its header was checked against the file's length when it was opened.
pub struct Weights {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// Where the tensors' bytes begin, after the header.
    data: usize,
    header: Metadata,
}

/// What a file says about one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// The format's own word for the type, such as `BF16`.
    pub stored: String,
    pub shape: Vec<usize>,
    /// The type here; none where Nitrox has no such type.
    pub dtype: Option<DType>,
}

impl Weights {
    /// Maps a file and checks its header; reads none of its tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |message: String| file_error(path, message);
        // Asked before opening: to open a pipe waits for its other end.
        let about = fs::metadata(path).map_err(|e| fail(e.to_string()))?;
        if !about.is_file() {
            return Err(fail("not a regular file".into()));
        }
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the map is read-only and lives as long as this value. Another process may still write
        // to the file, which changes weights and nothing else, or shorten it, which `fetch` asks
        // about before it reads.
        let map =
            unsafe { Mmap::map(&file) }.map_err(|e| fail(format!("cannot be mapped: {e}")))?;
        let (header_len, header) = SafeTensors::read_metadata(&map)
            .map_err(|e| fail(format!("not a whole safetensors file: {e}")))?;
        // A shape of millions is no tensor's, and those who read it would make a tuple of it.
        if let Some((name, info)) = header.tensors().iter().find(|(_, i)| i.shape.len() > MOST_AXES)
        {
            let (axes, name) = (info.shape.len(), name.chars().take(100).collect::<String>());
            return Err(fail(format!("{name} has {axes} axes, more than {MOST_AXES}")));
        }
        // The header's length is a u64 in front of it; the crate has checked that both lie in the map.
        let data = size_of::<u64>() + header_len;
        Ok(Weights { path: path.to_path_buf(), file, map, data, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, sorted by name.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<_> = self
            .header
            .tensors()
            .into_iter()
            .map(|(name, info)| Entry {
                name,
                stored: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                dtype: dtype(info.dtype),
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// The file's own `__metadata__`, sorted by key.
    pub fn metadata(&self) -> Vec<(&str, &str)> {
        let map: Option<&HashMap<_, _>> = self.header.metadata().as_ref();
        let mut pairs: Vec<_> =
            map.into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        pairs.sort_unstable();
        pairs
    }

    /// The type and shape of a tensor.
    pub fn spec(&self, name: &str) -> Result<Spec> {
        let info = self.info(name)?;
        let dtype = dtype(info.dtype).ok_or_else(|| {
            self.fail(format!("{name} is stored as {:?}, a type Nitrox does not have", info.dtype))
        })?;
        Spec::new(dtype, info.shape.clone()).map_err(|e| self.fail(format!("{name}: {e}")))
    }

    /// Copies a tensor to a device, in the type it is stored as.
    pub fn fetch(&self, name: &str, device: &Device) -> Result<Tensor> {
        let spec = self.spec(name)?;
        // Reading a mapped page that the file no longer has would end the process.
        let length = self.file.metadata().map_err(|e| self.fail(e.to_string()))?.len();
        if length < self.map.len() as u64 {
            return Err(self.fail(format!(
                "it was {} bytes long when it was opened and has {length} now",
                self.map.len()
            )));
        }
        let (from, to) = self.info(name)?.data_offsets;
        let bytes = self
            .map
            .get(self.data..)
            .and_then(|data| data.get(from..to))
            .ok_or_else(|| self.fail(format!("{name} lies outside of the file")))?;
        Tensor::from_bytes(device, spec, bytes)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| self.fail(format!("it has no tensor named {name}")))
    }

    fn fail(&self, message: String) -> Error {
        file_error(&self.path, message)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("path", &self.path).finish_non_exhaustive()
    }
}

fn file_error(path: &Path, message: String) -> Error {
    Error::File { path: path.display().to_string(), message }
}

/// Our type for one of the format's.
fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        // A bool is a byte that is 0 or 1, as predicates are here.
        Dtype::U8 | Dtype::BOOL => Some(DType::U8),
        Dtype::U16 => Some(DType::U16),
        Dtype::U32 => Some(DType::U32),
        Dtype::U64 => Some(DType::U64),
        Dtype::I8 => Some(DType::S8),
        Dtype::I16 => Some(DType::S16),
        Dtype::I32 => Some(DType::S32),
        Dtype::I64 => Some(DType::S64),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}
