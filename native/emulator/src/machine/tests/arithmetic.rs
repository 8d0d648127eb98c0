use half::{bf16, f16};

use super::{floats, longs, many, words};

/// Compares what an instruction gives with what Rust gives.
fn check(body: &str, f: impl Fn(u32, u32, u32) -> u32) {
    let input = many();
    for (input, got) in input.iter().zip(words(body, &input)) {
        let [a, b, c] = *input;
        assert_eq!(got, f(a, b, c), "{body} of {a:#x} {b:#x} {c:#x}");
    }
}

fn check_float(body: &str, f: impl Fn(f32, f32, f32) -> f32) {
    let body = format!(
        "mov.b32 %f0, %r0;\nmov.b32 %f1, %r1;\nmov.b32 %f2, %r2;\n{body}\nmov.b32 %r9, %f9;"
    );
    let input = floats();
    for (input, got) in input.iter().zip(words(&body, &input)) {
        let [a, b, c] = input.map(f32::from_bits);
        let (got, want) = (f32::from_bits(got), f(a, b, c));
        match want.is_nan() {
            true => assert_eq!(got.to_bits(), 0x7fff_ffff, "{body} of {a:e} {b:e} {c:e}"),
            false => assert_eq!(got.to_bits(), want.to_bits(), "{body} of {a:e} {b:e} {c:e}"),
        }
    }
}

#[test]
fn integers() {
    check("add.s32 %r9, %r0, %r1;", |a, b, _| a.wrapping_add(b));
    check("sub.s32 %r9, %r0, %r1;", |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s32 %r9, %r0, %r1;", |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u32 %r9, %r0, %r1;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check("mul.hi.s32 %r9, %r0, %r1;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    check("mad.lo.s32 %r9, %r0, %r1, %r2;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check("mad.lo.u32 %r9, %r0, 3, -1;", |a, _, _| a.wrapping_mul(3).wrapping_sub(1));
    check("div.u32 %r9, %r0, %r1;", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    check(
        "@!%p0 bra go;\ngo: setp.eq.s32 %p1, %r1, 0;\n@%p1 mov.u32 %r9, 7;\n@%p1 bra end;\nrem.s32 %r9, %r0, %r1;\nend:",
        |a, b, _| {
            if b == 0 { 7 } else { (a as i32).wrapping_rem(b as i32) as u32 }
        },
    );
    check("min.s32 %r9, %r0, %r1;", |a, b, _| (a as i32).min(b as i32) as u32);
    check("max.u32 %r9, %r0, %r1;", |a, b, _| a.max(b));
    check("abs.s32 %r9, %r0;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check("neg.s32 %r9, %r0;", |a, _, _| a.wrapping_neg());
    check("sad.u32 %r9, %r0, %r1, %r2;", |a, b, c| a.abs_diff(b).wrapping_add(c));
}

#[test]
fn bits() {
    check("and.b32 %r9, %r0, %r1;", |a, b, _| a & b);
    check("xor.b32 %r9, %r0, %r1;", |a, b, _| a ^ b);
    check("not.b32 %r9, %r0;", |a, _, _| !a);
    check("cnot.b32 %r9, %r0;", |a, _, _| u32::from(a == 0));
    check("shl.b32 %r9, %r0, %r1;", |a, b, _| if b < 32 { a << b } else { 0 });
    check("shr.u32 %r9, %r0, %r1;", |a, b, _| if b < 32 { a >> b } else { 0 });
    check("shr.s32 %r9, %r0, %r1;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    check("popc.b32 %r9, %r0;", |a, _, _| a.count_ones());
    check("clz.b32 %r9, %r0;", |a, _, _| a.leading_zeros());
    check("brev.b32 %r9, %r0;", |a, _, _| a.reverse_bits());
    check("bfind.u32 %r9, %r0;", |a, _, _| a.checked_ilog2().unwrap_or(u32::MAX));
    check(
        "bfind.shiftamt.u32 %r9, %r0;",
        |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() },
    );
    check("bfe.u32 %r9, %r0, 4, 9;", |a, _, _| a >> 4 & 0x1ff);
    check("bfe.s32 %r9, %r0, 4, 9;", |a, _, _| ((a << 19) as i32 >> 23) as u32);
    check("bfe.s32 %r9, %r0, 28, 9;", |a, _, _| ((a as i32) >> 28) as u32);
    check("bfi.b32 %r9, %r0, %r1, 8, 8;", |a, b, _| b & !0xff00 | (a & 0xff) << 8);
    check("shf.l.wrap.b32 %r9, %r0, %r1, %r2;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    });
    check("shf.r.clamp.b32 %r9, %r0, %r1, %r2;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    });
    check("prmt.b32 %r9, %r0, %r1, 0x5410;", |a, b, _| a & 0xffff | b << 16);
    check("prmt.b32 %r9, %r0, %r1, 0x3bf0;", |a, b, _| {
        let sign = |byte: u32| if byte & 0x80 != 0 { 0xff } else { 0 };
        a & 0xff | sign(b >> 24) << 8 | sign(a >> 24) << 16 | (a >> 24) << 24
    });
    check("lop3.b32 %r9, %r0, %r1, %r2, 0x96;", |a, b, c| a ^ b ^ c);
    check("lop3.b32 %r9, %r0, %r1, %r2, 0xe4;", |a, b, c| (a & c) | (b & !c));
}

#[test]
fn sixteen_bits_and_pairs() {
    let get = "cvt.u16.u32 %h0, %r0;\ncvt.u16.u32 %h1, %r1;\n";
    check(&format!("{get}add.s16 %h2, %h0, %h1;\ncvt.u32.u16 %r9, %h2;"), |a, b, _| {
        (a as u16).wrapping_add(b as u16).into()
    });
    check(&format!("{get}shr.u16 %h2, %h0, 3;\ncvt.s32.s16 %r9, %h2;"), |a, _, _| {
        ((a as u16 >> 3) as i16) as u32
    });
    check(&format!("{get}setp.lt.s16 %p1, %h0, %h1;\nselp.u32 %r9, 1, 0, %p1;"), |a, b, _| {
        u32::from((a as i16) < b as i16)
    });
    check(&format!("{get}mov.b32 %r9, {{%h1, %h0}};"), |a, b, _| b & 0xffff | a << 16);
    check("mov.b32 {%h0, %h1}, %r0;\ncvt.u32.u16 %r9, %h1;", |a, _, _| a >> 16);
    check(&format!("{get}mul.wide.u16 %r9, %h0, %h1;"), |a, b, _| (a & 0xffff) * (b & 0xffff));
    check("cvt.s32.s8 %r9, %r0;", |a, _, _| a as i8 as u32);
    check("mov.b64 %d0, {%r0, %r1};\nshr.u64 %d1, %d0, 16;\nmov.b64 {%r9, _}, %d1;", |a, b, _| {
        (a >> 16) | (b << 16)
    });
}

#[test]
fn sixty_four_bits_and_carries() {
    let input: Vec<_> = many()
        .iter()
        .map(|&[a, b, c]| [u64::from(a) << 32 | u64::from(c), u64::from(b) << 30 | 5])
        .collect();
    let check = |body: &str, f: &dyn Fn(u64, u64) -> u64| {
        for (&[a, b], got) in input.iter().zip(longs(body, &input)) {
            assert_eq!(got, f(a, b), "{body} of {a:#x} {b:#x}");
        }
    };
    check("mul.lo.s64 %d9, %d0, %d1;", &|a, b| a.wrapping_mul(b));
    check("mul.hi.u64 %d9, %d0, %d1;", &|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("div.s64 %d9, %d0, %d1;", &|a, b| (a as i64).wrapping_div(b as i64) as u64);
    check("clz.b64 %r1, %d0;\ncvt.u64.u32 %d9, %r1;", &|a, _| a.leading_zeros().into());
    check("cvt.s64.s32 %d9, 0xffffffff;", &|_, _| u64::MAX);
    check("cvt.s64.s8 %d9, %d0;", &|a, _| a as i8 as u64);
    check("bfi.b64 %d9, %d1, %d0, 40, 10;", &|a, b| a & !(0x3ff << 40) | (b & 0x3ff) << 40);
    let halves = "mov.b64 {%r0, %r1}, %d0;\nmov.b64 {%r2, %r3}, %d1;\n";
    check(
        &format!(
            "{halves}add.cc.u32 %r4, %r0, %r2;\naddc.u32 %r5, %r1, %r3;\nmov.b64 %d9, {{%r4, %r5}};"
        ),
        &|a, b| a.wrapping_add(b),
    );
    check(
        &format!(
            "{halves}sub.cc.u32 %r4, %r0, %r2;\nsubc.u32 %r5, %r1, %r3;\nmov.b64 %d9, {{%r4, %r5}};"
        ),
        &|a, b| a.wrapping_sub(b),
    );
    check(
        &format!(
            "{halves}mad.lo.cc.u32 %r4, %r0, %r2, %r0;\nmadc.hi.u32 %r5, %r0, %r2, %r1;\nmov.b64 %d9, {{%r4, %r5}};"
        ),
        &|a, b| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(a),
    );
}

#[test]
fn floating_point() {
    check_float("add.f32 %f9, %f0, %f1;", |a, b, _| a + b);
    check_float("sub.f32 %f9, %f0, %f1;", |a, b, _| a - b);
    check_float("mul.f32 %f9, %f0, %f1;", |a, b, _| a * b);
    check_float("fma.rn.f32 %f9, %f0, %f1, %f2;", f32::mul_add);
    check_float("div.rn.f32 %f9, %f0, %f1;", |a, b, _| a / b);
    check_float("sqrt.rn.f32 %f9, %f0;", |a, _, _| a.sqrt());
    check_float("rcp.rn.f32 %f9, %f0;", |a, _, _| 1. / a);
    check_float("max.f32 %f9, %f0, 0f40000000;", |a, _, _| a.max(2.));
    check_float("cvt.sat.f32.f32 %f9, %f0;", |a, _, _| if a > 0. { a.min(1.) } else { 0. });
    check_float("cvt.rni.f32.f32 %f9, %f0;", |a, _, _| a.round_ties_even());
    check_float("cvt.rmi.f32.f32 %f9, %f0;", |a, _, _| a.floor());
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    check_float("mul.ftz.f32 %f9, %f0, %f1;", |a, b, _| flush(flush(a) * flush(b)));
    check_float("rcp.approx.ftz.f32 %f9, %f0;", |a, _, _| flush(1. / flush(a)));
    check_float("fma.rn.sat.f32 %f9, %f0, %f1, %f2;", |a, b, c| {
        let x = a.mul_add(b, c);
        if x > 0. { x.min(1.) } else { 0. }
    });
}

#[test]
fn rounding_the_other_ways() {
    // What lies between two f32: 1 + 2⁻³⁰ and its negative.
    let input =
        [[1f32, 2f32.powi(-30)], [-1., -(2f32.powi(-30))], [1., -(2f32.powi(-30))], [0.1, 0.2]];
    let input: Vec<_> = input.iter().map(|i| [i[0].to_bits(), i[1].to_bits(), 0]).collect();
    let run = |op: &str| -> Vec<f32> {
        let body = format!("mov.b32 %f0, %r0;\nmov.b32 %f1, %r1;\n{op}\nmov.b32 %r9, %f9;");
        words(&body, &input).into_iter().map(f32::from_bits).collect()
    };
    let one = 1f32;
    assert_eq!(run("add.rz.f32 %f9, %f0, %f1;")[..3], [one, -one, one.next_down()]);
    assert_eq!(run("add.rm.f32 %f9, %f0, %f1;")[..3], [one, -one.next_up(), one.next_down()]);
    assert_eq!(run("add.rp.f32 %f9, %f0, %f1;")[..3], [one.next_up(), -one, one]);
    assert_eq!(run("fma.rz.f32 %f9, %f0, %f0, %f1;")[..3], [one, one.next_down(), one.next_down()]);
    let exact = f64::from(0.1f32) + f64::from(0.2f32);
    let (down, up) = (run("add.rm.f32 %f9, %f0, %f1;")[3], run("add.rp.f32 %f9, %f0, %f1;")[3]);
    assert!(f64::from(down) <= exact && f64::from(up) >= exact && up <= down.next_up());
    let big = [[0x0100_0001, 0, 0], [0xfeff_ffff, 0, 0]];
    let got = words("cvt.rz.f32.s32 %f0, %r0;\nmov.b32 %r9, %f0;", &big);
    assert_eq!(got, [16_777_216f32.to_bits(), (-16_777_216f32).to_bits()]);
}

#[test]
fn comparisons() {
    for (name, f) in [
        ("lt", (|a, b| a < b) as fn(f32, f32) -> bool),
        ("eq", |a, b| a == b),
        ("ne", |a, b| a.partial_cmp(&b).is_some_and(|order| order.is_ne())),
        ("neu", |a, b| a != b),
        ("geu", |a, b| a >= b || a.partial_cmp(&b).is_none()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ] {
        let body = format!(
            "mov.b32 %f0, %r0;\nmov.b32 %f1, %r1;\nsetp.{name}.f32 %p1, %f0, %f1;\nselp.u32 %r9, 1, 0, %p1;"
        );
        let input = floats();
        for (input, got) in input.iter().zip(words(&body, &input)) {
            let [a, b, _] = input.map(f32::from_bits);
            assert_eq!(got, u32::from(f(a, b)), "{name} of {a:e} {b:e}");
        }
    }
    check(
        "setp.gt.s32 %p1, %r0, %r1;\nsetp.lt.and.u32 %p2|%p3, %r0, %r2, %p1;\nselp.u32 %r9, 1, 0, %p2;\n@%p3 add.u32 %r9, %r9, 2;",
        |a, b, c| {
            let p = (a as i32) > b as i32;
            u32::from(p && a < c) + 2 * u32::from(p && a >= c)
        },
    );
}

#[test]
fn conversions() {
    let float = |body: &str, f: fn(f32) -> u32| {
        let body = format!("mov.b32 %f0, %r0;\n{body}");
        let input = floats();
        for (input, got) in input.iter().zip(words(&body, &input)) {
            let x = f32::from_bits(input[0]);
            assert_eq!(got, f(x), "{body} of {x:e}");
        }
    };
    float("cvt.rzi.s32.f32 %r9, %f0;", |x| x as i32 as u32);
    float("cvt.rni.s32.f32 %r9, %f0;", |x| x.round_ties_even() as i32 as u32);
    float("cvt.rzi.u32.f32 %r9, %f0;", |x| x as u32);
    float("cvt.rzi.u64.f32 %d0, %f0;\nshr.u64 %d0, %d0, 32;\ncvt.u32.u64 %r9, %d0;", |x| {
        (x as u64 >> 32) as u32
    });
    float("cvt.rn.f16.f32 %h0, %f0;\ncvt.u32.u16 %r9, %h0;", |x| match x.is_nan() {
        true => 0x7fff,
        false => f16::from_f32(x).to_bits().into(),
    });
    float("cvt.rn.bf16x2.f32 %r9, %f0, 0f3F800000;", |x| match x.is_nan() {
        true => 0x7fff_3f80,
        false => u32::from(bf16::from_f32(x).to_bits()) << 16 | 0x3f80,
    });
    float(
        "cvt.f64.f32 %g0, %f0;\nmul.f64 %g0, %g0, 0d3FD5555555555555;\ncvt.rn.f32.f64 %f1, %g0;\nmov.b32 %r9, %f1;",
        |x| {
            let y = (f64::from(x) * f64::from_bits(0x3fd5_5555_5555_5555)) as f32;
            if y.is_nan() { 0x7fff_ffff } else { y.to_bits() }
        },
    );
    check("cvt.rn.f32.s32 %f0, %r0;\nmov.b32 %r9, %f0;", |a, _, _| (a as i32 as f32).to_bits());
    check("cvt.rn.f32.u32 %f0, %r0;\nmov.b32 %r9, %f0;", |a, _, _| (a as f32).to_bits());
    check("cvt.u16.u32 %h0, %r0;\ncvt.f32.f16 %f0, %h0;\nmov.b32 %r9, %f0;", |a, _, _| {
        f16::from_bits(a as u16).to_f32().to_bits()
    });
}

#[test]
fn functions_are_as_close_as_f32_can_be() {
    let input: Vec<_> = (0..400).map(|i| [(i as f32 * 0.37 - 70.).to_bits(), 0, 0]).collect();
    for (name, f) in [
        ("ex2.approx.ftz", f64::exp2 as fn(f64) -> f64),
        ("lg2.approx.ftz", f64::log2),
        ("tanh.approx", f64::tanh),
        ("sin.approx", f64::sin),
        ("rsqrt.approx", |x| 1. / x.sqrt()),
    ] {
        let body = format!("mov.b32 %f0, %r0;\n{name}.f32 %f1, %f0;\nmov.b32 %r9, %f1;");
        for (input, got) in input.iter().zip(words(&body, &input)) {
            let (x, got) = (f32::from_bits(input[0]), f32::from_bits(got));
            let want = f(f64::from(x)) as f32;
            assert!(
                got == want.next_up()
                    || got == want.next_down()
                    || got == want
                    || want.is_nan() && got.is_nan(),
                "{name} of {x}: {got:e}, not {want:e}"
            );
        }
    }
}
