//! Kernels as the driver sees them: what a launch may ask for, and how many blocks run at once.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cudarc::driver::sys::{
    CUfunction_attribute as Attribute, CUlaunchAttribute, CUlaunchAttributeID as LaunchAttribute,
    CUlaunchConfig,
};

use crate::card::{DEFAULT_SHARED, MOST_THREADS, RESERVED_SHARED, WARP};
use crate::code::{Code, Result};
use crate::device::Device;
use crate::machine::Launch;
use crate::ptx::Kernel;

/// Blocks of a cluster that every card with clusters has, and that some have.
const CLUSTER: u32 = 8;
const WIDE_CLUSTER: u32 = 16;

/// A kernel on a device.
#[derive(Debug)]
pub struct Function {
    pub device: &'static Device,
    pub kernel: Arc<Kernel>,
    /// Bytes of dynamic shared memory that it may have.
    shared: AtomicU32,
    /// Whether it may have clusters of more than eight blocks.
    wide: AtomicBool,
}

impl Function {
    pub fn new(device: &'static Device, kernel: Arc<Kernel>) -> Self {
        let shared = DEFAULT_SHARED.saturating_sub(kernel.shared as u32);
        Function { device, kernel, shared: shared.into(), wide: AtomicBool::new(false) }
    }

    fn most_threads(&self) -> u32 {
        self.kernel.max_threads.map_or(MOST_THREADS, |n| n.min(MOST_THREADS))
    }

    /// 32-bit registers of a thread. PTX does not tell; a common number is assumed, with which as
    /// many threads as a block may have still fit.
    fn registers(&self) -> u32 {
        64.min(self.device.card.registers_per_sm / self.most_threads().next_multiple_of(WARP))
    }

    pub fn attribute(&self, which: u32) -> Result<i32> {
        let is = |attribute: Attribute| attribute as u32 == which;
        let card = &self.device.card;
        let value = if is(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) {
            self.most_threads()
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) {
            self.kernel.shared as u32
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS) {
            self.registers()
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)
            || is(Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)
        {
            card.major * 10 + card.minor
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
            self.shared.load(Ordering::Relaxed)
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
            u32::from(self.wide.load(Ordering::Relaxed))
        } else if is(Attribute::CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES)
            || is(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
        {
            0
        } else {
            return Err(Code::INVALID_VALUE);
        };
        Ok(value as i32)
    }

    pub fn set_attribute(&self, which: u32, value: i32) -> Result<()> {
        let card = &self.device.card;
        if which == Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32 {
            let most = card.shared_optin.saturating_sub(self.kernel.shared as u32);
            let bytes = u32::try_from(value).ok().filter(|&n| n <= most);
            self.shared.store(bytes.ok_or(Code::INVALID_VALUE)?, Ordering::Relaxed);
        } else if which == Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED as u32 {
            if card.major < 9 {
                return Err(Code::NOT_SUPPORTED);
            }
            self.wide.store(value != 0, Ordering::Relaxed);
        } else if which != Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as u32 {
            return Err(Code::INVALID_VALUE);
        }
        Ok(())
    }

    /// Blocks of so many threads and bytes of dynamic shared memory that a multiprocessor holds.
    pub fn blocks_per_sm(&self, threads: u32, shared: usize) -> u32 {
        let card = &self.device.card;
        if threads == 0 || threads > self.most_threads() {
            return 0;
        }
        let threads = threads.next_multiple_of(WARP);
        let own = shared + self.kernel.shared;
        if own > card.shared_optin as usize || shared > self.shared.load(Ordering::Relaxed) as usize
        {
            return 0;
        }
        // Shared memory comes in pieces of 128 bytes.
        let bytes = own.next_multiple_of(128) as u32 + RESERVED_SHARED;
        [
            card.threads_per_sm / threads,
            card.shared_per_sm / bytes,
            card.registers_per_sm / (self.registers() * threads),
            card.blocks_per_sm,
        ]
        .into_iter()
        .fold(u32::MAX, u32::min)
    }

    /// Clusters that run at once, for a launch that asks for them.
    pub fn clusters(&self, asked: &Asked) -> Result<u32> {
        let size = self.cluster(asked)?.iter().product::<u32>();
        let threads = asked.threads.iter().product();
        let slots = self.blocks_per_sm(threads, asked.shared as usize) * self.device.card.sms;
        Ok(slots / size)
    }

    /// The cluster's shape, where the card and the function allow it.
    fn cluster(&self, asked: &Asked) -> Result<[u32; 3]> {
        let Some(cluster) = asked.cluster else { return Ok([1; 3]) };
        if self.device.card.major < 9 {
            return Err(Code::NOT_SUPPORTED);
        }
        let most = if self.wide.load(Ordering::Relaxed) { WIDE_CLUSTER } else { CLUSTER };
        let size = cluster.iter().try_fold(1_u32, |n, &d| n.checked_mul(d)).unwrap_or(0);
        let whole = cluster.iter().zip(asked.blocks).all(|(&c, b)| c > 0 && b % c == 0);
        if !whole || size > most {
            return Err(Code::INVALID_CLUSTER_SIZE.because(format!(
                "{}: clusters of {cluster:?} in a grid of {:?}, at most {most} blocks",
                self.kernel.name, asked.blocks
            )));
        }
        Ok(cluster)
    }

    /// The launch that was asked for, or the code that the driver refuses it with.
    pub fn launch(&self, asked: &Asked, params: Vec<u8>) -> Result<Launch> {
        const BLOCKS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
        const THREADS: [u32; 3] = [1024, 1024, 64];
        let within =
            |n: [u32; 3], most: [u32; 3]| n.iter().zip(most).all(|(n, m)| (1..=m).contains(n));
        let refuse =
            |code: Code, why: String| Err(code.because(format!("{}: {why}", self.kernel.name)));
        let (blocks, threads) = (asked.blocks, asked.threads);
        if !within(blocks, BLOCKS) || !within(threads, THREADS) {
            let why = format!("a grid of {blocks:?} blocks of {threads:?} threads");
            return refuse(Code::INVALID_VALUE, why);
        }
        let (count, most) = (threads.iter().product::<u32>(), self.most_threads());
        if count > most {
            return refuse(Code::INVALID_VALUE, format!("{count} threads, at most {most}"));
        }
        let most = self.shared.load(Ordering::Relaxed);
        if asked.shared > most {
            let why = format!("{} bytes of dynamic shared memory, at most {most}", asked.shared);
            return refuse(Code::INVALID_VALUE, why);
        }
        let cluster = self.cluster(asked)?;
        let fit = self.blocks_per_sm(count, asked.shared as usize);
        if fit == 0 {
            let why = format!("{count} threads and {} bytes do not fit", asked.shared);
            return refuse(Code::LAUNCH_OUT_OF_RESOURCES, why);
        }
        if asked.cluster.is_some() && self.clusters(asked)? == 0 {
            return refuse(Code::INVALID_CLUSTER_SIZE, format!("no cluster of {cluster:?} fits"));
        }
        let all: u64 = blocks.iter().map(|&n| u64::from(n)).product();
        let most = u64::from(fit * self.device.card.sms);
        if asked.cooperative && all > most {
            let why = format!("{all} blocks, at most {most}");
            return refuse(Code::COOPERATIVE_LAUNCH_TOO_LARGE, why);
        }
        let (shared, cooperative) = (asked.shared, asked.cooperative);
        Ok(Launch { blocks, threads, cluster, shared, cooperative, params })
    }

    /// The block of parameters, from a pointer to each.
    ///
    /// # Safety
    /// There are as many pointers as the kernel has parameters, each to a value of that size.
    pub unsafe fn params(&self, pointers: *mut *mut c_void) -> Result<Vec<u8>> {
        let mut block = vec![0; self.kernel.param_bytes];
        if self.kernel.params.is_empty() {
            return Ok(block);
        }
        if pointers.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        for (i, &(offset, bytes)) in self.kernel.params.iter().enumerate() {
            // SAFETY: the caller's promise.
            let from = unsafe { pointers.add(i).read() };
            let into = block.get_mut(offset..offset + bytes).ok_or(Code::UNKNOWN)?;
            if from.is_null() {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: the caller's promise, and `into` is so long.
            unsafe { ptr::copy_nonoverlapping(from.cast(), into.as_mut_ptr(), bytes) };
        }
        Ok(block)
    }
}

/// What a `CUlaunchConfig` says.
#[derive(Debug, Clone)]
pub struct Asked {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub shared: u32,
    pub cluster: Option<[u32; 3]>,
    pub cooperative: bool,
    /// May begin before what is ahead of it has ended.
    pub early: bool,
}

impl Asked {
    /// # Safety
    /// The attributes are as many as is said.
    pub unsafe fn new(config: &CUlaunchConfig, device: &Device) -> Result<Self> {
        let mut asked = Asked {
            blocks: [config.gridDimX, config.gridDimY, config.gridDimZ],
            threads: [config.blockDimX, config.blockDimY, config.blockDimZ],
            shared: config.sharedMemBytes,
            cluster: None,
            cooperative: false,
            early: false,
        };
        if config.numAttrs > 0 && config.attrs.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        for i in 0..config.numAttrs as usize {
            // SAFETY: the caller's promise. The attribute's number is read as one, as it may be
            // none of the enum's; so much of the value is of whole numbers that are written.
            let (id, value) = unsafe {
                let at: *const CUlaunchAttribute = config.attrs.add(i);
                let value = (&raw const (*at).value).cast::<[u32; 3]>();
                let id = (&raw const (*at).id).cast::<u32>().read();
                let words = if id == LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as u32 {
                    value.read()
                } else {
                    [value.cast::<u32>().read(), 0, 0]
                };
                (id, words)
            };
            if id == LaunchAttribute::CU_LAUNCH_ATTRIBUTE_COOPERATIVE as u32 {
                asked.cooperative = value[0] != 0;
            } else if id == LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as u32 {
                asked.cluster = Some(value);
            } else if id
                == LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as u32
            {
                if device.card.major < 9 {
                    return Err(Code::NOT_SUPPORTED);
                }
                asked.early = value[0] != 0;
            } else if id != LaunchAttribute::CU_LAUNCH_ATTRIBUTE_IGNORE as u32 {
                return Err(Code::NOT_SUPPORTED.because(format!("launch attribute {id}")));
            }
        }
        Ok(asked)
    }
}
