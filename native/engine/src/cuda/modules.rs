//! Modules: kernels' sources under definitions, compiled and loaded once a device.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule, CUstreamCaptureMode};
use once_cell::sync::OnceCell;

use super::cache::{Cache, Origin};
use super::driver::{Dead, Driver, code, cu};
use super::nvrtc::Nvrtc;
use super::props::Props;
use super::sources;
use crate::device::Id;
use crate::error::{Error, Result};
use crate::events::{self, Event};
use crate::spec::DType;

/// A source file with the definitions it is compiled under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    /// As in [`super::sources::SOURCES`]: `"norm/norm.cu"`.
    pub source: &'static str,
    pub defines: Vec<(&'static str, String)>,
    /// The text itself, where it is not one of ours.
    text: Option<Arc<str>>,
    /// The least and the greatest major compute capability that has its instructions.
    majors: (u32, u32),
}

impl Module {
    pub fn new(source: &'static str) -> Self {
        Module { source, defines: Vec::new(), text: None, majors: (8, u32::MAX) }
    }

    /// A kernel that is not embedded; it may include our headers. `name` is for messages.
    pub fn with_text(name: &'static str, text: impl Into<Arc<str>>) -> Self {
        Module { text: Some(text.into()), ..Module::new(name) }
    }

    /// For one storage type, which the source calls `T`.
    pub fn of(source: &'static str, dtype: DType) -> Self {
        Module::new(source).define("T", dtype.name())
    }

    pub fn define(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.defines.push((name, value.to_string()));
        self
    }

    /// For GPUs of this major compute capability and up.
    pub fn since(self, least: u32) -> Self {
        Module { majors: (least, u32::MAX), ..self }
    }

    /// For GPUs of this major compute capability alone.
    pub fn only(self, major: u32) -> Self {
        Module { majors: (major, major), ..self }
    }

    /// Whether it compiles for an architecture such as `sm_86`.
    pub fn runs_on(&self, arch: &str) -> bool {
        let number = arch.trim_start_matches("sm_").trim_end_matches(|c: char| !c.is_numeric());
        let (least, most) = self.majors;
        number.parse::<u32>().is_ok_and(|n| (least..=most).contains(&(n / 10)))
    }

    pub(super) fn text(&self) -> Result<&str> {
        let text = self.text.as_deref().or_else(|| sources::source(self.source));
        text.ok_or_else(|| Error::Internal(format!("there is no source {}", self.source)))
    }
}

/// `norm/norm.cu -DT=bf16`
impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source)?;
        self.defines.iter().try_for_each(|(name, value)| write!(f, " -D{name}={value}"))
    }
}

/// A kernel of a loaded module. Cloning it shares it. It holds for as long as its device is open.
#[derive(Clone)]
pub struct Function(Arc<Entry>);

struct Entry {
    raw: CUfunction,
    name: &'static str,
    /// Bytes of shared memory that the kernel declares itself.
    shared: u32,
    registers: u32,
    /// Whether it may have more than 48 KB of shared memory.
    opted_in: AtomicBool,
    /// Whether it may have clusters of more than eight blocks.
    wide: AtomicBool,
}

// SAFETY: the driver's functions may be used from any thread.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Function {
    pub(super) fn raw(&self) -> CUfunction {
        self.0.raw
    }

    /// Whether both are one and the same.
    pub fn same(&self, other: &Function) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Registers a thread takes.
    pub fn registers(&self) -> u32 {
        self.0.registers
    }

    /// Opts in to large dynamic shared memory, once, where `bytes` ask for it.
    pub(super) fn allow_shared(&self, driver: &Driver, props: &Props, bytes: u32) -> Result<()> {
        const WITHOUT_ASKING: u32 = 48 << 10;
        const MAX_DYNAMIC_SHARED: u32 =
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32;
        if bytes.saturating_add(self.0.shared) <= WITHOUT_ASKING {
            return Ok(());
        }
        let most = props.shared_optin.saturating_sub(self.0.shared);
        if bytes > most {
            let name = self.0.name;
            return Err(Error::Internal(format!(
                "{name}: {bytes} bytes of dynamic shared memory, at most {most}"
            )));
        }
        if self.0.opted_in.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The most there can be, and not `bytes`: two threads that come here at once then agree.
        // SAFETY: the function is of a module that stays loaded while the device is open.
        unsafe { cu!(driver, cuFuncSetAttribute(self.0.raw, MAX_DYNAMIC_SHARED, most as c_int)) }?;
        self.0.opted_in.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Opts in to clusters that not every GPU with clusters has, once, where `blocks` ask for it.
    pub(super) fn allow_cluster(&self, driver: &Driver, blocks: u32) -> Result<()> {
        const PORTABLE: u32 = 8;
        const NON_PORTABLE_SIZE: u32 =
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED as u32;
        if blocks <= PORTABLE || self.0.wide.load(Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: the function is of a module that stays loaded while the device is open.
        unsafe { cu!(driver, cuFuncSetAttribute(self.0.raw, NON_PORTABLE_SIZE, 1)) }?;
        self.0.wide.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.0.name)
    }
}

/// The modules of one device.
pub(super) struct Modules {
    driver: Arc<Driver>,
    arch: String,
    /// The CUDA version that the driver is for.
    version: (u32, u32),
    nvrtc: OnceCell<Arc<Nvrtc>>,
    cache: Cache,
    slots: RwLock<HashMap<Module, Arc<Slot>>>,
}

/// A module's place, taken before it is compiled: whoever comes second waits there.
#[derive(Default)]
struct Slot(OnceCell<Loaded>);

struct Loaded {
    driver: Arc<Driver>,
    raw: CUmodule,
    functions: RwLock<HashMap<&'static str, Function>>,
}

// SAFETY: the driver's modules may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Modules {
    pub fn new(driver: &Arc<Driver>, props: &Props, version: (u32, u32)) -> Self {
        let (nvrtc, slots) = Default::default();
        let (driver, arch, cache) = (Arc::clone(driver), props.arch(), Cache::from_env());
        Modules { driver, arch, version, nvrtc, cache, slots }
    }

    /// Whether a launch from `module` would have nothing to compile or load.
    pub fn is_loaded(&self, module: &Module) -> bool {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(module).is_some_and(|slot| slot.0.get().is_some())
    }

    /// Compiles and loads `module` where that was not done yet. Of several threads that ask at
    /// once, one does it and the others wait.
    pub fn prepare(&self, module: &Module) -> Result<()> {
        let slot = self.slot(module);
        slot.0.get_or_try_init(|| self.load(module)).map(|_| ())
    }

    pub fn function(&self, module: &Module, name: &'static str) -> Result<Function> {
        let slot = self.slot(module);
        let loaded = slot.0.get_or_try_init(|| self.load(module))?;
        {
            let functions = loaded.functions.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(function) = functions.get(name) {
                return Ok(function.clone());
            }
        }
        let function = loaded.find(module, name)?;
        let mut functions = loaded.functions.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been first; its function is as good, and all then share one.
        Ok(functions.entry(name).or_insert(function).clone())
    }

    /// The compiler, opened at the first need.
    pub fn nvrtc(&self) -> Result<&Arc<Nvrtc>> {
        self.nvrtc.get_or_try_init(|| Nvrtc::find(Some(self.version), &self.arch))
    }

    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    fn slot(&self, module: &Module) -> Arc<Slot> {
        {
            let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = slots.get(module) {
                return Arc::clone(slot);
            }
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(module.clone()).or_default())
    }

    fn load(&self, module: &Module) -> Result<Loaded> {
        // Nothing is compiled for a device that is lost.
        self.driver.enter()?;
        let nvrtc = self.nvrtc()?;
        let began = Instant::now();
        let (cubin, mut origin) = self.cache.cubin(nvrtc, module, &self.arch)?;
        let loaded = match self.load_cubin(&cubin) {
            // Sound by its hash and yet no module to this driver: built anew.
            Err(LoadError::Refused(_)) if origin == Origin::Disk => {
                origin = Origin::Compiler;
                self.load_cubin(&self.cache.rebuild(nvrtc, module, &self.arch)?)
            }
            other => other,
        };
        let loaded = loaded.map_err(|error| match error {
            LoadError::Refused(message) => {
                Error::Driver { call: "cuModuleLoadData", message: format!("{module}: {message}") }
            }
            LoadError::Other(error) => error,
        })?;
        events::tell(|| Event::Kernel {
            module: module.to_string(),
            device: Id::Cuda(self.driver.ordinal()),
            origin,
            took: began.elapsed(),
        });
        Ok(loaded)
    }

    fn load_cubin(&self, cubin: &[u8]) -> Result<Loaded, LoadError> {
        let api = self.driver.enter().map_err(LoadError::Other)?;
        // Loading may happen in the middle of a capture of this thread's, which forbids what it
        // does; nothing of it is to be captured.
        let _relaxed = Relaxed::enter(&self.driver).map_err(LoadError::Other)?;
        let mut raw = ptr::null_mut();
        // SAFETY: a whole cubin, made by NVRTC or read back under its checksum; the driver copies
        // it.
        let result = unsafe { (api.cuModuleLoadData)(&mut raw, cubin.as_ptr().cast::<c_void>()) };
        if (code::INVALID_IMAGE..=code::NO_BINARY_FOR_GPU).contains(&result) {
            return Err(LoadError::Refused(api.explain(result)));
        }
        self.driver.check("cuModuleLoadData", result).map_err(LoadError::Other)?;
        let (driver, functions) = (Arc::clone(&self.driver), RwLock::default());
        Ok(Loaded { driver, raw, functions })
    }
}

enum LoadError {
    /// This is no module for this GPU.
    Refused(String),
    Other(Error),
}

impl Loaded {
    fn find(&self, module: &Module, name: &'static str) -> Result<Function> {
        const SHARED: u32 = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as u32;
        const REGISTERS: u32 = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS as u32;
        let text = CString::new(name).map_err(|e| Error::Internal(e.to_string()))?;
        let mut raw = ptr::null_mut();
        let _relaxed = Relaxed::enter(&self.driver)?;
        let api = self.driver.enter()?;
        // SAFETY: the module is loaded, `raw` is ours to write, and `text` ends with a zero.
        let result = unsafe { (api.cuModuleGetFunction)(&mut raw, self.raw, text.as_ptr()) };
        if result == code::NOT_FOUND {
            return Err(Error::Internal(format!("{module} has no kernel {name}")));
        }
        self.driver.check("cuModuleGetFunction", result)?;
        let attribute = |which| -> Result<u32> {
            let mut value = 0;
            // SAFETY: the function was just found, and `value` is ours to write.
            unsafe { cu!(self.driver, cuFuncGetAttribute(&mut value, which, raw)) }?;
            Ok(value.max(0) as u32)
        };
        // Asking also makes a driver that loads lazily do so now, and not at the first launch.
        let (shared, registers) = (attribute(SHARED)?, attribute(REGISTERS)?);
        let (opted_in, wide) = (AtomicBool::new(false), AtomicBool::new(false));
        let entry = Entry { raw, name, shared, registers, opted_in, wide };
        Ok(Function(Arc::new(entry)))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.driver.bury(Dead::Module(self.raw));
    }
}

impl fmt::Debug for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Modules").field("arch", &self.arch).finish_non_exhaustive()
    }
}

/// While it lives, this thread may do what a capture of its own forbids.
pub(super) struct Relaxed<'a> {
    driver: &'a Driver,
    before: u32,
}

impl<'a> Relaxed<'a> {
    pub(super) fn enter(driver: &'a Driver) -> Result<Self> {
        const RELAXED: u32 = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as u32;
        let mut mode = RELAXED;
        // SAFETY: `mode` is ours; the driver puts the mode that was into it.
        unsafe { cu!(driver, cuThreadExchangeStreamCaptureMode(&mut mode)) }?;
        Ok(Relaxed { driver, before: mode })
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        let mut mode = self.before;
        // SAFETY: as above. It fails only where the device is lost, and then nothing is captured.
        let _ = unsafe { cu!(self.driver, cuThreadExchangeStreamCaptureMode(&mut mode)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_itself() {
        let module = Module::of("norm/norm.cu", DType::BF16).define("RMS", 1);
        assert_eq!(module.to_string(), "norm/norm.cu -DT=bf16 -DRMS=1");
        assert_eq!(module, Module::new("norm/norm.cu").define("T", "bf16").define("RMS", "1"));
    }

    #[test]
    fn a_module_names_the_chips_it_is_for() {
        let module = Module::new("norm/norm.cu");
        assert!(module.runs_on("sm_80") && module.runs_on("sm_120a"));
        let module = module.since(9);
        assert!(!module.runs_on("sm_89") && module.runs_on("sm_90a") && module.runs_on("sm_120a"));
    }
}
