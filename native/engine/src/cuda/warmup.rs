//! Compiling many modules at once, ahead of need.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::dispatch::all_modules;
use super::{Cuda, Module, Nvrtc};
use crate::error::Result;

/// One module done.
#[derive(Debug)]
pub struct Progress<'a> {
    pub module: &'a Module,
    /// Modules done so far, this one among them.
    pub done: usize,
    pub total: usize,
    pub took: Duration,
    pub result: &'a Result<()>,
}

impl Cuda {
    /// Compiles every kernel there is for this GPU and loads it, so that the disk cache has them
    /// all. Calls `progress` after each, on this thread; returns the first error, after all.
    pub fn warmup(&self, progress: impl FnMut(Progress)) -> Result<()> {
        let arch = self.props.arch();
        each(&modules_for(&arch), |module| self.modules.prepare(module), progress)
    }
}

/// Compiles every module for `arch`, such as `sm_80`, and keeps nothing. Needs no GPU.
pub fn compile_all(arch: &str, nvrtc: &Nvrtc, progress: impl FnMut(Progress)) -> Result<()> {
    each(&modules_for(arch), |module| nvrtc.compile(module, arch).map(|_| ()), progress)
}

fn modules_for(arch: &str) -> Vec<Module> {
    all_modules().into_iter().filter(|module| module.runs_on(arch)).collect()
}

fn each(
    modules: &[Module],
    work: impl Fn(&Module) -> Result<()> + Sync,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    const MOST_THREADS: usize = 8;
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let mut first_error = Ok(());
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, work, next) = (sender.clone(), &work, &next);
            scope.spawn(move || {
                while let Some(module) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let result = work(module);
                    // The receiver is gone only where `progress` panicked.
                    if sender.send((module, start.elapsed(), result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (i, (module, took, result)) in receiver.into_iter().enumerate() {
            let (done, total) = (i + 1, modules.len());
            progress(Progress { module, done, total, took, result: &result });
            if first_error.is_ok() {
                first_error = result;
            }
        }
    });
    first_error
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn every_module_is_done_once_and_the_first_error_is_kept() {
        let modules: Vec<_> = (0..50).map(|i| Module::new("x.cu").define("I", i)).collect();
        let mut seen = Vec::new();
        let result = each(
            &modules,
            |m| match m.defines[0].1.as_str() {
                "7" => Err(Error::Internal("seven".into())),
                _ => Ok(()),
            },
            |p| {
                assert_eq!((p.done, p.total), (seen.len() + 1, 50));
                seen.push(p.module.to_string());
            },
        );
        assert!(matches!(result, Err(Error::Internal(what)) if what == "seven"));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 50);
        assert!(each(&[], |_| Ok(()), |_| panic!("nothing to do")).is_ok());
    }
}
