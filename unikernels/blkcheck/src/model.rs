//! What each sector of a range may hold, from what was submitted and answered.
//!
//! Time is a counter of events. A write may be seen from its submission on; it is gone for certain for a read that was submitted after the
//! answer to another write that was itself submitted after the first one's answer. Writes that were in flight together
//! and overlap leave open, sector by sector, which of them stayed: once all of them are answered, a read settles it.
//! Settled is one number per sector; everything else is a short list of writes.

use crate::random::Random;
use crate::sector::{SECTOR_SIZE, Seen, look};
use alloc::vec;
use alloc::vec::Vec;

/// The settled content of a sector that was discarded: whatever the drive gives.
const ANY: u32 = u32::MAX;
/// Writes that may overlap in a chain, so that each chain ends and is settled.
const CHAIN_MAX: usize = 4;
/// First bytes of every sector of a buffer that a read is to fill.
pub const UNREAD: [u8; 8] = *b"NotRead!";

/// What is wrong with a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Older than it may be.
    Old {
        /// Generation found; 0 = nothing of this run.
        found: u32,
        /// Generation that had to be there.
        expected: u32,
    },
    /// The read did not deliver it.
    Unread,
    /// Of another address or vbd.
    Misplaced,
    /// Damaged, or nobody knows what.
    Corrupt,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    generation: u32,
    first: u64,
    end: u64,
    submitted: u64,
    ended: Option<u64>,
    landed: bool,
}

impl Write {
    const fn overlaps(&self, first: u64, end: u64) -> bool {
        self.first < end && first < self.end
    }
    const fn covers(&self, sector: u64) -> bool {
        self.first <= sector && sector < self.end
    }
}

#[derive(Clone, Copy, Debug)]
struct Read {
    asked: u64,
    first: u64,
    end: u64,
}

/// The model of one range.
#[derive(Clone, Debug)]
pub struct Model {
    vbd: u32,
    seed: u64,
    first: u64,
    settled: Vec<u32>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    time: u64,
    generation: u32,
}

impl Model {
    /// Of a range of which nothing is known.
    #[must_use]
    pub fn new(vbd: u32, seed: u64, first: u64, sectors: usize) -> Self {
        let settled = vec![ANY; sectors];
        Self { vbd, seed, first, settled, writes: Vec::new(), reads: Vec::new(), time: 0, generation: 0 }
    }

    const fn tick(&mut self) -> u64 {
        self.time = self.time.wrapping_add(1);
        self.time
    }

    fn index(&self, sector: u64) -> usize {
        usize::try_from(sector.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    /// Indices of the writes that overlap the range, directly or through others.
    fn chain(&self, first: u64, end: u64) -> Vec<usize> {
        let mut chain: Vec<usize> = Vec::new();
        let mut ranges = vec![(first, end)];
        while let Some((first, end)) = ranges.pop() {
            for (i, write) in self.writes.iter().enumerate() {
                if write.overlaps(first, end) && !chain.contains(&i) {
                    chain.push(i);
                    ranges.push((write.first, write.end));
                }
            }
        }
        chain
    }

    fn is_ended(&self, index: usize) -> bool {
        self.writes.get(index).is_none_or(|write| write.ended.is_some())
    }

    /// Whether a write of the range may be submitted: not into a chain that waits to be settled or is long.
    #[must_use]
    pub fn may_write(&self, first: u64, sectors: u32) -> bool {
        let chain = self.chain(first, first.saturating_add(u64::from(sectors)));
        // It may join several chains, of which none may be one that only waits to be settled.
        let waits = |&i: &usize| {
            let own = self.writes.get(i).map(|w| self.chain(w.first, w.end)).unwrap_or_default();
            own.iter().all(|&i| self.is_ended(i))
        };
        chain.len() < CHAIN_MAX && !chain.iter().any(waits)
    }

    /// Whether nothing is in flight or open there.
    #[must_use]
    pub fn is_quiet(&self, first: u64, sectors: u32) -> bool {
        let end = first.saturating_add(u64::from(sectors));
        self.chain(first, end).is_empty() && !self.reads.iter().any(|r| r.first < end && first < r.end)
    }

    /// A write is submitted; its generation.
    pub fn write(&mut self, first: u64, sectors: u32) -> u32 {
        let submitted = self.tick();
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let end = first.saturating_add(u64::from(sectors));
        self.writes.push(Write { generation, first, end, submitted, ended: None, landed: false });
        generation
    }

    /// A write was answered; one that failed may have changed any of its sectors.
    pub fn written(&mut self, generation: u32, landed: bool) {
        let now = self.tick();
        if let Some(write) = self.writes.iter_mut().find(|w| w.generation == generation) {
            (write.ended, write.landed) = (Some(now), landed);
        }
        self.fold();
    }

    /// A discard of a quiet range is submitted.
    pub fn discard(&mut self, first: u64, sectors: u32) {
        let from = self.index(first);
        for settled in self.settled.iter_mut().skip(from).take(sectors as usize) {
            *settled = ANY;
        }
    }

    /// A read is submitted; its name.
    pub fn read(&mut self, first: u64, sectors: u32) -> u64 {
        let asked = self.tick();
        self.reads.push(Read { asked, first, end: first.saturating_add(u64::from(sectors)) });
        asked
    }

    /// A read was answered and judged.
    pub fn was_read(&mut self, asked: u64) {
        self.reads.retain(|r| r.asked != asked);
        self.fold();
    }

    /// Writes that are alone become settled, once no read can still see what was before them.
    fn fold(&mut self) {
        let mut at = 0usize;
        while let Some(&write) = self.writes.get(at) {
            let alone = self.writes.iter().filter(|w| w.overlaps(write.first, write.end)).count() == 1;
            let seen = |r: &Read| r.first < write.end && write.first < r.end && Some(r.asked) < write.ended;
            if write.ended.is_some() && write.landed && alone && !self.reads.iter().any(seen) {
                let (from, len) = (self.index(write.first), write.end.saturating_sub(write.first) as usize);
                for settled in self.settled.iter_mut().skip(from).take(len) {
                    *settled = write.generation;
                }
                self.writes.swap_remove(at);
            } else {
                at = at.saturating_add(1);
            }
        }
    }

    /// A range whose writes are all answered, and which only a read can settle.
    #[must_use]
    pub fn open(&self) -> Option<(u64, u64)> {
        self.writes.iter().find_map(|write| {
            let chain = self.chain(write.first, write.end);
            let single = chain.len() == 1 && write.landed;
            if single || !chain.iter().all(|&i| self.is_ended(i)) {
                return None;
            }
            let parts = chain.iter().filter_map(|&i| self.writes.get(i));
            Some(parts.fold((u64::MAX, 0), |(a, b), w| (a.min(w.first), b.max(w.end))))
        })
    }

    /// What a settling read found in a sector.
    pub fn settle(&mut self, sector: u64, bytes: &[u8; SECTOR_SIZE]) {
        let index = self.index(sector);
        let found = match look(bytes) {
            Seen::Stamped(s) if s.vbd == self.vbd && s.sector == sector && s.seed == self.seed => s.generation,
            // Counted when it was judged.
            _ => ANY,
        };
        if let Some(settled) = self.settled.get_mut(index) {
            *settled = found;
        }
    }

    /// All of an open range was read and settled.
    pub fn close(&mut self, first: u64, end: u64) {
        self.writes.retain(|w| !w.overlaps(first, end));
    }

    /// Judges a sector that the read `asked` gave.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(&self, asked: u64, sector: u64, bytes: &[u8; SECTOR_SIZE]) -> Result<u32, Wrong> {
        let settled = self.settled.get(self.index(sector)).copied().unwrap_or(ANY);
        let covering = || self.writes.iter().filter(|w| w.covers(sector));
        // What was complete at this time has been overwritten for certain before the read was submitted.
        let buried = |complete: u64| {
            covering().any(|w| w.landed && w.submitted >= complete && w.ended.is_some_and(|e| e <= asked))
        };
        let open = settled == ANY && !buried(0);
        let newest = covering().filter(|w| w.landed && w.ended.is_some_and(|e| e <= asked)).map(|w| w.generation).max();
        let old = |found| Err(Wrong::Old { found, expected: newest.unwrap_or(settled) });
        if bytes.first_chunk() == Some(&UNREAD) {
            return Err(Wrong::Unread);
        }
        let generation = match look(bytes) {
            Seen::Zero | Seen::Foreign if open => return Ok(0),
            Seen::Zero => return old(0),
            // Emulated drives keep no sector whole between a write and a read in flight together: their host's page cache does not.
            Seen::Damaged if covering().any(|w| w.ended.is_none_or(|e| e > asked)) => return Ok(0),
            Seen::Damaged | Seen::Foreign => return Err(Wrong::Corrupt),
            Seen::Stamped(s) if s.vbd != self.vbd || s.sector != sector => return Err(Wrong::Misplaced),
            Seen::Stamped(s) if s.seed != self.seed => return if open { Ok(0) } else { old(0) },
            Seen::Stamped(s) => s.generation,
        };
        if open || (generation == settled && !buried(0)) {
            return Ok(generation);
        }
        match covering().find(|w| w.generation == generation) {
            Some(w) if w.ended.is_none_or(|e| !buried(e)) => Ok(generation),
            _ => old(generation),
        }
    }

    /// Settled generations in order, [`None`] for a sector whose content is not known.
    pub fn table(&self) -> impl Iterator<Item = (u64, Option<u32>)> {
        (self.first..).zip(self.settled.iter().map(|&g| (g != ANY).then_some(g)))
    }

    /// The first run of sectors whose content is not known and in which nothing is open, at most `most` and a multiple of `align`.
    #[must_use]
    pub fn unknown(&self, most: u32, align: u32) -> Option<(u64, u32)> {
        let align = align.max(1) as usize;
        let from = self.settled.iter().position(|&g| g == ANY)?;
        let from = from.saturating_sub(from.checked_rem(align).unwrap_or(0));
        let run = self.settled.iter().skip(from).take(most as usize).take_while(|&&g| g == ANY).count();
        let len = run.max(1).next_multiple_of(align).min(self.settled.len().saturating_sub(from));
        Some((self.first.saturating_add(from as u64), u32::try_from(len).ok()?))
    }

    /// A range in the model's, a multiple of `align`, of up to `most` sectors; small and large ones alike.
    pub fn draw(&self, random: &mut Random, most: u32, align: u32) -> (u64, u32) {
        let align = u64::from(align.max(1));
        let units = (self.settled.len() as u64).checked_div(align).unwrap_or(0).max(1);
        let most = u64::from(most).checked_div(align).unwrap_or(0).clamp(1, units);
        let limit = 1u64.checked_shl(random.below(u64::from(most.ilog2()).saturating_add(1)) as u32).unwrap_or(1);
        let len = limit.saturating_add(random.below(limit)).min(most);
        let at = random.below(units.saturating_sub(len).saturating_add(1));
        (self.first.saturating_add(at.saturating_mul(align)), len.saturating_mul(align) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sector::Stamp;

    fn bytes(generation: u32, sector: u64) -> [u8; SECTOR_SIZE] {
        let mut bytes = [0; SECTOR_SIZE];
        Stamp { vbd: 1, generation, sector, seed: 2 }.write(&mut bytes);
        bytes
    }
    fn model() -> Model {
        let mut model = Model::new(1, 2, 0, 64);
        let fill = model.write(0, 64);
        model.written(fill, true);
        model
    }
    fn see(model: &mut Model, sector: u64, generation: u32) -> Result<u32, Wrong> {
        let asked = model.read(sector, 1);
        let verdict = model.judge(asked, sector, &bytes(generation, sector));
        model.was_read(asked);
        verdict
    }

    #[test]
    fn an_acknowledged_write_has_to_be_there() {
        let mut model = model();
        assert_eq!(see(&mut model, 5, 1), Ok(1));
        let write = model.write(4, 4);
        assert_eq!((see(&mut model, 5, 1), see(&mut model, 5, write)), (Ok(1), Ok(write)), "either, while in flight");
        model.written(write, true);
        assert_eq!(see(&mut model, 5, write), Ok(write));
        assert_eq!(see(&mut model, 5, 1), Err(Wrong::Old { found: 1, expected: write }));
        assert_eq!(see(&mut model, 8, write), Err(Wrong::Old { found: write, expected: 1 }), "it did not write there");
    }

    #[test]
    fn a_read_that_began_before_the_answer_may_see_what_was_before() {
        let mut model = model();
        let write = model.write(4, 4);
        let asked = model.read(4, 1);
        model.written(write, true);
        assert_eq!(model.judge(asked, 4, &bytes(1, 4)), Ok(1));
        assert_eq!(model.judge(asked, 4, &bytes(write, 4)), Ok(write));
        model.was_read(asked);
        assert!(see(&mut model, 4, 1).is_err());
    }

    #[test]
    fn of_overlapping_writes_either_stays_until_a_read_settles_it() {
        let mut model = model();
        let (a, b) = (model.write(0, 8), model.write(4, 8));
        model.written(b, true);
        assert_eq!(model.open(), None, "one is in flight");
        model.written(a, true);
        assert_eq!(model.open(), Some((0, 12)));
        assert!(!model.may_write(10, 1) && model.may_write(12, 4));
        let c = model.write(14, 2);
        assert!(model.may_write(13, 2) && !model.may_write(11, 4), "joined to one that waits");
        model.written(c, true);
        assert_eq!((see(&mut model, 5, a), see(&mut model, 5, b)), (Ok(a), Ok(b)));
        assert!(see(&mut model, 5, 1).is_err() && see(&mut model, 2, b).is_err());
        for sector in 0..12 {
            model.settle(sector, &bytes(if sector < 6 { a } else { b }, sector));
        }
        model.close(0, 12);
        assert_eq!((see(&mut model, 5, a), see(&mut model, 6, b)), (Ok(a), Ok(b)));
        assert!(see(&mut model, 5, b).is_err(), "it cannot come back");
        assert_eq!(model.open(), None);
    }

    #[test]
    fn a_write_after_an_answered_one_buries_it_also_in_a_chain() {
        let mut model = model();
        let (a, b) = (model.write(0, 8), model.write(4, 8));
        model.written(a, true);
        let c = model.write(0, 6);
        model.written(c, true);
        assert!(see(&mut model, 1, a).is_err(), "c came after a's answer");
        assert_eq!((see(&mut model, 5, b), see(&mut model, 5, c)), (Ok(b), Ok(c)));
    }

    #[test]
    fn a_failed_write_leaves_either_and_a_read_settles_it() {
        let mut model = model();
        let write = model.write(0, 4);
        model.written(write, false);
        assert_eq!((see(&mut model, 0, 1), see(&mut model, 0, write)), (Ok(1), Ok(write)));
        assert_eq!(model.open(), Some((0, 4)));
    }

    #[test]
    fn discarded_sectors_hold_anything_but_another_address() {
        let mut model = model();
        model.discard(8, 8);
        let asked = model.read(8, 8);
        assert_eq!(model.judge(asked, 9, &[0; SECTOR_SIZE]), Ok(0));
        assert_eq!(model.judge(asked, 9, &bytes(1, 9)), Ok(1));
        assert_eq!(model.judge(asked, 9, &bytes(1, 10)), Err(Wrong::Misplaced));
        assert_eq!(model.unknown(64, 1), Some((8, 8)));
        assert_eq!(model.unknown(4, 1), Some((8, 4)));
    }

    #[test]
    fn a_read_beside_a_write_may_give_parts_of_both_and_none_after_it() {
        let mut model = model();
        let mut mixed = bytes(1, 5);
        mixed[100] ^= 1;
        let write = model.write(4, 4);
        let beside = model.read(5, 1);
        assert_eq!(model.judge(beside, 5, &mixed), Ok(0), "in flight together");
        model.written(write, true);
        assert_eq!(model.judge(beside, 5, &mixed), Ok(0), "asked before the write was answered");
        let after = model.read(5, 1);
        assert_eq!(model.judge(after, 5, &mixed), Err(Wrong::Corrupt));
        assert_eq!(model.judge(beside, 20, &mixed), Err(Wrong::Corrupt), "nobody writes there");
    }

    #[test]
    fn a_buffer_that_was_not_filled_and_damage_are_told() {
        let mut model = model();
        let asked = model.read(0, 1);
        let mut sector = bytes(1, 0);
        sector[77] ^= 4;
        assert_eq!(model.judge(asked, 0, &sector), Err(Wrong::Corrupt));
        sector[..8].copy_from_slice(&UNREAD);
        assert_eq!(model.judge(asked, 0, &sector), Err(Wrong::Unread));
        assert_eq!(model.judge(asked, 0, &[0; SECTOR_SIZE]), Err(Wrong::Old { found: 0, expected: 1 }));
    }
}
