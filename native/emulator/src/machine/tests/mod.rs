//! Small PTX texts, and what they must leave in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arithmetic;
mod faults;
mod tensors;
mod threads;
mod warpgroups;

use super::{Fault, Launch, run};
use crate::memory::Memory;
use crate::ptx;

/// The text of a kernel `k`, to which `body` belongs: `%out` and `%in` point at words, `%t` is the
/// thread, `%at` and `%from` the thread's own 16 bytes of each.
pub fn text(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n\
         .extern .shared .align 16 .b8 dynamic[];\n\
         .visible .entry k(.param .u64 k_out, .param .u64 k_in)\n{{\n\
         .reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<30>;\n.reg .f32 %f<30>;\n\
         .reg .b64 %d<30>;\n.reg .f64 %g<9>;\n.reg .b64 %out, %in, %at, %from;\n.reg .b32 %t;\n\
         ld.param.u64 %out, [k_out];\nld.param.u64 %in, [k_in];\nmov.u32 %t, %tid.x;\n\
         mul.wide.u32 %at, %t, 16;\nadd.s64 %from, %in, %at;\nadd.s64 %at, %out, %at;\n\
         {body}\nret;\n}}\n"
    )
}

/// A launch of one block.
pub fn block(threads: u32) -> Launch {
    Launch {
        blocks: [1; 3],
        threads: [threads, 1, 1],
        cluster: [1; 3],
        shared: 4096,
        cooperative: false,
        params: Vec::new(),
    }
}

/// Runs `body` on words of input; the output has as many words, which start as 0xdddddddd.
pub fn launch(body: &str, mut launch: Launch, input: &[u32]) -> Result<Vec<u32>, Fault> {
    let module = ptx::parse(&text(body)).unwrap();
    // Of 16 bytes, so that vectors are aligned.
    let copy = |words: &[u32]| -> Vec<[u32; 4]> {
        words.chunks(4).map(|c| std::array::from_fn(|i| c.get(i).copied().unwrap_or(0))).collect()
    };
    let mut aligned = vec![0u128; input.len().div_ceil(4)];
    for (to, from) in aligned.iter_mut().zip(copy(input)) {
        *to = from.iter().rev().fold(0, |all, &word| all << 32 | u128::from(word));
    }
    let mut out = vec![0xdddd_dddd_dddd_dddd_dddd_dddd_dddd_ddddu128; aligned.len()];
    let memory = Memory::default();
    let (to, from) = (out.as_mut_ptr() as u64, aligned.as_mut_ptr() as u64);
    memory.insert(to, 16 * out.len() as u64);
    memory.insert(from, 16 * aligned.len() as u64);
    launch.params = [to.to_le_bytes(), from.to_le_bytes()].concat();
    run(&module.kernels["k"], &launch, &memory)?;
    // Read where the kernel wrote, which the compiler does not know of.
    let at = std::hint::black_box(&out);
    Ok(at.iter().flat_map(|w| (0..4).map(move |i| (w >> (32 * i)) as u32)).collect())
}

/// `body` in a thread for each value: `%r0` to `%r2` are the three words of it, and `%r9` what it
/// gives.
pub fn words(body: &str, input: &[[u32; 3]]) -> Vec<u32> {
    let body = format!(
        "ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%from];\n{body}\nst.global.u32 [%at], %r9;"
    );
    let all: Vec<_> = input.iter().flat_map(|&[a, b, c]| [a, b, c, 0]).collect();
    let out = launch(&body, block(input.len() as u32), &all).unwrap();
    out.iter().step_by(4).copied().collect()
}

/// The same with two numbers of 64 bits: `%d0` and `%d1` give `%d9`.
pub fn longs(body: &str, input: &[[u64; 2]]) -> Vec<u64> {
    let body =
        format!("ld.global.v2.u64 {{%d0, %d1}}, [%from];\n{body}\nst.global.u64 [%at], %d9;");
    let all: Vec<_> = input
        .iter()
        .flat_map(|&[a, b]| [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
        .collect();
    let out = launch(&body, block(input.len() as u32), &all).unwrap();
    out.chunks(4).map(|c| u64::from(c[0]) | u64::from(c[1]) << 32).collect()
}

/// Words that are at borders, and others.
pub fn many() -> Vec<[u32; 3]> {
    let edges =
        [0, 1, 2, 31, 32, 33, 0x7f, 0x80, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0x1234_5678];
    let mut all = Vec::new();
    for (i, &a) in edges.iter().enumerate() {
        for (j, &b) in edges.iter().enumerate() {
            all.push([a, b, edges[(i * 5 + j * 3) % edges.len()]]);
        }
    }
    all
}

/// Numbers that are at borders, and others, as bits.
pub fn floats() -> Vec<[u32; 3]> {
    let edges = [
        0.,
        -0.,
        1.,
        -1.,
        0.1,
        -3.7,
        1e-40,
        -1e-45,
        1e38,
        3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_217.,
        1.000_000_1,
        0.5,
        2.5,
        -1.5,
        7e-46,
        1e-20,
    ];
    let mut all = Vec::new();
    for (i, a) in edges.iter().enumerate() {
        for (j, b) in edges.iter().enumerate() {
            let c: f32 = edges[(i * 7 + j * 3) % edges.len()];
            all.push([f32::to_bits(*a), f32::to_bits(*b), c.to_bits()]);
        }
    }
    all
}
