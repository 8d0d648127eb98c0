//! Operands of an instruction and the modifiers of its opcode, before they are resolved.

use super::lexer::{Kind, Token};

#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    Name(&'a str),
    /// `!%p1`
    Not(&'a str),
    Int(i64),
    F32(u32),
    F64(u64),
    /// `%r1|%p1`
    Pair(&'a str, &'a str),
    /// `{%r1, %r2}`
    Vector(Vec<Operand<'a>>),
    /// `[%rd1+4]`; without a base, an absolute address.
    At {
        base: Option<&'a str>,
        offset: i64,
    },
    /// `(a, b)`, of a call.
    List(Vec<Operand<'a>>),
}

/// Tokens that are read one after the other.
#[derive(Clone, Debug)]
pub struct Cursor<'a, 'b> {
    tokens: &'b [Token<'a>],
    pub at: usize,
}

impl<'a, 'b> Cursor<'a, 'b> {
    pub fn new(tokens: &'b [Token<'a>]) -> Self {
        Cursor { tokens, at: 0 }
    }

    pub fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    pub fn next(&mut self) -> Result<Token<'a>, String> {
        let token = self.peek().ok_or("the text ends in the middle")?;
        self.at += 1;
        Ok(token)
    }

    pub fn is(&self, sign: u8) -> bool {
        self.peek().is_some_and(|t| t.kind == Kind::Sign(sign))
    }

    /// Goes past a sign where it stands here.
    pub fn skip(&mut self, sign: u8) -> bool {
        let there = self.is(sign);
        self.at += usize::from(there);
        there
    }

    pub fn sign(&mut self, sign: u8) -> Result<(), String> {
        let token = self.next()?;
        if token.kind != Kind::Sign(sign) {
            return Err(format!("{:?} where '{}' was expected", token.text, sign as char));
        }
        Ok(())
    }

    pub fn word(&mut self) -> Result<&'a str, String> {
        let token = self.next()?;
        if token.kind != Kind::Word {
            return Err(format!("{:?} where a name was expected", token.text));
        }
        Ok(token.text)
    }

    pub fn integer(&mut self) -> Result<i64, String> {
        match self.operand()? {
            Operand::Int(value) => Ok(value),
            other => Err(format!("{other:?} where a number was expected")),
        }
    }

    /// The tokens between this `{` and its `}`, past which it goes.
    pub fn block(&mut self) -> Result<&'b [Token<'a>], String> {
        self.sign(b'{')?;
        let (start, mut depth) = (self.at, 1);
        while depth > 0 {
            match self.next()?.kind {
                Kind::Sign(b'{') => depth += 1,
                Kind::Sign(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(&self.tokens[start..self.at - 1])
    }

    /// Operands up to the semicolon, past which it goes.
    pub fn operands(&mut self) -> Result<Vec<Operand<'a>>, String> {
        let mut all = Vec::with_capacity(4);
        while !self.skip(b';') {
            if !all.is_empty() {
                self.sign(b',')?;
            }
            all.push(self.operand()?);
        }
        Ok(all)
    }

    pub fn operand(&mut self) -> Result<Operand<'a>, String> {
        let token = self.next()?;
        match token.kind {
            Kind::Sign(b'!') => Ok(Operand::Not(self.word()?)),
            Kind::Sign(b'-') => match number(self.word()?)? {
                Some(Operand::Int(value)) => Ok(Operand::Int(value.wrapping_neg())),
                _ => Err("a minus before what is no integer".into()),
            },
            Kind::Sign(b'{') => Ok(Operand::Vector(self.list(b'}')?)),
            Kind::Sign(b'(') => Ok(Operand::List(self.list(b')')?)),
            Kind::Sign(b'[') => self.address(),
            Kind::Word => {
                if let Some(value) = number(token.text)? {
                    return Ok(value);
                }
                if self.skip(b'|') {
                    return Ok(Operand::Pair(token.text, self.word()?));
                }
                Ok(Operand::Name(token.text))
            }
            _ => Err(format!("the operand {:?}", token.text)),
        }
    }

    fn list(&mut self, end: u8) -> Result<Vec<Operand<'a>>, String> {
        let mut all = Vec::new();
        while !self.skip(end) {
            if !all.is_empty() {
                self.sign(b',')?;
            }
            all.push(self.operand()?);
        }
        Ok(all)
    }

    fn address(&mut self) -> Result<Operand<'a>, String> {
        let (mut base, mut offset) = (None, 0);
        match self.operand()? {
            Operand::Name(name) => base = Some(name),
            Operand::Int(value) => offset = value,
            other => return Err(format!("the address {other:?}")),
        }
        // A minus is the number's own.
        if self.skip(b'+') || self.is(b'-') {
            offset = self.integer()?;
        }
        self.sign(b']')?;
        Ok(Operand::At { base, offset })
    }
}

/// A number, or `None` where the word is none.
fn number<'a>(word: &str) -> Result<Option<Operand<'a>>, String> {
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(None);
    }
    let wrong = |_| format!("the number {word}");
    let hex = |digits: &str| u64::from_str_radix(digits, 16).map_err(wrong);
    let lower = word.to_ascii_lowercase();
    let value = match lower.get(..2) {
        Some("0f") => Operand::F32(hex(&lower[2..])? as u32),
        Some("0d") => Operand::F64(hex(&lower[2..])?),
        Some("0x") => Operand::Int(hex(lower[2..].trim_end_matches('u'))? as i64),
        Some("0b") => Operand::Int(u64::from_str_radix(&lower[2..], 2).map_err(wrong)? as i64),
        _ if lower.contains('.') => {
            Operand::F64(lower.parse::<f64>().map_err(|_| format!("the number {word}"))?.to_bits())
        }
        _ => Operand::Int(lower.trim_end_matches('u').parse::<u64>().map_err(wrong)? as i64),
    };
    Ok(Some(value))
}

/// An opcode's modifiers. Each is taken by what understands it; one that is left is an error.
#[derive(Clone, Debug)]
pub struct Modifiers<'a> {
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    /// The opcode without them, and they.
    pub fn of(opcode: &'a str) -> (&'a str, Self) {
        let mut parts = opcode.split('.');
        (parts.next().unwrap_or_default(), Modifiers { left: parts.collect() })
    }

    pub fn take(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|m| *m == name);
        found.map(|i| self.left.remove(i)).is_some()
    }

    /// Takes all of these that are there.
    pub fn ignore(&mut self, names: &[&str]) {
        self.left.retain(|m| !names.contains(m));
    }

    /// Takes what `read` understands first.
    pub fn find<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, value) =
            self.left.iter().enumerate().find_map(|(i, m)| read(m).map(|value| (i, value)))?;
        self.left.remove(i);
        Some(value)
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        self.find(|m| choices.iter().find(|(name, _)| *name == m).map(|&(_, value)| value))
    }

    pub fn finish(&self) -> Result<(), String> {
        match self.left.first() {
            Some(left) => Err(format!("the modifier .{left}")),
            None => Ok(()),
        }
    }
}
