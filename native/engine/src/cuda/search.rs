//! Where NVIDIA's libraries may lie: NVRTC, cuBLASLt, cuBLAS and cuDNN.

use std::env;
use std::error::Error as _;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A library to look for.
#[derive(Debug)]
pub(super) struct Wanted {
    file: &'static str,
    /// The names that the system's loader is asked for first.
    names: &'static [&'static str],
    /// The environment's variable that names another place.
    variable: &'static str,
    /// The folder of its own that a wheel has beside the one of the whole toolkit.
    wheel: &'static str,
}

pub(super) const NVRTC: Wanted = Wanted {
    file: "libnvrtc.so",
    names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    variable: "NITROX_NVRTC_PATH",
    wheel: "cuda_nvrtc",
};

pub(super) const CUBLASLT: Wanted = Wanted {
    file: "libcublasLt.so",
    names: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    variable: "NITROX_CUBLASLT_PATH",
    wheel: "cublas",
};

pub(super) const CUBLAS: Wanted = Wanted {
    file: "libcublas.so",
    names: &["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
    variable: "NITROX_CUBLAS_PATH",
    wheel: "cublas",
};

pub(super) const CUDNN: Wanted = Wanted {
    file: "libcudnn.so",
    names: &["libcudnn.so.9"],
    variable: "NITROX_CUDNN_PATH",
    wheel: "cudnn",
};

/// Where a library was looked for.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The one that is used, with its version.
    pub found: Option<(String, (u32, u32))>,
    /// Libraries, by path or by the name that the system's loader is asked for, and what came of it.
    pub places: Vec<(String, String)>,
    /// Folders that were looked into beside the loader's own, there or not.
    pub folders: Vec<PathBuf>,
}

/// A library to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// By name, for the system's loader to find.
    Name(&'static str),
    File(PathBuf),
}

impl Place {
    pub fn as_os_str(&self) -> &OsStr {
        match self {
            Place::Name(name) => OsStr::new(name),
            Place::File(path) => path.as_os_str(),
        }
    }

    /// Another library at the same place.
    pub fn beside(&self, name: &'static str) -> Place {
        match self {
            Place::Name(_) => Place::Name(name),
            Place::File(path) => Place::File(path.with_file_name(name)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Name(name) => f.write_str(name),
            Place::File(path) => path.display().fmt(f),
        }
    }
}

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

impl Wanted {
    /// What a search meets on its way, for those who want to know why it finds none, or that one.
    /// `open` opens what lies at a place and gives its version, or says why it will not do.
    pub fn survey(&self, open: impl Fn(&Place) -> Result<(u32, u32), String>) -> Survey {
        let mut places = Vec::new();
        let mut found = None;
        for place in self.places() {
            let text = place.to_string();
            if found.is_some() {
                places.push((text, "not tried, as one was found".into()));
                continue;
            }
            match open(&place) {
                Ok(version) => {
                    places.push((text.clone(), "found".into()));
                    found = Some((text, version));
                }
                Err(why) => places.push((text, why)),
            }
        }
        Survey { found, places, folders: self.folders() }
    }

    /// What `open` makes of the first place that will do, or why none will. `name` is for the message.
    pub fn first<T>(
        &self,
        name: &str,
        open: impl Fn(&Place) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut refused = Vec::new();
        for place in self.places() {
            match open(&place) {
                Ok(opened) => return Ok(opened),
                Err(why) => refused.push(format!("{place} ({why})")),
            }
        }
        refused.push(self.summary());
        Err(format!("no {name}: looked for {}", refused.join("; ")))
    }

    /// The only place to look at, a file or a folder, where it is set: what was asked for by name is
    /// not replaced in silence.
    fn asked_for(&self) -> Option<PathBuf> {
        set(self.variable)
    }

    /// All the places, the most telling first.
    pub fn places(&self) -> Vec<Place> {
        if let Some(path) = self.asked_for() {
            return if path.is_dir() { self.libraries_in(&path) } else { vec![Place::File(path)] };
        }
        let mut places: Vec<_> = self.names.iter().copied().map(Place::Name).collect();
        places.extend(self.folders().iter().flat_map(|folder| self.libraries_in(folder)));
        // The same file under several names, or by several ways, is tried once.
        let mut seen = Vec::new();
        places.retain(|place| {
            let Place::File(path) = place else { return true };
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let new = !seen.contains(&path);
            seen.push(path);
            new
        });
        places
    }

    /// The folders that are looked into, whether they are there or not.
    pub fn folders(&self) -> Vec<PathBuf> {
        if let Some(path) = self.asked_for() {
            return vec![path];
        }
        let mut folders = Vec::new();
        let mut toolkits: Vec<_> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).collect();
        toolkits.extend(folders_in(Path::new("/usr/local"), "cuda"));
        for toolkit in toolkits {
            folders.extend([toolkit.join("lib64"), toolkit.join("lib")]);
            folders.extend(folders_in(&toolkit.join("targets"), "").iter().map(|t| t.join("lib")));
        }

        let mut packages: Vec<PathBuf> =
            env::var_os("PYTHONPATH").iter().flat_map(env::split_paths).collect();
        let mut prefixes: Vec<_> =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect();
        prefixes.extend(set("HOME").map(|home| home.join(".local")));
        prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
        for prefix in prefixes {
            for python in folders_in(&prefix.join("lib"), "python3") {
                packages.extend(["site-packages", "dist-packages"].map(|p| python.join(p)));
            }
        }
        for package in packages {
            let lib = |wheel| package.join("nvidia").join(wheel).join("lib");
            folders.extend(["cu13", self.wheel].map(lib));
        }
        folders
    }

    /// In words, for an error.
    pub fn summary(&self) -> String {
        let variable = self.variable;
        match self.asked_for() {
            Some(path) => format!("{variable} is {}", path.display()),
            None => format!(
                "also under CUDA_HOME, CUDA_PATH, /usr/local/cuda* and Python's nvidia packages; \
                 {variable}, a file or a folder, names another place"
            ),
        }
    }

    fn libraries_in(&self, folder: &Path) -> Vec<Place> {
        named(folder, |name| name.starts_with(self.file)).into_iter().map(Place::File).collect()
    }
}

/// What the system's loader says, without the name that the message begins with already.
pub(super) fn why(place: &Place, error: &libloading::Error) -> String {
    let text = error.source().map_or_else(|| error.to_string(), |s| s.to_string());
    text.strip_prefix(&format!("{place}: ")).unwrap_or(&text).to_owned()
}

/// The builtins that lie beside an NVRTC.
pub(super) fn builtins_beside(nvrtc: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = nvrtc
        .parent()
        .map(|folder| named(folder, |name| name.starts_with("libnvrtc-builtins.so")))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn folders_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = named(parent, |name| name.starts_with(prefix));
    found.retain(|path| path.is_dir());
    found
}

/// The entries of a folder whose names fit, the highest versions first.
fn named(folder: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter(|e| e.file_name().to_str().is_some_and(&fits)).map(|e| e.path()).collect();
    found.sort_by_key(|path| std::cmp::Reverse(version(path)));
    found
}

/// The numbers in a file's name: `libnvrtc.so.13.0` comes after `libnvrtc.so.12.9`.
fn version(path: &Path) -> Vec<u64> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_come_first_and_builtins_are_no_nvrtc() {
        let folder = env::temp_dir().join(format!("nitrox-search-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let names =
            ["libnvrtc.so.9.2", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.so.12.9"];
        for name in names {
            fs::write(folder.join(name), "").unwrap();
        }
        let at = |name: &str| Place::File(folder.join(name));
        let found = NVRTC.libraries_in(&folder);
        assert!(CUBLASLT.libraries_in(&folder).is_empty());
        let beside = builtins_beside(&folder.join("libnvrtc.so.13"));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [at("libnvrtc.so.13"), at("libnvrtc.so.12.9"), at("libnvrtc.so.9.2")]);
        assert_eq!(beside.len(), 1);
        assert!(NVRTC.libraries_in(Path::new("/nowhere")).is_empty());
    }
}
