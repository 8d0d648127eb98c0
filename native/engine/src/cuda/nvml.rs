//! NVML, which tells who uses a GPU's memory. It comes with the driver and is only looked at by
//! those who ask: nothing else needs it.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use libloading::Library;

/// A GPU's memory, over all processes. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub total: u64,
    pub free: u64,
    pub used: u64,
    /// Process ids, in the numbers of the machine that the driver runs on, and what each holds
    /// where the driver tells; or why they are not known.
    pub processes: Result<Vec<(u32, Option<u64>)>, String>,
}

/// What NVML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Such as `580.95.05`.
    pub driver: String,
    /// For each bus id that was asked for.
    pub cards: Vec<Result<Usage, String>>,
}

const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_t` since its second version.
#[repr(C)]
#[derive(Clone, Default)]
struct Process {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

type Handle = *mut c_void;
type Status = c_int;

struct Nvml {
    init: unsafe extern "C" fn() -> Status,
    shutdown: unsafe extern "C" fn() -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    driver: unsafe extern "C" fn(*mut c_char, c_uint) -> Status,
    by_bus: unsafe extern "C" fn(*const c_char, *mut Handle) -> Status,
    memory: unsafe extern "C" fn(Handle, *mut Memory) -> Status,
    processes: unsafe extern "C" fn(Handle, *mut c_uint, *mut Process) -> Status,
}

/// Asks about the cards of these PCI bus ids, such as `0000:1B:00.0`; an error says what is missing.
pub fn report(bus_ids: &[String]) -> Result<Report, String> {
    let nvml = Nvml::load()?;
    // SAFETY: the first call that NVML wants; each is paired with a shutdown.
    nvml.check("nvmlInit", unsafe { (nvml.init)() })?;
    let report = nvml
        .driver_version()
        .map(|driver| Report { driver, cards: bus_ids.iter().map(|id| nvml.usage(id)).collect() });
    // SAFETY: it was initialised above, and nobody uses its handles any more.
    unsafe { (nvml.shutdown)() };
    report
}

impl Nvml {
    fn load() -> Result<Self, String> {
        // SAFETY: opening NVIDIA's library runs its initialisers and nothing else of ours.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or_else(|| format!("there is no {}", NAMES.join(" or ")))?;
        // Its functions are called after this one has returned.
        let library: &'static Library = Box::leak(Box::new(library));
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: of the type that NVML's header gives it, enums being integers in C.
                *unsafe { library.get($name.as_bytes()) }
                    .map_err(|_| concat!("NVML has no ", $name))?
            };
        }
        Ok(Nvml {
            init: symbol!("nvmlInit_v2"),
            shutdown: symbol!("nvmlShutdown"),
            error: symbol!("nvmlErrorString"),
            driver: symbol!("nvmlSystemGetDriverVersion"),
            by_bus: symbol!("nvmlDeviceGetHandleByPciBusId_v2"),
            memory: symbol!("nvmlDeviceGetMemoryInfo"),
            processes: symbol!("nvmlDeviceGetComputeRunningProcesses_v3"),
        })
    }

    fn check(&self, call: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a constant string, for an unknown code too.
        let text = unsafe { (self.error)(status) };
        if text.is_null() {
            return Err(format!("{call}: error {status}"));
        }
        // SAFETY: not null, and ended by a zero.
        Err(format!("{call}: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy()))
    }

    fn driver_version(&self) -> Result<String, String> {
        let mut text = [0 as c_char; 128];
        // SAFETY: NVML writes at most so many bytes, the ending zero among them.
        let status = unsafe { (self.driver)(text.as_mut_ptr(), text.len() as c_uint - 1) };
        self.check("nvmlSystemGetDriverVersion", status)?;
        // SAFETY: the last byte was left zero.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    fn usage(&self, bus_id: &str) -> Result<Usage, String> {
        let id = CString::new(bus_id).map_err(|e| e.to_string())?;
        let mut card = ptr::null_mut();
        // SAFETY: the id ends with a zero, and `card` is ours to write.
        let status = unsafe { (self.by_bus)(id.as_ptr(), &mut card) };
        self.check("nvmlDeviceGetHandleByPciBusId", status)?;
        let mut memory = Memory::default();
        // SAFETY: the handle is NVML's own, and `memory` is ours to write.
        self.check("nvmlDeviceGetMemoryInfo", unsafe { (self.memory)(card, &mut memory) })?;
        let Memory { total, free, used } = memory;
        Ok(Usage { total, free, used, processes: self.holders(card) })
    }

    fn holders(&self, card: Handle) -> Result<Vec<(u32, Option<u64>)>, String> {
        let mut found = vec![Process::default(); 256];
        let mut count = found.len() as c_uint;
        // SAFETY: the array holds `count` of them; NVML writes how many it filled in.
        let status = unsafe { (self.processes)(card, &mut count, found.as_mut_ptr()) };
        self.check("nvmlDeviceGetComputeRunningProcesses", status)?;
        found.truncate(count as usize);
        Ok(found.iter().map(|p| (p.pid, (p.used != u64::MAX).then_some(p.used))).collect())
    }
}
