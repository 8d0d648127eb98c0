//! Where NVRTC may lie.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "libnvrtc.so";

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
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Name(name) => f.write_str(name),
            Place::File(path) => path.display().fmt(f),
        }
    }
}

/// All the places, the most telling first. `NITROX_NVRTC_PATH`, a file or a folder, is the only
/// one where it is set: what was asked for by name is not replaced in silence.
pub(super) fn places() -> Vec<Place> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = set("NITROX_NVRTC_PATH") {
        return if path.is_dir() { libraries_in(&path) } else { vec![Place::File(path)] };
    }
    let mut places: Vec<_> =
        ["libnvrtc.so.13", "libnvrtc.so.12", NAME].map(Place::Name).into_iter().collect();

    let mut toolkits: Vec<_> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).collect();
    toolkits.extend(folders_in(Path::new("/usr/local"), "cuda"));
    for toolkit in toolkits {
        let targets = folders_in(&toolkit.join("targets"), "").into_iter().map(|t| t.join("lib"));
        let folders = [toolkit.join("lib64"), toolkit.join("lib")].into_iter().chain(targets);
        places.extend(folders.flat_map(|f| libraries_in(&f)));
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
        for wheel in ["cu13", "cuda_nvrtc"] {
            places.extend(libraries_in(&package.join("nvidia").join(wheel).join("lib")));
        }
    }
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

/// In words, for an error.
pub(super) fn summary() -> String {
    match env::var_os("NITROX_NVRTC_PATH").filter(|v| !v.is_empty()) {
        Some(path) => format!("NITROX_NVRTC_PATH is {}", Path::new(&path).display()),
        None => "also under CUDA_HOME, CUDA_PATH, /usr/local/cuda* and Python's nvidia packages; \
                 NITROX_NVRTC_PATH, a file or a folder, names another place"
            .into(),
    }
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

fn libraries_in(folder: &Path) -> Vec<Place> {
    named(folder, |name| name.starts_with(NAME)).into_iter().map(Place::File).collect()
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
        let found = libraries_in(&folder);
        let beside = builtins_beside(&folder.join("libnvrtc.so.13"));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [at("libnvrtc.so.13"), at("libnvrtc.so.12.9"), at("libnvrtc.so.9.2")]);
        assert_eq!(beside.len(), 1);
        assert!(libraries_in(Path::new("/nowhere")).is_empty());
    }
}
