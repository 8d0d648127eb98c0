//! Products of few rows in f32, more than are read at once and fewer than fill a card with large tiles:
//! `kernels/dense/few.cu`. Small tiles, whose sums the blocks of a cluster share out.

use super::dense::Product;
use super::launch::Grid;
use super::props::Props;
use crate::error::Result;
use crate::spec::DType;

pub(super) const SOURCE: &str = "dense/few.cu";

/// As in the kernel: a tile of y, a block's threads and warps, and what it multiplies of `inner` at once.
const DOWN: usize = 16;
const ACROSS: usize = 64;
const THREADS: usize = 128;
const WARPS: usize = 4;
const STEP: usize = 16;

/// Blocks of a cluster, at most: what every GPU with clusters has.
const BLOCKS: usize = 8;
/// Of `inner`, what a block has at least and, where there are clusters, at most. A block with less is done
/// before what it costs to meet; one with more takes its tile longer than it saves.
const LEAST: usize = 64;
const MOST: usize = 256;
/// Rows for which it was measured (16, 32, 60 and 128), and products from which on cuBLASLt is the faster:
/// 9.1 against 9.3 µs at 60 x 512 x 2048 on an H200, but 42 against 20 at 128 x 1024 x 2048
/// (`guides/kernels/dense.md`).
const ROWS: std::ops::RangeInclusive<usize> = 9..=128;
const PRODUCTS: usize = 1 << 26;

/// How a product is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Few {
    pub tiles: usize,
    /// Of a cluster, which has a tile.
    pub blocks: usize,
    /// What a block has of `inner`.
    pub slice: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// None where the kernel is not for such a product, or does not fit.
pub(super) fn choose(props: &Props, p: &Product) -> Option<Few> {
    let packs =
        p.inner.is_multiple_of(4) && p.columns.is_multiple_of(4) && p.inner > 0 && p.columns > 0;
    let products = p.rows.saturating_mul(p.inner).saturating_mul(p.columns);
    if p.dtype != DType::F32 || !packs || !ROWS.contains(&p.rows) || products >= PRODUCTS {
        return None;
    }
    let sms = props.sms as usize;
    let tiles = p.rows.div_ceil(DOWN) * p.columns.div_ceil(p.share(ACROSS));
    let clusters = props.clusters > 0;
    let mut blocks = 1;
    while clusters && blocks < BLOCKS {
        let (next, slice) = (blocks * 2, p.inner.div_ceil(blocks));
        let worth = p.inner >= next * LEAST && tiles * next <= sms;
        if !worth && slice <= MOST {
            break;
        }
        blocks = next;
    }
    let slice = p.inner.div_ceil(blocks).next_multiple_of(STEP);
    let needed = shared(slice, blocks, p.norm);
    // Blocks of a cluster are put on a multiprocessor by twos where they fit, and others have none: half of
    // its shared memory each leaves room for one, and for one of the kernel that begins early behind it.
    let spread = (sms / 2..=sms).contains(&(tiles * blocks)) && clusters;
    let half = (props.shared_per_sm / 2).saturating_sub(2048) as usize;
    let shared = if spread { needed.max(half) } else { needed };
    // What the kernel declares, and its alignment, takes less than a kilobyte.
    let fits = shared + 1024 <= props.shared_optin as usize;
    fits.then_some(Few { tiles, blocks, slice, shared })
}

/// Bytes of shared memory, as the kernel lays it out.
fn shared(slice: usize, blocks: usize, norm: bool) -> usize {
    let x = DOWN * ((slice + 15) / 32 * 32 + 16);
    let (w, sums) = (slice * (ACROSS + 4), DOWN * ACROSS);
    let normed = if norm { DOWN * 4 + blocks * 2 * ACROSS } else { 0 };
    4 * (x.max(WARPS * 2 * ACROSS) + w + sums + normed)
}

impl Few {
    pub fn grid(&self) -> Result<Grid> {
        let grid = Grid::new(self.tiles * self.blocks, THREADS as u32)?;
        Ok(grid.clusters(self.blocks as u32).shared(self.shared as u32))
    }

    pub fn why(&self, props: &Props, p: &Product) -> String {
        let Few { tiles, blocks, slice, .. } = *self;
        let shared = match blocks {
            1 if props.clusters == 0 => "a block each: this GPU has no clusters".to_owned(),
            1 => "a block each".to_owned(),
            _ => format!("each by a cluster of {blocks} blocks, {slice} of {} a block", p.inner),
        };
        format!("{} rows of f32: {tiles} tiles of {DOWN} x {ACROSS}, {shared}", p.rows)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::window::tests::props;
    use super::*;

    fn product([rows, inner, columns]: [usize; 3]) -> Product {
        let (dtype, to_f32) = (DType::F32, false);
        Product { rows, inner, columns, dtype, to_f32, norm: false, gated: false }
    }

    fn hopper() -> Props {
        Props { clusters: 7, shared_per_sm: 233_472, ..props(132, 232_448) }
    }

    #[test]
    fn the_blocks_have_all_of_it_and_fit() {
        let mut chosen = 0;
        for card in
            [hopper(), Props { clusters: 2, ..hopper() }, props(108, 166_912), props(46, 101_376)]
        {
            for rows in [9, 16, 17, 60, 128] {
                for inner in [4, 16, 20, 64, 100, 256, 288, 512, 1000, 1024, 2048, 4096] {
                    for columns in [4, 48, 68, 256, 1024, 2048, 8192] {
                        for (norm, gated) in [(false, false), (true, false), (false, true)] {
                            let p = Product { norm, gated, ..product([rows, inner, columns]) };
                            let Some(few) = choose(&card, &p) else { continue };
                            let Few { tiles, blocks, slice, shared } = few;
                            assert!(blocks * slice >= inner && slice.is_multiple_of(STEP), "{p:?}");
                            assert!((blocks - 1) * slice < inner, "{p:?}: a block has nothing");
                            assert!(blocks.is_power_of_two() && DOWN.is_multiple_of(blocks));
                            assert!(shared <= card.shared_optin as usize && tiles > 0);
                            assert!(blocks == 1 || card.clusters > 0);
                            few.grid().unwrap();
                            chosen += 1;
                        }
                    }
                }
            }
        }
        assert!(chosen > 1000, "{chosen}");
    }

    #[test]
    fn what_was_measured() {
        let chosen = |mkn| {
            choose(&hopper(), &product(mkn))
                .map(|few| (few.blocks, few.slice, few.shared > 100_000))
        };
        assert_eq!(chosen([60, 512, 512]), Some((4, 128, true)));
        assert_eq!(chosen([60, 256, 768]), Some((2, 128, true)));
        assert_eq!(chosen([60, 288, 256]), Some((4, 80, false)));
        assert_eq!(chosen([60, 512, 256]), Some((8, 64, true)));
        assert_eq!(chosen([60, 512, 48]), Some((8, 64, false)));
        assert_eq!(chosen([60, 16, 512]), Some((1, 16, false)));
        assert_eq!(chosen([60, 512, 2048]), Some((2, 256, false)));
        assert_eq!(chosen([128, 1024, 2048]), None);
        // Not whole packs, or not the rows.
        assert_eq!(chosen([60, 510, 512]), None);
        assert_eq!(chosen([60, 512, 50]), None);
        assert_eq!(chosen([8, 512, 512]), None);
        assert_eq!(chosen([129, 512, 512]), None);
    }
}
