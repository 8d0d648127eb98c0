//! NVRTC, as the engine calls it: the real one, of which PTX is asked where the engine asks for a
//! cubin.

use std::env;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

type Program = *mut c_void;

/// `NVRTC_ERROR_BUILTIN_OPERATION_FAILURE`, `NVRTC_ERROR_INTERNAL_ERROR`
const NO_LIBRARY: c_int = 7;
const INTERNAL: c_int = 11;

macro_rules! real {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        struct Real { $($name: unsafe extern "C" fn($($type),*) -> $result,)* }

        impl Real {
            fn load(library: &'static Library) -> Result<Self, String> {
                Ok(Real {
                    $(
                        // SAFETY: of the type that NVRTC's header gives it, enums being integers.
                        $name: *unsafe { library.get(stringify!($name).as_bytes()) }
                            .map_err(|e| e.to_string())?,
                    )*
                })
            }
        }
    };
}

macro_rules! passed_on {
    ($($name:ident($($arg:ident: $type:ty),*) = $real:ident;)*) => {
        $(
            /// Passed on to the real NVRTC.
            ///
            /// # Safety
            /// As NVRTC's header has it.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
                // SAFETY: the caller's promise.
                with(|nvrtc| unsafe { (nvrtc.$real)($($arg),*) })
            }
        )*
    };
}

real! {
    nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int;
    nvrtcGetNumSupportedArchs(count: *mut c_int) -> c_int;
    nvrtcGetSupportedArchs(archs: *mut c_int) -> c_int;
    nvrtcCreateProgram(program: *mut Program, text: *const c_char, name: *const c_char,
        headers: c_int, texts: *const *const c_char, names: *const *const c_char)
        -> c_int;
    nvrtcCompileProgram(program: Program, options: c_int, list: *const *const c_char)
        -> c_int;
    nvrtcDestroyProgram(program: *mut Program) -> c_int;
    nvrtcGetProgramLogSize(program: Program, size: *mut usize) -> c_int;
    nvrtcGetProgramLog(program: Program, log: *mut c_char) -> c_int;
    nvrtcGetPTXSize(program: Program, size: *mut usize) -> c_int;
    nvrtcGetPTX(program: Program, text: *mut c_char) -> c_int;
    nvrtcGetErrorString(code: c_int) -> *const c_char;
}

passed_on! {
    nvrtcVersion(major: *mut c_int, minor: *mut c_int) = nvrtcVersion;
    nvrtcGetNumSupportedArchs(count: *mut c_int) = nvrtcGetNumSupportedArchs;
    nvrtcGetSupportedArchs(archs: *mut c_int) = nvrtcGetSupportedArchs;
    nvrtcCreateProgram(program: *mut Program, text: *const c_char, name: *const c_char,
        headers: c_int, texts: *const *const c_char, names: *const *const c_char)
        = nvrtcCreateProgram;
    nvrtcDestroyProgram(program: *mut Program) = nvrtcDestroyProgram;
    nvrtcGetProgramLogSize(program: Program, size: *mut usize) = nvrtcGetProgramLogSize;
    nvrtcGetProgramLog(program: Program, log: *mut c_char) = nvrtcGetProgramLog;
    nvrtcGetPTXSize(program: Program, size: *mut usize) = nvrtcGetPTXSize;
    nvrtcGetPTX(program: Program, text: *mut c_char) = nvrtcGetPTX;
    nvrtcGetCUBINSize(program: Program, size: *mut usize) = nvrtcGetPTXSize;
    nvrtcGetCUBIN(program: Program, text: *mut c_char) = nvrtcGetPTX;
}

/// Passed on, with the chip as its architecture: for a chip there would be no PTX.
///
/// # Safety
/// As NVRTC's header has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCompileProgram(
    program: Program,
    options: c_int,
    list: *const *const c_char,
) -> c_int {
    with(|nvrtc| {
        let count = usize::try_from(options).unwrap_or(0);
        // SAFETY: the caller's promise: so many strings, each ended by a zero.
        let given = (0..count).map(|i| unsafe { CStr::from_ptr(list.add(i).read()) });
        let options: Vec<_> = given.map(virtual_architecture).collect();
        let list: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the caller's promise, and the strings live on until the call returns.
        unsafe { (nvrtc.nvrtcCompileProgram)(program, list.len() as c_int, list.as_ptr()) }
    })
}

/// # Safety
/// None: any code has a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetErrorString(code: c_int) -> *const c_char {
    match real() {
        // SAFETY: any code will do.
        Ok(nvrtc) => unsafe { (nvrtc.nvrtcGetErrorString)(code) },
        Err(_) => c"the emulator finds no NVRTC".as_ptr(),
    }
}

/// `--gpu-architecture=sm_90a` as `--gpu-architecture=compute_90a`.
fn virtual_architecture(option: &CStr) -> CString {
    let names = [&b"--gpu-architecture=sm_"[..], b"-arch=sm_"];
    let chip = names.iter().find_map(|n| option.to_bytes().strip_prefix(*n));
    let text = chip.map(|chip| [b"--gpu-architecture=compute_", chip].concat());
    text.and_then(|t| CString::new(t).ok()).unwrap_or_else(|| option.to_owned())
}

fn with(call: impl FnOnce(&Real) -> c_int) -> c_int {
    let called = catch_unwind(AssertUnwindSafe(|| real().map_or(NO_LIBRARY, call)));
    called.unwrap_or(INTERNAL)
}

fn real() -> Result<&'static Real, ()> {
    static REAL: OnceLock<Option<Real>> = OnceLock::new();
    let real = REAL.get_or_init(|| {
        let found = find().ok_or_else(|| "no libnvrtc.so; NITROX_EMULATOR_NVRTC names one".into());
        match found.and_then(|path| open(&path)) {
            Ok(real) => Some(real),
            Err(why) => {
                eprintln!("emulator: {why}");
                None
            }
        }
    });
    real.as_ref().ok_or(())
}

/// Where `NITROX_EMULATOR_NVRTC` says, or where the project's set-up puts it.
fn find() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = set("NITROX_EMULATOR_NVRTC") {
        return if path.is_dir() { newest(&path) } else { Some(path) };
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let tools = set("NITROX_TOOLS").or_else(|| cache.map(|cache| cache.join("nitrox")));
    let own = tools.map(|tools| tools.join("nvrtc-13/nvidia/cu13/lib"));
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|t| t.join("lib64"));
    own.into_iter().chain(toolkits).find_map(|folder| newest(&folder))
}

fn newest(folder: &Path) -> Option<PathBuf> {
    libraries(folder, "libnvrtc.so").into_iter().max()
}

fn libraries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let is = |path: &PathBuf| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(is).collect()
}

fn open(path: &Path) -> Result<Real, String> {
    // A wheel's NVRTC finds its builtins only where they are open already.
    let builtins = path.parent().map(|folder| libraries(folder, "libnvrtc-builtins.so"));
    for builtins in builtins.into_iter().flatten() {
        // SAFETY: NVIDIA's own library, a table of constants.
        if let Ok(library) = unsafe { Library::new(&builtins) } {
            std::mem::forget(library);
        }
    }
    // SAFETY: opening NVRTC runs its initialisers and nothing else.
    let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
    Real::load(Box::leak(Box::new(library)))
}

#[cfg(test)]
mod tests {
    use super::virtual_architecture;

    #[test]
    fn a_chip_is_asked_for_as_its_architecture() {
        let asked = virtual_architecture(c"--gpu-architecture=sm_90a");
        assert_eq!(asked.as_c_str(), c"--gpu-architecture=compute_90a");
        assert_eq!(virtual_architecture(c"--fmad=true").as_c_str(), c"--fmad=true");
    }
}
