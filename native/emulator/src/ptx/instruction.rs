//! Instructions as the machine runs them: operands are places in a warp's register file, types and
//! modifiers are resolved, immediates are registers that hold a constant.

/// A register of a thread. Up to 32 bits are narrow; 64 bits are wide: two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg(u32);

const WIDE: u32 = 1 << 31;

impl Reg {
    pub fn narrow(index: usize) -> Self {
        Reg(index as u32)
    }

    pub fn wide(index: usize) -> Self {
        Reg(index as u32 | WIDE)
    }

    pub fn is_wide(self) -> bool {
        self.0 & WIDE != 0
    }

    pub fn index(self) -> usize {
        (self.0 & !WIDE) as usize
    }
}

/// A predicate register: one bit a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pred(pub u32);

impl Pred {
    /// The carry flag of the instructions that end in `.cc`.
    pub const CARRY: Pred = Pred(0);
    pub const FALSE: Pred = Pred(1);
    pub const TRUE: Pred = Pred(2);
    /// Predicates that every kernel has.
    pub const FIXED: usize = 3;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    pub pred: Pred,
    pub negated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

impl Ty {
    /// From its name without the dot.
    pub fn of(name: &str) -> Option<Ty> {
        Some(match name {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            _ => 4,
        }
    }

    pub fn is_wide(self) -> bool {
        self.bytes() == 8
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 | Ty::F32 | Ty::F64)
    }

    /// The integer type of the same size and sign; bits are unsigned.
    pub fn integer(self) -> Ty {
        match self {
            Ty::B8 => Ty::U8,
            Ty::B16 | Ty::F16 | Ty::Bf16 => Ty::U16,
            Ty::B32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => Ty::U32,
            Ty::B64 | Ty::F64 => Ty::U64,
            other => other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To the nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
}

/// How a floating-point instruction rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub round: Round,
    /// Subnormal inputs and results are zeros.
    pub ftz: bool,
    /// The result is clamped to [0, 1].
    pub sat: bool,
    /// `min` and `max` of a NaN are NaN.
    pub nan: bool,
}

impl Mode {
    /// To the nearest, and nothing else.
    pub fn is_plain(self) -> bool {
        self.round == Round::Nearest && !self.ftz && !self.sat
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntOp {
    Add,
    Sub,
    Mul,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntOne {
    Neg,
    Abs,
    Not,
    Cnot,
    Popc,
    Clz,
    Brev,
    /// The highest bit that is set (signed: that is not the sign), or the shift that brings it up.
    Bfind {
        shift: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Copysign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatOne {
    Neg,
    Abs,
    Sqrt,
    Rcp,
    /// The reciprocal of the upper half of an f64, as a seed for Newton's method.
    RcpGross,
    RsqrtGross,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// True where one is a NaN, too.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredOp {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    /// Shared memory of a block of the cluster, this one or another.
    Cluster,
    Local,
    Param,
}

/// `[base + offset]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub base: Option<Reg>,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    Ballot,
    All,
    Any,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// m16n8k4 and m16n8k8
    Tf32 {
        k: u32,
    },
    /// m16n8k8 and m16n8k16
    F16 {
        k: u32,
    },
    Bf16 {
        k: u32,
    },
}

/// What a register says about a thread and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    ClusterId(u8),
    ClusterCount(u8),
    /// The block's place in its cluster.
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterRank,
    ClusterSize,
    LaneId,
    WarpId,
    WarpCount,
    SmId,
    SmCount,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    DynamicShared,
    TotalShared,
}

/// A clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    Nanoseconds,
    Clock,
}

#[rustfmt::skip]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Mov { d: Reg, a: Reg },
    /// Parts of a register; a sink is `None`. The first is the lowest.
    Pack { d: Reg, parts: [Reg; 4], count: u8 },
    Unpack { parts: [Option<Reg>; 4], count: u8, a: Reg },
    Int { op: IntOp, ty: Ty, d: Reg, a: Reg, b: Reg },
    IntOne { op: IntOne, ty: Ty, d: Reg, a: Reg },
    MulWide { ty: Ty, d: Reg, a: Reg, b: Reg },
    Mad { hi: bool, ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    MadWide { ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    Sad { ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    Carry { op: CarryOp, takes: bool, gives: bool, ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    Funnel { left: bool, wrap: bool, d: Reg, a: Reg, b: Reg, c: Reg },
    Extract { ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    Insert { ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg, e: Reg },
    Permute { d: Reg, a: Reg, b: Reg, c: Reg },
    Lop3 { lut: u8, d: Reg, a: Reg, b: Reg, c: Reg },
    Dot { four: bool, signed: [bool; 2], d: Reg, a: Reg, b: Reg, c: Reg },
    Setp { cmp: Cmp, ty: Ty, ftz: bool, d: Pred, q: Option<Pred>, a: Reg, b: Reg,
           with: Option<(PredOp, Guard)> },
    Set { cmp: Cmp, to: Ty, ty: Ty, ftz: bool, d: Reg, a: Reg, b: Reg },
    Selp { d: Reg, a: Reg, b: Reg, p: Guard },
    Slct { ty: Ty, d: Reg, a: Reg, b: Reg, c: Reg },
    Pred { op: PredOp, d: Pred, a: Guard, b: Guard },
    Float { op: FloatOp, ty: Ty, mode: Mode, d: Reg, a: Reg, b: Reg },
    FloatOne { op: FloatOne, ty: Ty, mode: Mode, d: Reg, a: Reg },
    Fma { ty: Ty, mode: Mode, d: Reg, a: Reg, b: Reg, c: Reg },
    /// `integral`: the result is a whole number.
    Cvt { to: Ty, from: Ty, mode: Mode, integral: bool, d: Reg, a: Reg },
    /// Two f32 to a pair of 16 bits; `a` goes to the upper half.
    CvtPair { to: Ty, relu: bool, d: Reg, a: Reg, b: Reg },
    /// `polls`: it asks for what others write meanwhile.
    Ld { polls: bool, space: Space, ty: Ty, count: u8, d: [Reg; 4], at: Address },
    St { space: Space, ty: Ty, count: u8, a: [Reg; 4], at: Address },
    Atom { space: Space, op: AtomOp, ty: Ty, d: Option<Reg>, at: Address, b: Reg, c: Reg },
    /// From a space's address to a generic one, or back.
    Cvta { space: Space, to_space: bool, d: Reg, a: Reg },
    IsSpace { space: Space, d: Pred, a: Reg },
    CpAsync { bytes: u8, to: Address, from: Address, size: Option<Reg> },
    CpCommit,
    /// Until at most this many groups are under way; `all` counts what was not committed, too.
    CpWait { pending: u32, all: bool },
    LdMatrix { count: u8, transposed: bool, d: [Reg; 4], at: Address },
    StMatrix { count: u8, transposed: bool, a: [Reg; 4], at: Address },
    MovMatrix { d: Reg, a: Reg },
    Mma { kind: Product, d: [Reg; 4], a: [Reg; 4], b: [Reg; 2], c: [Reg; 4] },
    /// Eight columns of a warpgroup's product, from `eight` · 8 on: `b` describes a matrix in shared
    /// memory, and `c` is added where `add` says so.
    GroupMma { kind: Product, d: [Reg; 4], a: [Reg; 4], b: Reg, c: [Reg; 4], eight: u8, add: Guard },
    Shfl { mode: Shuffle, d: Reg, p: Option<Pred>, a: Reg, b: Reg, c: Reg, mask: Reg },
    Ballot { d: Reg, p: Guard, mask: Reg },
    Vote { mode: Vote, d: Pred, p: Guard, mask: Reg },
    Match { all: bool, d: Reg, p: Option<Pred>, a: Reg, mask: Reg },
    Redux { op: AtomOp, ty: Ty, d: Reg, a: Reg, mask: Reg },
    Elect { d: Option<Reg>, p: Pred, mask: Reg },
    ActiveMask { d: Reg },
    BarWarp { mask: Reg },
    /// `wait` is false for `bar.arrive`.
    Bar { id: Reg, count: Option<Reg>, wait: bool },
    Mapa { space: Space, d: Reg, a: Reg, b: Reg },
    ClusterArrive,
    ClusterWait,
    MbarInit { at: Address, count: Reg },
    MbarInval { at: Address },
    /// `expect`: bytes to expect before the arrival. A `Cluster` space may name another block.
    MbarArrive { space: Space, d: Option<Reg>, at: Address, count: Option<Reg>,
           expect: Option<Reg>, arrive: bool },
    /// Of a phase's parity, or of the state that an arrival gave.
    MbarWait { d: Pred, at: Address, state: Reg, parity: bool },
    StAsync { ty: Ty, count: u8, a: [Reg; 4], at: Address, barrier: Address },
    Time { what: Time, d: Reg },
    /// `griddepcontrol.wait`
    AwaitPrevious,
    Nanosleep,
    Nop,
    Bra { target: u32 },
    /// `back` is where the callee finds the way back.
    Call { target: u32, back: Reg },
    /// From a function: to where `back` says.
    Return { back: Reg },
    Exit,
    Trap,
}

/// What the machine runs in a step.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub op: Op,
    pub guard: Option<Guard>,
    /// In the module's text, from 1.
    pub line: u32,
}
