//! Reads or writes of one size, one after the other or anywhere: for measuring. Data is neither made nor looked at.

use super::{Job, Kind, Next, Range, Results, Source, State};
use crate::disk::{Command, Failure, Op};
use crate::options::{Mode, Options};
use crate::random::Random;
use alloc::string::String;
use alloc::vec::Vec;

pub(super) struct Stream {
    op: Op,
    anywhere: bool,
    range: Range,
    random: Random,
    next: u64,
    left: u64,
    until_us: u64,
}

impl Stream {
    pub(super) const fn new(options: &Options, range: Range, until_us: u64) -> Self {
        let op = match options.mode {
            Mode::SeqWrite | Mode::RandWrite => Op::Write { fua: false },
            _ => Op::Read,
        };
        let left = if options.bytes == 0 { u64::MAX } else { options.bytes };
        let anywhere = matches!(options.mode, Mode::RandRead | Mode::RandWrite);
        Self { op, anywhere, range, random: Random::new(options.seed), next: 0, left, until_us }
    }
}

impl Source for Stream {
    fn next(&mut self, state: State, _said: &mut Vec<String>) -> Next {
        if state.ending || state.now_us >= self.until_us || self.left == 0 {
            return Next::End;
        }
        let Range { first, sectors, size, .. } = self.range;
        let places = sectors.checked_div(u64::from(size)).unwrap_or(0).max(1);
        let place = if self.anywhere { self.random.below(places) } else { self.next };
        self.next = self.next.saturating_add(1).checked_rem(places).unwrap_or(0);
        self.left = self.left.saturating_sub(u64::from(size).saturating_mul(512));
        let sector = first.saturating_add(place.saturating_mul(u64::from(size)));
        Next::Do(Job { command: Command { op: self.op, sector, sectors: size }, kind: Kind::Load, mark: 0 })
    }
    fn fill(&mut self, _job: &Job, _data: &mut [u8]) -> bool {
        false
    }
    fn ended(&mut self, _job: &Job, _result: Result<(), Failure>, _data: &[u8], _results: &mut Results<'_>) {}
    fn judges(&self) -> bool {
        false
    }
}
