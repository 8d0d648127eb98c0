//! The CUDA device. Every library is opened at run time: a machine without them loads Nitrox all
//! the same and is told what was looked for.

mod attention;
mod attention_block;
mod blas;
mod block;
pub mod cache;
mod cluster;
mod columns;
mod conv;
mod convolution;
mod correlation;
mod dense;
mod dense_stack;
mod dispatch;
mod dnn;
mod dot;
mod driver;
mod elementwise;
mod embedding;
mod few;
pub mod gate;
mod gemm;
mod graph;
mod grid;
mod index;
pub mod launch;
mod library;
mod linear;
pub mod memory;
mod mlp;
pub mod modules;
mod norm;
pub mod nvml;
pub mod nvrtc;
mod order;
mod pad;
mod pooling;
mod probe;
pub mod props;
mod recurrent;
mod reduce;
mod rope;
pub(crate) mod runner;
mod sample;
mod scan;
mod scan_way;
mod search;
mod shape;
mod solve;
pub mod sources;
mod stack;
pub mod stream;
pub mod survey;
mod trsm;
mod walk;
pub mod warmup;
mod warpgroups;
mod window;

use std::sync::Arc;

pub use cache::Cache;
pub use dispatch::all_modules;
pub(crate) use dispatch::reads_rows;
pub use graph::{Graph, Nodes};
pub use launch::{Args, Context, Grid};
pub use memory::Pinned;
pub use modules::{Function, Module};
pub use nvrtc::Nvrtc;
pub use props::Props;
pub use stream::{Event, Stream};
pub use warmup::{Progress, compile_all};

use crate::call::Call;
use crate::device::{Explanation, Id, Weight};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::pool::{self, Pool};
use crate::spec::Spec;
use crate::tensor::Scalars;
use driver::{Driver, code};
use modules::Modules;

/// An open GPU. Eager work and copies go to its main stream, in the order of the calls.
///
/// Its methods may be called on any thread. After an error that lost the context, each of them
/// gives [`Error::Poisoned`] with that first error and makes no driver call.
#[derive(Debug)]
pub struct Cuda {
    driver: Arc<Driver>,
    props: Props,
    pool: Arc<Pool>,
    modules: Modules,
    staging: memory::Staging,
    scalars: Scalars,
    main: Stream,
}

impl Cuda {
    /// GPUs that the driver shows; an error that says what was looked for where there is none.
    pub fn count() -> Result<u32> {
        probe::probe("CUDA").map(|p| p.devices)
    }

    /// Opens a GPU: its primary context, a stream, and a pool with at most `memory_limit` bytes.
    ///
    /// To be called once for each `ordinal` in a process, and kept: the pools of two would not
    /// know of each other.
    pub fn open(ordinal: u32, memory_limit: Option<usize>) -> Result<Arc<Self>> {
        const SEGMENT: usize = 64 << 20;
        const OLDEST: u32 = 8;
        let id = Id::Cuda(ordinal);
        let unavailable = |message| Err(Error::Unavailable { device: id.to_string(), message });
        let probe::Probe { api, version, devices } = probe::probe(id)?;
        if ordinal >= devices {
            return unavailable(format!("the driver shows {devices} GPU(s), counted from 0"));
        }
        let mut device = 0;
        // SAFETY: `device` is ours to write.
        match unsafe { (api.cuDeviceGet)(&mut device, ordinal as i32) } {
            code::SUCCESS => {}
            other => return unavailable(format!("cuDeviceGet: {}", api.explain(other))),
        }
        let driver = Arc::new(Driver::retain(api, device, ordinal)?);
        let props = Props::read(&driver)?;
        if props.major < OLDEST {
            let Props { name, major, minor, .. } = &props;
            return unavailable(format!(
                "{name} has compute capability {major}.{minor}, the kernels need {OLDEST}.0"
            ));
        }
        let source = Box::new(memory::Segments(Arc::clone(&driver)));
        let options = pool::Options { limit: memory_limit, segment: SEGMENT };
        let mut cuda = Cuda {
            modules: Modules::new(&driver, &props, version),
            staging: memory::Staging::new(&driver)?,
            scalars: Scalars::default(),
            main: Stream::new(&driver)?,
            pool: Pool::new(id.to_string(), source, options),
            props,
            driver,
        };
        cuda.props.clusters = cuda.clusters();
        Ok(Arc::new(cuda))
    }

    /// As [`Props::clusters`]. Without a compiler there are none, nor anything else to run.
    /// `NITROX_CLUSTERS=0` says that there are none, to try what other GPUs run.
    fn clusters(&self) -> u32 {
        const FIRST: u32 = 9;
        const BLOCKS: u32 = 16;
        if self.props.major < FIRST || std::env::var("NITROX_CLUSTERS").as_deref() == Ok("0") {
            return 0;
        }
        let context = self.context(&self.main);
        let count = || {
            let function = context.function(&runner::module(), "done")?;
            let grid = Grid::new(BLOCKS as usize, 256)?.shared(self.props.shared_optin);
            context.clusters_at_once(&function, grid.clusters(BLOCKS))
        };
        count().unwrap_or(0)
    }

    pub fn ordinal(&self) -> u32 {
        self.driver.ordinal()
    }

    pub fn props(&self) -> &Props {
        &self.props
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn scalars(&self) -> &Scalars {
        &self.scalars
    }

    /// Whether an earlier error lost the context.
    pub fn is_poisoned(&self) -> bool {
        self.driver.is_poisoned()
    }

    /// The CUDA version that the driver is for, such as (13, 0).
    pub fn driver_version(&self) -> (u32, u32) {
        self.modules.version()
    }

    /// The compiler of this device's kernels; an error that names where it was looked for.
    pub fn nvrtc(&self) -> Result<&Arc<Nvrtc>> {
        self.modules.nvrtc()
    }

    /// Free and total bytes of the GPU's memory, over all processes.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        memory::info(&self.driver)
    }

    /// Where the allocation that `addr` lies in starts, and its bytes; refused where it is no memory
    /// of this device.
    pub fn allocation(&self, op: &'static str, addr: u64) -> Result<(u64, usize)> {
        memory::allocation(&self.driver, op, addr)
    }

    /// The stream of eager work and copies. Blocks of the pool are handed out in its order.
    pub fn main(&self) -> &Stream {
        &self.main
    }

    /// A stream of the caller's own. What it shares with the main stream is ordered by events.
    pub fn stream(&self) -> Result<Stream> {
        Stream::new(&self.driver)
    }

    pub fn event(&self) -> Result<Event> {
        Event::new(&self.driver)
    }

    /// Zeroed, page-locked memory of the host.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(&self.driver, bytes)
    }

    /// For work on `stream`, which must be of this device.
    pub fn context<'a>(&'a self, stream: &'a Stream) -> Context<'a> {
        Context { cuda: self, stream }
    }

    /// Queues a copy to the device; returns once `bytes` may be reused, which for few of them is
    /// before the device has them.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() || self.staging.write(&self.main, addr, bytes)? {
            return Ok(());
        }
        // SAFETY: `addr` starts a block of this pool of at least so many bytes, and `bytes` is
        // borrowed until the copy is done.
        unsafe { self.context(&self.main).upload(addr, bytes.as_ptr(), bytes.len()) }?;
        self.main.synchronize()
    }

    /// Waits for the main stream, then copies to the host.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        if into.is_empty() || self.staging.read(&self.main, addr, into)? {
            return Ok(());
        }
        // SAFETY: as in `write`.
        unsafe { self.context(&self.main).download(into.as_mut_ptr(), addr, into.len()) }?;
        self.main.synchronize()
    }

    /// Queues a copy within the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are blocks of this pool of at least so many bytes, reused only in the order
        // of the main stream.
        unsafe { self.context(&self.main).copy(to, from, bytes) }
    }

    /// Waits for the main stream. Other streams are waited for by those who own them: to wait for
    /// the whole device would break a capture on any of them.
    pub fn synchronize(&self) -> Result<()> {
        self.main.synchronize()?;
        self.driver.reap();
        Ok(())
    }

    /// Compiles and loads what `op` needs, so that a launch or a capture has nothing to wait for.
    pub fn prepare(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<()> {
        dispatch::modules(&self.props, op, inputs)?.iter().try_for_each(|m| self.modules.prepare(m))
    }

    /// Whether `op`, which has others fused in, is one launch with them.
    pub(crate) fn fuses(&self, op: &Op, inputs: &[Option<&Spec>]) -> bool {
        dispatch::fuses(&self.props, op, inputs)
    }

    pub fn workspace(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
        dispatch::workspace(&self.props, op, inputs)
    }

    /// Heavy while there is something to compile or load.
    pub fn weight(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<Weight> {
        // First, since to ask for the modules may open the library of matrix products.
        let ready = dispatch::is_warm(&self.props, op, inputs)?
            && dispatch::modules(&self.props, op, inputs)?
                .iter()
                .all(|m| self.modules.is_loaded(m));
        Ok(if ready { Weight::Light } else { Weight::Heavy })
    }

    pub fn explain(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
        dispatch::explain(&self.props, op, inputs)
    }

    /// Queues one op on the main stream.
    ///
    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn execute(&self, call: &Call) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.execute_on(&self.main, call) }
    }

    /// Queues one op on a stream of this device, which may be in a capture.
    ///
    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn execute_on(&self, stream: &Stream, call: &Call) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { dispatch::launch(&self.context(stream), call) }
    }
}
