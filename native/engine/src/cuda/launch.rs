//! Launching kernels: their grid, their parameters, and the stream they go to.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use cudarc::driver::sys::{
    CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUstream,
};

use super::Cuda;
use super::driver::cu;
use super::modules::{Function, Module};
use super::props::Props;
use super::stream::Stream;
use crate::error::{Error, Result};

/// Where work goes: a device and one of its streams, which may be in a capture.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) stream: &'a Stream,
}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory. Above 48 KB, with what is declared, the kernel is opted in.
    pub shared: u32,
    /// All blocks run at once and may wait for each other.
    pub cooperative: bool,
    /// Blocks of a cluster, along x; they see each other's shared memory. 1 is none.
    pub cluster: u32,
    /// The kernel may begin before those queued ahead of it have ended: see `early`.
    pub early: bool,
}

impl Grid {
    /// A row of blocks. No blocks is a launch that does nothing.
    pub fn new(blocks: usize, threads: u32) -> Result<Self> {
        Grid::new_3d([blocks, 1, 1], threads)
    }

    /// Blocks along x, y and z: at most 2³¹ − 1, 65,535 and 65,535.
    pub fn new_3d(blocks: [usize; 3], threads: u32) -> Result<Self> {
        const LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        if blocks.iter().zip(LIMITS).any(|(&n, limit)| n > limit) || !(1..=1024).contains(&threads)
        {
            return Err(Error::Internal(format!(
                "a grid of {blocks:?} blocks of {threads} threads; at most {LIMITS:?} of 1024"
            )));
        }
        let blocks = blocks.map(|n| n as u32);
        let threads = [threads, 1, 1];
        Ok(Grid { blocks, threads, shared: 0, cooperative: false, cluster: 1, early: false })
    }

    pub fn shared(self, bytes: u32) -> Self {
        Grid { shared: bytes, ..self }
    }

    pub fn cooperative(self) -> Self {
        Grid { cooperative: true, ..self }
    }

    /// Up to 16 blocks; the grid must be whole clusters, and the GPU Hopper or later.
    pub fn clusters(self, blocks: u32) -> Self {
        Grid { cluster: blocks, ..self }
    }

    /// For a kernel that waits for what is ahead of it by itself (`common/early.cuh`), where all
    /// that it touches before are parameters of a program: nothing queued ahead writes these.
    pub fn early(self, early: bool) -> Self {
        Grid { early, ..self }
    }

    /// As [`Grid::early`], for a kernel that asks for nothing before it waits: it gains its own launch and
    /// no more, and so only where few blocks wait, which take no room from the kernel ahead.
    pub fn early_if_small(self) -> Self {
        const FEW: u32 = 32;
        self.early(self.count() <= FEW)
    }

    /// Blocks of the grid.
    pub fn count(&self) -> u32 {
        self.blocks.into_iter().fold(1, u32::saturating_mul)
    }

    /// As the driver wants it. The attributes must outlive the result.
    fn config(
        &self,
        stream: CUstream,
        attributes: &mut [MaybeUninit<CUlaunchAttribute>; 3],
        props: &Props,
    ) -> CUlaunchConfig {
        use CUlaunchAttributeID::*;
        let mut count = 0;
        let mut set = |id, value| {
            // Zeros are a value of all of its kinds.
            let attribute = CUlaunchAttribute { id, pad: [0; 4], value };
            attributes[count].write(attribute);
            count += 1;
        };
        if self.cooperative {
            let value = CUlaunchAttributeValue { cooperative: 1 };
            set(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value);
        }
        if self.cluster > 1 {
            let mut value = CUlaunchAttributeValue { pad: [0; 64] };
            value.clusterDim.x = self.cluster;
            value.clusterDim.y = 1;
            value.clusterDim.z = 1;
            set(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value);
        }
        if self.early && props.major >= 9 {
            let value = CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
            set(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value);
        }
        let ([bx, by, bz], [tx, ty, tz]) = (self.blocks, self.threads);
        CUlaunchConfig {
            gridDimX: bx,
            gridDimY: by,
            gridDimZ: bz,
            blockDimX: tx,
            blockDimY: ty,
            blockDimZ: tz,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr().cast(),
            numAttrs: count as u32,
        }
    }
}

/// A kernel's parameters, by value and in order.
#[derive(Debug, Default, Clone)]
pub struct Args {
    bytes: Vec<MaybeUninit<u8>>,
    offsets: Vec<usize>,
}

impl Args {
    pub fn new() -> Self {
        Args { bytes: Vec::with_capacity(256), offsets: Vec::with_capacity(16) }
    }

    /// An address of the device's memory; 0 is a null pointer.
    pub fn ptr(&mut self, addr: u64) -> &mut Self {
        self.value(addr)
    }

    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.value(value)
    }

    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.value(value)
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.value(value)
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.value(value)
    }

    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.value(value)
    }

    pub fn f64(&mut self, value: f64) -> &mut Self {
        self.value(value)
    }

    /// A `#[repr(C)]` struct by value.
    pub fn value<V: Copy + 'static>(&mut self, value: V) -> &mut Self {
        let at = self.bytes.len();
        self.offsets.push(at);
        self.bytes.resize(at + size_of::<V>(), MaybeUninit::uninit());
        // SAFETY: so many bytes were just added; padding stays as uninitialised as it may be.
        unsafe {
            let from = (&raw const value).cast::<MaybeUninit<u8>>();
            ptr::copy_nonoverlapping(from, self.bytes.as_mut_ptr().add(at), size_of::<V>());
        }
        self
    }

    /// One pointer a parameter, as the driver wants them; they live as long as `self` is not
    /// touched.
    fn pointers(&mut self) -> Vec<*mut c_void> {
        let base = self.bytes.as_mut_ptr();
        self.offsets.iter().map(|&at| base.wrapping_add(at).cast()).collect()
    }
}

impl<'a> Context<'a> {
    pub fn props(&self) -> &'a Props {
        self.cuda.props()
    }

    pub fn ordinal(&self) -> u32 {
        self.cuda.ordinal()
    }

    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// A kernel of a module, which is compiled and loaded where it is not yet. Cheap when it is.
    pub fn function(&self, module: &Module, name: &'static str) -> Result<Function> {
        self.cuda.modules.function(module, name)
    }

    /// How many blocks of so many threads and bytes of dynamic shared memory a multiprocessor
    /// holds at once: what bounds a cooperative grid.
    pub fn blocks_per_sm(&self, f: &Function, threads: u32, shared: u32) -> Result<u32> {
        f.allow_shared(&self.cuda.driver, self.props(), shared)?;
        let mut blocks = 0;
        // SAFETY: the function is of a module that stays loaded while the device is open.
        unsafe {
            cu!(
                self.cuda.driver,
                cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut blocks,
                    f.raw(),
                    threads as c_int,
                    shared as usize
                )
            )
        }?;
        Ok(blocks.max(0) as u32)
    }

    /// How many clusters of a grid run at once; 0 where not even one fits.
    pub fn clusters_at_once(&self, f: &Function, grid: Grid) -> Result<u32> {
        f.allow_shared(&self.cuda.driver, self.props(), grid.shared)?;
        f.allow_cluster(&self.cuda.driver, grid.cluster)?;
        let mut attributes = [MaybeUninit::uninit(); 3];
        let config = grid.config(self.stream.raw(), &mut attributes, self.props());
        let mut clusters = 0;
        // SAFETY: the function is of a module that stays loaded while the device is open, and the
        // configuration's attributes live until the call returns.
        unsafe {
            cu!(self.cuda.driver, cuOccupancyMaxActiveClusters(&mut clusters, f.raw(), &config))
        }?;
        Ok(clusters.max(0) as u32)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// `args` are the kernel's parameters, of the same types in the same order, and what they
    /// point to is live memory of this device until the work is done.
    pub unsafe fn launch(&self, f: &Function, grid: Grid, args: &mut Args) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        f.allow_shared(&self.cuda.driver, self.props(), grid.shared)?;
        f.allow_cluster(&self.cuda.driver, grid.cluster)?;
        let mut attributes = [MaybeUninit::uninit(); 3];
        let config = grid.config(self.stream.raw(), &mut attributes, self.props());
        let mut pointers = args.pointers();
        let (pointers, none) = (pointers.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the caller's promise; the configuration and the parameters are copied before the
        // call returns.
        unsafe { cu!(self.cuda.driver, cuLaunchKernelEx(&config, f.raw(), pointers, none)) }
    }

    /// Queues the zeroing of device memory.
    ///
    /// # Safety
    /// So many bytes from `addr` are live memory of this device until the work is done.
    pub unsafe fn memset_zero(&self, addr: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { cu!(self.cuda.driver, cuMemsetD8Async(addr, 0, bytes, self.stream.raw())) }
    }

    /// Queues a copy within the device.
    ///
    /// # Safety
    /// So many bytes from `to` and from `from` are live memory of this device until the work is
    /// done, and do not overlap.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || to == from {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { cu!(self.cuda.driver, cuMemcpyDtoDAsync(to, from, bytes, self.stream.raw())) }
    }

    /// Queues a copy from the host to the device. From pinned memory it runs on its own, and may
    /// be captured; from other memory it returns once the bytes were read.
    ///
    /// # Safety
    /// So many bytes from `to` are live memory of this device, and from `from` live memory of the
    /// host that nobody writes to, until the work is done.
    pub unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (from, stream) = (from.cast(), self.stream.raw());
        // SAFETY: the caller's promise.
        unsafe { cu!(self.cuda.driver, cuMemcpyHtoDAsync(to, from, bytes, stream)) }
    }

    /// Queues a copy from the device to the host. To pinned memory it runs on its own, and may be
    /// captured; to other memory it returns once the bytes are there.
    ///
    /// # Safety
    /// So many bytes from `from` are live memory of this device, and from `to` live memory of the
    /// host that nobody else touches, until the work is done.
    pub unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (to, stream) = (to.cast(), self.stream.raw());
        // SAFETY: the caller's promise.
        unsafe { cu!(self.cuda.driver, cuMemcpyDtoHAsync(to, from, bytes, stream)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_bytes() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Pair(u8, u32);
        let mut args = Args::new();
        args.ptr(0x1234_5678_9abc_def0).i32(-1).value(Pair(7, 9)).f32(1.5).f64(-2.5).u64(3);
        for i in 0..400 {
            args.u32(i);
        }
        let p = args.pointers();
        // SAFETY: each points at a value of that type, aligned or not.
        unsafe {
            assert_eq!(p[0].cast::<u64>().read_unaligned(), 0x1234_5678_9abc_def0);
            assert_eq!(p[1].cast::<i32>().read_unaligned(), -1);
            let Pair(a, b) = p[2].cast::<Pair>().read_unaligned();
            assert_eq!((a, b), (7, 9));
            assert_eq!(p[3].cast::<f32>().read_unaligned(), 1.5);
            assert_eq!(p[4].cast::<f64>().read_unaligned(), -2.5);
            assert_eq!(p[405].cast::<u32>().read_unaligned(), 399);
        }
    }

    #[test]
    fn a_grid_has_limits() {
        assert!(Grid::new(0, 128).is_ok());
        assert!(Grid::new(i32::MAX as usize, 1024).is_ok());
        assert!(Grid::new(i32::MAX as usize + 1, 128).is_err());
        assert!(Grid::new(usize::MAX, 128).is_err());
        assert!(Grid::new(1, 0).is_err());
        assert!(Grid::new(1, 1025).is_err());
        assert!(Grid::new_3d([1, 65_536, 1], 32).is_err());
    }
}
