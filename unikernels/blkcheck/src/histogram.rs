//! Times by size: four classes to each power of two, so that a percentile is at most a fifth too large, in 1 KiB of memory.

/// Classes: 4 for each of 32 powers of two.
const CLASSES: usize = 128;

/// Counts of times in µs.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u64; CLASSES],
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; CLASSES], total: 0, max: 0 }
    }
}

fn class(us: u64) -> usize {
    let log = us.max(1).ilog2();
    // The two bits below the highest.
    let quarter = if log >= 2 { us >> log.saturating_sub(2) & 3 } else { us << 2u32.saturating_sub(log) & 3 };
    ((log as usize) << 2 | quarter as usize).min(CLASSES.saturating_sub(1))
}

/// The largest time of a class.
const fn upper(class: usize) -> u64 {
    let (log, quarter) = ((class >> 2) as u32, (class & 3) as u64);
    let base = match 1u64.checked_shl(log) {
        Some(base) => base,
        None => u64::MAX,
    };
    base.saturating_add((quarter.saturating_add(1).saturating_mul(base)) >> 2).saturating_sub(1)
}

impl Histogram {
    /// Counts a time.
    pub fn add(&mut self, us: u64) {
        if let Some(count) = self.counts.get_mut(class(us)) {
            *count = count.saturating_add(1);
        }
        self.total = self.total.saturating_add(1);
        self.max = self.max.max(us);
    }
    /// How many.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.total
    }
    /// The longest, exactly.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }
    /// The time that `percent` % do not exceed; 0 where there is none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = self.total.saturating_mul(percent).div_ceil(100);
        let mut seen = 0u64;
        for (class, &count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(count);
            if seen >= wanted && count > 0 {
                return upper(class).max(1).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_a_quarter_too_large() {
        let mut h = Histogram::default();
        assert_eq!((h.percentile(50), h.max(), h.count()), (0, 0, 0));
        for us in 1..=1000 {
            h.add(us);
        }
        for percent in [1, 10, 50, 90, 99, 100] {
            let (found, exact) = (h.percentile(percent), percent * 10);
            assert!(found >= exact && found <= exact * 5 / 4 + 1, "{percent}: {found}");
        }
        h.add(u64::MAX);
        assert_eq!(h.max(), u64::MAX);
        for us in 4..100_000u64 {
            assert!(upper(class(us)) >= us && upper(class(us) - 1) < us, "{us}");
        }
    }
}
