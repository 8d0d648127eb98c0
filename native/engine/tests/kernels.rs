//! Every kernel compiles, on a machine without a GPU.
//!
//! `NITROX_TEST_ARCHS=80,90a` says for which architectures; NVRTC is found as always
//! (`NITROX_NVRTC_PATH`). Without the one or the other the tests are left out, and say so; with
//! `CI=true` a missing NVRTC is a failure where architectures are given.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nitrox_engine::Error;
use nitrox_engine::cuda::cache::{Cache, Origin};
use nitrox_engine::cuda::{Module, Nvrtc, all_modules, compile_all};

fn archs() -> Vec<String> {
    let list = std::env::var("NITROX_TEST_ARCHS").unwrap_or_default();
    list.split(',').map(str::trim).filter(|a| !a.is_empty()).map(|a| format!("sm_{a}")).collect()
}

/// NVRTC for the first architecture asked for, or `None` with the reason printed.
fn nvrtc(test: &str) -> Option<(Arc<Nvrtc>, Vec<String>)> {
    let archs = archs();
    let Some(first) = archs.first() else {
        println!("left out: {test}: NITROX_TEST_ARCHS is not set");
        return None;
    };
    match Nvrtc::find(None, first) {
        Ok(nvrtc) => Some((nvrtc, archs)),
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => panic!("{error}"),
        Err(error) => {
            println!("left out: {test}: {error}");
            None
        }
    }
}

#[test]
fn every_module_compiles() {
    let Some((nvrtc, archs)) = nvrtc("every_module_compiles") else { return };
    println!("{nvrtc:?}");
    for arch in archs {
        assert!(nvrtc.supports(&arch), "{nvrtc:?} does not compile for {arch}");
        let (start, mut slowest, mut failures) = (Instant::now(), Default::default(), Vec::new());
        let result = compile_all(&arch, &nvrtc, |p| {
            slowest = std::cmp::max(&slowest, &(p.took, p.module.to_string())).clone();
            if let Err(error) = p.result {
                failures.push(error.to_string());
            }
        });
        let (count, seconds) = (all_modules().len(), start.elapsed().as_secs_f32());
        println!("{arch}: {count} modules in {seconds:.1} s, the slowest {slowest:?}");
        assert!(count > 0, "no modules");
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
        result.unwrap();
    }
}

#[test]
fn a_kernel_that_does_not_compile_gives_the_log() {
    let Some((nvrtc, archs)) = nvrtc("a_kernel_that_does_not_compile_gives_the_log") else {
        return;
    };
    let module = Module::with_text("test/wrong.cu", "__global__ void f() { undeclared(); }")
        .define("T", "f32");
    match nvrtc.compile(&module, &archs[0]) {
        Err(Error::Compile { kernel, log }) => {
            assert_eq!(kernel, "test/wrong.cu -DT=f32");
            assert!(log.contains("undeclared") && log.contains("test/wrong.cu(1)"), "{log}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deep_expression_does_not_overrun_the_stack() {
    let Some((nvrtc, archs)) = nvrtc("a_deep_expression_does_not_overrun_the_stack") else {
        return;
    };
    let deep = format!("{}x{}", "(".repeat(3000), " + 1)".repeat(3000));
    let text = format!("extern \"C\" __global__ void f(int *y, int x) {{ *y = {deep}; }}");
    let module = Module::with_text("test/deep.cu", text);
    // From a thread with as little stack as one of the VM's dirty schedulers has.
    let small = std::thread::Builder::new().stack_size(320 << 10);
    let result = small.spawn(move || nvrtc.compile(&module, &archs[0])).unwrap().join().unwrap();
    assert!(result.is_ok(), "{result:?}");
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_damaged_cache_entry_is_rebuilt() {
    let Some((nvrtc, archs)) = nvrtc("a_damaged_cache_entry_is_rebuilt") else { return };
    let folder = std::env::temp_dir().join(format!("nitrox-kernels-{}", std::process::id()));
    let folder = Folder(folder);
    let (cache, arch) = (Cache::at(&folder.0), &archs[0]);
    let text = "#include \"common/types.cuh\"\n\
                extern \"C\" __global__ void f(T *y) { *y = from_f32<T>(2.0f); }";
    let module = |dtype| Module::with_text("test/one.cu", text).define("T", dtype);
    let cubin = |m: &Module| cache.cubin(&nvrtc, m, arch).unwrap();

    let (first, origin) = cubin(&module("bf16"));
    assert_eq!(origin, Origin::Compiler);
    assert_eq!(&first[..4], b"\x7fELF");
    assert_eq!(cubin(&module("bf16")), (first.clone(), Origin::Disk));
    // Another definition, text or architecture is another entry.
    assert_eq!(cubin(&module("f16")).1, Origin::Compiler);
    let other = Module::with_text("test/one.cu", format!("{text} ")).define("T", "bf16");
    assert_eq!(cubin(&other).1, Origin::Compiler);
    if let Some(arch) = archs.get(1) {
        assert_eq!(cache.cubin(&nvrtc, &module("bf16"), arch).unwrap().1, Origin::Compiler);
    }

    let path = cache.entry(&nvrtc, &module("bf16"), arch).unwrap().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(cubin(&module("bf16")), (first.clone(), Origin::Compiler));
        assert_eq!(cubin(&module("bf16")), (first.clone(), Origin::Disk));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}
