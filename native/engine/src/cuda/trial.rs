//! Variants of kernels that are complete and tested, and that nobody has measured yet. A rung is only
//! replaced by one that was seen to be faster; until then a device takes such a variant only where
//! `NITROX_TRIAL` names it. Once it is measured its name goes from here, and so does the slower one.

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// A frame of a whole attention layer in one launch.
    AttentionBlock,
    /// Recurrent layers one upon the other, each a frame behind the one before.
    RecurrentStack,
    /// One step of a recurrent layer by clusters that begin under the kernel ahead.
    StepEarly,
}

const NAMES: [(&str, Trial); 3] = [
    ("attention_block", Trial::AttentionBlock),
    ("recurrent_stack", Trial::RecurrentStack),
    ("step_early", Trial::StepEarly),
];

/// Which of them a device takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trials(u32);

impl Trials {
    /// Just these, whatever the environment names.
    pub fn only(trials: &[Trial]) -> Self {
        Self(trials.iter().fold(0, |all, &trial| all | bit(trial)))
    }

    pub(super) fn from_env() -> Result<Self> {
        std::env::var("NITROX_TRIAL").map_or(Ok(Self::default()), |names| Self::parse(&names))
    }

    /// Names with commas between, or `all`.
    fn parse(names: &str) -> Result<Self> {
        let one = |name: &str| match NAMES.iter().find(|(known, _)| *known == name) {
            Some(&(_, trial)) => Ok(bit(trial)),
            None if name == "all" => Ok(u32::MAX),
            None => Err(Error::Argument {
                op: "NITROX_TRIAL",
                message: format!("{name} is none of all, {}", NAMES.map(|(n, _)| n).join(", ")),
            }),
        };
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(one).try_fold(0, |all, bit| Ok(all | bit?)).map(Self)
    }

    pub fn has(self, trial: Trial) -> bool {
        self.0 & bit(trial) != 0
    }
}

fn bit(trial: Trial) -> u32 {
    1 << trial as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_what_they_name() -> Result<()> {
        assert_eq!(Trials::parse("")?, Trials::default());
        assert!(!Trials::default().has(Trial::StepEarly));
        let two = Trials::parse("attention_block, step_early")?;
        assert_eq!(two, Trials::only(&[Trial::StepEarly, Trial::AttentionBlock]));
        assert!(two.has(Trial::AttentionBlock) && two.has(Trial::StepEarly));
        assert!(!two.has(Trial::RecurrentStack));
        let all = Trials::parse("all")?;
        for (name, trial) in NAMES {
            assert!(all.has(trial));
            assert_eq!(Trials::parse(name)?, Trials::only(&[trial]));
        }
        Ok(())
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let error = Trials::parse("attention_block,turbo").map_err(|e| e.to_string());
        let known =
            "NITROX_TRIAL: turbo is none of all, attention_block, recurrent_stack, step_early";
        assert_eq!(error, Err(known.to_string()));
    }
}
