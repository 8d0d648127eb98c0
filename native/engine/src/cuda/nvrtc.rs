//! NVRTC, the compiler: found and opened at run time, by a loader of our own, since we need its
//! cubins and a place to look that no linker path names.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::thread;

use libloading::Library;

use super::modules::Module;
use super::search::{self, Place};
use super::sources;
use crate::error::{Error, Result};

type Program = *mut c_void;

/// An opened NVRTC. It stays open for the life of the process.
pub struct Nvrtc {
    at: String,
    version: (u32, u32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    archs_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
}

impl Nvrtc {
    /// The first NVRTC found that compiles for `arch` (such as `sm_90a`) and, where `driver` says
    /// for which CUDA version the driver is, whose cubins that driver loads: of no newer major
    /// version. The error names each place and why what lay there would not do.
    pub fn find(driver: Option<(u32, u32)>, arch: &str) -> Result<Arc<Self>> {
        let mut refused = Vec::new();
        for place in search::NVRTC.places() {
            match Nvrtc::open(&place).and_then(|n| n.suits(driver, arch).map(|()| n)) {
                Ok(nvrtc) => return Ok(Arc::new(nvrtc)),
                Err(why) => refused.push(format!("{place} ({why})")),
            }
        }
        refused.push(search::NVRTC.summary());
        Err(Error::Unavailable {
            device: "CUDA's compiler NVRTC".into(),
            message: format!("looked for libnvrtc: {}", refused.join("; ")),
        })
    }

    /// What [`Nvrtc::find`] meets on its way, for those who want to know why it finds none, or that
    /// one. It opens what it meets.
    pub fn survey(driver: Option<(u32, u32)>, arch: &str) -> search::Survey {
        let version = |n: Nvrtc| n.suits(driver, arch).map(|()| n.version);
        search::NVRTC.survey(|place| Nvrtc::open(place).and_then(version))
    }

    fn open(place: &Place) -> Result<Self, String> {
        if let Place::File(path) = place {
            // A wheel's NVRTC finds its builtins only where they are open already.
            for builtins in search::builtins_beside(path) {
                // SAFETY: NVIDIA's own library, a table of constants.
                if let Ok(library) = unsafe { Library::new(&builtins) } {
                    std::mem::forget(library);
                }
            }
        }
        // SAFETY: opening NVRTC runs its initialisers and nothing else.
        let library =
            unsafe { Library::new(place.as_os_str()) }.map_err(|e| search::why(place, &e))?;
        // Kept open also where it will not do: NVRTC does not expect to be unloaded.
        let library: &'static Library = Box::leak(Box::new(library));
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: of the type that NVRTC's header gives it, enums being integers in C.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| concat!("no ", $name))?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
            symbol!("nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are ours to write.
        if unsafe { version(&mut major, &mut minor) } != 0 {
            return Err("it does not tell its version".into());
        }
        Ok(Nvrtc {
            at: place.to_string(),
            version: (major.max(0) as u32, minor.max(0) as u32),
            create: symbol!("nvrtcCreateProgram"),
            compile: symbol!("nvrtcCompileProgram"),
            destroy: symbol!("nvrtcDestroyProgram"),
            log_size: symbol!("nvrtcGetProgramLogSize"),
            log: symbol!("nvrtcGetProgramLog"),
            cubin_size: symbol!("nvrtcGetCUBINSize"),
            cubin: symbol!("nvrtcGetCUBIN"),
            error: symbol!("nvrtcGetErrorString"),
            archs_count: symbol!("nvrtcGetNumSupportedArchs"),
            archs: symbol!("nvrtcGetSupportedArchs"),
        })
    }

    fn suits(&self, driver: Option<(u32, u32)>, arch: &str) -> Result<(), String> {
        let (major, minor) = self.version;
        if let Some((ours, _)) = driver.filter(|d| d.0 < major) {
            return Err(format!("version {major}.{minor}, and the driver is for CUDA {ours}"));
        }
        if !self.supports(arch) {
            return Err(format!("version {major}.{minor} does not compile for {arch}"));
        }
        Ok(())
    }

    /// Whether it compiles for an architecture such as `sm_90a`.
    pub fn supports(&self, arch: &str) -> bool {
        let digits = arch.trim_start_matches("sm_").trim_end_matches(|c: char| !c.is_numeric());
        let Ok(number) = digits.parse::<c_int>() else { return false };
        let mut count = 0;
        // SAFETY: `count` is ours to write.
        if unsafe { (self.archs_count)(&mut count) } != 0 {
            return false;
        }
        let mut all = vec![0; count.max(0) as usize];
        // SAFETY: the array holds as many as were counted.
        unsafe { (self.archs)(all.as_mut_ptr()) == 0 && all.contains(&number) }
    }

    /// The CUDA version it is of, such as (13, 0).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where it was found: a path, or the name that the system's loader resolved.
    pub fn location(&self) -> &str {
        &self.at
    }

    /// Compiles a module to a cubin for `arch`, such as `sm_90a`; [`Error::Compile`] has the log.
    pub fn compile(&self, module: &Module, arch: &str) -> Result<Vec<u8>> {
        // NVRTC recurses deeply, and a scheduler thread of the VM has 320 KB of stack.
        const STACK: usize = 16 << 20;
        let failed = |what: String| Error::Internal(format!("compiling {module}: {what}"));
        thread::scope(|scope| {
            let build = || self.build(module, arch);
            let builder = thread::Builder::new().name("nitrox-nvrtc".into()).stack_size(STACK);
            let thread = builder.spawn_scoped(scope, build).map_err(|e| failed(e.to_string()))?;
            thread.join().unwrap_or_else(|_| Err(failed("the thread panicked".into())))
        })
    }

    fn build(&self, module: &Module, arch: &str) -> Result<Vec<u8>> {
        let text = c_string(module.text()?)?;
        let name = c_string(module.source)?;
        let headers: Vec<_> = sources::headers()
            .map(|(name, text)| Ok((c_string(name)?, c_string(text)?)))
            .collect::<Result<_>>()?;
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<_> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let options: Vec<_> =
            options(module, arch).iter().map(|o| c_string(o)).collect::<Result<_>>()?;
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();

        let mut raw = ptr::null_mut();
        // SAFETY: all the strings end with a zero and outlive the call, which copies them; the
        // two arrays have as many elements as is said.
        let created = unsafe {
            (self.create)(
                &mut raw,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        let failed = |log: String| Error::Compile { kernel: module.to_string(), log };
        self.check(created).map_err(failed)?;
        let program = Created { nvrtc: self, raw };
        // SAFETY: as above; `-I` and files play no part.
        let compiled = unsafe { (self.compile)(raw, options.len() as c_int, options.as_ptr()) };
        if let Err(what) = self.check(compiled) {
            let log = program.bytes(self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim();
            return Err(failed(format!("{what} for {arch}\n{log}")));
        }
        program.bytes(self.cubin_size, self.cubin).map_err(failed)
    }

    fn check(&self, result: c_int) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: gives a constant string, for an unknown code too.
        let text = unsafe { (self.error)(result) };
        if text.is_null() {
            return Err(format!("NVRTC error {result}"));
        }
        // SAFETY: not null, and ended by a zero.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

/// What a module is compiled with. Division and square root are exact, as f32 promises: there is
/// no fast math here.
pub(super) fn options(module: &Module, arch: &str) -> Vec<String> {
    let fixed = ["--std=c++17", "--device-as-default-execution-space", "--fmad=true"];
    let mut options = vec![format!("--gpu-architecture={arch}")];
    options.extend(fixed.map(String::from));
    options.extend(
        module.defines.iter().map(|(name, value)| format!("--define-macro={name}={value}")),
    );
    // Sanitizers do not see every order that holds: `kernels/recurrent/cluster.cuh`.
    if std::env::var_os("NITROX_RACECHECK").is_some() {
        options.push("--define-macro=RACECHECK".into());
    }
    options
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|e| Error::Internal(format!("a kernel's text: {e}")))
}

struct Created<'a> {
    nvrtc: &'a Nvrtc,
    raw: Program,
}

impl Created<'_> {
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program is alive, and `length` is ours to write.
        self.nvrtc.check(unsafe { size(self.raw, &mut length) })?;
        let mut bytes = vec![0u8; length];
        // SAFETY: the buffer is as long as was asked for.
        self.nvrtc.check(unsafe { get(self.raw, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.raw) };
    }
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "Nvrtc({major}.{minor} at {})", self.at)
    }
}
