//! The card that is shown, and the settings.
//!
//! | variable | |
//! |---|---|
//! | `NITROX_EMULATOR` | `sm_90a` (default), `sm_89`, `sm_86` or `sm_80` |
//! | `NITROX_EMULATOR_DEVICES` | how many of them, 1 |
//! | `NITROX_EMULATOR_SMS` | multiprocessors, 16: fewer than a card has, for grids are sized by them |
//! | `NITROX_EMULATOR_MEMORY` | MiB of memory, 4096 |
//! | `NITROX_EMULATOR_NVRTC` | the real NVRTC, a file or a folder |

use std::env;
use std::str::FromStr;

/// What a card has. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// `sm_90a`
    pub arch: String,
    pub major: u32,
    pub minor: u32,
    pub sms: u32,
    pub memory: usize,
    pub l2: u32,
    pub shared_per_sm: u32,
    /// What a block can opt in to.
    pub shared_optin: u32,
    pub threads_per_sm: u32,
    pub blocks_per_sm: u32,
    pub registers_per_sm: u32,
}

/// Shared memory that the system takes of each block.
pub const RESERVED_SHARED: u32 = 1 << 10;
/// Dynamic shared memory that is there without asking.
pub const DEFAULT_SHARED: u32 = 48 << 10;
pub const WARP: u32 = 32;
pub const MOST_THREADS: u32 = 1024;

impl Card {
    /// By the CUDA programming guide's table of technical specifications.
    pub fn new(arch: &str, sms: u32, memory: usize) -> Result<Self, String> {
        let (major, minor, l2, shared_per_sm, threads_per_sm, blocks_per_sm) = match arch {
            "sm_80" => (8, 0, 40 << 20, 164 << 10, 2048, 32),
            "sm_86" => (8, 6, 6 << 20, 100 << 10, 1536, 16),
            "sm_89" => (8, 9, 72 << 20, 100 << 10, 1536, 24),
            "sm_90a" => (9, 0, 50 << 20, 228 << 10, 2048, 32),
            _ => return Err(format!("{arch} is none of sm_80, sm_86, sm_89 and sm_90a")),
        };
        Ok(Card {
            arch: arch.to_owned(),
            major,
            minor,
            sms,
            memory,
            l2,
            shared_per_sm,
            shared_optin: shared_per_sm - RESERVED_SHARED,
            threads_per_sm,
            blocks_per_sm,
            registers_per_sm: 64 << 10,
        })
    }

    /// How many, and which, by the environment.
    pub fn from_env() -> Result<(u32, Self), String> {
        let arch = text("NITROX_EMULATOR").unwrap_or_else(|| "sm_90a".into());
        let sms = number("NITROX_EMULATOR_SMS", 16_u32)?.max(1);
        let memory = number("NITROX_EMULATOR_MEMORY", 4096_usize)?.max(1) << 20;
        let count = number("NITROX_EMULATOR_DEVICES", 1)?;
        let count = env::var("CUDA_VISIBLE_DEVICES").map_or(count, |list| visible(&list, count));
        Ok((count, Card::new(&arch, sms, memory)?))
    }

    /// The name that the driver tells.
    pub fn name(&self) -> String {
        format!("Emulated {}", self.arch)
    }

    /// Whether a module for `target`, as PTX names it, runs here as its cubin would: of the same
    /// major version and no newer, or of just this chip where it has the instructions of one.
    pub fn loads(&self, target: &str) -> bool {
        if target.ends_with(|c: char| c.is_ascii_alphabetic()) {
            return target == self.arch;
        }
        let number: u32 = target.trim_start_matches("sm_").parse().unwrap_or(u32::MAX);
        number / 10 == self.major && number % 10 <= self.minor
    }
}

/// How many of the devices a list of them leaves; it ends with the first that is none.
fn visible(list: &str, count: u32) -> u32 {
    let known = |item: &str| item.trim().parse().is_ok_and(|n: u32| n < count);
    list.split(',').take_while(|item| known(item)).count() as u32
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn number<N: FromStr>(name: &str, default: N) -> Result<N, String> {
    let Some(text) = text(name) else { return Ok(default) };
    text.parse().map_err(|_| format!("{name} is {text}, which is no number"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Card, visible};

    #[test]
    fn cubins_of_other_chips_do_not_load() {
        let hopper = Card::new("sm_90a", 16, 1 << 30).unwrap();
        let ampere = Card::new("sm_86", 16, 1 << 30).unwrap();
        let loads = |card: &Card| {
            let targets = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_120a"];
            targets.into_iter().filter(|t| card.loads(t)).collect::<Vec<_>>()
        };
        assert_eq!(loads(&hopper), ["sm_90", "sm_90a"]);
        assert_eq!(loads(&ampere), ["sm_80", "sm_86"]);
        assert!(Card::new("sm_70", 16, 1 << 30).is_err());
    }

    #[test]
    fn devices_can_be_hidden() {
        let counts = ["-1", "", "0", "1,0", "0,7,1"].map(|list| visible(list, 2));
        assert_eq!(counts, [0, 0, 1, 2, 1]);
    }
}
