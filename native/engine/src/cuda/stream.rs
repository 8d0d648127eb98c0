//! Streams, and the events that order them.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream, CUstream_flags};

use super::driver::{Dead, Driver, code, cu};
use crate::error::Result;

/// A queue of work of a device's, in order within itself. Not the null stream: that one waits for
/// everyone else's, and cannot be captured.
pub struct Stream {
    driver: Arc<Driver>,
    raw: CUstream,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; work queued from two threads at once lands in some order.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(driver: &Arc<Driver>) -> Result<Self> {
        const NON_BLOCKING: u32 = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        driver.reap();
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is ours to write.
        unsafe { cu!(driver, cuStreamCreate(&mut raw, NON_BLOCKING)) }?;
        Ok(Stream { driver: Arc::clone(driver), raw })
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for all work queued so far. Not to be called while the stream is being captured.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is ours and alive.
        unsafe { cu!(self.driver, cuStreamSynchronize(self.raw)) }
    }

    /// Whether all work queued so far is done.
    pub fn query(&self) -> Result<bool> {
        let api = self.driver.enter()?;
        // SAFETY: the stream is ours and alive.
        match unsafe { (api.cuStreamQuery)(self.raw) } {
            code::NOT_READY => Ok(false),
            other => self.driver.check("cuStreamQuery", other).map(|()| true),
        }
    }

    /// Work queued from here on waits for what `event` was last recorded after.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { cu!(self.driver, cuStreamWaitEvent(self.raw, event.raw, 0)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.driver.bury(Dead::Stream(self.raw));
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:p} of {:?})", self.raw, self.driver)
    }
}

/// A point in a stream. It orders streams and tells when work is done; it takes no time.
pub struct Event {
    driver: Arc<Driver>,
    raw: CUevent,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(driver: &Arc<Driver>) -> Result<Self> {
        const DISABLE_TIMING: u32 = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        driver.reap();
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is ours to write.
        unsafe { cu!(driver, cuEventCreate(&mut raw, DISABLE_TIMING)) }?;
        Ok(Event { driver: Arc::clone(driver), raw })
    }

    /// Marks the end of the work queued on `stream` so far, instead of what it marked before.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { cu!(self.driver, cuEventRecord(self.raw, stream.raw)) }
    }

    /// Whether the work before it is done; true where it was never recorded.
    pub fn query(&self) -> Result<bool> {
        let api = self.driver.enter()?;
        // SAFETY: the event is ours and alive.
        match unsafe { (api.cuEventQuery)(self.raw) } {
            code::NOT_READY => Ok(false),
            other => self.driver.check("cuEventQuery", other).map(|()| true),
        }
    }

    /// Waits for the work before it.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is ours and alive.
        unsafe { cu!(self.driver, cuEventSynchronize(self.raw)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.driver.bury(Dead::Event(self.raw));
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:p} of {:?})", self.raw, self.driver)
    }
}
