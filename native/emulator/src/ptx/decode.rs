//! An opcode with its modifiers and operands → what the machine runs. What is not known here is an
//! error: nothing runs as something else.

use super::body::Builder;
use super::instruction::{
    AtomOp, CarryOp, Cmp, FloatOne, FloatOp, Guard, IntOne, IntOp, Mode, Op, Pred, PredOp, Reg,
    Round, Space, Ty,
};
use super::operand::{Modifiers, Operand};
use super::{decode_memory as memory, special};

type Result<T> = std::result::Result<T, String>;

pub const EXACT: Mode = Mode { round: Round::Nearest, ftz: false, sat: false, nan: false };

/// Decodes an instruction and hands it to the builder.
pub fn instruction<'a>(
    b: &mut Builder<'_, 'a, '_>,
    opcode: &'a str,
    operands: &[Operand<'a>],
) -> Result<()> {
    let (head, mut mods) = Modifiers::of(opcode);
    match head {
        "bra" => {
            mods.ignore(&["uni"]);
            match operands {
                [Operand::Name(label)] => b.branch(label),
                _ => return Err("its target".into()),
            }
        }
        "call" => {
            mods.ignore(&["uni"]);
            match operands {
                [Operand::List(r), Operand::Name(f), Operand::List(a)] => b.call(f, r, a)?,
                [Operand::Name(f), Operand::List(a)] => b.call(f, &[], a)?,
                [Operand::Name(f)] => b.call(f, &[], &[])?,
                _ => return Err("the form of the call".into()),
            }
        }
        "ret" => {
            mods.ignore(&["uni"]);
            b.ret();
        }
        "ld" | "ldu" => memory::load(b, &mut mods, operands)?,
        "st" if mods.take("async") => {
            let op = super::decode_wide::store_async(b, &mut mods, operands)?;
            b.emit(op);
        }
        "st" => memory::store(b, &mut mods, operands)?,
        "wgmma" => super::decode_wide::warpgroup(b, &mut mods, operands)?,
        _ => {
            let op = match super::decode_wide::op(b, head, &mut mods, operands)? {
                Some(op) => op,
                None => plain(b, head, &mut mods, operands)?,
            };
            b.emit(op);
        }
    }
    mods.finish()
}

pub fn expect<'o, 'a, const N: usize>(operands: &'o [Operand<'a>]) -> Result<&'o [Operand<'a>; N]> {
    operands.try_into().map_err(|_| format!("{} operands, not {N}", operands.len()))
}

pub fn ty(mods: &mut Modifiers<'_>) -> Result<Ty> {
    mods.find(Ty::of).ok_or_else(|| "it has no type".into())
}

pub fn space(mods: &mut Modifiers<'_>) -> Space {
    mods.one_of(&[
        ("global", Space::Global),
        // Constant memory lies in ordinary memory.
        ("const", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Cluster),
        ("local", Space::Local),
        ("param", Space::Param),
    ])
    .unwrap_or(Space::Generic)
}

fn mode(mods: &mut Modifiers<'_>) -> Mode {
    let round = mods.one_of(&[
        ("rn", Round::Nearest),
        ("rz", Round::Zero),
        ("rm", Round::Down),
        ("rp", Round::Up),
    ]);
    Mode {
        round: round.unwrap_or(Round::Nearest),
        ftz: mods.take("ftz"),
        sat: mods.take("sat"),
        nan: mods.take("NaN"),
    }
}

/// The elements of a vector, or one operand alone.
pub fn elements<'o, 'a>(operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
    match operand {
        Operand::Vector(all) => all,
        one => std::slice::from_ref(one),
    }
}

pub fn vector(mods: &mut Modifiers<'_>) -> usize {
    mods.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
}

pub fn guard<'a>(b: &mut Builder<'_, 'a, '_>, operand: &Operand<'a>) -> Result<Guard> {
    match *operand {
        Operand::Name(name) => Ok(Guard { pred: b.pred(name)?, negated: false }),
        Operand::Not(name) => Ok(Guard { pred: b.pred(name)?, negated: true }),
        Operand::Int(value) => {
            let pred = if value != 0 { Pred::TRUE } else { Pred::FALSE };
            Ok(Guard { pred, negated: false })
        }
        ref other => Err(format!("{other:?} is no predicate")),
    }
}

const FALSE: Guard = Guard { pred: Pred::FALSE, negated: false };

pub fn target_pred<'a>(b: &mut Builder<'_, 'a, '_>, operand: &Operand<'a>) -> Result<Pred> {
    match *operand {
        Operand::Name(name) => b.pred(name),
        ref other => Err(format!("{other:?} is no predicate")),
    }
}

fn plain<'a>(
    b: &mut Builder<'_, 'a, '_>,
    head: &str,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    match head {
        "mov" => return mov(b, mods, operands),
        "setp" => return setp(b, mods, operands),
        "set" => {
            let cmp = cmp(mods)?;
            let (ftz, to, ty) = (mods.take("ftz"), ty(mods)?, ty(mods)?);
            let [d, x, y] = expect(operands)?;
            let (d, x, y) = (b.target(d)?, b.source(x, ty)?, b.source(y, ty)?);
            return Ok(Op::Set { cmp, to, ty, ftz, d, a: x, b: y });
        }
        "selp" => {
            let (ty, [d, x, y, p]) = (ty(mods)?, expect(operands)?);
            let (d, x, y) = (b.target(d)?, b.source(x, ty)?, b.source(y, ty)?);
            return Ok(Op::Selp { d, a: x, b: y, p: guard(b, p)? });
        }
        "slct" => {
            let (_, ty, by, [d, x, y, c]) =
                (mods.take("ftz"), ty(mods)?, ty(mods)?, expect(operands)?);
            let (d, x, y) = (b.target(d)?, b.source(x, ty)?, b.source(y, ty)?);
            return Ok(Op::Slct { ty: by, d, a: x, b: y, c: b.source(c, by)? });
        }
        "cvt" => return cvt(b, mods, operands),
        "cvta" => {
            let (to_space, space, ty) = (mods.take("to"), space(mods), ty(mods)?);
            let [d, x] = expect(operands)?;
            return Ok(Op::Cvta { space, to_space, d: b.target(d)?, a: b.source(x, ty)? });
        }
        "isspacep" => {
            let (space, [d, x]) = (space(mods), expect(operands)?);
            let d = target_pred(b, d)?;
            return Ok(Op::IsSpace { space, d, a: b.source(x, Ty::U64)? });
        }
        _ => {}
    }
    if let Some(op) = carry(b, head, mods, operands)? {
        return Ok(op);
    }
    if head == "mul" || head == "mad" {
        if mods.take("wide") {
            let ty = ty(mods)?.integer();
            let (d, x) = (b.target(&operands[0])?, b.source(&operands[1], ty)?);
            let y = b.source(&operands[2], ty)?;
            if head == "mul" {
                expect::<3>(operands)?;
                return Ok(Op::MulWide { ty, d, a: x, b: y });
            }
            let wide = if ty.bytes() == 4 { Ty::U64 } else { Ty::U32 };
            let [_, _, _, c] = expect(operands)?;
            return Ok(Op::MadWide { ty, d, a: x, b: y, c: b.source(c, wide)? });
        }
        let half = mods.one_of(&[("lo", false), ("hi", true)]);
        if let Some(hi) = half {
            let ty = ty(mods)?.integer();
            let (d, x) = (b.target(&operands[0])?, b.source(&operands[1], ty)?);
            let y = b.source(&operands[2], ty)?;
            if head == "mul" {
                expect::<3>(operands)?;
                let op = if hi { IntOp::MulHi } else { IntOp::Mul };
                return Ok(Op::Int { op, ty, d, a: x, b: y });
            }
            let [_, _, _, c] = expect(operands)?;
            return Ok(Op::Mad { hi, ty, d, a: x, b: y, c: b.source(c, ty)? });
        }
    }
    arithmetic(b, head, mods, operands)
}

/// What has one, two or three operands of one type.
fn arithmetic<'a>(
    b: &mut Builder<'_, 'a, '_>,
    head: &str,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    let shift = head == "bfind" && mods.take("shiftamt");
    let rough = mods.one_of(&[("approx", true), ("full", true)]).is_some();
    let mode = mode(mods);
    let ty = ty(mods)?;
    if ty == Ty::Pred {
        let op = match head {
            "and" => PredOp::And,
            "or" => PredOp::Or,
            "xor" => PredOp::Xor,
            "not" => {
                let [d, x] = expect(operands)?;
                let mut a = guard(b, x)?;
                a.negated = !a.negated;
                return Ok(Op::Pred { op: PredOp::Or, d: target_pred(b, d)?, a, b: FALSE });
            }
            _ => return Err("an unknown instruction".into()),
        };
        let [d, x, y] = expect(operands)?;
        let (x, y) = (guard(b, x)?, guard(b, y)?);
        return Ok(Op::Pred { op, d: target_pred(b, d)?, a: x, b: y });
    }
    let (d, x) = match operands {
        [d, x, ..] => (b.target(d)?, b.source(x, ty)?),
        _ => return Err("its operands".into()),
    };
    let counts = matches!(head, "popc" | "clz" | "bfind");
    if d.is_wide() != (ty.is_wide() && !counts) {
        return Err(format!("{:?} as {ty:?}", operands[0]));
    }
    if let [_, _] = operands {
        return one(head, ty, mode, rough, shift, d, x);
    }
    if ty.is_float() {
        if !matches!(ty, Ty::F32 | Ty::F64) {
            return Err(format!("arithmetic of {ty:?}"));
        }
        let y = b.source(&operands[2], ty)?;
        if head == "fma" || head == "mad" {
            let [_, _, _, c] = expect(operands)?;
            return Ok(Op::Fma { ty, mode, d, a: x, b: y, c: b.source(c, ty)? });
        }
        expect::<3>(operands)?;
        let op = match head {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            "div" => FloatOp::Div,
            "min" => FloatOp::Min,
            "max" => FloatOp::Max,
            // The sign of the first on the second.
            "copysign" => return Ok(Op::Float { op: FloatOp::Copysign, ty, mode, d, a: x, b: y }),
            _ => return Err("an unknown instruction".into()),
        };
        return Ok(Op::Float { op, ty, mode, d, a: x, b: y });
    }
    if mode.sat {
        return Err("the modifier .sat".into());
    }
    let int = ty.integer();
    let third = |b: &mut Builder<'_, 'a, '_>, ty| match operands.get(3) {
        Some(c) => b.source(c, ty),
        None => Err("its operands".to_owned()),
    };
    Ok(match head {
        "sad" => {
            let y = b.source(&operands[2], ty)?;
            Op::Sad { ty: int, d, a: x, b: y, c: third(b, ty)? }
        }
        "bfe" => {
            let y = b.source(&operands[2], Ty::U32)?;
            Op::Extract { ty: int, d, a: x, b: y, c: third(b, Ty::U32)? }
        }
        "bfi" => {
            let [_, _, y, c, e] = expect(operands)?;
            let (y, c, e) = (b.source(y, ty)?, b.source(c, Ty::U32)?, b.source(e, Ty::U32)?);
            Op::Insert { ty: int, d, a: x, b: y, c, e }
        }
        "prmt" => {
            let y = b.source(&operands[2], ty)?;
            Op::Permute { d, a: x, b: y, c: third(b, Ty::U32)? }
        }
        "lop3" => {
            let [_, _, y, c, lut] = expect(operands)?;
            let Operand::Int(lut) = *lut else { return Err("its table".into()) };
            Op::Lop3 { lut: lut as u8, d, a: x, b: b.source(y, ty)?, c: b.source(c, ty)? }
        }
        _ => {
            let [_, _, y] = expect(operands)?;
            let op = int_op(head).ok_or("an unknown instruction")?;
            let shifts = matches!(op, IntOp::Shl | IntOp::Shr);
            let y = b.source(y, if shifts { Ty::U32 } else { ty })?;
            Op::Int { op, ty: int, d, a: x, b: y }
        }
    })
}

fn int_op(head: &str) -> Option<IntOp> {
    Some(match head {
        "add" => IntOp::Add,
        "sub" => IntOp::Sub,
        "div" => IntOp::Div,
        "rem" => IntOp::Rem,
        "min" => IntOp::Min,
        "max" => IntOp::Max,
        "and" => IntOp::And,
        "or" => IntOp::Or,
        "xor" => IntOp::Xor,
        "shl" => IntOp::Shl,
        "shr" => IntOp::Shr,
        _ => return None,
    })
}

fn one(head: &str, ty: Ty, mode: Mode, rough: bool, shift: bool, d: Reg, a: Reg) -> Result<Op> {
    if ty.is_float() && matches!(ty, Ty::F32 | Ty::F64) {
        let gross = rough && mode.ftz && ty == Ty::F64;
        let op = match head {
            "neg" => FloatOne::Neg,
            "abs" => FloatOne::Abs,
            "sqrt" => FloatOne::Sqrt,
            "rcp" if gross => FloatOne::RcpGross,
            "rcp" => FloatOne::Rcp,
            "rsqrt" if gross => FloatOne::RsqrtGross,
            "rsqrt" => FloatOne::Rsqrt,
            "ex2" => FloatOne::Ex2,
            "lg2" => FloatOne::Lg2,
            "sin" => FloatOne::Sin,
            "cos" => FloatOne::Cos,
            "tanh" => FloatOne::Tanh,
            _ => return Err("an unknown instruction".into()),
        };
        if mode.round != Round::Nearest {
            return Err(format!("rounding {:?}", mode.round));
        }
        return Ok(Op::FloatOne { op, ty, mode, d, a });
    }
    if ty.is_float() {
        return Err(format!("arithmetic of {ty:?}"));
    }
    let op = match head {
        "neg" => IntOne::Neg,
        "abs" => IntOne::Abs,
        "not" => IntOne::Not,
        "cnot" => IntOne::Cnot,
        "popc" => IntOne::Popc,
        "clz" => IntOne::Clz,
        "brev" => IntOne::Brev,
        "bfind" => IntOne::Bfind { shift },
        _ => return Err("an unknown instruction".into()),
    };
    Ok(Op::IntOne { op, ty: ty.integer(), d, a })
}

fn carry<'a>(
    b: &mut Builder<'_, 'a, '_>,
    head: &str,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Option<Op>> {
    let takes = matches!(head, "addc" | "subc" | "madc");
    let gives = matches!(head, "add" | "addc" | "sub" | "subc" | "mad" | "madc") && mods.take("cc");
    if !takes && !gives {
        return Ok(None);
    }
    let op = match (&head[..3], mods.one_of(&[("lo", false), ("hi", true)])) {
        ("add", None) => CarryOp::Add,
        ("sub", None) => CarryOp::Sub,
        ("mad", Some(false)) => CarryOp::MadLo,
        ("mad", Some(true)) => CarryOp::MadHi,
        _ => return Err("an unknown instruction".into()),
    };
    let ty = ty(mods)?.integer();
    let [d, x, y, ..] = operands else { return Err("its operands".into()) };
    let (d, x, y) = (b.target(d)?, b.source(x, ty)?, b.source(y, ty)?);
    let c = match operands {
        [_, _, _, c] => b.source(c, ty)?,
        _ => x,
    };
    Ok(Some(Op::Carry { op, takes, gives, ty, d, a: x, b: y, c }))
}

fn cmp(mods: &mut Modifiers<'_>) -> Result<Cmp> {
    let found = mods.one_of(&[
        ("eq", Cmp::Eq),
        ("ne", Cmp::Ne),
        ("lt", Cmp::Lt),
        ("le", Cmp::Le),
        ("gt", Cmp::Gt),
        ("ge", Cmp::Ge),
        ("lo", Cmp::Lt),
        ("ls", Cmp::Le),
        ("hi", Cmp::Gt),
        ("hs", Cmp::Ge),
        ("equ", Cmp::Equ),
        ("neu", Cmp::Neu),
        ("ltu", Cmp::Ltu),
        ("leu", Cmp::Leu),
        ("gtu", Cmp::Gtu),
        ("geu", Cmp::Geu),
        ("num", Cmp::Num),
        ("nan", Cmp::Nan),
    ]);
    found.ok_or_else(|| "it has no comparison".into())
}

fn setp<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    let cmp = cmp(mods)?;
    let join = mods.one_of(&[("and", PredOp::And), ("or", PredOp::Or), ("xor", PredOp::Xor)]);
    let (ftz, ty) = (mods.take("ftz"), ty(mods)?);
    let (with, [d, x, y]) = match (join, operands) {
        (None, operands) => (None, expect(operands)?),
        (Some(op), [first @ .., c]) => (Some((op, guard(b, c)?)), expect(first)?),
        _ => return Err("its operands".into()),
    };
    let (d, q) = match *d {
        Operand::Pair(d, q) => (b.pred(d)?, Some(b.pred(q)?)),
        ref d => (target_pred(b, d)?, None),
    };
    let (x, y) = (b.source(x, ty)?, b.source(y, ty)?);
    let ty = if ty.is_float() { ty } else { ty.integer() };
    if matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2) {
        return Err(format!("comparison of {ty:?}"));
    }
    Ok(Op::Setp { cmp, ty, ftz, d, q, a: x, b: y, with })
}

fn mov<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    let (ty, [to, from]) = (ty(mods)?, expect(operands)?);
    if ty == Ty::Pred {
        let (d, a) = (target_pred(b, to)?, guard(b, from)?);
        return Ok(Op::Pred { op: PredOp::Or, d, a, b: FALSE });
    }
    if let Operand::Name(name) = *from
        && let Some(what) = special::time(name)
    {
        return Ok(Op::Time { what, d: b.target(to)? });
    }
    let part = |count: usize| match ty.bytes() / count {
        2 => Ok(Ty::B16),
        4 => Ok(Ty::B32),
        1 => Ok(Ty::B8),
        _ => Err(format!("{count} parts of {ty:?}")),
    };
    if let Operand::Vector(from) = from {
        let (ty, mut parts) = (part(from.len())?, [Reg::narrow(0); 4]);
        for (part, from) in parts.iter_mut().zip(from) {
            *part = b.source(from, ty)?;
        }
        return Ok(Op::Pack { d: b.target(to)?, parts, count: from.len() as u8 });
    }
    if let Operand::Vector(to) = to {
        let mut parts = [None; 4];
        part(to.len())?;
        for (part, to) in parts.iter_mut().zip(to) {
            *part = match to {
                Operand::Name("_") => None,
                to => Some(b.target(to)?),
            };
        }
        return Ok(Op::Unpack { parts, count: to.len() as u8, a: b.source(from, ty)? });
    }
    let (d, a) = (b.target(to)?, b.source(from, ty)?);
    if d.is_wide() != a.is_wide() {
        return Err("registers of two sizes".into());
    }
    Ok(Op::Mov { d, a })
}

fn cvt<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    let whole = mods.one_of(&[
        ("rni", Round::Nearest),
        ("rzi", Round::Zero),
        ("rmi", Round::Down),
        ("rpi", Round::Up),
    ]);
    let (relu, mut mode) = (mods.take("relu"), mode(mods));
    let (to, from) = (ty(mods)?, ty(mods)?);
    if let Some(round) = whole {
        mode.round = round;
    }
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        let [d, high, low] = expect(operands)?;
        let (d, high, low) = (b.target(d)?, b.source(high, from)?, b.source(low, from)?);
        if from != Ty::F32 || mode.round != Round::Nearest || mode.sat {
            return Err("this conversion to a pair".into());
        }
        return Ok(Op::CvtPair { to, relu, d, a: high, b: low });
    }
    if relu {
        return Err("the modifier .relu".into());
    }
    let [d, x] = expect(operands)?;
    let (d, a) = (b.target(d)?, b.wider(x, from)?);
    Ok(Op::Cvt { to, from, mode, integral: whole.is_some(), d, a })
}

pub fn atom_op(mods: &mut Modifiers<'_>) -> Option<AtomOp> {
    mods.one_of(&[
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
        ("exch", AtomOp::Exch),
        ("cas", AtomOp::Cas),
    ])
}
