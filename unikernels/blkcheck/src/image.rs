//! The host's judgement over an image, after the machine has gone: it shares the sector's format and the sequence with the workload,
//! and no driver, no ring and no backend.
//!
//! [`Ledger`] follows one vbd over runs of mode `power`, [`Table`] compares a vbd with the digest that mode `verify` reports at its
//! end. Both are given sectors; where these lie in the image (a partition, a range) is the caller's business.

use crate::random::mix;
use crate::sector::{SECTOR_SIZE, Seen, Stamp, look};
use crate::sequence::{Sequence, Shape, Step, Write};
use alloc::vec;
use alloc::vec::Vec;

/// Sectors that are not as they have to be, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Older than a write that was acknowledged as stable (a whole such write is missing).
    pub lost: u64,
    /// The same, where other sectors of that write are there.
    pub torn: u64,
    /// Written by a run that cannot have written it, or newer than anything submitted.
    pub stale: u64,
    /// Of another address or another vbd.
    pub misplaced: u64,
    /// With a wrong checksum, or of unknown origin.
    pub corrupt: u64,
    /// Looked at.
    pub sectors: u64,
}

impl Findings {
    /// Nothing was wrong.
    #[must_use]
    pub const fn clean(&self) -> bool {
        self.lost == 0 && self.torn == 0 && self.stale == 0 && self.misplaced == 0 && self.corrupt == 0
    }
}

/// What is known of a run that was cut.
#[derive(Clone, Debug)]
pub struct Run {
    /// As the workload had it (`blkcheck: begin`).
    pub shape: Shape,
    /// The highest `blkcheck: flushed`; 0 where there was none.
    pub flushed: u32,
    /// Every `blkcheck: fua`.
    pub fua: Vec<u32>,
}

/// Generations after the last known flush that may have been submitted: a batch, and those whose records were still under way.
const AHEAD: u32 = 100_000;

/// Whose content a sector was last seen to have: seed and generation; `None` = zeros.
type Known = Option<(u64, u32)>;

/// What a vbd's range was last seen to hold.
#[derive(Clone, Debug)]
pub struct Ledger {
    vbd: u32,
    first: u64,
    known: Vec<Known>,
}

impl Ledger {
    /// Of a range that holds zeros.
    #[must_use]
    pub fn new(vbd: u32, first: u64, sectors: usize) -> Self {
        Self { vbd, first, known: vec![None; sectors] }
    }

    /// Judges the range after `run`; `read` gives the sector of an address. What is found is what the next run begins with.
    ///
    /// # Errors
    /// `read`'s first.
    pub fn check<E>(
        &mut self,
        run: &Run,
        mut read: impl FnMut(u64, &mut [u8; SECTOR_SIZE]) -> Result<(), E>,
    ) -> Result<Findings, E> {
        let mut seen = Vec::with_capacity(self.known.len());
        let mut newest = run.fua.iter().copied().max().unwrap_or(0).max(run.flushed);
        let mut buffer = [0; SECTOR_SIZE];
        for sector in (self.first..).take(self.known.len()) {
            read(sector, &mut buffer)?;
            let what = look(&buffer);
            if let Seen::Stamped(stamp) = what
                && stamp.seed == run.shape.seed
                && stamp.generation <= run.flushed.saturating_add(AHEAD)
            {
                newest = newest.max(stamp.generation);
            }
            seen.push(what);
        }
        let written = Written::by(run, newest, self.first, self.known.len());
        let mut findings = Findings { sectors: self.known.len() as u64, ..Findings::default() };
        let mut short = vec![0u32; written.writes.len().saturating_add(1)];
        for ((sector, what), (known, must)) in (self.first..).zip(&seen).zip(self.known.iter_mut().zip(&written.must)) {
            let now: Known = match what {
                Seen::Zero => None,
                Seen::Stamped(s) if s.vbd == self.vbd && s.sector == sector => Some((s.seed, s.generation)),
                Seen::Stamped(_) => {
                    findings.misplaced = findings.misplaced.saturating_add(1);
                    continue;
                }
                Seen::Damaged | Seen::Foreign => {
                    findings.corrupt = findings.corrupt.saturating_add(1);
                    continue;
                }
            };
            let of_run = now.filter(|&(seed, _)| seed == run.shape.seed).map(|(_, generation)| generation);
            match of_run {
                Some(generation) if written.wrote(generation, sector) && generation >= *must => {}
                None if *must == 0 && now == *known => {}
                // An older write of this run, or what was there before it.
                Some(generation) if written.wrote(generation, sector) => count(&mut short, *must),
                None if now == *known => count(&mut short, *must),
                _ => findings.stale = findings.stale.saturating_add(1),
            }
            *known = now;
        }
        for (generation, &missing) in short.iter().enumerate().filter(|(_, missing)| **missing > 0) {
            let sectors = written.stable_sectors(generation as u32);
            let kind = if missing < sectors { &mut findings.torn } else { &mut findings.lost };
            *kind = kind.saturating_add(u64::from(missing));
        }
        Ok(findings)
    }
}

fn count(short: &mut [u32], generation: u32) {
    if let Some(n) = short.get_mut(generation as usize) {
        *n = n.saturating_add(1);
    }
}

/// The writes of a run up to some generation, and what of them has to be there.
struct Written {
    writes: Vec<Write>,
    /// Per sector: the least generation it may hold; 0 = what was there before the run.
    must: Vec<u32>,
}

impl Written {
    fn by(run: &Run, newest: u32, first: u64, sectors: usize) -> Self {
        let mut writes = Vec::new();
        let mut must = vec![0u32; sectors];
        for step in Sequence::new(run.shape) {
            let Step::Write(write) = step else { continue };
            if write.generation > newest {
                break;
            }
            writes.push(write);
            if write.generation <= run.flushed || (write.fua && run.fua.contains(&write.generation)) {
                let from = usize::try_from(write.first.saturating_sub(first)).unwrap_or(usize::MAX);
                for least in must.iter_mut().skip(from).take(write.sectors as usize) {
                    *least = write.generation;
                }
            }
        }
        Self { writes, must }
    }

    fn get(&self, generation: u32) -> Option<&Write> {
        self.writes.get(generation.checked_sub(1)? as usize)
    }

    fn wrote(&self, generation: u32, sector: u64) -> bool {
        self.get(generation).is_some_and(|write| write.covers(sector))
    }

    /// Sectors in which the write is the last stable one.
    fn stable_sectors(&self, generation: u32) -> u32 {
        if generation == 0 {
            return 0;
        }
        self.must.iter().fold(0, |n: u32, &must| n.saturating_add(u32::from(must == generation)))
    }
}

/// A digest of which generation each sector of a range holds. Mode `verify` reports it at its end; the host takes it from the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    digest: u64,
    /// What is wrong with sectors taken from an image, whatever the digest.
    pub findings: Findings,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// Of no sectors.
    #[must_use]
    pub const fn new() -> Self {
        let findings = Findings { lost: 0, torn: 0, stale: 0, misplaced: 0, corrupt: 0, sectors: 0 };
        Self { digest: 0, findings }
    }

    /// Adds the next sector, which holds `generation`.
    pub const fn add(&mut self, sector: u64, generation: u32) {
        self.digest = mix(self.digest ^ mix(sector).wrapping_add(generation as u64));
    }

    /// Adds the next sector as read from an image.
    pub fn add_read(&mut self, vbd: u32, seed: u64, sector: u64, bytes: &[u8; SECTOR_SIZE]) {
        let found = &mut self.findings;
        found.sectors = found.sectors.saturating_add(1);
        let kind = match look(bytes) {
            Seen::Stamped(Stamp { vbd: v, sector: s, seed: of, generation })
                if v == vbd && s == sector && of == seed =>
            {
                return self.add(sector, generation);
            }
            Seen::Stamped(s) if s.vbd == vbd && s.sector == sector => &mut found.stale,
            Seen::Stamped(_) => &mut found.misplaced,
            Seen::Zero => &mut found.lost,
            Seen::Damaged | Seen::Foreign => &mut found.corrupt,
        };
        *kind = kind.saturating_add(1);
    }

    /// The digest, as the report writes it.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests;
