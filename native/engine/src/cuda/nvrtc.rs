//! NVRTC
use super::Module;
use crate::error::{Error, Result};
use std::sync::Arc;
pub struct Nvrtc {}
impl Nvrtc {
    pub fn find(_v: Option<(u32, u32)>, _arch: &str) -> Result<Arc<Self>> {
        Err(Error::Internal("nvrtc".into()))
    }
    pub fn compile(&self, _m: &Module, _arch: &str) -> Result<Vec<u8>> {
        Err(Error::Internal("nvrtc".into()))
    }
}
