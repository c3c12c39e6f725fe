//! Random choices that can be made again.

use std::time::Duration;

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `MICROAGENT_FAULT_SEED`, or from a seed that is always the same. Says which.
    pub(crate) fn seeded(test: &str) -> Self {
        let seed = std::env::var("MICROAGENT_FAULT_SEED")
            .ok()
            .map_or(0x6d69_6372, |text| {
                text.parse().expect("a number as the seed")
            });
        println!("{test}: MICROAGENT_FAULT_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// An instant within `limit`, sooner ones more often: most of what can break is at the start.
    pub(crate) fn instant(&mut self, limit: Duration) -> Duration {
        let part = (self.next() % 1000) as f64 / 1000.0;
        limit.mul_f64(part * part)
    }
}
