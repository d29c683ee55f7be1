//! The sequence of [`crate::sequence`], with a line for each flush and each forced write that has completed. After an error nothing can be
//! said of what follows, so it ends.

use super::{Job, Kind, Next, Range, Results, Source, State};
use crate::disk::{Command, Failure, Op};
use crate::options::Options;
use crate::sector::Stamp;
use crate::sequence::{Sequence, Shape, Step};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

pub(super) struct Power {
    vbd: u32,
    seed: u64,
    sequence: Sequence,
    next: Option<Step>,
    flushing: bool,
    over: bool,
    until_us: u64,
}

impl Power {
    pub(super) const fn new(vbd: u32, options: &Options, range: Range, until_us: u64) -> Self {
        let Range { first, sectors, size, align } = range;
        let sequence = Sequence::new(Shape { seed: options.seed, first, sectors, size, align });
        Self { vbd, seed: options.seed, sequence, next: None, flushing: false, over: false, until_us }
    }
}

impl Source for Power {
    fn next(&mut self, state: State, _said: &mut Vec<String>) -> Next {
        if self.over {
            return Next::End;
        }
        if self.flushing {
            return Next::Wait;
        }
        let Some(step) = self.next.take().or_else(|| self.sequence.next()) else { return Next::End };
        match step {
            Step::Write(write) => Next::Do(Job {
                command: Command { op: Op::Write { fua: write.fua }, sector: write.first, sectors: write.sectors },
                kind: Kind::Load,
                mark: u64::from(write.generation),
            }),
            Step::Flush(_) if state.in_flight > 0 => {
                self.next = Some(step);
                Next::Wait
            }
            Step::Flush(generation) => {
                self.flushing = true;
                // The end comes after a flush, so that the last record covers everything.
                self.over = state.ending || state.now_us >= self.until_us;
                let command = Command { op: Op::Flush, sector: 0, sectors: 0 };
                Next::Do(Job { command, kind: Kind::Load, mark: u64::from(generation) })
            }
        }
    }

    fn fill(&mut self, job: &Job, data: &mut [u8]) -> bool {
        let generation = u32::try_from(job.mark).unwrap_or(u32::MAX);
        Stamp { vbd: self.vbd, generation, sector: job.command.sector, seed: self.seed }.fill(data);
        true
    }

    fn ended(&mut self, job: &Job, result: Result<(), Failure>, _data: &[u8], results: &mut Results<'_>) {
        self.flushing &= job.command.op != Op::Flush;
        let what = match (result, job.command.op) {
            (Err(_), _) => {
                self.over = true;
                return;
            }
            (Ok(()), Op::Flush) => "flushed",
            (Ok(()), Op::Write { fua: true }) => "fua",
            _ => return,
        };
        results.said.push(format!("{what} {} {} {}", self.vbd, self.seed, job.mark));
    }

    fn judges(&self) -> bool {
        false
    }
}
