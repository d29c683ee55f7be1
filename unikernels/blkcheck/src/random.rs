//! Numbers from a seed: the same seed gives the same workload, on the machine and on the host.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..end`; 0 where `end` is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        match self.next_u64().checked_rem(end) {
            Some(n) => n,
            None => 0,
        }
    }

    /// True once in `n` times; never where `n` is 0.
    pub const fn once_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }
}

/// SplitMix64's finalizer: every bit of the argument moves every bit of the result.
#[must_use]
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator's published first outputs for seed 1234567.
    #[test]
    fn the_sequence_is_the_published_one() {
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next_u64(), random.next_u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert_eq!(random.below(0), 0);
        assert!(!random.once_in(0));
    }
}
