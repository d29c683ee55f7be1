//! Workloads against a disk in memory that answers late and in any order, and that can be told to do each thing a disk must not do.

use super::*;
use crate::disk::Done;
use crate::image::{Ledger, Run, Table};
use crate::random::Random;
use crate::sequence::Shape;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evil {
    None,
    /// Every 50th write is acknowledged and not done.
    DropsWrites,
    /// Of every 50th write the second half is not done.
    HalvesWrites,
    /// Every 50th read is answered and not done.
    SkipsReads,
    /// Every 50th write goes 8 sectors further.
    Misplaces,
    /// Every 50th read flips a bit.
    FlipsBits,
    /// Every 50th request fails.
    Fails,
}

struct Memory {
    sectors: Vec<[u8; SECTOR_SIZE]>,
    queue: Vec<(Command, Option<Vec<u8>>, u32)>,
    random: Random,
    evil: Evil,
    count: u64,
    now: u64,
}

impl Memory {
    fn new(evil: Evil) -> Self {
        let sectors = vec![[0; SECTOR_SIZE]; 1024];
        Self { sectors, queue: Vec::new(), random: Random::new(4), evil, count: 0, now: 0 }
    }
}

impl Disk for Memory {
    type Buffer = Vec<u8>;
    fn info(&self) -> Info {
        Info { sectors: 1024, align: 1, max_sectors: 64, discard: true }
    }
    fn now_us(&self) -> u64 {
        self.now
    }
    fn buffer(&mut self, len: usize) -> Option<Vec<u8>> {
        Some(vec![0; len])
    }
    fn put(&mut self, buffer: &mut Vec<u8>, offset: usize, from: &[u8]) {
        buffer[offset..offset + from.len()].copy_from_slice(from);
    }
    fn get(&self, buffer: &Vec<u8>, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&buffer[offset..offset + to.len()]);
    }
    fn submit(&mut self, c: Command, buffer: Option<Vec<u8>>, token: u32) -> Result<(), Option<Vec<u8>>> {
        assert!(c.sector + u64::from(c.sectors) <= 1024 && c.sectors <= 64);
        self.queue.push((c, buffer, token));
        Ok(())
    }
    fn kick(&mut self) {}
    fn completed(&mut self) -> Option<Done<Vec<u8>>> {
        self.now += 100;
        if self.queue.is_empty() || self.random.once_in(3) {
            return None;
        }
        let at = self.random.below(self.queue.len() as u64) as usize;
        let (command, mut buffer, token) = self.queue.swap_remove(at);
        self.count += 1;
        let evil = if self.count > 400 && self.count.is_multiple_of(50) { self.evil } else { Evil::None };
        let (first, len) = (command.sector as usize, command.sectors as usize);
        match (command.op, evil) {
            (_, Evil::Fails) => return Some(Done { token, result: Err(Failure::Failed), buffer }),
            (Op::Read, Evil::SkipsReads) | (Op::Write { .. }, Evil::DropsWrites) | (Op::Flush, _) => {}
            (Op::Read, _) => {
                let bytes = buffer.as_mut().unwrap();
                for (to, from) in bytes.chunks_mut(SECTOR_SIZE).zip(&self.sectors[first..]) {
                    to.copy_from_slice(from);
                }
                if evil == Evil::FlipsBits {
                    bytes[40] ^= 1;
                }
            }
            (Op::Write { .. }, _) => {
                let by = if evil == Evil::Misplaces && first + len + 8 <= 1024 { 8 } else { 0 };
                let len = if evil == Evil::HalvesWrites { len / 2 } else { len };
                for (to, from) in
                    self.sectors[first + by..][..len].iter_mut().zip(buffer.as_ref().unwrap().chunks(SECTOR_SIZE))
                {
                    to.copy_from_slice(from);
                }
            }
            (Op::Discard, _) => self.sectors[first..first + len].fill([0; SECTOR_SIZE]),
        }
        Some(Done { token, result: Ok(()), buffer })
    }
}

fn options(text: &'static str) -> Options {
    Options::parse(text.split(' ').filter_map(|p| p.split_once('='))).unwrap()
}

fn run(options: &Options, disk: &mut Memory) -> (Workload, Vec<String>) {
    let mut workload = Workload::new(51712, options, disk.info(), 0).unwrap();
    let mut said = Vec::new();
    for _ in 0..2_000_000 {
        let turn = workload.turn(disk, false);
        said.extend(workload.said());
        if turn == Turn::Done {
            return (workload, said);
        }
    }
    panic!("no end: {said:?}");
}

const VERIFY: &str =
    "mode=verify size=32768 depth=16 duration-ms=0 bytes=20000000 flush-every=20 discard-every=40 seed=3";

#[test]
fn a_sound_disk_passes_and_the_host_finds_the_same_table() {
    let mut disk = Memory::new(Evil::None);
    let (workload, said) = run(&options(VERIFY), &mut disk);
    let report = &workload.report;
    assert!(report.passed() && report.reads > 500 && report.writes > 500, "{report:?} {said:?}");
    assert!(report.flushes > 10 && report.fua > 2 && report.discards > 10, "{report:?}");
    assert!(said.iter().any(|s| s == "ready 51712"), "{said:?}");
    let mut table = Table::new();
    for (sector, bytes) in (0u64..).zip(&disk.sectors) {
        table.add_read(51712, 3, sector, bytes);
    }
    assert_eq!((Some(table.digest()), table.findings.clean()), (report.table, true));
}

#[test]
fn each_thing_a_disk_must_not_do_is_told_by_its_name() {
    let report = |evil| run(&options(VERIFY), &mut Memory::new(evil)).0.report;
    let r = report(Evil::DropsWrites);
    assert!(r.lost > 0 && r.corrupt == 0 && r.misplaced == 0 && !r.passed(), "{r:?}");
    let r = report(Evil::HalvesWrites);
    assert!(r.torn > 0 && r.corrupt == 0, "{r:?}");
    let r = report(Evil::SkipsReads);
    assert!(r.stale > 0 && r.lost == 0 && r.torn == 0 && r.corrupt == 0, "{r:?}");
    let r = report(Evil::Misplaces);
    assert!(r.misplaced > 0, "{r:?}");
    let r = report(Evil::FlipsBits);
    assert!(r.corrupt > 0 && r.lost == 0 && r.misplaced == 0, "{r:?}");
    let r = report(Evil::Fails);
    assert!(r.errors > 0 && r.lost == 0 && r.torn == 0 && r.stale == 0 && r.corrupt == 0, "{r:?}");
}

#[test]
fn power_tells_what_is_stable_and_the_ledger_agrees() {
    let mut disk = Memory::new(Evil::None);
    let (_, said) = run(&options("mode=power size=16384 duration-ms=2000 seed=8"), &mut disk);
    assert_eq!(
        said[0],
        r#"begin {"vbd":51712,"mode":"power","seed":8,"first":0,"sectors":1024,"size":16384,"align":1}"#
    );
    let last = |what: &str| {
        let numbers = said.iter().filter_map(|s| s.strip_prefix(what)?.rsplit(' ').next()?.parse().ok());
        numbers.collect::<Vec<u32>>()
    };
    let (flushed, fua) = (last("flushed 51712 8 "), last("fua 51712 8 "));
    assert!(flushed.len() > 20 && fua.len() > 5 && flushed.is_sorted());
    let shape = Shape { seed: 8, first: 0, sectors: 1024, size: 32, align: 1 };
    let run = Run { shape, flushed: *flushed.last().unwrap(), fua };
    let read = |sector: u64, to: &mut [u8; SECTOR_SIZE]| {
        *to = disk.sectors[sector as usize];
        Ok::<(), ()>(())
    };
    assert!(Ledger::new(51712, 0, 1024).check(&run, read).unwrap().clean());
}

#[test]
fn streams_move_what_they_are_told() {
    for mode in ["seq-read", "seq-write", "rand-read", "rand-write"] {
        let text = format!("mode={mode} size=4096 bytes=400000 depth=4 duration-ms=0");
        let options = Options::parse(text.split(' ').filter_map(|p| p.split_once('='))).unwrap();
        let (workload, _) = run(&options, &mut Memory::new(Evil::None));
        let r = &workload.report;
        assert_eq!((r.reads + r.writes, r.read_bytes + r.written_bytes), (98, 98 * 4096), "{mode}");
        assert!(r.latency.max() > 0 && r.elapsed_us > 0);
    }
}

#[test]
fn a_range_that_does_not_fit_is_refused() {
    let info = Info { sectors: 1024, align: 8, max_sectors: 64, discard: false };
    let new = |text: &'static str| Workload::new(1, &options(text), info, 0).err();
    assert_eq!(new("first=2000"), Some("first"));
    assert_eq!(new("first=4"), Some("sectors"));
    assert_eq!(new("sectors=1032"), Some("sectors"));
    assert_eq!(new("size=512"), Some("size"));
    assert_eq!(new("first=8 sectors=64"), None);
}
