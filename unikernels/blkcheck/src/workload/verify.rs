//! Random requests of which every answer is judged by [`crate::model`]: the whole range is written, then comes the mixed load, then everything
//! is settled, flushed and read once more, so that the host can compare the image with the last table.

use super::{Job, Kind, Next, Range, Results, Source, State};
use crate::disk::{Command, Failure, Op};
use crate::image::Table;
use crate::model::{Model, Wrong};
use crate::options::Options;
use crate::random::Random;
use crate::report::Report;
use crate::sector::{SECTOR_SIZE, Stamp};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Lines about wrong sectors.
const TOLD_MAX: u32 = 16;
/// Ranges drawn for a write until one may be written.
const TRIES: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fill { next: u64 },
    Ready,
    Mixed,
    Settle,
    Rewrite,
    Final { next: u64 },
    Over,
}

/// An open range that is being read piece by piece.
#[derive(Clone, Copy, Debug)]
struct Settling {
    first: u64,
    end: u64,
    next: u64,
    reading: bool,
}

pub(super) struct Verify {
    vbd: u32,
    options: Options,
    range: Range,
    discard: bool,
    model: Model,
    random: Random,
    phase: Phase,
    until_us: u64,
    moved: u64,
    /// Ranges to be read again, with how many sectors were too old there.
    again: VecDeque<(u64, u32, u64)>,
    settling: Option<Settling>,
    /// Discards in flight: nothing is written there.
    discards: Vec<(u64, u64)>,
    told: u32,
    table: Option<u64>,
}

impl Verify {
    pub(super) fn new(vbd: u32, options: &Options, range: Range, discard: bool) -> Result<Self, &'static str> {
        let sectors = usize::try_from(range.sectors).map_err(|_| "sectors")?;
        Ok(Self {
            vbd,
            options: options.clone(),
            range,
            discard,
            model: Model::new(vbd, options.seed, range.first, sectors),
            random: Random::new(options.seed),
            phase: Phase::Fill { next: range.first },
            until_us: 0,
            moved: 0,
            again: VecDeque::new(),
            settling: None,
            discards: Vec::new(),
            told: 0,
            table: None,
        })
    }

    const fn end(&self) -> u64 {
        self.range.first.saturating_add(self.range.sectors)
    }

    fn read(&mut self, sector: u64, sectors: u32, kind: Kind) -> Next {
        let mark = self.model.read(sector, sectors);
        Next::Do(Job { command: Command { op: Op::Read, sector, sectors }, kind, mark })
    }

    fn write(&mut self, sector: u64, sectors: u32, fua: bool) -> Next {
        let mark = u64::from(self.model.write(sector, sectors));
        let command = Command { op: Op::Write { fua }, sector, sectors };
        Next::Do(Job { command, kind: Kind::Load, mark })
    }

    const fn flush() -> Next {
        Next::Do(Job { command: Command { op: Op::Flush, sector: 0, sectors: 0 }, kind: Kind::Load, mark: 0 })
    }

    /// The next piece of `[next, end)`.
    fn piece(&self, next: u64, end: u64) -> u32 {
        u32::try_from(end.saturating_sub(next)).unwrap_or(u32::MAX).min(self.range.size)
    }

    /// Reads that have to be done before anything else.
    fn due(&mut self) -> Option<Next> {
        if let Some((sector, sectors, suspects)) = self.again.pop_front() {
            return Some(self.read(sector, sectors, Kind::Again { suspects }));
        }
        let settling = match self.settling {
            Some(settling) => settling,
            None => {
                let (first, end) = self.model.open()?;
                Settling { first, end, next: first, reading: false }
            }
        };
        self.settling = Some(Settling { reading: true, ..settling });
        if settling.reading {
            return None;
        }
        Some(self.read(settling.next, self.piece(settling.next, settling.end), Kind::Settle))
    }

    fn mixed(&mut self) -> Next {
        let (size, align) = (self.range.size, self.range.align);
        let mut fua = false;
        if self.random.once_in(self.options.flush_every) {
            fua = self.random.once_in(8);
            if !fua {
                return Self::flush();
            }
        }
        let draw = |this: &mut Self| this.model.draw(&mut this.random, size, align);
        if self.discard && self.random.once_in(self.options.discard_every) {
            let (sector, sectors) = draw(self);
            if self.model.is_quiet(sector, sectors) && !self.discarding(sector, sectors) {
                self.model.discard(sector, sectors);
                self.discards.push((sector, sector.saturating_add(u64::from(sectors))));
                let command = Command { op: Op::Discard, sector, sectors };
                return Next::Do(Job { command, kind: Kind::Load, mark: 0 });
            }
        }
        if fua || self.random.once_in(2) {
            for _ in 0..TRIES {
                let (sector, sectors) = draw(self);
                if self.model.may_write(sector, sectors) && !self.discarding(sector, sectors) {
                    return self.write(sector, sectors, fua);
                }
            }
        }
        let (sector, sectors) = draw(self);
        self.read(sector, sectors, Kind::Load)
    }

    fn discarding(&self, first: u64, sectors: u32) -> bool {
        let end = first.saturating_add(u64::from(sectors));
        self.discards.iter().any(|&(a, b)| a < end && first < b)
    }

    /// Judges what a read gave: how many sectors are right or settled, and how many too old.
    fn judge(&mut self, job: &Job, data: &[u8], results: &mut Results<'_>) {
        let mut old: Vec<u32> = Vec::new();
        let mut right: Vec<u32> = Vec::new();
        for (sector, bytes) in (job.command.sector..).zip(data.as_chunks::<SECTOR_SIZE>().0) {
            let report = &mut *results.report;
            match self.model.judge(job.mark, sector, bytes) {
                Ok(generation) => {
                    if right.last() != Some(&generation) {
                        right.push(generation);
                    }
                }
                Err(Wrong::Old { found, expected }) => {
                    if job.kind != Kind::Load {
                        self.tell(results.said, "old", sector, found, expected);
                    }
                    old.push(expected);
                }
                Err(wrong) => {
                    let (number, name) = match wrong {
                        Wrong::Unread => (&mut report.stale, "stale"),
                        Wrong::Misplaced => (&mut report.misplaced, "misplaced"),
                        _ => (&mut report.corrupt, "corrupt"),
                    };
                    *number = number.saturating_add(1);
                    self.tell(results.said, name, sector, 0, 0);
                }
            }
        }
        let found = old.len() as u64;
        match job.kind {
            Kind::Load if found > 0 => {
                self.again.push_back((job.command.sector, job.command.sectors, found));
            }
            Kind::Again { suspects } => {
                let report = &mut *results.report;
                report.stale = report.stale.saturating_add(suspects.saturating_sub(found));
                missing(report, &old, &right);
            }
            _ => missing(results.report, &old, &right),
        }
    }

    fn tell(&mut self, said: &mut Vec<String>, kind: &str, sector: u64, found: u32, expected: u32) {
        if self.told < TOLD_MAX {
            self.told = self.told.saturating_add(1);
            said.push(format!("bad {} {kind} {sector} {found} {expected}", self.vbd));
        }
    }

    fn settle(&mut self, job: &Job, data: &[u8]) {
        let Some(mut settling) = self.settling else { return };
        // What could not be read is not known.
        let unread = [1; SECTOR_SIZE];
        let mut read = data.as_chunks::<SECTOR_SIZE>().0.iter();
        for sector in (job.command.sector..).take(job.command.sectors as usize) {
            self.model.settle(sector, read.next().unwrap_or(&unread));
        }
        settling.next = settling.next.saturating_add(u64::from(job.command.sectors));
        settling.reading = false;
        if settling.next >= settling.end {
            self.model.close(settling.first, settling.end);
            self.settling = None;
        } else {
            self.settling = Some(settling);
        }
    }
}

/// Counts sectors that are too old: torn where others of the write that should be there are.
fn missing(report: &mut Report, old: &[u32], right: &[u32]) {
    for expected in old {
        let kind = if right.contains(expected) { &mut report.torn } else { &mut report.lost };
        *kind = kind.saturating_add(1);
    }
}

impl Source for Verify {
    fn next(&mut self, state: State, said: &mut Vec<String>) -> Next {
        if let Some(next) = self.due() {
            return next;
        }
        let quiet = state.in_flight == 0 && self.settling.is_none();
        match self.phase {
            Phase::Fill { next } if next < self.end() => {
                let sectors = self.piece(next, self.end());
                self.phase = Phase::Fill { next: next.saturating_add(u64::from(sectors)) };
                self.write(next, sectors, false)
            }
            Phase::Fill { .. } if quiet => {
                self.phase = Phase::Ready;
                Self::flush()
            }
            Phase::Ready if quiet => {
                said.push(format!("ready {}", self.vbd));
                self.until_us = match self.options.duration_ms {
                    0 => u64::MAX,
                    ms => state.now_us.saturating_add(ms.saturating_mul(1000)),
                };
                self.phase = Phase::Mixed;
                self.mixed()
            }
            Phase::Mixed => {
                let enough = self.options.bytes > 0 && self.moved >= self.options.bytes;
                if state.ending || enough || state.now_us >= self.until_us {
                    self.phase = Phase::Settle;
                    return Next::Wait;
                }
                self.mixed()
            }
            Phase::Settle if quiet => {
                self.phase = Phase::Rewrite;
                Next::Wait
            }
            Phase::Rewrite if quiet => match self.model.unknown(self.range.size, self.range.align) {
                // An image that cannot be written is not rewritten for ever.
                Some((sector, sectors)) if self.told < TOLD_MAX => {
                    self.told = self.told.saturating_add(u32::from(self.options.discard_every == 0));
                    self.write(sector, sectors, false)
                }
                _ => {
                    self.phase = Phase::Final { next: self.range.first };
                    Self::flush()
                }
            },
            Phase::Final { next } if next < self.end() => {
                let sectors = self.piece(next, self.end());
                self.phase = Phase::Final { next: next.saturating_add(u64::from(sectors)) };
                self.read(next, sectors, Kind::Final)
            }
            Phase::Final { .. } if quiet => {
                let mut table = Table::new();
                for (sector, generation) in self.model.table() {
                    table.add(sector, generation.unwrap_or(0));
                }
                self.table = Some(table.digest());
                self.phase = Phase::Over;
                Next::End
            }
            Phase::Over => Next::End,
            _ => Next::Wait,
        }
    }

    fn fill(&mut self, job: &Job, data: &mut [u8]) -> bool {
        let generation = u32::try_from(job.mark).unwrap_or(u32::MAX);
        Stamp { vbd: self.vbd, generation, sector: job.command.sector, seed: self.options.seed }.fill(data);
        true
    }

    fn ended(&mut self, job: &Job, result: Result<(), Failure>, data: &[u8], results: &mut Results<'_>) {
        let Command { op, sector, sectors } = job.command;
        self.moved = self.moved.saturating_add(u64::from(sectors).saturating_mul(SECTOR_SIZE as u64));
        match op {
            Op::Read => {
                if result.is_ok() {
                    self.judge(job, data, results);
                }
                self.model.was_read(job.mark);
                if job.kind == Kind::Settle {
                    self.settle(job, data);
                }
            }
            // A write without an answer may still come: its sectors stay open.
            Op::Write { .. } if result != Err(Failure::TimedOut) => {
                self.model.written(u32::try_from(job.mark).unwrap_or(u32::MAX), result.is_ok());
            }
            Op::Discard => self.discards.retain(|&(first, _)| first != sector),
            Op::Flush | Op::Write { .. } => {}
        }
    }

    fn judges(&self) -> bool {
        true
    }
    fn table(&self) -> Option<u64> {
        self.table
    }
}
