//! The rules of attention, and of the block around it.

use super::{Inputs, broadcast, fused_norm};
use crate::error::{Error, Result};
use crate::op::{AttentionBlock, FlashAttention};
use crate::spec::{DType, Spec};

/// The widest head that the kernels keep in registers.
const MAX_HEAD: usize = 256;
/// The longest sequence and the most heads: their indices are s32 in the kernels.
const MAX_LENGTH: usize = 1 << 30;

pub(super) fn block(inputs: &Inputs, attrs: &AttentionBlock) -> Result<Vec<Spec>> {
    inputs.count(13, 14)?;
    let x = inputs.network(0, "x")?;
    inputs.rank(x, "x", 3, "{batch, 1, width}")?;
    let (batch, width) = (x.shape()[0], x.last());
    inputs.expect(x, "x", x.dtype, &[batch, 1, width])?;
    fused_norm(inputs, Some(attrs.norm), 10, x)?;
    fused_norm(inputs, Some(attrs.ffn_norm), 12, x)?;
    let (up, ring) = (inputs.get(3, "up")?, inputs.get(7, "ring")?);
    inputs.rank(up, "up", 2, "{width, inner}")?;
    inputs.rank(ring, "ring", 5, "{2, batch, context, heads, head size}")?;
    let (inner, [context, heads, size]) = (up.last(), [2, 3, 4].map(|i| ring.shape()[i]));
    inputs.expect(ring, "ring", x.dtype, &[2, batch, context, heads, size])?;
    let dims = attrs.rope.dims.unwrap_or(size);
    let fits = heads.checked_mul(size) == Some(width)
        && (1..=MAX_HEAD).contains(&size)
        && (1..=MAX_LENGTH).contains(&context)
        && dims.is_multiple_of(2)
        && dims <= size;
    if !fits {
        let message = format!("a ring of {ring} does not go with a width of {width}");
        return Err(Error::argument(inputs.op, message));
    }
    let overflow = || Error::argument(inputs.op, "sizes overflow");
    let triple = width.checked_mul(3).ok_or_else(overflow)?;
    for (i, what, shape) in [
        (1, "qkv", &[width, triple][..]),
        (2, "out", &[width, width]),
        (3, "up", &[width, inner]),
        (5, "down", &[inner, width]),
    ] {
        inputs.expect(inputs.get(i, what)?, what, x.dtype, shape)?;
    }
    for (i, what, length) in [(4, "up_b", inner), (6, "down_b", width)] {
        if let Some(bias) = inputs.optional(i) {
            inputs.expect(bias, what, x.dtype, &[length])?;
        }
    }
    inputs.expect(inputs.get(8, "places")?, "places", DType::S32, &[3])?;
    inputs.expect(inputs.get(9, "number")?, "number", DType::S32, &[])?;
    Ok(vec![x.clone(), ring.clone()])
}

pub(super) fn flash(inputs: &Inputs, attrs: &FlashAttention) -> Result<Vec<Spec>> {
    inputs.count(3, 7)?;
    check_attributes(inputs, attrs)?;
    let q = inputs.network(0, "q")?;
    inputs.rank(q, "q", 4, "{batch, queries, heads, head size}")?;
    let &[b, sq, hq, d] = q.shape() else {
        return Err(Error::Internal("a rank that was just checked".into()));
    };
    let k = inputs.get(1, "k")?;
    inputs.rank(k, "k", 4, "{batch, keys, heads, head size}")?;
    let (sk, hkv) = (k.shape()[1], k.shape()[2]);
    inputs.expect(k, "k", q.dtype, &[b, sk, hkv, d])?;
    inputs.expect(inputs.get(2, "v")?, "v", q.dtype, &[b, sk, hkv, d])?;
    if d == 0 || d > MAX_HEAD {
        let message = format!("the head size is 1 to {MAX_HEAD}, got {d}");
        return Err(Error::unsupported(inputs.op, message));
    }
    if hkv == 0 || hq % hkv != 0 {
        let message = format!("{hq} query heads are no multiple of {hkv} key heads");
        return Err(Error::argument(inputs.op, message));
    }
    if sq > MAX_LENGTH || sk > MAX_LENGTH || hq > MAX_LENGTH || b > MAX_LENGTH {
        let message = format!("an axis of q and k is at most {MAX_LENGTH} long");
        return Err(Error::unsupported(inputs.op, message));
    }
    if let Some(bias) = inputs.optional(3) {
        let scores = [b, hq, sq, sk];
        if bias.dtype != q.dtype && bias.dtype != DType::F32 {
            let expected = format!("{} or {}", q.dtype, DType::F32);
            return Err(Error::dtype(inputs.op, "bias", expected, bias.dtype));
        }
        if broadcast(inputs.op, bias.shape(), &scores)? != scores {
            let expected = format!("a shape that broadcasts to {}", super::shape_text(&scores));
            return Err(Error::shape(inputs.op, "bias", expected, bias));
        }
    }
    if let Some(mask) = inputs.optional(4) {
        inputs.expect(mask, "key_mask", DType::U8, &[b, sk])?;
    }
    if let Some(length) = inputs.optional(5) {
        inputs.expect(length, "kv_len", DType::S32, &[b])?;
    }
    if let Some(offset) = inputs.optional(6) {
        if attrs.offset.is_some() {
            let message = "the offset is a number or a tensor, not both";
            return Err(Error::argument(inputs.op, message));
        }
        let shape: &[usize] = if offset.rank() == 0 { &[] } else { &[b] };
        inputs.expect(offset, "offset", DType::S32, shape)?;
    }
    let mut outputs = vec![q.clone()];
    if attrs.lse {
        outputs.push(Spec::new(DType::F32, [b, hq, sq])?);
    }
    Ok(outputs)
}

fn check_attributes(inputs: &Inputs, attrs: &FlashAttention) -> Result<()> {
    if let Some(scale) = attrs.scale
        && !(scale as f32).is_finite()
    {
        return Err(Error::argument(inputs.op, format!("scale must be finite, got {scale}")));
    }
    if let Some(cap) = attrs.softcap
        && !(cap > 0.0 && (cap as f32).is_finite() && cap as f32 > 0.0)
    {
        let message = format!("softcap must be a finite number above zero, got {cap}");
        return Err(Error::argument(inputs.op, message));
    }
    Ok(())
}

/// The strides, in elements, of a bias along the axes of the scores; 0 where it is broadcast.
pub(crate) fn bias_strides(bias: &Spec) -> [usize; 4] {
    let mut strides = [0; 4];
    let missing = strides.len() - bias.rank().min(strides.len());
    for (i, (&length, stride)) in bias.shape().iter().zip(bias.strides()).enumerate() {
        if length != 1 {
            strides[missing + i] = stride;
        }
    }
    strides
}
