//! The driver's result codes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

/// A code other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

pub type Result<T> = std::result::Result<T, Code>;

macro_rules! codes {
    ($($name:ident = $code:literal: $text:literal;)*) => {
        impl Code {
            $(pub const $name: Code = Code($code);)*

            /// `CUDA_ERROR_INVALID_VALUE`
            pub fn name(self) -> Option<&'static CStr> {
                match self.0 {
                    0 => Some(c"CUDA_SUCCESS"),
                    $($code => constant(concat!("CUDA_ERROR_", stringify!($name), "\0")),)*
                    _ => None,
                }
            }

            fn text(self) -> Option<&'static CStr> {
                match self.0 {
                    0 => Some(c"no error"),
                    $($code => constant(concat!($text, "\0")),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1: "invalid argument";
    OUT_OF_MEMORY = 2: "out of memory";
    NOT_INITIALIZED = 3: "initialization error";
    NO_DEVICE = 100: "no CUDA-capable device is detected";
    INVALID_DEVICE = 101: "invalid device ordinal";
    INVALID_IMAGE = 200: "device kernel image is invalid";
    INVALID_CONTEXT = 201: "invalid device context";
    NO_BINARY_FOR_GPU = 209: "no kernel image is available for execution on the device";
    INVALID_PTX = 218: "a PTX JIT compilation failed";
    INVALID_HANDLE = 400: "invalid resource handle";
    ILLEGAL_STATE = 401: "the operation cannot be performed in the present state";
    NOT_FOUND = 500: "named symbol not found";
    NOT_READY = 600: "device not ready";
    ILLEGAL_ADDRESS = 700: "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701: "too many resources requested for launch";
    MISALIGNED_ADDRESS = 716: "misaligned address";
    LAUNCH_FAILED = 719: "unspecified launch failure";
    COOPERATIVE_LAUNCH_TOO_LARGE = 720: "too many blocks in cooperative launch";
    NOT_SUPPORTED = 801: "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = 900: "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901: "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = 902: "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = 903: "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = 904: "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = 905: "dependency created on uncaptured work in another stream";
    CAPTURED_EVENT = 907: "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908: "attempt to terminate a thread-local capture sequence from another thread";
    INVALID_CLUSTER_SIZE = 912: "cluster misconfiguration";
    UNKNOWN = 999: "unknown error";
}

fn constant(text: &'static str) -> Option<&'static CStr> {
    CStr::from_bytes_with_nul(text.as_bytes()).ok()
}

/// What the emulator knows of the latest failure of a code, beside the driver's own words.
static DETAILS: Mutex<BTreeMap<u32, &'static CStr>> = Mutex::new(BTreeMap::new());

impl Code {
    /// The code, of which [`Code::description`] then says more. The text stays in memory, as those
    /// of the driver do.
    pub fn because(self, why: impl AsRef<str>) -> Code {
        let text = self.text().map(CStr::to_string_lossy).unwrap_or_default();
        let text = format!("{text}: {}", why.as_ref()).replace('\0', " ");
        if let Ok(text) = CString::new(text) {
            let mut details = DETAILS.lock().unwrap_or_else(PoisonError::into_inner);
            details.insert(self.0, Box::leak(text.into_boxed_c_str()));
        }
        self
    }

    pub fn description(self) -> Option<&'static CStr> {
        let details = DETAILS.lock().unwrap_or_else(PoisonError::into_inner);
        details.get(&self.0).copied().or_else(|| self.text())
    }
}
