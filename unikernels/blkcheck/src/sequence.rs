//! The writes of mode `power`: the same on the machine and on the host, from the seed alone, so that after a cut the host knows what
//! every completed flush covered.
//!
//! Writes of a batch do not overlap, batches are divided by flushes, and generations count the writes from 1. So of two writes to one
//! sector the later one was submitted when the earlier one was on the medium: what a sector may hold does not depend on the order
//! within a batch.

use crate::random::Random;
use alloc::collections::VecDeque;

/// Most writes of a batch.
const BATCH_MAX: u64 = 16;
/// One write in so many is forced to the medium by itself.
const FUA_EVERY: u64 = 8;

/// Where and how large; both sides have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Seed.
    pub seed: u64,
    /// First sector of the range.
    pub first: u64,
    /// Sectors of the range.
    pub sectors: u64,
    /// Sectors of the largest write.
    pub size: u32,
    /// Addresses and lengths are multiples of it, in sectors.
    pub align: u32,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its number, from 1.
    pub generation: u32,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub sectors: u32,
    /// On the medium when it completes, without a flush.
    pub fua: bool,
}

impl Write {
    /// First sector after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.sectors as u64)
    }
    /// Whether it writes `sector`.
    #[must_use]
    pub const fn covers(&self, sector: u64) -> bool {
        self.first <= sector && sector < self.end()
    }
    /// Whether both write some sector.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Submit a write.
    Write(Write),
    /// Wait for all writes, then flush. What is written up to this generation is on the medium when it completes.
    Flush(u32),
}

/// The sequence, without end.
#[derive(Clone, Debug)]
pub struct Sequence {
    shape: Shape,
    random: Random,
    generation: u32,
    batch: VecDeque<Write>,
    flush: bool,
}

impl Sequence {
    /// From its beginning.
    #[must_use]
    pub const fn new(shape: Shape) -> Self {
        Self { random: Random::new(shape.seed), shape, generation: 0, batch: VecDeque::new(), flush: false }
    }

    fn draw(&mut self) -> Write {
        let Shape { first, sectors, size, align, .. } = self.shape;
        let align = u64::from(align.max(1));
        let units = sectors.checked_div(align).unwrap_or(0).max(1);
        let most = u64::from(size).checked_div(align).unwrap_or(0).clamp(1, units);
        // Small and large ones alike: the length's logarithm is what is drawn evenly.
        let limit = 1u64.checked_shl(self.random.below(u64::from(most.ilog2()).saturating_add(1)) as u32).unwrap_or(1);
        let len = limit.saturating_add(self.random.below(limit)).min(most);
        let at = self.random.below(units.saturating_sub(len).saturating_add(1));
        Write {
            generation: 0,
            first: first.saturating_add(at.saturating_mul(align)),
            sectors: len.saturating_mul(align) as u32,
            fua: self.random.once_in(FUA_EVERY),
        }
    }

    fn fill(&mut self) {
        let count = self.random.below(BATCH_MAX).saturating_add(1);
        for _ in 0..count {
            let mut write = self.draw();
            if self.batch.iter().any(|other| other.overlaps(&write)) {
                break;
            }
            self.generation = self.generation.wrapping_add(1);
            write.generation = self.generation;
            self.batch.push_back(write);
        }
    }
}

impl Iterator for Sequence {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.batch.is_empty() {
            if self.flush {
                self.flush = false;
                return Some(Step::Flush(self.generation));
            }
            self.fill();
            self.flush = true;
        }
        self.batch.pop_front().map(Step::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { seed: 9, first: 64, sectors: 4096, size: 256, align: 8 };

    #[test]
    fn writes_stay_in_the_range_and_apart_within_a_batch() {
        let (mut batch, mut generation, mut flushes, mut overlaps) = (Vec::<Write>::new(), 0, 0, 0);
        let mut last: Vec<Write> = Vec::new();
        for step in Sequence::new(SHAPE).take(4000) {
            match step {
                Step::Write(w) => {
                    generation += 1;
                    assert_eq!(w.generation, generation);
                    assert!(w.first >= 64 && w.end() <= 64 + 4096 && w.sectors > 0 && w.sectors <= 256, "{w:?}");
                    assert!(w.first.is_multiple_of(8) && w.sectors.is_multiple_of(8), "{w:?}");
                    assert!(!batch.iter().any(|o| o.overlaps(&w)));
                    overlaps += usize::from(last.iter().any(|o| o.overlaps(&w)));
                    batch.push(w);
                }
                Step::Flush(upto) => {
                    assert_eq!(upto, generation);
                    assert!(!batch.is_empty());
                    flushes += 1;
                    last = core::mem::take(&mut batch);
                }
            }
        }
        assert!(flushes > 300 && overlaps > 100, "{flushes} {overlaps}");
    }

    #[test]
    fn the_same_seed_gives_the_same_writes() {
        let some = |seed| Sequence::new(Shape { seed, ..SHAPE }).take(50).collect::<Vec<_>>();
        assert_eq!(some(9), some(9));
        assert_ne!(some(9), some(10));
    }

    #[test]
    fn a_range_of_one_sector_is_enough() {
        let tiny = Shape { seed: 1, first: 0, sectors: 1, size: 2048, align: 1 };
        let steps: Vec<_> = Sequence::new(tiny).take(4).collect();
        assert!(matches!(steps[..], [Step::Write(_), Step::Flush(1), Step::Write(_), Step::Flush(2)]), "{steps:?}");
    }
}
