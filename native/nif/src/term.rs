//! Erlang terms in serde's data model, so that the engine's types are decoded by their derives.
//!
//! Structs are maps with atom keys, enums are atoms or tagged tuples (`{:slice, %{…}}`,
//! `{:node, 3, 0}`), `nil` is `None`, atoms and binaries are strings, integers serve for floats.
//! An error names what was expected, what came, and where.

use std::fmt;

use rustler::{Binary, MapIterator, Term, TermType};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Visitor};

/// Decodes `term`, which messages call `what` unless an enum's tag names it.
pub fn decode<T: DeserializeOwned>(what: &str, term: Term) -> Result<T, DecodeError> {
    T::deserialize(Decoder { term }).map_err(|error| match error.path.last() {
        Some(Segment::Variant(_)) => error,
        _ => error.inside(Segment::Field(what.into())),
    })
}

/// A short text for a term of any size, never more than one level deep.
pub fn describe(term: Term) -> String {
    describe_to(term, 1)
}

fn describe_to(term: Term, depth: usize) -> String {
    match term.get_type() {
        TermType::Atom => match atom_text(term) {
            Some(word) => atom_literal(&word),
            None => "an atom".into(),
        },
        TermType::Integer => match (term.decode::<i64>(), term.decode::<u64>()) {
            (Ok(n), _) => n.to_string(),
            (_, Ok(n)) => n.to_string(),
            _ => "an integer beyond 64 bits".into(),
        },
        TermType::Float => term.decode::<f64>().map_or("a float".into(), |x| format!("{x:?}")),
        TermType::Binary => match Binary::from_term(term) {
            Ok(bytes) => match std::str::from_utf8(bytes.as_slice()) {
                Ok(text) if text.len() <= 40 && !text.contains(char::is_control) => {
                    format!("{text:?}")
                }
                _ => format!("a binary of {} bytes", bytes.as_slice().len()),
            },
            Err(_) => "a bitstring".into(),
        },
        TermType::Tuple => match rustler::types::tuple::get_tuple(term) {
            Ok(elements) if depth > 0 && elements.len() <= 4 => {
                let texts: Vec<_> = elements.iter().map(|&e| describe_to(e, depth - 1)).collect();
                format!("{{{}}}", texts.join(", "))
            }
            Ok(elements) => format!("a tuple of {} elements", elements.len()),
            Err(_) => "a tuple".into(),
        },
        TermType::List => if term.is_empty_list() { "[]" } else { "a list" }.into(),
        TermType::Map => "a map".into(),
        TermType::Fun => "a function".into(),
        TermType::Pid => "a pid".into(),
        TermType::Port => "a port".into(),
        TermType::Ref => "a reference".into(),
        TermType::Unknown => "an unknown term".into(),
    }
}

fn atom_literal(word: &str) -> String {
    match word {
        "nil" | "true" | "false" => word.into(),
        _ => format!(":{word}"),
    }
}

/// `None` for what is no atom, and for an atom outside Latin-1 (no word of ours is).
fn atom_text(term: Term) -> Option<String> {
    term.atom_to_string().ok()
}

fn is_nil(term: Term) -> bool {
    term.is_atom() && atom_text(term).as_deref() == Some("nil")
}

/// A step on the way from the outermost term to the one that does not fit.
#[derive(Debug, Clone)]
enum Segment {
    Field(String),
    Index(usize),
    Variant(String),
}

#[derive(Debug, Clone)]
enum Problem {
    Type { expected: String, got: String },
    Variant { got: String, expected: &'static [&'static str] },
    UnknownField { name: String, expected: &'static [&'static str] },
    MissingField(&'static str),
    Custom(String),
}

#[derive(Debug, Clone)]
pub struct DecodeError {
    problem: Box<Problem>,
    /// From the innermost out.
    path: Vec<Segment>,
}

impl DecodeError {
    fn new(problem: Problem) -> Self {
        DecodeError { problem: Box::new(problem), path: Vec::new() }
    }

    pub fn expected(expected: impl Into<String>, got: Term) -> Self {
        Self::expected_text(expected, describe(got))
    }

    fn expected_text(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::new(Problem::Type { expected: expected.into(), got: got.into() })
    }

    fn inside(mut self, segment: Segment) -> Self {
        self.path.push(segment);
        self
    }

    /// The error of what `name` holds.
    pub fn of(self, name: &str) -> Self {
        self.inside(Segment::Field(name.into()))
    }

    /// The error of element `i`.
    pub fn at(self, i: usize) -> Self {
        self.inside(Segment::Index(i))
    }

    /// The outermost enum's tag: the op, where an op was decoded.
    pub fn tag(&self) -> Option<&str> {
        match self.path.last() {
            Some(Segment::Variant(name)) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What precedes the innermost tag says where; what follows it is the subject.
        let mut subject = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Field(name) if name.is_empty() => {}
                Segment::Field(name) if subject.is_empty() => subject.push_str(name),
                Segment::Field(name) => {
                    subject.push('.');
                    subject.push_str(name);
                }
                Segment::Index(i) => subject.push_str(&format!("[{i}]")),
                Segment::Variant(name) => {
                    if !subject.is_empty() {
                        write!(f, "{subject}: ")?;
                    }
                    write!(f, "{name}: ")?;
                    subject.clear();
                }
            }
        }
        let bare = subject.is_empty();
        match &*self.problem {
            Problem::Type { expected, got } if bare => write!(f, "expected {expected}, got {got}"),
            Problem::Type { expected, got } => write!(f, "{subject} must be {expected}, got {got}"),
            Problem::Variant { got, expected } => {
                write!(f, "unknown variant {}", atom_literal(got))?;
                if !bare {
                    write!(f, " for {subject}")?;
                }
                write!(f, ", expected one of {}", expected.join(", "))
            }
            Problem::UnknownField { name, expected } => {
                if !bare {
                    write!(f, "{subject}: ")?;
                }
                match expected {
                    [] => write!(f, "takes no attributes, got {name}"),
                    _ => write!(
                        f,
                        "unknown attribute {name}, expected one of {}",
                        expected.join(", ")
                    ),
                }
            }
            Problem::MissingField(name) if bare => write!(f, "{name} is missing"),
            Problem::MissingField(name) => write!(f, "{subject}.{name} is missing"),
            Problem::Custom(message) if bare => f.write_str(message),
            Problem::Custom(message) => write!(f, "{subject}: {message}"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Custom(message.to_string()))
    }

    fn invalid_type(got: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::expected_text(expected.to_string(), got.to_string())
    }

    fn invalid_value(got: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::expected_text(expected.to_string(), got.to_string())
    }

    fn invalid_length(got: usize, expected: &dyn de::Expected) -> Self {
        Self::expected_text(expected.to_string(), format!("{got} elements"))
    }

    fn unknown_variant(got: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Problem::Variant { got: got.into(), expected })
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownField { name: name.into(), expected })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(Problem::MissingField(name))
    }
}

#[derive(Clone, Copy)]
struct Decoder<'a> {
    term: Term<'a>,
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

impl<'a> Decoder<'a> {
    fn refuse<T>(self, expected: impl Into<String>) -> Result<T> {
        Err(DecodeError::expected(expected, self.term))
    }

    fn signed<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match (self.term.decode::<i64>(), self.term.decode::<u64>()) {
            (Ok(n), _) => visitor.visit_i64(n),
            (_, Ok(n)) => visitor.visit_u64(n),
            _ => self.refuse("an integer of 64 bits"),
        }
    }

    fn unsigned<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.term.decode::<u64>() {
            Ok(n) => visitor.visit_u64(n),
            Err(_) => self.refuse("a non-negative integer of 64 bits"),
        }
    }

    fn float<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.term.decode::<f64>() {
            Ok(x) => visitor.visit_f64(x),
            Err(_) => self.refuse("a number"),
        }
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if let Some(text) = atom_text(self.term) {
            return visitor.visit_string(text);
        }
        match Binary::from_term(self.term).map(|b| std::str::from_utf8(b.as_slice())) {
            Ok(Ok(text)) => visitor.visit_str(text),
            _ => self.refuse("an atom or a string"),
        }
    }

    fn tuple_of<'de, V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        match elements(self.term) {
            Some(elements) if elements.len() == length => {
                visitor.visit_seq(Elements { rest: elements.into_iter(), at: 0 })
            }
            _ => self.refuse(format!("a tuple of {length} elements")),
        }
    }
}

fn elements<'a>(term: Term<'a>) -> Option<Vec<Term<'a>>> {
    rustler::types::tuple::get_tuple(term).ok()
}

macro_rules! forward {
    ($($method:ident)* => $to:ident) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            self.$to(visitor)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = DecodeError;

    forward!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 => signed);
    forward!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 => unsigned);
    forward!(deserialize_f32 deserialize_f64 => float);
    forward!(deserialize_char deserialize_str deserialize_string deserialize_identifier => text);
    forward!(deserialize_byte_buf => deserialize_bytes);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.term.get_type() {
            TermType::Atom => match atom_text(self.term).as_deref() {
                Some("nil") => visitor.visit_none(),
                Some("true") => visitor.visit_bool(true),
                Some("false") => visitor.visit_bool(false),
                _ => self.text(visitor),
            },
            TermType::Integer => self.signed(visitor),
            TermType::Float => self.float(visitor),
            TermType::Binary => self.text(visitor),
            TermType::List => self.deserialize_seq(visitor),
            TermType::Map => self.deserialize_map(visitor),
            TermType::Tuple => {
                let length = elements(self.term).map_or(0, |e| e.len());
                self.tuple_of(length, visitor)
            }
            _ => self.refuse("data"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.term.decode::<bool>() {
            Ok(b) => visitor.visit_bool(b),
            Err(_) => self.refuse("true or false"),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match Binary::from_term(self.term) {
            Ok(bytes) => visitor.visit_bytes(bytes.as_slice()),
            Err(_) => self.refuse("a binary"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if is_nil(self.term) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if is_nil(self.term) { visitor.visit_unit() } else { self.refuse("nil") }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if !self.term.is_list() {
            return self.refuse("a list");
        }
        visitor.visit_seq(List { rest: self.term, at: 0 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        self.tuple_of(length, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.tuple_of(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match MapIterator::new(self.term) {
            Some(rest) => visitor.visit_map(Map { rest, key: String::new(), value: None }),
            None => self.refuse("a map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let (tag, content) = match elements(self.term) {
            Some(elements) if elements.is_empty() => (self.term, None),
            Some(mut elements) => {
                let content = elements.split_off(1);
                (elements[0], Some(content))
            }
            None => (self.term, None),
        };
        match atom_text(tag) {
            Some(tag) => visitor.visit_enum(Tagged { tag, content }),
            None => self.refuse(format!("one of {}", variants.join(", "))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }
}

struct List<'a> {
    rest: Term<'a>,
    at: usize,
}

impl<'de> de::SeqAccess<'de> for List<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if self.rest.is_empty_list() {
            return Ok(None);
        }
        let Ok((head, tail)) = self.rest.list_get_cell() else {
            return Err(DecodeError::expected_text("a list", "an improper list"));
        };
        let at = self.at;
        (self.rest, self.at) = (tail, at + 1);
        seed.deserialize(Decoder { term: head }).map(Some).map_err(|e| e.at(at))
    }
}

struct Elements<'a> {
    rest: std::vec::IntoIter<Term<'a>>,
    at: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        let Some(term) = self.rest.next() else { return Ok(None) };
        let at = self.at;
        self.at += 1;
        seed.deserialize(Decoder { term }).map(Some).map_err(|e| e.at(at))
    }
}

struct Map<'a> {
    rest: MapIterator<'a>,
    key: String,
    value: Option<Term<'a>>,
}

impl<'de> de::MapAccess<'de> for Map<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        let Some(name) = atom_text(key) else {
            return Err(DecodeError::expected("a map with atom keys", key));
        };
        (self.key, self.value) = (name, Some(value));
        seed.deserialize(StrDeserializer::<DecodeError>::new(&self.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        match self.value.take() {
            Some(term) => seed.deserialize(Decoder { term }).map_err(|e| e.of(&self.key)),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}

/// An enum's tag, and what stands beside it in its tuple; `None` for an atom alone.
struct Tagged<'a> {
    tag: String,
    content: Option<Vec<Term<'a>>>,
}

impl<'de, 'a> de::EnumAccess<'de> for Tagged<'a> {
    type Error = DecodeError;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'a>)> {
        let value = seed.deserialize(StrDeserializer::<DecodeError>::new(&self.tag))?;
        Ok((value, Content { tag: self.tag, terms: self.content }))
    }
}

struct Content<'a> {
    tag: String,
    terms: Option<Vec<Term<'a>>>,
}

impl<'a> Content<'a> {
    fn take(self, count: usize) -> Result<(String, Vec<Term<'a>>)> {
        match self.terms {
            Some(terms) if terms.len() == count => Ok((self.tag, terms)),
            terms => {
                let got = terms.map_or(0, |t| t.len());
                let message = format!(":{} takes {count} value(s) beside it, got {got}", self.tag);
                Err(DecodeError::new(Problem::Custom(message)))
            }
        }
    }
}

impl<'de> de::VariantAccess<'de> for Content<'_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<()> {
        match self.terms {
            None => Ok(()),
            Some(_) => {
                Err(DecodeError::expected_text(format!("the atom :{}", self.tag), "a tuple"))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        let (tag, terms) = self.take(1)?;
        seed.deserialize(Decoder { term: terms[0] }).map_err(|e| e.inside(Segment::Variant(tag)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        let (tag, terms) = self.take(length)?;
        visitor
            .visit_seq(Elements { rest: terms.into_iter(), at: 0 })
            .map_err(|e| e.inside(Segment::Variant(tag)))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let (tag, terms) = self.take(1)?;
        de::Deserializer::deserialize_map(Decoder { term: terms[0] }, visitor)
            .map_err(|e| e.inside(Segment::Variant(tag)))
    }
}
