//! CUDA graphs: the work of a stream, captured once and launched as one.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphNodeType, CUstreamCaptureMode};

use super::driver::{Dead, Driver, cu};
use super::{Context, Cuda, Stream};
use crate::error::{Error, Result};

/// How many nodes of each kind a graph has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nodes {
    pub kernels: usize,
    pub copies: usize,
    pub memsets: usize,
    /// Such as empty nodes, which only order others.
    pub other: usize,
}

/// An executable graph.
///
/// The addresses that were captured are part of it, and the memory there must outlive it. The
/// driver's graphs are not thread-safe, hence `&mut`: one thread at a time.
pub struct Graph {
    driver: Arc<Driver>,
    exec: CUgraphExec,
    nodes: Nodes,
}

// SAFETY: a graph may move between threads; `&mut` in its methods keeps two from using it at once.
unsafe impl Send for Graph {}
// SAFETY: `&Graph` reaches no handle.
unsafe impl Sync for Graph {}

impl Cuda {
    /// Captures what `record` queues on the context's stream, and uploads the graph. Nothing of it
    /// runs yet.
    ///
    /// `record` must queue on `stream` alone, or join what it forked, and wait for nothing. The
    /// capture is of the calling thread's: other threads go on as they were.
    pub fn capture(
        &self,
        stream: &Stream,
        record: impl FnOnce(&Context) -> Result<()>,
    ) -> Result<Graph> {
        const THREAD_LOCAL: u32 = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as u32;
        let driver = &self.driver;
        driver.reap();
        // SAFETY: the stream is alive, and not the null stream.
        unsafe { cu!(driver, cuStreamBeginCapture(stream.raw(), THREAD_LOCAL)) }?;
        let capture = Capture { driver, stream, open: true };
        let recorded = record(&self.context(stream));
        let template = capture.end();
        // What `record` says comes first: a capture that it broke has only a follow-up to tell.
        recorded?;
        let template = template?;
        let nodes = template.nodes()?;
        let mut exec = ptr::null_mut();
        // SAFETY: the template is whole, and `exec` is ours to write.
        unsafe { cu!(driver, cuGraphInstantiate(&mut exec, template.raw, 0)) }?;
        let graph = Graph { driver: Arc::clone(driver), exec, nodes };
        // The first launch then costs no more than the others.
        // SAFETY: both are alive.
        unsafe { cu!(driver, cuGraphUpload(exec, stream.raw())) }?;
        Ok(graph)
    }
}

impl Graph {
    /// Queues the whole graph on a stream of its device. A launch that is not done yet is waited
    /// for by the device.
    ///
    /// # Safety
    /// The memory that was captured is still alive, and stays so until the work is done.
    pub unsafe fn launch(&mut self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive, and the rest is the caller's promise.
        unsafe { cu!(self.driver, cuGraphLaunch(self.exec, stream.raw())) }
    }

    pub fn nodes(&self) -> Nodes {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.driver.bury(Dead::Graph(self.exec));
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({:?})", self.nodes)
    }
}

/// A capture under way. It is ended also where `record` panics.
struct Capture<'a> {
    driver: &'a Arc<Driver>,
    stream: &'a Stream,
    open: bool,
}

impl Capture<'_> {
    fn end(mut self) -> Result<Template> {
        self.open = false;
        let mut raw = ptr::null_mut();
        // SAFETY: this thread began the capture, and `raw` is ours to write.
        unsafe { cu!(self.driver, cuStreamEndCapture(self.stream.raw(), &mut raw)) }?;
        if raw.is_null() {
            return Err(Error::Internal("a capture gave no graph".into()));
        }
        Ok(Template { driver: Arc::clone(self.driver), raw })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut raw = ptr::null_mut();
            // SAFETY: as in `end`. The error, if one comes, is second to the panic.
            let ended =
                unsafe { cu!(self.driver, cuStreamEndCapture(self.stream.raw(), &mut raw)) };
            if ended.is_ok() && !raw.is_null() {
                drop(Template { driver: Arc::clone(self.driver), raw });
            }
        }
    }
}

/// The graph as captured, from which the executable one is made.
struct Template {
    driver: Arc<Driver>,
    raw: CUgraph,
}

impl Template {
    fn nodes(&self) -> Result<Nodes> {
        const KERNEL: u32 = CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL as u32;
        const COPY: u32 = CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY as u32;
        const MEMSET: u32 = CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET as u32;
        let mut count = 0;
        // SAFETY: with no array given, only the count is written.
        unsafe { cu!(self.driver, cuGraphGetNodes(self.raw, ptr::null_mut(), &mut count)) }?;
        if count == 0 {
            // The driver refuses to list no nodes.
            return Ok(Nodes::default());
        }
        let mut all = vec![ptr::null_mut(); count];
        // SAFETY: the array holds `count` nodes.
        unsafe { cu!(self.driver, cuGraphGetNodes(self.raw, all.as_mut_ptr(), &mut count)) }?;
        let mut nodes = Nodes::default();
        for node in all.into_iter().take(count) {
            let mut kind = u32::MAX;
            // SAFETY: a node of this graph; `kind` is ours to write.
            unsafe { cu!(self.driver, cuGraphNodeGetType(node, &mut kind)) }?;
            *match kind {
                KERNEL => &mut nodes.kernels,
                COPY => &mut nodes.copies,
                MEMSET => &mut nodes.memsets,
                _ => &mut nodes.other,
            } += 1;
        }
        Ok(nodes)
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: ours alone. Only ever dropped by the thread that captures, where a call is fine.
        let _ = unsafe { cu!(self.driver, cuGraphDestroy(self.raw)) };
    }
}
