//! Random numbers of our own: what a seed means must not change with a dependency.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The numbers of one sequence of a seed.
    pub(super) fn new(seed: u64, index: u64) -> Self {
        let mut outer = Self(seed);
        let seed = outer.next();
        Self(seed ^ Self(index).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0; small ones are all as likely as makes no difference.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether something happens that happens in so many of a hundred cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of some.
    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u64) as usize).copied()
    }

    /// One of some words.
    pub(super) fn word(&mut self, of: &[&'static str]) -> &'static str {
        self.one(of).unwrap_or_default()
    }
}

/// FNV-1a, 64 bits: the digest of a sequence's answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digest(pub(super) u64);

impl Digest {
    pub(super) const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    pub(super) fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([b'\n']) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published numbers of both: a seed means the same for ever.
    #[test]
    fn published_numbers() {
        let mut random = Random(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let mut digest = Digest::EMPTY;
        digest.add("fooba");
        assert_eq!(digest.0, {
            // "foobar" and its published digest, with a line's end in place of the last letter.
            let foobar: u64 = 0x8594_4171_f739_67e8;
            let back = |digest: u64| digest.wrapping_mul(0xce96_5057_aff6_957b);
            ((back(foobar) ^ u64::from(b'r')) ^ u64::from(b'\n')).wrapping_mul(0x100_0000_01b3)
        });
    }
}
