//! A run queued before its inputs are known: its graph waits on the device behind a kernel that
//! reads a word of the host's memory, so that a frame that is due calls no driver. Small inputs come with
//! the word, and the gate puts them where the kernels behind it read them.
//!
//! The wait ends by itself after [`LIMIT`], because what waits in a stream holds up whoever waits
//! for the whole device. The run then goes on with the inputs of the run before, and its results
//! are thrown away; `Plan::repeatable` says where that does no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::Cuda;
use super::launch::{Args, Context, Grid};
use super::memory::Pinned;
use super::modules::Module;
use crate::device::Device;
use crate::error::Result;
use crate::spec::{DType, Spec};
use crate::tensor::Tensor;

/// How long a frame is waited for.
const LIMIT: Duration = Duration::from_millis(5);

/// How long a gate that closed while the host said go takes to tell what it saw: some trips over
/// the bus.
const VERDICT: Duration = Duration::from_millis(1);

/// Words of the host's memory, a cache line each.
const LINE: usize = 64;
const WORDS: usize = 3 * LINE;

/// Inputs of up to so many bytes come with the word: more of them the host would write for longer than
/// the kernels read them over the bus.
pub(super) const MAIL: usize = 4 << 10;

/// Threads that fetch them, beside the warp that sees to the word.
const FETCHING: usize = 256;

#[derive(Debug)]
pub(super) struct Gate {
    /// The words, then each 4 bytes of the inputs beside what the first word says with them.
    words: Pinned,
    /// How many times 4 bytes of inputs there are.
    mail: usize,
    /// The count on the device, and the last that closed.
    passes: Tensor,
    /// Of the latest gate; the words of others are not for it.
    ticket: u32,
}

pub(super) fn module() -> Module {
    Module::new("graph/gate.cu")
}

impl Gate {
    /// For runs with so many bytes of inputs that come with the word.
    pub fn new(cuda: &Arc<Cuda>, inputs: usize) -> Result<Self> {
        // Compiled and loaded before a frame.
        cuda.context(cuda.main()).function(&module(), "gate")?;
        let device = Device::Cuda(Arc::clone(cuda));
        let passes = Tensor::from_bytes(&device, Spec::new(DType::U32, [2])?, &[0; 8])?;
        let mail = inputs.div_ceil(4);
        Ok(Gate { words: cuda.pinned(WORDS + 8 * mail)?, mail, passes, ticket: 0 })
    }

    /// Whether the inputs come with the word.
    pub fn has_mail(&self) -> bool {
        self.mail > 0
    }

    /// Queues the first kernel of a graph, which puts the inputs `to` their place.
    pub fn capture(&self, cx: &Context, to: u64) -> Result<()> {
        let gate = cx.function(&module(), "gate")?;
        let words = self.words.device();
        let mut args = Args::new();
        args.ptr(words).ptr(self.passes.addr()).u64(LIMIT.as_nanos() as u64);
        args.ptr(words + WORDS as u64).ptr(to).i32(self.mail as i32);
        let threads = if self.has_mail() { 32 + FETCHING } else { 32 };
        // SAFETY: the kernel's parameters; all live as long as the runner, and `to` has the inputs' bytes.
        unsafe { cx.launch(&gate, Grid::new(1, threads as u32)?, &mut args) }
    }

    /// Counts a launch. Twice the ticket and one more are what the host says.
    pub fn launched(&mut self) {
        self.ticket = (self.ticket + 1) & (u32::MAX >> 2);
    }

    /// Lets pass what waits, with these inputs. False where the gate had closed before: what was behind it
    /// ran, or runs, on its own.
    pub fn open(&self, inputs: Option<&Pinned>) -> bool {
        let go = self.ticket * 2 + 1;
        for i in 0..inputs.map_or(0, |_| self.mail) {
            let at = |from: &Pinned, offset| from.host().wrapping_add(offset);
            // SAFETY: the inputs' memory is padded to 4 bytes, and nobody else writes it now; of the mail
            // both sides access whole words.
            unsafe {
                let bytes = inputs.map_or(0, |p| at(p, 4 * i).cast::<u32>().read());
                let word = AtomicU64::from_ptr(at(&self.words, WORDS + 8 * i).cast());
                word.store(u64::from(go) << 32 | u64::from(bytes), Ordering::Relaxed);
            }
        }
        self.word(0).store(go, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.word(1).load(Ordering::Acquire) != self.ticket {
            return true;
        }
        let began = Instant::now();
        loop {
            let verdict = self.word(2).load(Ordering::Acquire);
            if verdict / 2 == self.ticket || began.elapsed() > VERDICT {
                return verdict == go;
            }
            std::hint::spin_loop();
        }
    }

    /// Has what waits run now, for nobody.
    pub fn close(&self) {
        self.word(0).store(self.ticket * 2, Ordering::Release);
    }

    fn word(&self, i: usize) -> &AtomicU32 {
        // SAFETY: one of the three aligned words; both sides access them as wholes.
        unsafe { AtomicU32::from_ptr(self.words.host().wrapping_add(i * LINE).cast()) }
    }
}
