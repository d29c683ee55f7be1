//! A workload on one vbd: keeps requests in flight, times them, and has a source say what they are and judge what comes back.
//!
//! Sources: [`verify`], [`power`], [`stream`]. All are told the time and the state of what is in flight, so they run the same in a test.

mod power;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

use crate::disk::{Command, Disk, Failure, Info, Op};
use crate::model::UNREAD;
use crate::options::{Mode, Options};
use crate::report::Report;
use crate::sector::SECTOR_SIZE;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use power::Power;
use stream::Stream;
use verify::Verify;

/// What a request is for, besides what its command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Part of the load.
    Load,
    /// Reads again what was too old in so many sectors.
    Again {
        /// Sectors.
        suspects: u64,
    },
    /// Settles which of overlapping writes stayed.
    Settle,
    /// Reads everything at the end.
    Final,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    command: Command,
    kind: Kind,
    /// A write's or flush's generation; the model's name of a read.
    mark: u64,
}

enum Next {
    Do(Job),
    /// Nothing before something completes.
    Wait,
    End,
}

/// What a source may go by.
#[derive(Clone, Copy)]
struct State {
    in_flight: usize,
    now_us: u64,
    /// It shall come to its end.
    ending: bool,
}

/// Where a source leaves its results.
struct Results<'a> {
    report: &'a mut Report,
    said: &'a mut Vec<String>,
}

trait Source {
    fn next(&mut self, state: State, said: &mut Vec<String>) -> Next;
    /// Writes the data of a write; false = any will do. Reads whose data is judged are asked as well.
    fn fill(&mut self, job: &Job, data: &mut [u8]) -> bool;
    /// A request ended; `data` is there for a read that succeeded, where the source judges.
    fn ended(&mut self, job: &Job, result: Result<(), Failure>, data: &[u8], results: &mut Results<'_>);
    /// Whether reads are looked at.
    fn judges(&self) -> bool;
    /// The digest of all generations at the end.
    fn table(&self) -> Option<u64> {
        None
    }
}

struct Flight {
    job: Job,
    since_us: u64,
}

/// How a turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something moved; look again.
    Moved,
    /// Nothing before the next completion.
    Wait,
    /// The workload is over, its report complete.
    Done,
}

/// A workload.
pub struct Workload {
    vbd: u32,
    options: Options,
    source: alloc::boxed::Box<dyn Source>,
    flights: Vec<Option<Flight>>,
    in_flight: usize,
    next: Option<Job>,
    /// What is counted.
    pub report: Report,
    said: Vec<String>,
    scratch: Vec<u8>,
    begun_us: u64,
    /// The last completion, or when the queue became busy.
    quiet_since_us: u64,
    done: bool,
}

/// The part of the disk that is used.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    sectors: u64,
    /// Sectors of the largest request.
    size: u32,
    align: u32,
}

impl Workload {
    /// A workload on a disk.
    ///
    /// # Errors
    /// What of the options does not fit the disk.
    pub fn new(vbd: u32, options: &Options, info: Info, now_us: u64) -> Result<Self, &'static str> {
        let align = info.align.max(1);
        let left = info.sectors.checked_sub(options.first).ok_or("first")?;
        let sectors = if options.sectors == 0 { left } else { options.sectors };
        let size = (options.size >> SECTOR_SIZE.ilog2()).min(info.max_sectors);
        let fits = |n: u64| n.is_multiple_of(u64::from(align));
        if sectors == 0 || sectors > left || !fits(sectors) || !fits(options.first) {
            return Err("sectors");
        }
        if size < align || !fits(u64::from(size)) || u64::from(size) > sectors {
            return Err("size");
        }
        let range = Range { first: options.first, sectors, size, align };
        let until_us = match options.duration_ms {
            0 => u64::MAX,
            ms => now_us.saturating_add(ms.saturating_mul(1000)),
        };
        let source: alloc::boxed::Box<dyn Source> = match options.mode {
            Mode::Verify => alloc::boxed::Box::new(Verify::new(vbd, options, range, info.discard)?),
            Mode::Power => alloc::boxed::Box::new(Power::new(vbd, options, range, until_us)),
            _ => alloc::boxed::Box::new(Stream::new(options, range, until_us)),
        };
        let mut flights = Vec::new();
        flights.resize_with(options.depth, || None);
        let begin = format!(
            "begin {{\"vbd\":{vbd},\"mode\":\"{}\",\"seed\":{},\"first\":{},\"sectors\":{sectors},\"size\":{},\"align\":{align}}}",
            options.mode.name(),
            options.seed,
            options.first,
            u64::from(size).saturating_mul(SECTOR_SIZE as u64),
        );
        Ok(Self {
            vbd,
            options: options.clone(),
            source,
            flights,
            in_flight: 0,
            next: None,
            report: Report::default(),
            said: alloc::vec![begin],
            scratch: Vec::new(),
            begun_us: now_us,
            quiet_since_us: now_us,
            done: false,
        })
    }

    /// The vbd's number.
    #[must_use]
    pub const fn vbd(&self) -> u32 {
        self.vbd
    }
    /// Whether it is over.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }
    /// Lines for the console since this was last asked.
    pub fn said(&mut self) -> Vec<String> {
        core::mem::take(&mut self.said)
    }
    /// All that was counted, `more` at the end.
    #[must_use]
    pub fn pairs(&self, more: &[(&'static str, u64)]) -> Vec<(&'static str, String)> {
        self.report.pairs(self.vbd, &self.options, more)
    }

    /// Takes what has completed and submits what there is room for. `ending`: come to an end.
    pub fn turn<D: Disk>(&mut self, disk: &mut D, ending: bool) -> Turn {
        if self.done {
            return Turn::Done;
        }
        let mut moved = false;
        while let Some(done) = disk.completed() {
            moved |= self.take(disk, done.token, done.result, done.buffer);
        }
        while self.in_flight < self.flights.len() {
            let state = State { in_flight: self.in_flight, now_us: disk.now_us(), ending };
            let job = match self.next.take() {
                Some(job) => job,
                None => match self.source.next(state, &mut self.said) {
                    Next::Do(job) => job,
                    Next::Wait => break,
                    Next::End if self.in_flight > 0 => break,
                    Next::End => {
                        self.report.elapsed_us = disk.now_us().saturating_sub(self.begun_us);
                        self.report.table = self.source.table();
                        self.done = true;
                        return Turn::Done;
                    }
                },
            };
            if !self.submit(disk, job) {
                self.next = Some(job);
                break;
            }
            moved = true;
        }
        disk.kick();
        if moved { Turn::Moved } else { Turn::Wait }
    }

    fn submit<D: Disk>(&mut self, disk: &mut D, job: Job) -> bool {
        let Command { op, sectors, .. } = job.command;
        let len = (sectors as usize).saturating_mul(SECTOR_SIZE);
        let data = matches!(op, Op::Read | Op::Write { .. });
        let Some(token) = self.flights.iter().position(Option::is_none) else { return false };
        let mut buffer = None;
        if data {
            let Some(mut taken) = disk.buffer(len) else { return false };
            if op == Op::Read && self.source.judges() {
                for at in (0..len).step_by(SECTOR_SIZE) {
                    disk.put(&mut taken, at, &UNREAD);
                }
            } else if op != Op::Read {
                let data = scratch(&mut self.scratch, len);
                if self.source.fill(&job, data) {
                    disk.put(&mut taken, 0, data);
                }
            }
            buffer = Some(taken);
        }
        if disk.submit(job.command, buffer, u32::try_from(token).unwrap_or(u32::MAX)).is_err() {
            return false;
        }
        let since_us = disk.now_us();
        if self.in_flight == 0 {
            self.quiet_since_us = since_us;
        }
        self.in_flight = self.in_flight.saturating_add(1);
        if let Some(place) = self.flights.get_mut(token) {
            *place = Some(Flight { job, since_us });
        }
        true
    }

    fn take<D: Disk>(&mut self, disk: &D, token: u32, result: Result<(), Failure>, buffer: Option<D::Buffer>) -> bool {
        let Some(Flight { job, since_us }) = self.flights.get_mut(token as usize).and_then(Option::take) else {
            return false;
        };
        let now = disk.now_us();
        self.in_flight = self.in_flight.saturating_sub(1);
        self.report.latency.add(now.saturating_sub(since_us));
        let gap = now.saturating_sub(self.quiet_since_us);
        if self.report.gap(gap) && self.options.stall_us > 0 && gap >= self.options.stall_us {
            self.said.push(format!("stall {} {gap} {now}", self.vbd));
        }
        self.report.count(&job.command, result);
        self.report.elapsed_us = now.saturating_sub(self.begun_us);
        let len = match (&buffer, result, job.command.op) {
            (Some(_), Ok(()), Op::Read) if self.source.judges() => {
                (job.command.sectors as usize).saturating_mul(SECTOR_SIZE)
            }
            _ => 0,
        };
        let data = scratch(&mut self.scratch, len);
        if let Some(buffer) = buffer.filter(|_| len > 0) {
            disk.get(&buffer, 0, data);
        }
        let mut results = Results { report: &mut self.report, said: &mut self.said };
        self.source.ended(&job, result, data, &mut results);
        // Judging takes time too, and is none of the disk's.
        self.quiet_since_us = disk.now_us();
        true
    }
}

/// The first `len` bytes, of any content. It only grows: to clear it anew for each request would cost more than most disks do.
fn scratch(all: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if all.len() < len {
        all.resize(len, 0);
    }
    all.get_mut(..len).unwrap_or_default()
}
