//! A kernel's body: its registers, labels and scopes, and the functions that it calls.

use std::collections::HashMap;

use super::decode;
use super::instruction::{Address, Guard, Instruction, Op, Pred, Reg, Special, Ty};
use super::lexer::{Kind, Token};
use super::operand::{Cursor, Operand};
use super::parse::{Scope, Variable, variable};

/// The first address of shared memory, below which nothing is, as on GPUs.
pub const SHARED_BASE: u64 = 0x400;

/// What a name in a body stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Named {
    Reg(Reg),
    Pred(Pred),
    /// The address of a variable, in its space.
    Address(u64),
    /// A parameter of a kernel: where it lies.
    Param(u64),
    /// What a call hands over: registers.
    Slot(usize),
}

#[derive(Clone, Copy, Debug)]
enum Class {
    Narrow,
    Wide,
    Pred,
}

/// The names between two braces.
#[derive(Debug, Default)]
struct Names<'a> {
    parent: Option<usize>,
    names: HashMap<&'a str, Named>,
    /// `%r<10>`: prefix → class, first, count.
    ranges: HashMap<&'a str, (Class, usize, usize)>,
    labels: HashMap<&'a str, u32>,
}

#[derive(Debug, Default)]
struct Section<'a> {
    code: Vec<Instruction>,
    /// Branches, with the names that are in scope there.
    branches: Vec<(usize, usize, &'a str)>,
    /// Of a function: where its caller left the way back.
    back: Option<Reg>,
}

/// A function that is called: its section and its formal parameters.
#[derive(Clone, Debug)]
struct Callee {
    section: usize,
    results: Vec<usize>,
    params: Vec<usize>,
    back: Reg,
}

#[derive(Debug)]
pub struct Builder<'s, 'a, 'b> {
    scope: &'s Scope<'a, 'b>,
    names: Vec<Names<'a>>,
    /// Where names are looked up now.
    here: usize,
    section: usize,
    sections: Vec<Section<'a>>,
    callees: HashMap<&'a str, Callee>,
    /// Functions that are yet to be read: name and root of their names.
    pending: Vec<(&'a str, usize)>,
    slots: HashMap<(usize, i64), Reg>,
    slot_count: usize,
    counts: [usize; 3],
    constants: HashMap<(u64, bool), Reg>,
    specials: HashMap<Special, Reg>,
    placed: HashMap<&'a str, u64>,
    shared: usize,
    /// Variables of dynamic shared memory: they begin behind all others.
    open: Vec<Reg>,
    open_align: usize,
    local: usize,
    pub granule: usize,
    line: u32,
    guard: Option<Guard>,
}

#[derive(Debug)]
pub struct Built {
    pub code: Vec<Instruction>,
    pub entry: usize,
    pub registers: [usize; 3],
    pub constants: Vec<(Reg, u64)>,
    pub specials: Vec<(Special, Reg)>,
    pub shared: usize,
    pub local: usize,
    pub granule: usize,
}

impl<'s, 'a, 'b> Builder<'s, 'a, 'b> {
    pub fn new(scope: &'s Scope<'a, 'b>, params: &[(&'a str, usize)]) -> Self {
        let names = params.iter().map(|&(name, at)| (name, Named::Param(at as u64))).collect();
        Builder {
            scope,
            names: vec![Names { names, ..Names::default() }],
            here: 0,
            section: 0,
            sections: vec![Section::default()],
            callees: HashMap::new(),
            pending: Vec::new(),
            slots: HashMap::new(),
            slot_count: 0,
            counts: [0, 0, Pred::FIXED],
            constants: HashMap::new(),
            specials: HashMap::new(),
            placed: HashMap::new(),
            shared: 0,
            open: Vec::new(),
            open_align: 16,
            local: 0,
            granule: 4,
            line: 0,
            guard: None,
        }
    }

    pub fn build(mut self, body: &'b [Token<'a>]) -> Result<Built, String> {
        let located = |this: &Self, e: String| match e.starts_with("line ") {
            true => e,
            false => format!("line {}: {e}", this.line),
        };
        self.body(body).map_err(|e| located(&self, e))?;
        while let Some((name, root)) = self.pending.pop() {
            let body = self.scope.functions[name].body;
            self.section = self.callees[name].section;
            self.here = root;
            self.body(body).map_err(|e| located(&self, e))?;
        }
        self.finish()
    }

    fn body(&mut self, tokens: &'b [Token<'a>]) -> Result<(), String> {
        let mut cursor = Cursor::new(tokens);
        while let Some(token) = cursor.peek() {
            self.line = token.line;
            self.statement(&mut cursor)?;
        }
        self.leave();
        Ok(())
    }

    fn leave(&mut self) {
        self.guard = None;
        let op = self.sections[self.section].back.map_or(Op::Exit, |back| Op::Return { back });
        self.emit(op);
    }

    fn statement(&mut self, cursor: &mut Cursor<'a, 'b>) -> Result<(), String> {
        if cursor.skip(b';') {
            return Ok(());
        }
        if cursor.skip(b'{') {
            self.names.push(Names { parent: Some(self.here), ..Names::default() });
            self.here = self.names.len() - 1;
            return Ok(());
        }
        if cursor.skip(b'}') {
            self.here = self.names[self.here].parent.ok_or("a } without its {")?;
            return Ok(());
        }
        self.guard = None;
        if cursor.skip(b'@') {
            let negated = cursor.skip(b'!');
            let pred = self.pred(cursor.word()?)?;
            self.guard = Some(Guard { pred, negated });
        }
        let word = cursor.word()?;
        if cursor.skip(b':') {
            let at = self.sections[self.section].code.len() as u32;
            let old = self.names[self.here].labels.insert(word, at);
            return old.map_or(Ok(()), |_| Err(format!("the label {word} is there twice")));
        }
        if word.starts_with('.') {
            return self.directive(word, cursor);
        }
        let operands = cursor.operands()?;
        decode::instruction(self, word, &operands).map_err(|e| format!("{word}: {e}"))
    }

    fn directive(&mut self, word: &str, cursor: &mut Cursor<'a, 'b>) -> Result<(), String> {
        match word {
            ".reg" => self.registers(cursor),
            ".shared" => {
                let variable = variable(cursor)?;
                let at = self.place_shared(&variable);
                self.names[self.here].names.insert(variable.name, Named::Address(at));
                Ok(())
            }
            ".local" => {
                let variable = variable(cursor)?;
                let at = self.local.next_multiple_of(variable.align);
                self.local = at + variable.bytes;
                self.names[self.here].names.insert(variable.name, Named::Address(at as u64));
                Ok(())
            }
            ".param" => {
                let variable = variable(cursor)?;
                let slot = self.slot();
                self.names[self.here].names.insert(variable.name, slot);
                Ok(())
            }
            ".loc" => {
                let line = self.line;
                while cursor.peek().is_some_and(|t| t.line == line) {
                    cursor.at += 1;
                }
                Ok(())
            }
            ".pragma" => cursor.operands_or_text(),
            other => Err(format!("the directive {other}")),
        }
    }

    fn registers(&mut self, cursor: &mut Cursor<'a, 'b>) -> Result<(), String> {
        let word = cursor.word()?;
        let ty = Ty::of(word.trim_start_matches('.')).ok_or_else(|| format!("the type {word}"))?;
        let class = match ty {
            Ty::Pred => Class::Pred,
            _ if ty.is_wide() => Class::Wide,
            _ => Class::Narrow,
        };
        loop {
            let name = cursor.word()?;
            let count = match cursor.skip(b'<') {
                true => {
                    let count = cursor.integer()? as usize;
                    cursor.sign(b'>')?;
                    Some(count)
                }
                false => None,
            };
            let place = &mut self.counts[class as usize];
            let first = *place;
            *place += count.unwrap_or(1);
            let names = &mut self.names[self.here];
            match count {
                Some(count) => drop(names.ranges.insert(name, (class, first, count))),
                None => drop(names.names.insert(name, of_class(class, first))),
            }
            if cursor.peek().is_some_and(|t| t.kind == Kind::Sign(b';')) {
                cursor.at += 1;
                return Ok(());
            }
            cursor.sign(b',')?;
        }
    }

    fn place_shared(&mut self, variable: &Variable<'a>) -> u64 {
        if variable.open {
            // Set when all others have their place.
            let reg = self.fresh(false);
            self.open.push(reg);
            self.open_align = self.open_align.max(variable.align);
            return reg.index() as u64 | OPEN;
        }
        let at = (SHARED_BASE as usize + self.shared).next_multiple_of(variable.align);
        self.shared = at + variable.bytes - SHARED_BASE as usize;
        at as u64
    }

    /// What a name stands for here.
    fn find(&mut self, name: &'a str) -> Result<Named, String> {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(digits);
        let mut at = Some(self.here);
        while let Some(i) = at {
            let names = &self.names[i];
            if let Some(&named) = names.names.get(name) {
                return Ok(named);
            }
            if let Some(&(class, first, count)) = names.ranges.get(prefix)
                && let Ok(number) = number.parse::<usize>()
                && number < count
            {
                return Ok(of_class(class, first + number));
            }
            at = names.parent;
        }
        if let Some(&address) = self.scope.globals.get(name) {
            return Ok(Named::Address(address));
        }
        if let Some(&address) = self.placed.get(name) {
            return Ok(Named::Address(address));
        }
        let variable = self.scope.shared.get(name).ok_or_else(|| format!("no {name} is known"))?;
        let address = self.place_shared(variable);
        self.placed.insert(variable.name, address);
        Ok(Named::Address(address))
    }

    pub fn pred(&mut self, name: &'a str) -> Result<Pred, String> {
        match self.find(name)? {
            Named::Pred(pred) => Ok(pred),
            _ => Err(format!("{name} is no predicate")),
        }
    }

    /// A register that is written.
    pub fn target(&mut self, operand: &Operand<'a>) -> Result<Reg, String> {
        match *operand {
            // A sink.
            Operand::Name("_") => Ok(self.fresh(true)),
            Operand::Name(name) => match self.find(name)? {
                Named::Reg(reg) => Ok(reg),
                _ => Err(format!("{name} is no register")),
            },
            ref other => Err(format!("{other:?} is no register")),
        }
    }

    /// A register of the type's size that is read: it may be a constant.
    pub fn source(&mut self, operand: &Operand<'a>, ty: Ty) -> Result<Reg, String> {
        let reg = self.wider(operand, ty)?;
        match reg.is_wide() == ty.is_wide() {
            true => Ok(reg),
            false => Err(format!("{operand:?} as {ty:?}")),
        }
    }

    /// The same, which may be wider than its type.
    pub fn wider(&mut self, operand: &Operand<'a>, ty: Ty) -> Result<Reg, String> {
        let wide = ty.is_wide();
        match *operand {
            Operand::Int(bits) if ty == Ty::F32 || ty == Ty::F64 => {
                Err(format!("the integer {bits} as {ty:?}"))
            }
            Operand::Int(bits) => Ok(self.constant(bits as u64, wide)),
            Operand::F32(bits) if ty == Ty::F64 => {
                Ok(self.constant(f64::from(f32::from_bits(bits)).to_bits(), true))
            }
            Operand::F64(bits) if ty == Ty::F32 => {
                Ok(self.constant(u64::from((f64::from_bits(bits) as f32).to_bits()), false))
            }
            Operand::F32(bits) => Ok(self.constant(u64::from(bits), wide)),
            Operand::F64(bits) => Ok(self.constant(bits, wide)),
            Operand::Name(name) if super::special::special(name).is_some() => {
                let special = super::special::special(name).ok_or("no special register")?;
                Ok(self.special(special))
            }
            Operand::Name(name) => match self.find(name)? {
                Named::Reg(reg) => Ok(reg),
                Named::Address(at) if at & OPEN != 0 && !wide => {
                    Ok(Reg::narrow((at & !OPEN) as usize))
                }
                Named::Address(at) if at & OPEN != 0 => {
                    let d = self.fresh(true);
                    let a = Reg::narrow((at & !OPEN) as usize);
                    let mode = decode::EXACT;
                    self.emit(Op::Cvt { to: Ty::U64, from: Ty::U32, mode, integral: false, d, a });
                    Ok(d)
                }
                Named::Address(at) | Named::Param(at) => Ok(self.constant(at, wide)),
                _ => Err(format!("{name} is no register")),
            },
            ref other => Err(format!("{other:?} is no register or number")),
        }
    }

    /// `[base+offset]`, of what is no slot.
    pub fn address(&mut self, operand: &Operand<'a>) -> Result<Address, String> {
        let Operand::At { base, offset } = *operand else {
            return Err(format!("{operand:?} is no address"));
        };
        let Some(name) = base else { return Ok(Address { base: None, offset }) };
        Ok(match self.find(name)? {
            Named::Reg(reg) => Address { base: Some(reg), offset },
            Named::Address(at) if at & OPEN != 0 => {
                Address { base: Some(Reg::narrow((at & !OPEN) as usize)), offset }
            }
            Named::Address(at) | Named::Param(at) => {
                Address { base: None, offset: offset + at as i64 }
            }
            _ => return Err(format!("{name} is no address")),
        })
    }

    /// The slot of a call's parameter that an address names.
    pub fn slot_at(&mut self, operand: &Operand<'a>) -> Result<Option<(usize, i64)>, String> {
        let Operand::At { base: Some(name), offset } = *operand else { return Ok(None) };
        match self.find(name)? {
            Named::Slot(slot) => Ok(Some((slot, offset))),
            _ => Ok(None),
        }
    }

    pub fn slot_register(&mut self, slot: (usize, i64), wide: bool) -> Result<Reg, String> {
        if let Some(&reg) = self.slots.get(&slot) {
            return match reg.is_wide() == wide {
                true => Ok(reg),
                false => Err("a parameter is written and read in different sizes".into()),
            };
        }
        let reg = self.fresh(wide);
        self.slots.insert(slot, reg);
        Ok(reg)
    }

    fn slot(&mut self) -> Named {
        self.slot_count += 1;
        Named::Slot(self.slot_count - 1)
    }

    /// A register that has no name.
    pub fn fresh(&mut self, wide: bool) -> Reg {
        let count = &mut self.counts[usize::from(wide)];
        *count += 1;
        if wide { Reg::wide(*count - 1) } else { Reg::narrow(*count - 1) }
    }

    pub fn constant(&mut self, bits: u64, wide: bool) -> Reg {
        let bits = if wide { bits } else { bits & u64::from(u32::MAX) };
        if let Some(&reg) = self.constants.get(&(bits, wide)) {
            return reg;
        }
        let reg = self.fresh(wide);
        self.constants.insert((bits, wide), reg);
        reg
    }

    pub fn special(&mut self, special: Special) -> Reg {
        if let Some(&reg) = self.specials.get(&special) {
            return reg;
        }
        let reg = self.fresh(special == Special::GridId);
        self.specials.insert(special, reg);
        reg
    }

    pub fn emit(&mut self, op: Op) {
        let instruction = Instruction { op, guard: self.guard, line: self.line };
        self.sections[self.section].code.push(instruction);
    }

    pub fn branch(&mut self, label: &'a str) {
        let (here, section) = (self.here, &mut self.sections[self.section]);
        section.branches.push((section.code.len(), here, label));
        self.emit(Op::Bra { target: 0 });
    }

    pub fn ret(&mut self) {
        let op = self.sections[self.section].back.map_or(Op::Exit, |back| Op::Return { back });
        self.emit(op);
    }

    pub fn call(
        &mut self,
        name: &'a str,
        results: &[Operand<'a>],
        args: &[Operand<'a>],
    ) -> Result<(), String> {
        let callee = self.callee(name)?;
        if results.len() != callee.results.len() || args.len() != callee.params.len() {
            return Err(format!("{name} takes and gives another number of values"));
        }
        for (arg, &formal) in args.iter().zip(&callee.params) {
            let slot = self.slot_of(arg)?;
            let mut parts: Vec<_> = self
                .slots
                .iter()
                .filter(|((s, _), _)| *s == slot)
                .map(|(&k, &r)| (k.1, r))
                .collect();
            parts.sort_by_key(|part| part.0);
            for (offset, a) in parts {
                let d = self.slot_register((formal, offset), a.is_wide())?;
                self.emit(Op::Mov { d, a });
            }
        }
        self.emit(Op::Call { target: callee.section as u32, back: callee.back });
        // What comes back is read before the next call: it needs no place of its own.
        for (result, &formal) in results.iter().zip(&callee.results) {
            self.slot_of(result)?;
            if let Operand::Name(name) = *result {
                self.names[self.here].names.insert(name, Named::Slot(formal));
            }
        }
        Ok(())
    }

    fn slot_of(&mut self, operand: &Operand<'a>) -> Result<usize, String> {
        match *operand {
            Operand::Name(name) => match self.find(name)? {
                Named::Slot(slot) => Ok(slot),
                _ => Err(format!("{name} is no parameter of a call")),
            },
            ref other => Err(format!("{other:?} is no parameter of a call")),
        }
    }

    fn callee(&mut self, name: &'a str) -> Result<Callee, String> {
        if let Some(callee) = self.callees.get(name) {
            return Ok(callee.clone());
        }
        let function = self.scope.functions.get(name).ok_or_else(|| format!("no {name}"))?;
        let mut root = Names::default();
        let mut slots = |variables: &[Variable<'a>]| -> Vec<usize> {
            let mut ids = Vec::new();
            for v in variables {
                ids.push(self.slot_count);
                root.names.insert(v.name, Named::Slot(self.slot_count));
                self.slot_count += 1;
            }
            ids
        };
        let (results, params) = (slots(&function.results), slots(&function.params));
        self.names.push(root);
        self.pending.push((name, self.names.len() - 1));
        let back = self.fresh(false);
        self.sections.push(Section { back: Some(back), ..Section::default() });
        let callee = Callee { section: self.sections.len() - 1, results, params, back };
        self.callees.insert(name, callee.clone());
        Ok(callee)
    }

    fn finish(mut self) -> Result<Built, String> {
        // The last section called is the deepest: it comes first.
        let mut starts = vec![0; self.sections.len()];
        let mut code = Vec::new();
        for (i, section) in self.sections.iter_mut().enumerate().rev() {
            starts[i] = code.len();
            for &(at, names, label) in &section.branches {
                let mut scope = Some(names);
                let target = loop {
                    let names = &self.names[scope.ok_or_else(|| format!("no label {label}"))?];
                    match names.labels.get(label) {
                        Some(&target) => break target,
                        None => scope = names.parent,
                    }
                };
                section.code[at].op = Op::Bra { target: target + code.len() as u32 };
            }
            code.append(&mut section.code);
        }
        for instruction in &mut code {
            if let Op::Call { target, .. } = &mut instruction.op {
                *target = starts[*target as usize] as u32;
            }
        }
        // Dynamic shared memory begins behind the static, where an address is as aligned as it asks.
        if !self.open.is_empty() {
            let end = SHARED_BASE as usize + self.shared;
            self.shared = end.next_multiple_of(self.open_align) - SHARED_BASE as usize;
        }
        let mut constants: Vec<_> = self.constants.iter().map(|(k, &r)| (r, k.0)).collect();
        constants.extend(self.open.iter().map(|&r| (r, SHARED_BASE + self.shared as u64)));
        constants.sort_by_key(|(reg, _)| (reg.is_wide(), reg.index()));
        Ok(Built {
            entry: starts[0],
            code,
            registers: self.counts,
            constants,
            specials: self.specials.iter().map(|(&s, &r)| (s, r)).collect(),
            shared: self.shared,
            local: self.local.next_multiple_of(16),
            granule: self.granule,
        })
    }
}

/// Marks an address that is a register until the kernel is read to its end.
const OPEN: u64 = 1 << 63;

fn of_class(class: Class, index: usize) -> Named {
    match class {
        Class::Narrow => Named::Reg(Reg::narrow(index)),
        Class::Wide => Named::Reg(Reg::wide(index)),
        Class::Pred => Named::Pred(Pred(index as u32)),
    }
}
