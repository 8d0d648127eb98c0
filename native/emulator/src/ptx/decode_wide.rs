//! Decoding of what goes beyond a thread's own registers: atomics, copies, collectives, barriers,
//! clusters and tensor cores.

use super::body::Builder;
use super::decode::{atom_op, elements, expect, guard, space, target_pred, ty, vector};
use super::instruction::{Address, Op, Product, Reg, Shuffle, Ty, Vote};
use super::operand::{Modifiers, Operand};

type Result<T> = std::result::Result<T, String>;

/// How others see it, which is one and the same here.
const ORDER: &[&str] =
    &["relaxed", "acquire", "release", "acq_rel", "sc", "gpu", "cta", "sys", "cluster", "volatile"];

/// `None` where the opcode is none of these.
pub fn op<'a>(
    b: &mut Builder<'_, 'a, '_>,
    head: &str,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Option<Op>> {
    Ok(Some(match head {
        "atom" | "red" => atom(b, head == "red", mods, operands)?,
        "cp" => copy(b, mods, operands)?,
        "ldmatrix" | "stmatrix" => matrix(b, head == "stmatrix", mods, operands)?,
        "movmatrix" => {
            mods.ignore(&["sync", "aligned", "m8n8", "trans", "b16"]);
            let [d, a] = expect(operands)?;
            Op::MovMatrix { d: b.target(d)?, a: b.source(a, Ty::B32)? }
        }
        "mma" => product(b, mods, operands)?,
        "shfl" => shuffle(b, mods, operands)?,
        "vote" => {
            mods.ignore(&["sync"]);
            let ([d, p, mask], mask_ty) = (expect(operands)?, Ty::B32);
            let (p, mask) = (guard(b, p)?, b.source(mask, mask_ty)?);
            if mods.take("ballot") {
                mods.ignore(&["b32"]);
                return Ok(Some(Op::Ballot { d: b.target(d)?, p, mask }));
            }
            mods.ignore(&["pred"]);
            let mode = mods
                .one_of(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uniform)])
                .ok_or("what it votes")?;
            Op::Vote { mode, d: target_pred(b, d)?, p, mask }
        }
        "match" => {
            mods.ignore(&["sync"]);
            let all = mods.one_of(&[("any", false), ("all", true)]).ok_or("what it matches")?;
            let (ty, [d, a, mask]) = (ty(mods)?, expect(operands)?);
            let (d, p) = match *d {
                Operand::Pair(d, p) => (b.target(&Operand::Name(d))?, Some(b.pred(p)?)),
                ref d => (b.target(d)?, None),
            };
            Op::Match { all, d, p, a: b.source(a, ty)?, mask: b.source(mask, Ty::B32)? }
        }
        "redux" => {
            mods.ignore(&["sync"]);
            let op = atom_op(mods).ok_or("what it joins")?;
            let (ty, [d, a, mask]) = (ty(mods)?.integer(), expect(operands)?);
            let (d, a) = (b.target(d)?, b.source(a, ty)?);
            Op::Redux { op, ty, d, a, mask: b.source(mask, Ty::B32)? }
        }
        "elect" => {
            mods.ignore(&["sync"]);
            let [Operand::Pair(d, p), mask] = expect(operands)? else {
                return Err("its operands".into());
            };
            let d = match *d {
                "_" => None,
                d => Some(b.target(&Operand::Name(d))?),
            };
            Op::Elect { d, p: b.pred(p)?, mask: b.source(mask, Ty::B32)? }
        }
        "activemask" => {
            mods.ignore(&["b32"]);
            let [d] = expect(operands)?;
            Op::ActiveMask { d: b.target(d)? }
        }
        "bar" | "barrier" => barrier(b, mods, operands)?,
        "mapa" => {
            let (space, ty, [d, a, rank]) = (space(mods), ty(mods)?, expect(operands)?);
            let (d, a) = (b.target(d)?, b.source(a, ty)?);
            Op::Mapa { space, d, a, b: b.source(rank, Ty::U32)? }
        }
        "mbarrier" => mbarrier(b, mods, operands)?,
        "fence" => {
            mods.ignore(ORDER);
            mods.ignore(&["mbarrier_init", "proxy", "async", "alias", "global", "shared::cta"]);
            Op::Nop
        }
        "membar" => {
            mods.ignore(&["gl", "sys", "cta"]);
            Op::Nop
        }
        "prefetch" | "prefetchu" | "discard" | "applypriority" => {
            mods.ignore(&["global", "local", "L1", "L2", "L2::evict_last", "L2::evict_normal"]);
            Op::Nop
        }
        "griddepcontrol" => {
            mods.ignore(&["launch_dependents"]);
            if mods.take("wait") { Op::AwaitPrevious } else { Op::Nop }
        }
        "setmaxnreg" => {
            mods.ignore(&["inc", "dec", "sync", "aligned", "u32"]);
            Op::Nop
        }
        "pmevent" => Op::Nop,
        "nanosleep" => {
            mods.ignore(&["u32"]);
            Op::Nanosleep
        }
        "exit" => Op::Exit,
        "trap" | "brkpt" => Op::Trap,
        "shf" => {
            let left = mods.one_of(&[("l", true), ("r", false)]).ok_or("its direction")?;
            let wrap = mods.one_of(&[("wrap", true), ("clamp", false)]).ok_or("its mode")?;
            let (ty, [d, x, y, c]) = (ty(mods)?, expect(operands)?);
            let (d, x, y) = (b.target(d)?, b.source(x, ty)?, b.source(y, ty)?);
            Op::Funnel { left, wrap, d, a: x, b: y, c: b.source(c, Ty::U32)? }
        }
        "dp4a" | "dp2a" => {
            if mods.take("hi") || mods.take("lo") {
                return Err("dp2a".into());
            }
            let (first, second, [d, x, y, c]) = (ty(mods)?, ty(mods)?, expect(operands)?);
            let (d, x, y) = (b.target(d)?, b.source(x, first)?, b.source(y, second)?);
            let signed = [first.is_signed(), second.is_signed()];
            Op::Dot { four: true, signed, d, a: x, b: y, c: b.source(c, first)? }
        }
        _ => return Ok(None),
    }))
}

fn atom<'a>(
    b: &mut Builder<'_, 'a, '_>,
    silent: bool,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    if mods.take("async") {
        return Err("red.async".into());
    }
    let space = space(mods);
    mods.ignore(ORDER);
    let op = atom_op(mods).ok_or("what it does")?;
    mods.ignore(&["noftz"]);
    let ty = ty(mods)?;
    if ty.bytes() < 4 || matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        return Err(format!("an atomic of {ty:?}"));
    }
    let (d, rest) = match operands {
        [d, rest @ ..] if !silent => (Some(b.target(d)?), rest),
        rest => (None, rest),
    };
    let [at, x, rest @ ..] = rest else { return Err("its operands".into()) };
    let (at, x) = (b.address(at)?, b.source(x, ty)?);
    let c = match rest {
        [] => x,
        [c] => b.source(c, ty)?,
        _ => return Err("its operands".into()),
    };
    Ok(Op::Atom { space, op, ty, d, at, b: x, c })
}

fn copy<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    if !mods.take("async") {
        return Err("an unknown instruction".into());
    }
    if mods.take("commit_group") {
        return Ok(Op::CpCommit);
    }
    if mods.take("wait_all") {
        return Ok(Op::CpWait { pending: 0, all: true });
    }
    if mods.take("wait_group") {
        return match expect(operands)? {
            [Operand::Int(pending)] => Ok(Op::CpWait { pending: *pending as u32, all: false }),
            _ => Err("its count".into()),
        };
    }
    mods.ignore(&[
        "ca",
        "cg",
        "shared",
        "shared::cta",
        "global",
        "L2::64B",
        "L2::128B",
        "L2::256B",
    ]);
    let [to, from, Operand::Int(bytes), rest @ ..] = operands else {
        return Err("its operands".into());
    };
    let size = match rest {
        [] => None,
        [size] => Some(b.source(size, Ty::U32)?),
        _ => return Err("its operands".into()),
    };
    let (to, from) = (b.address(to)?, b.address(from)?);
    Ok(Op::CpAsync { bytes: *bytes as u8, to, from, size })
}

fn matrix<'a>(
    b: &mut Builder<'_, 'a, '_>,
    store: bool,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    mods.ignore(&["sync", "aligned", "m8n8", "shared", "shared::cta", "b16"]);
    let count = mods.one_of(&[("x1", 1u8), ("x2", 2), ("x4", 4)]).ok_or("how many")?;
    let (transposed, [first, second]) = (mods.take("trans"), expect(operands)?);
    let (regs, at) = if store { (second, first) } else { (first, second) };
    let regs = elements(regs);
    if regs.len() != usize::from(count) {
        return Err(format!("{} registers for {count} matrices", regs.len()));
    }
    let mut r = [Reg::narrow(0); 4];
    for (r, operand) in r.iter_mut().zip(regs) {
        *r = if store { b.source(operand, Ty::B32)? } else { b.target(operand)? };
    }
    let at = b.address(at)?;
    Ok(match store {
        true => Op::StMatrix { count, transposed, a: r, at },
        false => Op::LdMatrix { count, transposed, d: r, at },
    })
}

fn product<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    mods.ignore(&["sync", "aligned", "row", "col", "f32"]);
    let k = mods.one_of(&[("m16n8k4", 4u32), ("m16n8k8", 8), ("m16n8k16", 16)]);
    let k = k.ok_or("its shape")?;
    let kind = mods.one_of(&[("tf32", 0), ("f16", 1), ("bf16", 2)]).ok_or("its type")?;
    mods.ignore(&["tf32", "f16", "bf16"]);
    let kind = match (kind, k) {
        (0, 4 | 8) => Product::Tf32 { k },
        (1, 8 | 16) => Product::F16 { k },
        (2, 8 | 16) => Product::Bf16 { k },
        _ => return Err("its shape".into()),
    };
    let [d, x, y, c] = expect(operands)?;
    let (d, x, y, c) = (elements(d), elements(x), elements(y), elements(c));
    let words = if let Product::Tf32 { .. } = kind { k } else { k / 2 } as usize;
    if d.len() != 4 || c.len() != 4 || x.len() * 2 != words || y.len() * 4 != words {
        return Err("the number of its registers".into());
    }
    let (mut rd, mut ra, mut rb, mut rc) =
        ([Reg::narrow(0); 4], [Reg::narrow(0); 4], [Reg::narrow(0); 2], [Reg::narrow(0); 4]);
    for (r, o) in ra.iter_mut().zip(x).chain(rb.iter_mut().zip(y)) {
        *r = b.source(o, Ty::B32)?;
    }
    for ((r, o), (rd, od)) in rc.iter_mut().zip(c).zip(rd.iter_mut().zip(d)) {
        *r = b.source(o, Ty::F32)?;
        *rd = b.target(od)?;
    }
    Ok(Op::Mma { kind, d: rd, a: ra, b: rb, c: rc })
}

/// A product of a warpgroup is one of each eight columns, which is what a register fragment has. What
/// orders it has nothing to do, as it is done at once.
pub fn warpgroup<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<()> {
    mods.ignore(&["sync", "aligned"]);
    if mods.one_of(&[("fence", ()), ("commit_group", ())]).is_some() {
        let [] = expect(operands)?;
        b.emit(Op::Nop);
        return Ok(());
    }
    if mods.take("wait_group") {
        let [Operand::Int(_)] = expect(operands)? else { return Err("its count".into()) };
        b.emit(Op::Nop);
        return Ok(());
    }
    if !mods.take("mma_async") {
        return Err("an unknown instruction".into());
    }
    let n = mods.find(|m| m.strip_prefix("m64n")?.strip_suffix("k16")?.parse::<usize>().ok());
    let n = n.filter(|n| n % 8 == 0 && (8..=256).contains(n)).ok_or("its shape")?;
    let types = [("f16", Product::F16 { k: 16 }), ("bf16", Product::Bf16 { k: 16 })];
    let sums = mods.take("f32");
    let kind = mods.one_of(&types).filter(|_| sums).ok_or("its type")?;
    if mods.one_of(&types) != Some(kind) {
        return Err("its types".into());
    }
    if matches!(operands, [_, Operand::Name(_), ..]) {
        return Err("a left operand by a descriptor".into());
    }
    let [d, x, described, add, signs @ .., turned] = expect::<7>(operands)?;
    if signs.iter().any(|sign| *sign != Operand::Int(1)) || *turned != Operand::Int(0) {
        return Err("a negated or transposed operand".into());
    }
    let (d, x) = (elements(d), elements(x));
    if d.len() != n / 2 || x.len() != 4 {
        return Err("the number of its registers".into());
    }
    let (described, add) = (b.source(described, Ty::B64)?, guard(b, add)?);
    let mut a = [Reg::narrow(0); 4];
    for (r, o) in a.iter_mut().zip(x) {
        *r = b.source(o, Ty::B32)?;
    }
    for (eight, four) in d.chunks_exact(4).enumerate() {
        let mut d = [Reg::narrow(0); 4];
        for (r, o) in d.iter_mut().zip(four) {
            *r = b.target(o)?;
        }
        b.emit(Op::GroupMma { kind, d, a, b: described, c: d, eight: eight as u8, add });
    }
    Ok(())
}

fn shuffle<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    mods.ignore(&["sync", "b32"]);
    let mode = mods
        .one_of(&[
            ("up", Shuffle::Up),
            ("down", Shuffle::Down),
            ("bfly", Shuffle::Butterfly),
            ("idx", Shuffle::Index),
        ])
        .ok_or("its mode")?;
    let [d, x, y, c, mask] = expect(operands)?;
    let (d, p) = match *d {
        Operand::Pair(d, p) => (b.target(&Operand::Name(d))?, Some(b.pred(p)?)),
        ref d => (b.target(d)?, None),
    };
    let (x, y) = (b.source(x, Ty::B32)?, b.source(y, Ty::B32)?);
    let (c, mask) = (b.source(c, Ty::B32)?, b.source(mask, Ty::B32)?);
    Ok(Op::Shfl { mode, d, p, a: x, b: y, c, mask })
}

fn barrier<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    if mods.take("warp") {
        mods.ignore(&["sync"]);
        let [mask] = expect(operands)?;
        return Ok(Op::BarWarp { mask: b.source(mask, Ty::B32)? });
    }
    if mods.take("cluster") {
        mods.ignore(&["aligned", "release", "relaxed", "acquire"]);
        if mods.take("arrive") {
            return Ok(Op::ClusterArrive);
        }
        return match mods.take("wait") {
            true => Ok(Op::ClusterWait),
            false => Err("an unknown instruction".into()),
        };
    }
    mods.ignore(&["cta", "aligned"]);
    let wait = mods.one_of(&[("sync", true), ("arrive", false)]).ok_or("an unknown instruction")?;
    let [id, rest @ ..] = operands else { return Err("its operands".into()) };
    let id = b.source(id, Ty::U32)?;
    let count = match rest {
        [] if wait => None,
        [count] => Some(b.source(count, Ty::U32)?),
        _ => return Err("its operands".into()),
    };
    Ok(Op::Bar { id, count, wait })
}

fn mbarrier<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    mods.ignore(&["b64", "release", "acquire", "relaxed", "cta", "cluster"]);
    let space = space(mods);
    if mods.take("init") {
        let [at, count] = expect(operands)?;
        return Ok(Op::MbarInit { at: b.address(at)?, count: b.source(count, Ty::U32)? });
    }
    if mods.take("inval") {
        let [at] = expect(operands)?;
        return Ok(Op::MbarInval { at: b.address(at)? });
    }
    let (expects, arrive) = (mods.take("expect_tx"), mods.take("arrive"));
    if !expects && !arrive {
        return waits(b, mods, operands);
    }
    // Without `arrive` there is no state to give.
    let (d, rest) = match operands {
        [Operand::Name("_"), rest @ ..] => (None, rest),
        [Operand::At { .. }, ..] => (None, operands),
        [d, rest @ ..] => (Some(b.target(d)?), rest),
        [] => return Err("its operands".into()),
    };
    let [at, rest @ ..] = rest else { return Err("its operands".into()) };
    let at = b.address(at)?;
    let value = match rest {
        [] => None,
        [value] => Some(b.source(value, Ty::U32)?),
        _ => return Err("its operands".into()),
    };
    let (count, expect) = if expects { (None, value) } else { (value, None) };
    Ok(Op::MbarArrive { space, d, at, count, expect, arrive })
}

fn waits<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    if mods.one_of(&[("try_wait", ()), ("test_wait", ())]).is_none() {
        return Err("an unknown instruction".into());
    }
    let parity = mods.take("parity");
    let [d, at, state, ..] = operands else { return Err("its operands".into()) };
    let (d, at) = (target_pred(b, d)?, b.address(at)?);
    let state = b.source(state, if parity { Ty::U32 } else { Ty::U64 })?;
    Ok(Op::MbarWait { d, at, state, parity })
}

/// `st.async`
pub fn store_async<'a>(
    b: &mut Builder<'_, 'a, '_>,
    mods: &mut Modifiers<'_>,
    operands: &[Operand<'a>],
) -> Result<Op> {
    mods.ignore(&["weak", "shared::cluster", "mbarrier::complete_tx::bytes"]);
    let (count, ty, [at, from, barrier]) = (vector(mods), ty(mods)?, expect(operands)?);
    let from = elements(from);
    if from.len() != count {
        return Err(format!("{} registers for {count} values", from.len()));
    }
    let mut a = [Reg::narrow(0); 4];
    for (a, from) in a.iter_mut().zip(from) {
        *a = b.source(from, ty)?;
    }
    let (at, barrier): (Address, Address) = (b.address(at)?, b.address(barrier)?);
    Ok(Op::StAsync { ty, count: count as u8, a, at, barrier })
}
