use super::launch::Context;
use super::modules::Module;
use super::props::Props;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::GatedMlp;
use crate::spec::Spec;
pub fn explain(_: &Props, _: &GatedMlp, _: &[Option<&Spec>]) -> Result<Explanation> { Err(Error::Internal("".into())) }
pub fn modules(_: &Props, _: &GatedMlp, _: &[Option<&Spec>]) -> Result<Vec<Module>> { Err(Error::Internal("".into())) }
pub fn workspace(_: &Props, _: &GatedMlp, _: &[Option<&Spec>]) -> Result<usize> { Ok(0) }
/// # Safety
/// x
pub unsafe fn launch(_: &Context, _: &GatedMlp, _: &Call) -> Result<()> { Err(Error::Internal("".into())) }
pub fn all_modules() -> Vec<Module> { vec![] }
