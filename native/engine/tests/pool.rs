//! The memory pool against a model of it, over a source that fails at will.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nitrox_engine::pool::{ALIGNMENT, Block, Options, Pool, Source};
use nitrox_engine::{Error, Result};
use proptest::prelude::*;

/// Addresses without memory behind them. Checks that what is freed was given, at the same size.
#[derive(Debug, Default)]
struct Mock {
    given: Mutex<BTreeMap<u64, usize>>,
    calls: AtomicUsize,
    /// Refuses larger segments; `usize::MAX` refuses none.
    largest: AtomicUsize,
    /// Bytes of the device.
    capacity: AtomicUsize,
    /// Segments follow one another without a gap.
    dense: AtomicBool,
    broken: AtomicBool,
    next: Mutex<u64>,
}

impl Mock {
    fn new(capacity: usize) -> Arc<Self> {
        let mock = Mock::default();
        mock.largest.store(usize::MAX, Ordering::Relaxed);
        mock.capacity.store(capacity, Ordering::Relaxed);
        *mock.next.lock().unwrap() = 1 << 20;
        Arc::new(mock)
    }

    fn reserved(&self) -> usize {
        self.given.lock().unwrap().values().sum()
    }
}

/// What the pool owns; the test keeps the mock itself.
#[derive(Debug, Clone)]
struct Shared(Arc<Mock>);

impl Source for Shared {
    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        let mock = &self.0;
        assert!(bytes > 0 && bytes.is_multiple_of(ALIGNMENT), "a segment of {bytes} bytes");
        mock.calls.fetch_add(1, Ordering::Relaxed);
        if mock.broken.load(Ordering::Relaxed) {
            return Err(Error::Driver { call: "allocate", message: "broken".into() });
        }
        let left = mock.capacity.load(Ordering::Relaxed) - mock.reserved();
        if bytes > left || bytes > mock.largest.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut next = mock.next.lock().unwrap();
        let addr = *next;
        let gap = if mock.dense.load(Ordering::Relaxed) { 0 } else { 4096 };
        *next += (bytes + gap) as u64;
        mock.given.lock().unwrap().insert(addr, bytes);
        Ok(Some(addr))
    }

    fn free(&self, addr: u64, bytes: usize) {
        let was = self.0.given.lock().unwrap().remove(&addr);
        assert_eq!(was, Some(bytes), "segment {addr:#x} given back as {bytes} bytes");
    }
}

fn pool(mock: &Arc<Mock>, limit: Option<usize>, segment: usize) -> Arc<Pool> {
    Pool::new("mock", Box::new(Shared(Arc::clone(mock))), Options { limit, segment })
}

/// No block is outside the segments, none shares a byte with another, all are aligned, and the
/// statistics are those of the model.
fn consistent(mock: &Mock, pool: &Arc<Pool>, blocks: &[Block]) {
    let mut ranges: Vec<(u64, u64)> =
        blocks.iter().map(|b| (b.addr(), b.addr() + b.size() as u64)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "blocks overlap: {ranges:x?}");
    let segments = mock.given.lock().unwrap().clone();
    for &(from, to) in &ranges {
        assert_eq!(from % ALIGNMENT as u64, 0);
        let (&start, &size) = segments.range(..=from).next_back().unwrap();
        assert!(to <= start + size as u64, "{from:x}..{to:x} leaves segment {start:x}+{size:x}");
    }
    let stats = pool.stats();
    let in_use: usize = blocks.iter().map(Block::size).sum();
    let free = stats.reserved - stats.in_use;
    assert_eq!(stats.in_use, in_use);
    assert_eq!(stats.allocations, blocks.len());
    assert_eq!(stats.reserved, mock.reserved());
    assert_eq!(stats.segments, segments.len());
    assert!(stats.peak >= stats.in_use && stats.largest_free <= free);
    assert!((0.0..=1.0).contains(&stats.fragmentation));
    assert_eq!(free == 0, stats.largest_free == 0);
    if free > 0 {
        assert_eq!(stats.fragmentation, 1.0 - stats.largest_free as f64 / free as f64);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(usize),
    /// The block at this place of those that live.
    Free(usize),
    Trim,
    FreeAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![
        4 => 0..2000usize,
        2 => (0..64usize).prop_map(|n| n * ALIGNMENT),
        1 => 0..100_000usize,
    ];
    let step = prop_oneof![
        6 => size.prop_map(Step::Allocate),
        5 => any::<usize>().prop_map(Step::Free),
        1 => Just(Step::Trim),
        1 => Just(Step::FreeAll),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn follows_the_model(
        steps in steps(),
        segment in prop_oneof![Just(0usize), Just(ALIGNMENT), Just(4096), Just(65_536)],
        limit in prop_oneof![Just(None), (0..200_000usize).prop_map(Some)],
        capacity in prop_oneof![Just(1usize << 40), 0..200_000usize],
        dense in any::<bool>(),
    ) {
        let mock = Mock::new(capacity);
        mock.dense.store(dense, Ordering::Relaxed);
        let pool = pool(&mock, limit, segment);
        let mut blocks: Vec<Block> = Vec::new();
        let (mut peak, mut total) = (0, 0u64);
        for step in steps {
            match step {
                Step::Allocate(bytes) => match pool.allocate(bytes) {
                    Ok(block) => {
                        prop_assert!(block.size() >= bytes && block.size() > 0);
                        prop_assert!(block.size() < bytes.max(1) + ALIGNMENT);
                        blocks.push(block);
                        total += 1;
                    }
                    Err(Error::OutOfMemory { requested, stats, .. }) => {
                        prop_assert_eq!(requested, bytes);
                        prop_assert_eq!(stats.limit, limit);
                        // It tried: nothing free holds it, and no segment is left to give back.
                        prop_assert!(stats.largest_free < bytes.max(1));
                        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
                        let most = limit.unwrap_or(usize::MAX).min(capacity);
                        prop_assert!(size > most - stats.reserved);
                    }
                    Err(e) => panic!("{e}"),
                },
                Step::Free(_) if blocks.is_empty() => {}
                Step::Free(which) => drop(blocks.swap_remove(which % blocks.len())),
                Step::Trim => {
                    pool.trim();
                    // Only segments that hold a block are left.
                    let segments = mock.given.lock().unwrap().clone();
                    for (start, size) in segments {
                        let end = start + size as u64;
                        prop_assert!(blocks.iter().any(|b| (start..end).contains(&b.addr())));
                    }
                }
                Step::FreeAll => {
                    blocks.clear();
                    let stats = pool.stats();
                    prop_assert_eq!((stats.in_use, stats.allocations), (0, 0));
                    // Each segment is one free block again.
                    let largest = mock.given.lock().unwrap().values().copied().max();
                    prop_assert_eq!(stats.largest_free, largest.unwrap_or(0));
                }
            }
            consistent(&mock, &pool, &blocks);
            let stats = pool.stats();
            prop_assert!(limit.is_none_or(|l| stats.reserved <= l));
            peak = peak.max(stats.in_use);
            prop_assert_eq!((stats.peak, stats.total_allocations), (peak, total));
        }
        // A block keeps its pool alive; the last of both gives the segments back.
        drop(pool);
        drop(blocks);
        prop_assert_eq!(mock.reserved(), 0);
    }
}

#[test]
fn blocks_come_from_one_segment() {
    let mock = Mock::new(1 << 30);
    let pool = pool(&mock, None, 1 << 20);
    let blocks: Vec<_> = (0..100).map(|i| pool.allocate(i * 37).unwrap()).collect();
    consistent(&mock, &pool, &blocks);
    assert_eq!(mock.calls.load(Ordering::Relaxed), 1);
    drop(blocks);
    let stats = pool.stats();
    assert_eq!((stats.segments, stats.largest_free, stats.fragmentation), (1, 1 << 20, 0.0));
    // More than the least size of a segment is a segment of its own.
    let large = pool.allocate(3 << 20).unwrap();
    assert_eq!(pool.stats().reserved, (1 << 20) + large.size());
}

#[test]
fn neighbours_of_another_segment_stay_apart() {
    let mock = Mock::new(1 << 30);
    mock.dense.store(true, Ordering::Relaxed);
    let pool = pool(&mock, None, 4096);
    let blocks: Vec<_> = (0..4).map(|_| pool.allocate(4096).unwrap()).collect();
    drop(blocks);
    let stats = pool.stats();
    assert_eq!((stats.segments, stats.largest_free), (4, 4096));
    assert_eq!(stats.fragmentation, 0.75);
    // Nor is a request served from two of them.
    let two = pool.allocate(8192).unwrap();
    assert_eq!((two.size(), pool.stats().segments), (8192, 5));
}

#[test]
fn the_limit_holds() {
    let mock = Mock::new(1 << 30);
    let pool = pool(&mock, Some(10_000), 4096);
    // 10 000 bytes hold 39 blocks of 256.
    let blocks: Vec<_> = (0..39).map(|_| pool.allocate(256).unwrap()).collect();
    match pool.allocate(1).unwrap_err() {
        Error::OutOfMemory { device, requested, stats } => {
            assert_eq!((device.as_str(), requested), ("mock", 1));
            assert_eq!((stats.in_use, stats.limit), (39 * 256, Some(10_000)));
            assert_eq!((stats.allocations, stats.total_allocations), (39, 39));
        }
        e => panic!("{e}"),
    }
    consistent(&mock, &pool, &blocks);
    drop(blocks);
    assert!(pool.allocate(1).is_ok());
}

#[test]
fn the_message_of_out_of_memory_says_what_there_was() {
    let pool = pool(&Mock::new(1 << 30), Some(4096), 1024);
    let _held = pool.allocate(1000).unwrap();
    let text = pool.allocate(5000).unwrap_err().to_string();
    for part in ["mock", "5000", "1024 in use", "1024 reserved", "limit 4096"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// An idle segment of the wrong size makes room for the one that is asked for.
#[test]
fn idle_segments_go_before_memory_is_out() {
    let mock = Mock::new(100_000);
    let pool = pool(&mock, None, 4096);
    let held = pool.allocate(20_000).unwrap();
    drop(pool.allocate(60_000).unwrap());
    let large = pool.allocate(70_000).unwrap();
    assert_eq!(pool.stats().segments, 2);
    consistent(&mock, &pool, &[held, large]);
}

/// Where no large segment is to be had one of the size that is needed will do.
#[test]
fn a_smaller_segment_will_do() {
    let mock = Mock::new(1 << 30);
    mock.largest.store(5000, Ordering::Relaxed);
    let pool = pool(&mock, None, 1 << 20);
    let block = pool.allocate(3000).unwrap();
    assert_eq!(pool.stats().reserved, block.size());
    assert_eq!(pool.allocate(6000).unwrap_err().reason(), "out_of_memory");
    mock.largest.store(usize::MAX, Ordering::Relaxed);
    assert!(pool.allocate(6000).is_ok());
}

#[test]
fn a_broken_source_is_an_error_and_nothing_is_lost() {
    let mock = Mock::new(1 << 30);
    let pool = pool(&mock, None, 4096);
    let held = pool.allocate(1000).unwrap();
    mock.broken.store(true, Ordering::Relaxed);
    assert_eq!(pool.allocate(1 << 20).unwrap_err().reason(), "driver");
    // What is free already needs no source.
    let small = pool.allocate(1000).unwrap();
    mock.broken.store(false, Ordering::Relaxed);
    let large = pool.allocate(1 << 20).unwrap();
    consistent(&mock, &pool, &[held, small, large]);
}

#[test]
fn sizes_that_overflow_are_refused() {
    let pool = pool(&Mock::new(1 << 30), None, 4096);
    for bytes in [usize::MAX, usize::MAX - ALIGNMENT + 1, isize::MAX as usize, 1 << 40] {
        let reason = pool.allocate(bytes).unwrap_err().reason();
        assert!(matches!(reason, "argument" | "out_of_memory"), "{bytes}: {reason}");
    }
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn dropping_costs_no_call_to_the_source() {
    let mock = Mock::new(1 << 30);
    let pool = pool(&mock, None, 4096);
    let blocks: Vec<_> = (0..10).map(|_| pool.allocate(4096).unwrap()).collect();
    drop(blocks);
    assert_eq!(mock.given.lock().unwrap().len(), 10);
    pool.trim();
    assert_eq!((mock.reserved(), pool.stats().segments), (0, 0));
}

/// Threads that allocate, hand blocks to one another and drop them. Each writes its own number
/// over a map of the addresses that it holds.
#[test]
fn threads() {
    let mock = Mock::new(1 << 30);
    let pool = pool(&mock, Some(8 << 20), 1 << 16);
    let owners: Mutex<BTreeMap<u64, usize>> = Mutex::default();
    let shared: Mutex<Vec<Block>> = Mutex::default();
    let release = |block: Block| {
        assert_eq!(owners.lock().unwrap().remove(&block.addr()), Some(block.size()));
        drop(block);
    };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (pool, owners, shared) = (&pool, &owners, &shared);
            scope.spawn(move || {
                let mut state = thread + 1;
                for _ in 0..5000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let size = (state >> 33) as usize % 5000;
                    match pool.allocate(size) {
                        Ok(block) => {
                            let mut owners = owners.lock().unwrap();
                            let end = block.addr() + block.size() as u64;
                            let before = owners.range(..end).next_back();
                            let clear = before.is_none_or(|(a, s)| a + *s as u64 <= block.addr());
                            assert!(clear, "{block:?} is another's");
                            owners.insert(block.addr(), block.size());
                            drop(owners);
                            shared.lock().unwrap().push(block);
                        }
                        Err(e) => assert_eq!(e.reason(), "out_of_memory"),
                    }
                    let taken = {
                        let mut shared = shared.lock().unwrap();
                        let n = shared.len();
                        (n > 200 || state >> 63 == 1)
                            .then(|| (n > 0).then(|| shared.swap_remove(size % n)))
                            .flatten()
                    };
                    if let Some(block) = taken {
                        release(block);
                    }
                    if state >> 58 == 7 {
                        pool.trim();
                    }
                }
            });
        }
    });
    let left = std::mem::take(&mut *shared.lock().unwrap());
    consistent(&mock, &pool, &left);
    left.into_iter().for_each(release);
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.allocations, stats.reserved), (0, 0, 0));
    assert_eq!(mock.reserved(), 0);
}
