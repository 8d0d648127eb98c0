//! PTX, as NVRTC writes it: from its text to instructions.
//!
//! ```text
//! lexer.rs, operand.rs   words, operands, modifiers
//! parse.rs               a module: its variables, functions and kernels
//! body.rs                a kernel's registers, labels and scopes
//! decode*.rs             an opcode and its operands → Op
//! registers.rs           fewer registers
//! ```

pub(crate) mod body;
mod decode;
mod decode_memory;
mod decode_wide;
pub mod instruction;
mod lexer;
mod operand;
mod parse;
mod registers;
mod special;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::Run;
use instruction::{Instruction, Reg, Special};

/// A module's kernels and global variables.
#[derive(Debug)]
pub struct Module {
    pub kernels: BTreeMap<String, Arc<Kernel>>,
}

/// An entry function.
#[derive(Debug)]
pub struct Kernel {
    pub name: String,
    /// Offset and size of each parameter in the block of parameters.
    pub params: Vec<(usize, usize)>,
    pub param_bytes: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// `.maxntid`, where it is given: threads of a block at most.
    pub max_threads: Option<u32>,
    /// Bytes of a thread's local memory.
    pub local: usize,
    /// Functions first, so that lanes in one of them are ahead of those that wait for them.
    pub code: Vec<Instruction>,
    /// What those do that touch nothing but registers.
    pub(crate) runs: Vec<Option<Run>>,
    /// The index in `code` that it starts at.
    pub entry: usize,
    /// Registers a thread has: narrow, wide and predicates.
    pub registers: [usize; 3],
    /// Registers that hold a constant.
    pub constants: Vec<(Reg, u64)>,
    pub specials: Vec<(Special, Reg)>,
    /// Bytes of the smallest access to shared memory: 1, 2 or 4.
    pub granule: usize,
    /// The module's variables.
    pub globals: Arc<Globals>,
    text: Arc<str>,
}

impl Kernel {
    /// A line of the module's text, from 1.
    pub fn line(&self, line: u32) -> &str {
        self.text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().trim()
    }
}

/// The variables of a module in global and constant memory, at their addresses in this process.
#[derive(Debug, Default)]
pub struct Globals {
    words: Box<[u64]>,
    /// Where it starts, got once with the right to write.
    start: u64,
    bytes: u64,
}

impl Globals {
    /// The first byte and the end.
    pub fn range(&self) -> (u64, u64) {
        (self.start, self.start + self.bytes)
    }

    fn new(bytes: usize) -> Self {
        let mut words = vec![0u64; bytes.div_ceil(8) + 16].into_boxed_slice();
        // Alignments of up to 128 bytes.
        let start = (words.as_mut_ptr() as u64).next_multiple_of(128);
        Globals { words, start, bytes: bytes as u64 }
    }

    fn fill(&mut self, at: usize, bytes: &[u8]) {
        let skip = (self.start - self.words.as_ptr() as u64) as usize + at;
        for (i, &byte) in bytes.iter().enumerate() {
            let word = &mut self.words[(skip + i) / 8];
            let shift = (skip + i) % 8 * 8;
            *word = *word & !(0xff << shift) | u64::from(byte) << shift;
        }
        self.start = (self.words.as_mut_ptr() as u64).next_multiple_of(128);
    }
}

/// Reads a module's text. The error names the line.
pub fn parse(text: &str) -> Result<Module, String> {
    parse::module(text)
}
