//! Sampling: top-k, top-p, Gumbel-max over Philox4x32-10.

use nitrox_engine::DType;
use nitrox_engine::op::{Argmax, Sample};

use super::reduce::{argmax, first_largest};
use super::{Array, Expected};

/// Two scores closer than this, relative to the larger of the best score and 1, or a cumulated
/// probability as close to p as this, may come out either way in f32.
const CLOSE: f64 = 1e-5;

/// The id that wins a row, and the ids that rounding might prefer to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub best: i64,
    pub close: Vec<i64>,
}

/// Ten rounds of Philox4x32 (Salmon et al., 2011).
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// −ln(−ln u) for the u of column `i` in row `r`.
pub fn gumbel(seed: u64, counter: i32, r: usize, i: usize) -> f64 {
    let words =
        philox([(i / 4) as u32, r as u32, counter as u32, 0], [seed as u32, (seed >> 32) as u32]);
    let u = f64::from(((words[i % 4] >> 9) as f32 + 0.5) * 2f32.powi(-23));
    -(-u.ln()).ln()
}

/// Indices from the largest down, the lower of equals first.
fn descending(z: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].partial_cmp(&z[a]).unwrap().then(a.cmp(&b)));
    order
}

/// The prefix of the descending order that top-k keeps, and the range of lengths that top-p may
/// keep of it: one length, but where a cumulated probability is too close to p to tell.
pub fn kept(attrs: &Sample, z: &[f64]) -> (Vec<usize>, std::ops::RangeInclusive<usize>) {
    let mut order = descending(z);
    order.truncate(attrs.top_k.unwrap_or(usize::MAX));
    let Some(p) = attrs.top_p else {
        let n = order.len();
        return (order, n..=n);
    };
    let max = z[order[0]];
    let total: f64 = order.iter().map(|&i| (z[i] - max).exp()).sum();
    let mut sum = 0.0;
    let (mut shortest, mut longest) = (order.len(), order.len());
    for (n, &i) in order.iter().enumerate() {
        sum += (z[i] - max).exp() / total;
        if sum >= p - CLOSE {
            shortest = shortest.min(n + 1);
        }
        if sum >= p + CLOSE {
            longest = n + 1;
            break;
        }
    }
    (order, shortest..=longest)
}

fn choose(attrs: &Sample, logits: &[f64], counter: i32, row: usize) -> Choice {
    let temperature = attrs.temperature as f32;
    let z: Vec<f64> = logits.iter().map(|&l| f64::from(l as f32 / temperature)).collect();
    let (order, lengths) = kept(attrs, &z);
    let all: Vec<f64> =
        z.iter().enumerate().map(|(i, z)| z + gumbel(attrs.seed, counter, row, i)).collect();
    let mut winners = Vec::new();
    for n in lengths {
        let mut set = order[..n].to_vec();
        set.sort_unstable();
        let scores: Vec<f64> = set.iter().map(|&i| all[i]).collect();
        let best = first_largest(&scores, f64::is_nan, |a, b| a < b);
        let border = scores[best] - CLOSE * scores[best].abs().max(1.0);
        winners.push(set[best] as i64);
        winners
            .extend(set.iter().zip(&scores).filter(|&(_, &s)| s >= border).map(|(&i, _)| i as i64));
    }
    let best = winners[0];
    winners.sort_unstable();
    winners.dedup();
    winners.retain(|&w| w != best);
    Choice { best, close: winners }
}

pub fn sample(attrs: &Sample, logits: &Array, counter: &Array) -> Vec<Expected> {
    let count = counter.to_i64()[0] as i32;
    let next = Array::ints(DType::S32, &[], &[count.wrapping_add(1).into()]);
    let ids = if attrs.temperature == 0.0 {
        argmax(&Argmax { axis: -1, keep_axis: false, min: false, last: false }, logits)
    } else {
        let width = *logits.shape().last().unwrap();
        let rows = logits.to_f64();
        let choices = rows.chunks(width).enumerate();
        Expected::Choices(choices.map(|(r, row)| choose(attrs, row, count, r)).collect())
    };
    vec![ids, Expected::Bits(next)]
}
