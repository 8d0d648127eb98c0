//! A module: its variables, functions and kernels.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::body::Builder;
use super::instruction::Ty;
use super::lexer::{self, Kind, Token};
use super::operand::{Cursor, Operand};
use super::{Globals, Kernel, Module, registers};
use crate::machine;

/// A variable's declaration.
#[derive(Clone, Debug)]
pub struct Variable<'a> {
    pub name: &'a str,
    pub ty: Ty,
    pub align: usize,
    pub bytes: usize,
    /// `name[]`, of dynamic shared memory.
    pub open: bool,
    pub values: Vec<Operand<'a>>,
}

/// A `.func`: what a call hands over, and its body.
#[derive(Clone, Debug)]
pub struct Function<'a, 'b> {
    pub results: Vec<Variable<'a>>,
    pub params: Vec<Variable<'a>>,
    pub body: &'b [Token<'a>],
}

/// What a kernel's body may name.
#[derive(Debug, Default)]
pub struct Scope<'a, 'b> {
    pub functions: HashMap<&'a str, Function<'a, 'b>>,
    /// Name → address.
    pub globals: HashMap<&'a str, u64>,
    pub shared: HashMap<&'a str, Variable<'a>>,
}

struct Entry<'a, 'b> {
    name: &'a str,
    params: Vec<Variable<'a>>,
    max_threads: Option<u32>,
    body: &'b [Token<'a>],
}

pub fn module(text: &str) -> Result<Module, String> {
    let tokens = lexer::tokens(text)?;
    let mut cursor = Cursor::new(&tokens);
    read(&mut cursor, text).map_err(|error| match error.starts_with("line ") {
        true => error,
        false => {
            let at = cursor.at.saturating_sub(1).min(tokens.len().saturating_sub(1));
            format!("line {}: {error}", tokens.get(at).map_or(0, |t| t.line))
        }
    })
}

fn read<'a>(cursor: &mut Cursor<'a, '_>, text: &str) -> Result<Module, String> {
    let (mut scope, mut entries, mut globals) = (Scope::default(), Vec::new(), Vec::new());
    while let Some(token) = cursor.peek() {
        cursor.at += 1;
        match token.text {
            ".version" | ".target" | ".address_size" | ".file" => {
                while cursor.peek().is_some_and(|t| t.line == token.line) {
                    cursor.at += 1;
                }
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".pragma" => drop(cursor.operands_or_text()?),
            ".global" | ".const" => globals.push(variable(cursor)?),
            ".shared" => {
                let variable = variable(cursor)?;
                scope.shared.insert(variable.name, variable);
            }
            ".entry" => entries.push(entry(cursor)?),
            ".func" => {
                let results = if cursor.is(b'(') { params(cursor)? } else { Vec::new() };
                let name = cursor.word()?;
                let params = if cursor.is(b'(') { params(cursor)? } else { Vec::new() };
                directives(cursor)?;
                if !cursor.skip(b';') {
                    let body = cursor.block()?;
                    scope.functions.insert(name, Function { results, params, body });
                }
            }
            other => return Err(format!("{other:?} in a module")),
        }
    }
    let (globals, places) = lay_out(&globals)?;
    scope.globals = places;
    let (globals, text) = (Arc::new(globals), Arc::<str>::from(text));
    let mut kernels = BTreeMap::new();
    for entry in entries {
        let kernel = kernel(&entry, &scope, &globals, &text)?;
        kernels.insert(entry.name.to_owned(), Arc::new(kernel));
    }
    Ok(Module { kernels })
}

fn kernel(
    entry: &Entry<'_, '_>,
    scope: &Scope<'_, '_>,
    globals: &Arc<Globals>,
    text: &Arc<str>,
) -> Result<Kernel, String> {
    let (mut params, mut names, mut end) = (Vec::new(), Vec::new(), 0usize);
    for p in &entry.params {
        let at = end.next_multiple_of(p.align);
        params.push((at, p.bytes));
        names.push((p.name, at));
        end = at + p.bytes;
    }
    let mut built = Builder::new(scope, &names).build(entry.body)?;
    registers::compact(&mut built);
    Ok(Kernel {
        name: entry.name.to_owned(),
        params,
        param_bytes: end,
        shared: built.shared,
        max_threads: entry.max_threads,
        local: built.local,
        runs: machine::functions(&built.code),
        code: built.code,
        entry: built.entry,
        registers: built.registers,
        constants: built.constants,
        specials: built.specials,
        granule: built.granule,
        globals: Arc::clone(globals),
        text: Arc::clone(text),
    })
}

fn entry<'a, 'b>(cursor: &mut Cursor<'a, 'b>) -> Result<Entry<'a, 'b>, String> {
    let name = cursor.word()?;
    let params = if cursor.is(b'(') { params(cursor)? } else { Vec::new() };
    let max_threads = directives(cursor)?;
    Ok(Entry { name, params, max_threads, body: cursor.block()? })
}

fn params<'a>(cursor: &mut Cursor<'a, '_>) -> Result<Vec<Variable<'a>>, String> {
    let mut all = Vec::new();
    cursor.sign(b'(')?;
    while !cursor.skip(b')') {
        if !all.is_empty() {
            cursor.sign(b',')?;
        }
        match cursor.word()? {
            ".param" => all.push(declarator(cursor)?),
            other => return Err(format!("the parameter {other:?}")),
        }
    }
    Ok(all)
}

/// What stands between a head and its body. The threads that `.maxntid` or `.reqntid` give.
fn directives(cursor: &mut Cursor<'_, '_>) -> Result<Option<u32>, String> {
    let mut threads = None;
    while !cursor.is(b'{') && !cursor.is(b';') {
        match cursor.word()? {
            ".maxntid" | ".reqntid" => threads = Some(numbers(cursor)?.iter().product()),
            ".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".reqnctapercluster"
            | ".maxclusterrank" => drop(numbers(cursor)?),
            ".explicitcluster" | ".noreturn" => {}
            ".pragma" => drop(cursor.operands_or_text()?),
            other => return Err(format!("the directive {other}")),
        }
    }
    Ok(threads)
}

fn numbers(cursor: &mut Cursor<'_, '_>) -> Result<Vec<u32>, String> {
    let mut all = vec![cursor.integer()? as u32];
    while cursor.skip(b',') {
        all.push(cursor.integer()? as u32);
    }
    Ok(all)
}

/// `.align 4 .b8 name[16] = {…};`, after its space.
pub fn variable<'a>(cursor: &mut Cursor<'a, '_>) -> Result<Variable<'a>, String> {
    let mut variable = declarator(cursor)?;
    if cursor.skip(b'=') {
        match cursor.operand()? {
            Operand::Vector(values) => variable.values = values,
            value => variable.values = vec![value],
        }
    }
    cursor.sign(b';')?;
    Ok(variable)
}

fn declarator<'a>(cursor: &mut Cursor<'a, '_>) -> Result<Variable<'a>, String> {
    let (mut ty, mut align, mut count) = (None, None, 1);
    let name = loop {
        let word = cursor.word()?;
        match word {
            ".align" => align = Some(cursor.integer()? as usize),
            ".v2" => count = 2,
            ".v4" => count = 4,
            // Of a parameter that is a pointer: what it points at.
            ".ptr" => {
                while let Some(token) = cursor.peek().filter(|t| t.text.starts_with('.')) {
                    cursor.at += if token.text == ".align" { 2 } else { 1 };
                }
            }
            _ if word.starts_with('.') => {
                let named = Ty::of(&word[1..]).ok_or_else(|| format!("the type {word}"))?;
                ty = Some(named);
            }
            _ => break word,
        }
    };
    let ty = ty.ok_or_else(|| format!("{name} has no type"))?;
    let (mut bytes, mut open) = (ty.bytes() * count, false);
    while cursor.skip(b'[') {
        if cursor.skip(b']') {
            (bytes, open) = (0, true);
            continue;
        }
        bytes *= cursor.integer()? as usize;
        cursor.sign(b']')?;
    }
    let align = align.unwrap_or(ty.bytes() * count);
    Ok(Variable { name, ty, align, bytes, open, values: Vec::new() })
}

fn lay_out<'a>(variables: &[Variable<'a>]) -> Result<(Globals, HashMap<&'a str, u64>), String> {
    let (mut end, mut offsets) = (0usize, Vec::new());
    for v in variables {
        if v.align > 128 {
            return Err(format!("{} is aligned to {} bytes", v.name, v.align));
        }
        let at = end.next_multiple_of(v.align.max(1));
        offsets.push(at);
        end = at + v.bytes;
    }
    let (mut globals, mut places) = (Globals::new(end), HashMap::new());
    for (v, &at) in variables.iter().zip(&offsets) {
        for (i, value) in v.values.iter().enumerate() {
            let bits = match *value {
                Operand::Int(bits) => bits as u64,
                Operand::F32(bits) => u64::from(bits),
                Operand::F64(bits) => bits,
                _ => return Err(format!("{} starts as {value:?}", v.name)),
            };
            let size = v.ty.bytes();
            if (i + 1) * size > v.bytes {
                return Err(format!("{} has more values than places", v.name));
            }
            globals.fill(at + i * size, &bits.to_le_bytes()[..size]);
        }
        places.insert(v.name, globals.range().0 + at as u64);
    }
    Ok((globals, places))
}

impl<'a> Cursor<'a, '_> {
    /// Past the semicolon of a directive that says nothing to us.
    pub fn operands_or_text(&mut self) -> Result<(), String> {
        while !self.skip(b';') {
            if !matches!(self.next()?.kind, Kind::Text | Kind::Word | Kind::Sign(_)) {
                return Err("an unknown token".into());
            }
        }
        Ok(())
    }
}
