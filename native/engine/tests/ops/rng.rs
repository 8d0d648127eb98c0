//! Random numbers and tensors, the same for the same seed.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nitrox_engine::DType;

use crate::oracle::Array;

/// `NITROX_SEED`, or the time; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("NITROX_SEED") {
            Ok(text) => text.parse().expect("NITROX_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        };
        eprintln!("NITROX_SEED={seed}");
        seed
    })
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each name.
    pub fn new(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Rng(seed() ^ hash)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Two of mean 0 and deviation 1.
    fn gauss_pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }

    pub fn gauss(&mut self) -> f64 {
        self.gauss_pair()[0]
    }

    /// A float tensor whose elements `draw` gives, from their index.
    pub fn floats(
        &mut self,
        dtype: DType,
        shape: &[usize],
        mut draw: impl FnMut(&mut Rng, usize) -> f64,
    ) -> Array {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|i| draw(self, i)).collect();
        Array::floats(dtype, shape, &values)
    }

    pub fn normal(&mut self, dtype: DType, shape: &[usize], deviation: f64) -> Array {
        let mut pair = [0.0; 2];
        self.floats(dtype, shape, |r, i| {
            if i % 2 == 0 {
                pair = r.gauss_pair();
            }
            pair[i % 2] * deviation
        })
    }

    /// An integer tensor of numbers from `low` to `high`, both included.
    pub fn ints(&mut self, dtype: DType, shape: &[usize], low: i64, high: i64) -> Array {
        let n: usize = shape.iter().product();
        let span = (high as i128 - low as i128 + 1) as u128;
        let values: Vec<i64> = (0..n)
            .map(|_| (low as i128 + (u128::from(self.bits()) % span) as i128) as i64)
            .collect();
        Array::ints(dtype, shape, &values)
    }

    /// Small numbers of any type; none of them zero or negative zero.
    pub fn any(&mut self, dtype: DType, shape: &[usize]) -> Array {
        if dtype.is_float() {
            self.floats(dtype, shape, |r, _| r.gauss() + 0.125)
        } else if dtype.pair().0 == "u" {
            self.ints(dtype, shape, 0, 200)
        } else if dtype == DType::S8 {
            self.ints(dtype, shape, -100, 100)
        } else {
            self.ints(dtype, shape, -1000, 1000)
        }
    }

    /// Any bits at all, NaN and infinity among them.
    pub fn raw(&mut self, dtype: DType, shape: &[usize]) -> Array {
        let spec = nitrox_engine::Spec::new(dtype, shape).unwrap();
        let bytes = (0..spec.bytes()).map(|_| self.bits() as u8).collect();
        Array::new(spec, bytes)
    }
}
