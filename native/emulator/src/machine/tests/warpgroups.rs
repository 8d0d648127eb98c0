//! Products of a warpgroup, of which one operand is in shared memory.

use super::tensors::{brains, halves, number};
use super::{block, launch, text};
use crate::machine::{Fault, FaultKind, Launch};
use crate::ptx;

const THREADS: u32 = 256;

/// What describes a matrix in shared memory: bytes from its start to the next eight along k, and to
/// the next eight columns.
#[derive(Clone, Copy)]
struct Layout {
    leading: usize,
    stride: usize,
}

/// Runs d = a · b + c, without `add` d = a · b, in two warpgroups: each has its own a {64, 16},
/// b {16, n} and c {64, n}, as the PTX manual spreads them over its threads.
fn check(types: &str, n: usize, pack: fn(&[f32]) -> u32, layout: Layout, add: bool) {
    let at = |group: usize, i: usize| number(i + 5000 * group);
    let a = |group: usize, row: usize, k: usize| at(group, row * 16 + k);
    let b = |group: usize, k: usize, column: usize| at(group, k * n + column + 1000);
    let c = |group: usize, row: usize, column: usize| at(group, row * n + column + 2000);
    // Of a thread: four registers of a, then those of c.
    let words = 4 + n / 2;
    let mut input = Vec::new();
    let place = |t: usize, r: usize| {
        let (row, column) = (t / 32 % 4 * 16 + t % 32 / 4, t % 4 * 2);
        (t / 128, row + r / 2 % 2 * 8, column + r / 4 * 8 + r % 2)
    };
    for t in 0..THREADS as usize {
        let (group, row, k) = place(t, 0);
        for r in 0..4 {
            let (row, k) = (row + r % 2 * 8, k + r / 2 * 8);
            input.push(pack(&[a(group, row, k), a(group, row, k + 1)]));
        }
        for r in 0..n / 2 {
            let (group, row, column) = place(t, r);
            let c = if add { c(group, row, column) } else { f32::NAN };
            input.push(c.to_bits());
        }
    }
    // Both b as they lie in shared memory, where nothing else is a number.
    let size = (layout.leading + n / 8 * layout.stride).max(n / 8 * layout.stride + 128);
    let size = size.next_multiple_of(16 * THREADS as usize);
    let matrices = input.len() * 4;
    for group in 0..2 {
        let mut image = vec![u32::MAX; size / 4];
        for (k, column) in (0..8).flat_map(|k| (0..n).map(move |column| (2 * k, column))) {
            let to = k / 8 * layout.leading + column / 8 * layout.stride + column % 8 * 16;
            image[(to + k % 8 * 2) / 4] = pack(&[b(group, k, column), b(group, k + 1, column)]);
        }
        input.extend(image);
    }
    let list = |name: &str, count: usize| {
        let all: Vec<_> = (0..count).map(|i| format!("%{name}{i}")).collect();
        format!("{{{}}}", all.join(", "))
    };
    let mut body = format!(
        ".reg .f32 %s<{}>;\nmul.wide.u32 %d0, %t, {};\nadd.s64 %d1, %d0, %in;\nadd.s64 %d0, %d0, %out;\n\
         ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%d1];\nmov.u32 %r4, dynamic;\nshl.b32 %r5, %t, 4;\n\
         add.u32 %r5, %r4, %r5;\n",
        n / 2,
        4 * words
    );
    for i in 0..n / 2 {
        body += &format!("ld.global.f32 %s{i}, [%d1+{}];\n", 16 + 4 * i);
    }
    for i in (0..2 * size).step_by(16 * THREADS as usize) {
        let from = matrices + i;
        body += &format!(
            "ld.global.v4.u32 {{%r6, %r7, %r8, %r9}}, [%from+{from}];\n\
             st.shared.v4.u32 [%r5+{i}], {{%r6, %r7, %r8, %r9}};\n"
        );
    }
    let offsets = (layout.leading as u64) >> 4 << 16 | (layout.stride as u64) >> 4 << 32;
    body += &format!(
        "shr.u32 %r6, %t, 7;\nmad.lo.u32 %r6, %r6, {size}, %r4;\nshr.u32 %r6, %r6, 4;\n\
         cvt.u64.u32 %d2, %r6;\nor.b64 %d2, %d2, {offsets};\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\nwgmma.fence.sync.aligned;\n\
         {{\n.reg .pred p;\nsetp.ne.b32 p, {}, 0;\n\
         wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{types} {}, {}, %d2, p, 1, 1, 0;\n}}\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        u32::from(add),
        list("s", n / 2),
        list("r", 4)
    );
    for i in 0..n / 2 {
        body += &format!("st.global.f32 [%d0+{}], %s{i};\n", 4 * i);
    }
    let sizes = Launch { shared: 2 * size as u32, ..block(THREADS) };
    let out = launch(&body, sizes, &input).unwrap();
    for (t, got) in out.chunks(words).enumerate().take(THREADS as usize) {
        for (r, &got) in got.iter().enumerate().take(n / 2) {
            let (group, row, column) = place(t, r);
            let start = if add { c(group, row, column) } else { 0. };
            let products = (0..16).map(|k| a(group, row, k) * b(group, k, column));
            let want = products.fold(start, |sum, product| sum + product);
            let got = f32::from_bits(got);
            assert_eq!(got, want, "{types} of {n} columns, element {row}, {column} of {group}");
        }
    }
}

#[test]
fn products_of_a_warpgroup() {
    for n in [8, 16, 32, 256] {
        // Eights along k behind all columns, as they come, and in between with nothing between others.
        let apart = Layout { leading: n * 16, stride: 128 };
        for layout in [apart, Layout { leading: 144, stride: 304 }] {
            for add in [true, false] {
                check("f16.f16", n, halves, layout, add);
                check("bf16.bf16", n, brains, layout, add);
            }
        }
    }
    check("bf16.bf16", 24, brains, Layout { leading: 128, stride: 256 }, true);
}

/// A product of 16 columns of zeros by `threads` threads: `before` and `after` it other things, with
/// `%d0` the descriptor and `%r0` where the columns are.
fn run(before: &str, after: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    let body = format!(
        "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 2;\nadd.u32 %r1, %r0, %r1;\nst.shared.u32 [%r1], 0;\n\
         mov.u32 %r2, 0;\nshr.u32 %r3, %r0, 4;\ncvt.u64.u32 %d0, %r3;\n\
         or.b64 %d0, %d0, 0x800100000;\nsetp.eq.u32 %p1, %t, %t;\n{before}\n\
         wgmma.fence.sync.aligned;\n\
         wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 \
         {{%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}}, {{%r2, %r2, %r2, %r2}}, %d0, %p1, 1, 1, 0;\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n{after}"
    );
    launch(&body, block(threads), &vec![0; 4 * threads as usize])
}

#[test]
fn columns_are_read_by_every_warp() {
    let (meet, write) = ("bar.sync 0;", "st.shared.u32 [%r1], 1;");
    assert!(run(meet, "bar.sync 0;\nst.shared.u32 [%r1], 1;", 128).is_ok());
    // What others wrote, and what others read, with no barrier between.
    for (before, after) in [("", ""), ("bar.warp.sync -1;", ""), (meet, write)] {
        assert_eq!(run(before, after, 128).unwrap_err().kind, FaultKind::Race, "{before} {after}");
    }
    // Of the second eight columns, the second eight along k.
    let last = "setp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [%r0+508], 1;";
    assert_eq!(run(meet, last, 128).unwrap_err().kind, FaultKind::Race);
    let behind = "setp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [%r0+512], 1;";
    assert!(run(meet, behind, 128).is_ok());
}

#[test]
fn descriptors_and_warpgroups_that_cannot_be() {
    for (before, threads, kind, named) in [
        ("or.b64 %d0, %d0, 0x4000000000000000;", 128, FaultKind::Instruction, "swizzle mode 1"),
        ("or.b64 %d0, %d0, 0x2000000000000;", 128, FaultKind::Instruction, "not known"),
        ("cvt.u64.u32 %d1, %t;\nadd.s64 %d0, %d0, %d1;", 128, FaultKind::Instruction, "lane 0"),
        ("setp.ne.u32 %p1, %t, 40;", 128, FaultKind::Instruction, "adds in some lanes"),
        ("add.s64 %d0, %d0, 0xf8;", 128, FaultKind::Address, "4096"),
        ("", 96, FaultKind::Instruction, "of 96 threads"),
    ] {
        let fault = run(&format!("{before}\nbar.sync 0;"), "", threads).unwrap_err();
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.message.contains(named), "{fault}");
    }
}

#[test]
fn forms_that_are_not_known() {
    let product = |form: &str, operands: &str| {
        let body =
            format!("wgmma.mma_async.sync.aligned.{form} {{%f0, %f1, %f2, %f3}}, {operands};");
        ptx::parse(&text(&body))
    };
    let (form, a) = ("m64n8k16.f32.f16.f16", "{%r0, %r1, %r2, %r3}");
    assert!(product(form, &format!("{a}, %d0, %p1, 1, 1, 0")).is_ok());
    for (form, operands, named) in [
        (form, "%d1, %d0, %p1, 1, 1, 0, 0".to_owned(), "left operand"),
        (form, format!("{a}, %d0, %p1, 1, -1, 0"), "negated"),
        (form, format!("{a}, %d0, %p1, 1, 1, 1"), "transposed"),
        (form, format!("{a}, %d0, %p1, 1, 1"), "6 operands"),
        ("m64n16k16.f32.f16.f16", format!("{a}, %d0, %p1, 1, 1, 0"), "registers"),
        ("m64n12k16.f32.f16.f16", format!("{a}, %d0, %p1, 1, 1, 0"), "shape"),
        ("m64n8k8.f32.tf32.tf32", format!("{a}, %d0, %p1, 1, 1, 0"), "shape"),
        ("m64n8k16.f16.f16.f16", format!("{a}, %d0, %p1, 1, 1, 0"), "type"),
        ("m64n8k16.f32.f16.bf16", format!("{a}, %d0, %p1, 1, 1, 0"), "type"),
    ] {
        let error = product(form, &operands).unwrap_err();
        assert!(error.contains("wgmma") && error.contains(named), "{error}");
    }
}
