//! Numbers that follow from a seed.

/// SplitMix64.
#[derive(Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// Another seed, other numbers.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(super) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, or 0 where there is none.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.any().checked_rem(limit).unwrap_or(0)
    }

    /// An index of a list that is not empty.
    pub(super) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}
