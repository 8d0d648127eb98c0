use half::{bf16, f16};

use super::{block, launch};

/// Small whole numbers, so that every sum is exact.
pub fn number(i: usize) -> f32 {
    ((i * 37 + i / 7 * 11) % 23) as f32 - 11.
}

/// a {16, k} · b {k, 8} + c {16, 8}
fn product(a: &[f32], b: &[f32], c: &[f32], k: usize) -> Vec<f32> {
    let sum = |i: usize| (0..k).fold(c[i], |sum, j| sum + a[i / 8 * k + j] * b[j * 8 + i % 8]);
    (0..128).map(sum).collect()
}

/// Runs a product whose fragments each lane takes from rows of matrices in memory, as the PTX manual
/// has them: groupID = lane / 4, threadID_in_group = lane % 4.
fn check(shape: &str, types: &str, k: usize, pack: impl Fn(&[f32]) -> u32, per: usize) {
    let a: Vec<_> = (0..16 * k).map(number).collect();
    let b: Vec<_> = (0..8 * k).map(|i| number(i + 1000)).collect();
    let c: Vec<_> = (0..128).map(|i| number(i + 2000)).collect();
    let (ra, rb) = (k / per / 2, k / per / 4);
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        for r in 0..ra {
            let (row, column) = (group + 8 * (r % 2), thread * per + r / 2 * 4 * per);
            input.push(pack(&a[row * k + column..][..per]));
        }
        for r in 0..rb {
            let row = thread * per + r * 4 * per;
            let down: Vec<_> = (0..per).map(|i| b[(row + i) * 8 + group]).collect();
            input.push(pack(&down));
        }
        for r in 0..4 {
            input.push(c[(group + r / 2 * 8) * 8 + thread * 2 + r % 2].to_bits());
        }
    }
    let words = ra + rb + 4;
    let list = |from: usize, count: usize, name: &str| {
        let all: Vec<_> = (from..from + count).map(|i| format!("%{name}{i}")).collect();
        format!("{{{}}}", all.join(", "))
    };
    let mut body = format!("mul.wide.u32 %d0, %t, {};\nadd.s64 %d0, %d0, %in;\n", 4 * words);
    for i in 0..ra + rb {
        body += &format!("ld.global.b32 %r{i}, [%d0+{}];\n", 4 * i);
    }
    for i in 0..4 {
        body += &format!("ld.global.f32 %f{i}, [%d0+{}];\n", 4 * (ra + rb + i));
    }
    let (a_list, b_list) = (list(0, ra, "r"), list(ra, rb, "r"));
    let (c_list, d_list) = (list(0, 4, "f"), list(4, 4, "f"));
    body += &format!(
        "mma.sync.aligned.{shape}.row.col.f32.{types}.f32 {d_list}, {a_list}, {b_list}, {c_list};\n\
         st.global.v4.f32 [%at], {d_list};"
    );
    let out = launch(&body, block(32), &input).unwrap();
    let want = product(&a, &b, &c, k);
    for (lane, words) in out.chunks(4).enumerate().take(32) {
        for (r, &word) in words.iter().enumerate() {
            let at = (lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2;
            assert_eq!(f32::from_bits(word), want[at], "{shape} {types}, element {at}");
        }
    }
}

/// Two numbers in a register.
pub fn halves(x: &[f32]) -> u32 {
    u32::from(f16::from_f32(x[0]).to_bits()) | u32::from(f16::from_f32(x[1]).to_bits()) << 16
}

pub fn brains(x: &[f32]) -> u32 {
    u32::from(bf16::from_f32(x[0]).to_bits()) | u32::from(bf16::from_f32(x[1]).to_bits()) << 16
}

#[test]
fn products() {
    check("m16n8k16", "f16.f16", 16, halves, 2);
    check("m16n8k16", "bf16.bf16", 16, brains, 2);
    check("m16n8k8", "f16.f16", 8, halves, 2);
    check("m16n8k8", "bf16.bf16", 8, brains, 2);
    // What lies below the ten bits of a TF32 is not seen.
    check("m16n8k8", "tf32.tf32", 8, |x| x[0].to_bits() | 0x1fff, 1);
    check("m16n8k4", "tf32.tf32", 4, |x| x[0].to_bits() | 0x1000, 1);
}

#[test]
fn every_f16_is_the_same_in_a_product() {
    for bits in 0..=u16::MAX {
        let (got, want) = (crate::machine::tensor::half(bits), f16::from_bits(bits).to_f32());
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
    }
}

#[test]
fn matrices_are_loaded_and_stored() {
    // 16-bit numbers in rows of 8; the lanes of each eight name the rows of a matrix.
    let fill = "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 4;\nadd.u32 %r1, %r0, %r1;\n\
        ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%from];\nst.shared.v4.u32 [%r1], {%r2, %r3, %r4, %r5};\n\
        bar.sync 0;\n";
    let input: Vec<u32> = (0..128).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
    let run = |how: &str| {
        let body = format!(
            "{fill}ldmatrix.sync.aligned.m8n8.x4.{how}shared.b16 {{%r6, %r7, %r8, %r9}}, [%r1];\n\
             st.global.v4.u32 [%at], {{%r6, %r7, %r8, %r9}};"
        );
        launch(&body, block(32), &input).unwrap()
    };
    let (plain, turned) = (run(""), run("trans."));
    for lane in 0..32u32 {
        for i in 0..4 {
            let at = (lane * 4 + i) as usize;
            let (row, column) = (lane / 4, lane % 4 * 2);
            let first = i * 64 + row * 8 + column;
            assert_eq!(plain[at], first | (first + 1) << 16);
            let first = i * 64 + column * 8 + row;
            assert_eq!(turned[at], first | (first + 8) << 16);
        }
    }
    let body = format!(
        "{fill}ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r1];\nbar.sync 0;\n\
         movmatrix.sync.aligned.m8n8.trans.b16 %r9, %r9;\n\
         stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {{%r7, %r6, %r8, %r9}};\nbar.sync 0;\n\
         ld.shared.v4.u32 {{%r2, %r3, %r4, %r5}}, [%r1];\nst.global.v4.u32 [%at], {{%r2, %r3, %r4, %r5}};"
    );
    let out = launch(&body, block(32), &input).unwrap();
    assert_eq!(out[..32], input[32..64]);
    assert_eq!(out[32..64], input[..32]);
    assert_eq!(out[64..96], input[64..96]);
    assert_eq!(out[96] & 0xffff, 192);
    assert_eq!(out[96] >> 16, 200);
}
