//! Compiled kernels on disk. An entry is found by everything that went into it; one that is
//! damaged is as good as none.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::modules::Module;
use super::nvrtc::{self, Nvrtc};
use super::sources;
use crate::error::Result;

/// A file: this, the length of the cubin (u64), its hash (u128), both little-endian, the cubin.
const MAGIC: &[u8; 8] = b"nitrox\x00\x01";
const HEAD: usize = MAGIC.len() + 8 + 16;

/// A folder of cubins, shared by processes: an entry appears whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// `None` where there is no place for one: then each process compiles for itself.
    folder: Option<PathBuf>,
}

/// Where a cubin came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Disk,
    Compiler,
}

impl Cache {
    /// `nitrox/kernels` below `NITROX_CACHE`, `XDG_CACHE_HOME` or `~/.cache`.
    pub fn from_env() -> Self {
        let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = set("NITROX_CACHE")
            .or_else(|| set("XDG_CACHE_HOME"))
            .or_else(|| set("HOME").map(|home| home.join(".cache")));
        Cache { folder: base.map(|base| base.join("nitrox").join("kernels")) }
    }

    /// In a folder of the caller's choice.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: Some(folder.into()) }
    }

    /// Where it lies, if there is a place for it.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Reads all entries. A folder that is not there yet has none.
    pub fn survey(&self) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let Some(folder) = &self.folder else { return Ok(survey) };
        let archs = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(survey),
            other => other?,
        };
        for arch in archs {
            let arch = arch?;
            if !arch.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(arch.path())? {
                let (path, length) = match file {
                    // Another process may have replaced it.
                    Ok(file) => (file.path(), file.metadata().map_or(0, |m| m.len())),
                    Err(error) => return Err(error),
                };
                match path.extension().and_then(OsStr::to_str) {
                    Some("cubin") => {
                        survey.entries += 1;
                        survey.bytes += length;
                        if read(&path).is_none() {
                            survey.damaged.push(path);
                        }
                    }
                    Some("tmp") => survey.drafts += 1,
                    _ => {}
                }
            }
        }
        survey.damaged.sort();
        Ok(survey)
    }

    /// The module's cubin for `arch`, from the disk where a sound one lies there, else compiled
    /// and put there. A folder that cannot be written to is no error.
    pub fn cubin(&self, nvrtc: &Nvrtc, module: &Module, arch: &str) -> Result<(Vec<u8>, Origin)> {
        if let Some(cubin) = self.entry(nvrtc, module, arch)?.and_then(|path| read(&path)) {
            return Ok((cubin, Origin::Disk));
        }
        Ok((self.rebuild(nvrtc, module, arch)?, Origin::Compiler))
    }

    /// As [`Cache::cubin`], whatever lies on the disk.
    pub fn rebuild(&self, nvrtc: &Nvrtc, module: &Module, arch: &str) -> Result<Vec<u8>> {
        let cubin = nvrtc.compile(module, arch)?;
        if let Some(path) = self.entry(nvrtc, module, arch)? {
            write(&path, &cubin);
        }
        Ok(cubin)
    }

    /// The file of a module's cubin: named by its source, and by a hash of the compiler's version,
    /// the options and all the text that went in.
    pub fn entry(&self, nvrtc: &Nvrtc, module: &Module, arch: &str) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let mut key = Hash::new();
        let (major, minor) = nvrtc.version();
        key.part(format!("{major}.{minor}").as_bytes());
        nvrtc::options(module, arch).iter().for_each(|o| key.part(o.as_bytes()));
        key.part(module.text()?.as_bytes());
        for (name, text) in sources::headers() {
            key.part(name.as_bytes());
            key.part(text.as_bytes());
        }
        let name = module.source.trim_end_matches(".cu").replace(['/', '\\'], "-");
        Ok(Some(folder.join(arch).join(format!("{name}-{:032x}.cubin", key.0))))
    }
}

/// What lies in a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub entries: usize,
    /// Of the entries, damaged ones too.
    pub bytes: u64,
    /// Entries that are as good as none; the next use of each replaces it.
    pub damaged: Vec<PathBuf>,
    /// What writers that were interrupted left.
    pub drafts: usize,
}

/// The cubin in a file, if it is one and whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (hash, cubin) = rest.split_first_chunk::<16>()?;
    let sound = magic == MAGIC
        && u64::from_le_bytes(*length) == cubin.len() as u64
        && u128::from_le_bytes(*hash) == Hash::of(cubin).0;
    sound.then(|| bytes.split_off(HEAD))
}

/// Writes beside the file and renames, so that no other process sees a part of it. A failure only
/// costs the next process a compilation.
fn write(path: &Path, cubin: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(folder) = path.parent() else { return };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let draft = folder.join(format!(".{}-{count}.tmp", std::process::id()));
    let mut bytes = Vec::with_capacity(HEAD + cubin.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(cubin.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&Hash::of(cubin).0.to_le_bytes());
    bytes.extend_from_slice(cubin);
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&draft, &bytes))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // Perhaps it was never there.
        let _ = fs::remove_file(&draft);
    }
}

/// FNV-1a, 128 bits: the same on every machine and with every compiler, and against accidents
/// enough. Each byte is folded in by a bijection, so a changed byte always changes the hash.
struct Hash(u128);

impl Hash {
    fn new() -> Self {
        Hash(0x6c62272e07bb014262b821756295c58d)
    }

    fn of(bytes: &[u8]) -> Self {
        let mut hash = Hash::new();
        hash.bytes(bytes);
        hash
    }

    fn bytes(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0000000001000000000000000000013b;
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }

    /// A part of a key; its length keeps it apart from the next.
    fn part(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("nitrox-cache-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_hash_is_the_one_that_is_written_down() {
        // Of FNV's own test vectors.
        assert_eq!(Hash::of(b"").0, 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(Hash::of(b"a").0, 0xd228cb696f1a8caf78912b704e4a8964);
    }

    #[test]
    fn a_damaged_entry_is_none() {
        let folder = Folder::new("damage");
        let path = folder.0.join("sm_80").join("x.cubin");
        let cubin: Vec<u8> = (0..2000u32).map(|i| (i * 7) as u8).collect();
        assert_eq!(read(&path), None);
        write(&path, &cubin);
        assert_eq!(read(&path).as_deref(), Some(&cubin[..]));
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(13).chain(0..HEAD) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            assert_eq!(read(&path), None, "byte {at} flipped");
        }
        for length in [0, 1, HEAD - 1, HEAD, HEAD + 1, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read(&path), None, "cut to {length} bytes");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(read(&path), None, "a byte too many");
        write(&path, &cubin);
        assert_eq!(read(&path), Some(cubin));
    }

    #[test]
    fn a_survey_counts_entries_damage_and_drafts() {
        let folder = Folder::new("survey");
        let cache = Cache::at(&folder.0);
        assert_eq!(cache.survey().unwrap(), Survey::default());
        let at = |name: &str| folder.0.join("sm_80").join(name);
        write(&at("a.cubin"), &[1; 100]);
        write(&at("b.cubin"), &[2; 50]);
        fs::write(at("b.cubin"), b"nitrox").unwrap();
        fs::write(at(".1-0.tmp"), b"half").unwrap();
        let bytes = (HEAD + 100 + 6) as u64;
        let survey = Survey { entries: 2, bytes, damaged: vec![at("b.cubin")], drafts: 1 };
        assert_eq!(cache.survey().unwrap(), survey);
        assert_eq!(Cache { folder: None }.survey().unwrap(), Survey::default());
        assert!(Cache::at(at("a.cubin")).survey().is_err());
    }

    #[test]
    fn writers_at_once_leave_a_whole_entry_and_no_drafts() {
        let folder = Folder::new("writers");
        let path = folder.0.join("x.cubin");
        let cubins: Vec<Vec<u8>> = (0..8).map(|i| vec![i; 50_000 + i as usize]).collect();
        std::thread::scope(|scope| {
            for cubin in &cubins {
                scope.spawn(|| {
                    for _ in 0..20 {
                        write(&path, cubin);
                        assert!(read(&path).is_some_and(|c| cubins.contains(&c)));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = Folder::new("file");
        fs::write(&folder.0, "a file where the folder should be").unwrap();
        let path = folder.0.join("sm_80").join("x.cubin");
        write(&path, b"cubin");
        assert_eq!(read(&path), None);
        fs::remove_file(&folder.0).unwrap();
    }
}
