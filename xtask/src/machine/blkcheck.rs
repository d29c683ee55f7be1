//! What the guest `blkcheck` (or `blkbare`) says on its console, read as it comes, and the same judgement over the image afterwards.
//! Lines and keys: `docs/blkcheck.md`.

use super::console::{Console, Line};
use crate::drive::Drives;
use crate::manifest::System;
use anyhow::{Context, Result, bail, ensure};
use blkcheck::image::{Findings, Ledger, Run, Table};
use blkcheck::sector::SECTOR_SIZE;
use blkcheck::sequence::Shape;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

/// What all its lines begin with.
const MARK: &str = "blkcheck: ";
/// Sectors read from an image at once.
const CHUNK: usize = 2048;
/// Keys of a report that count what must not be.
const FAULTS: [&str; 7] = ["errors", "timeouts", "lost", "torn", "stale", "misplaced", "corrupt"];

/// The workload's shape, as `begin` has it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Begin {
    vbd: u32,
    seed: u64,
    first: u64,
    sectors: u64,
    /// Bytes.
    size: u32,
    align: u32,
}

/// A time in which no request was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// How long.
    pub gap_us: u64,
    /// Its end, in system time.
    pub at_us: u64,
}

/// One vbd's words.
#[derive(Clone, Debug, Default)]
pub struct Vbd {
    /// Its shape.
    pub begin: Option<Begin>,
    /// Mixed load runs.
    pub ready: bool,
    /// `flushed` lines, and the highest generation of them.
    pub flushes: u64,
    flushed: u32,
    fua: Vec<u32>,
    /// Gaps.
    pub stalls: Vec<Stall>,
    /// Wrong sectors.
    pub bad: Vec<String>,
    /// The report, merged.
    pub report: Map<String, Value>,
    /// Passed or not.
    pub done: Option<bool>,
}

impl Vbd {
    /// A number of the report.
    pub fn number(&self, key: &str) -> u64 {
        self.report.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// What the report says that must not be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            FAULTS.iter().filter(|key| self.number(key) > 0).map(|key| format!("{} {key}", self.number(key))).collect();
        // A bare machine has no link.
        if self.number("links") > 1 {
            faults.push(format!("the link was made {} times, so the frontend noticed a restart", self.number("links")));
        }
        if self.done == Some(false) || !self.bad.is_empty() {
            faults.push(format!("it says fail; {}", self.bad.join("; ")));
        }
        faults
    }

    fn run(&self) -> Result<Run> {
        let b = self.begin.context("blkcheck has not begun")?;
        let shape = Shape {
            seed: b.seed,
            first: b.first,
            sectors: b.sectors,
            size: b.size / SECTOR_SIZE as u32,
            align: b.align,
        };
        Ok(Run { shape, flushed: self.flushed, fua: self.fua.clone() })
    }
}

/// All vbds of one domain, from its console.
#[derive(Clone, Debug)]
pub struct Follow {
    domain: String,
    seen: usize,
    /// By Linux's number.
    pub vbds: BTreeMap<u32, Vbd>,
}

impl Follow {
    /// Reads `domain`'s lines from number `from` on.
    pub fn new(domain: &str, from: usize) -> Self {
        Self { domain: domain.to_string(), seen: from, vbds: BTreeMap::new() }
    }

    /// Reads what has come.
    pub fn update(&mut self, console: &Console) -> &mut Self {
        console.news(&mut self.seen).iter().for_each(|line| self.line(line));
        self
    }

    /// All vbds that are expected have said what `which` looks for.
    pub fn all(&self, expected: usize, which: impl Fn(&Vbd) -> bool) -> bool {
        self.vbds.values().filter(|v| which(v)).count() >= expected
    }

    fn line(&mut self, line: &Line) {
        let Some(text) = line.text.strip_prefix(MARK).filter(|_| line.domain == self.domain) else { return };
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        if matches!(word, "begin" | "report") {
            let Ok(Value::Object(object)) = serde_json::from_str(rest) else { return };
            let Some(number) = object.get("vbd").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()) else {
                return;
            };
            let vbd = self.vbds.entry(number).or_default();
            if word == "begin" {
                vbd.begin = serde_json::from_value(Value::Object(object)).ok();
            } else {
                vbd.report.extend(object);
            }
            return;
        }
        let mut fields = rest.split(' ');
        let Some(number) = fields.next().and_then(|f| f.parse().ok()) else { return };
        if !matches!(word, "ready" | "flushed" | "fua" | "stall" | "bad" | "done") {
            return;
        }
        let vbd = self.vbds.entry(number).or_default();
        let values: Vec<u64> = fields.clone().filter_map(|f| f.parse().ok()).collect();
        match (word, values.as_slice()) {
            ("ready", _) => vbd.ready = true,
            ("flushed", [_, generation, ..]) => {
                vbd.flushes += 1;
                vbd.flushed = vbd.flushed.max(u32::try_from(*generation).unwrap_or(0));
            }
            ("fua", [_, generation, ..]) => vbd.fua.extend(u32::try_from(*generation)),
            ("stall", &[gap_us, at_us, ..]) => vbd.stalls.push(Stall { gap_us, at_us }),
            ("bad", _) => vbd.bad.push(rest.to_string()),
            ("done", _) => vbd.done = Some(fields.next() == Some("pass")),
            _ => {}
        }
    }
}

/// The bytes of one vbd in its image.
struct Image<'a> {
    drives: &'a Drives,
    disk: usize,
    /// First byte.
    base: u64,
}

impl<'a> Image<'a> {
    /// The whole of a drive.
    const fn whole(drives: &'a Drives, disk: usize) -> Self {
        Self { drives, disk, base: 0 }
    }

    fn of(system: &System, drives: &'a Drives, domain: &str, number: u32) -> Result<Self> {
        let vbds = system.vbds().find(|(name, vbd)| *name == domain && vbd.name.device == number);
        let (_, vbd) = vbds.with_context(|| format!("`{domain}` has no vbd {number}"))?;
        let disk = system.disk_of(vbd).context("the vbd is on no drive")?;
        Ok(Self { drives, disk, base: drives.place(system, vbd)?.start * SECTOR_SIZE as u64 })
    }

    /// Reads sectors of 512 bytes.
    fn read(&self, sector: u64, bytes: &mut [u8]) -> Result<()> {
        let drive = self.drives.get(self.disk).context("the vbd is on no drive")?;
        let at = self.base + sector * SECTOR_SIZE as u64;
        drive.file.read_exact_at(bytes, at).with_context(|| format!("cannot read {}", drive.path.display()))
    }
}

/// Compares the image with what mode `verify` reported at its end; the machine has to be gone.
///
/// # Errors
/// Sectors that are wrong, or not the ones reported.
pub fn verify(system: &System, drives: &Drives, domain: &str, number: u32, vbd: &Vbd) -> Result<Findings> {
    compare(&Image::of(system, drives, domain, number)?, number, vbd)
}

/// The same for `blkbare`, which has a whole drive and calls it `number`.
///
/// # Errors
/// As [`verify`].
pub fn verify_drive(drives: &Drives, disk: usize, number: u32, vbd: &Vbd) -> Result<Findings> {
    compare(&Image::whole(drives, disk), number, vbd)
}

fn compare(image: &Image<'_>, number: u32, vbd: &Vbd) -> Result<Findings> {
    let begin = vbd.begin.context("blkcheck has not begun")?;
    ensure!(begin.vbd == number, "blkcheck speaks of vbd {}", begin.vbd);
    let mut table = Table::new();
    let mut bytes = vec![0; CHUNK * SECTOR_SIZE];
    let mut sector = begin.first;
    let end = begin.first + begin.sectors;
    while sector < end {
        let count = usize::try_from(end - sector).unwrap_or(CHUNK).min(CHUNK);
        let part = bytes.get_mut(..count * SECTOR_SIZE).unwrap_or_default();
        image.read(sector, part)?;
        let (sectors, _) = part.as_chunks::<SECTOR_SIZE>();
        for (address, bytes) in (sector..).zip(sectors) {
            table.add_read(number, begin.seed, address, bytes);
        }
        sector += count as u64;
    }
    ensure!(table.findings.clean(), "the image has wrong sectors: {:?}", table.findings);
    let reported = vbd.report.get("table").and_then(Value::as_str).context("the report has no `table`")?;
    let found = format!("{:016x}", table.digest());
    if reported != found {
        bail!("the image's generations have the digest {found}, blkcheck reported {reported}");
    }
    Ok(table.findings)
}

/// Follows one vbd's image over power cuts of mode `power`.
pub struct Cuts {
    domain: String,
    number: u32,
    ledger: Option<Ledger>,
}

impl Cuts {
    /// Of an image that holds zeros.
    pub fn new(domain: &str, number: u32) -> Self {
        Self { domain: domain.to_string(), number, ledger: None }
    }

    /// Judges the image after a cut.
    ///
    /// # Errors
    /// The image cannot be read, or blkcheck has not begun.
    pub fn judge(&mut self, system: &System, drives: &Drives, vbd: &Vbd) -> Result<Findings> {
        let run = vbd.run()?;
        let image = Image::of(system, drives, &self.domain, self.number)?;
        let sectors = usize::try_from(run.shape.sectors).context("the range is larger than memory")?;
        let ledger = self.ledger.get_or_insert_with(|| Ledger::new(self.number, run.shape.first, sectors));
        ledger.check(&run, |sector, bytes| image.read(sector, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkcheck::sector::Stamp;
    use blkcheck::sequence::{Sequence, Step};

    fn follow(lines: &[&str]) -> Follow {
        let mut follow = Follow::new("blkcheck", 0);
        for text in lines {
            follow.line(&Line { domain: "blkcheck".into(), text: (*text).to_string() });
        }
        follow
    }

    const BEGIN: &str =
        r#"blkcheck: begin {"vbd":51712,"mode":"power","seed":7,"first":0,"sectors":64,"size":4096,"align":1}"#;

    #[test]
    fn lines_are_read_by_vbd_and_reports_merged() {
        let mut follow = follow(&[
            BEGIN,
            "blkcheck: ready 51728",
            "blkcheck: flushed 51712 7 12",
            "blkcheck: flushed 51712 7 19",
            "blkcheck: fua 51712 7 15",
            "blkcheck: stall 51728 9000 1234567",
            r#"blkcheck: report {"vbd":51728,"reads":5,"errors":0}"#,
            r#"blkcheck: report {"vbd":51728,"links":1,"table":"00"}"#,
            "blkcheck: done 51728 pass",
            "unrelated",
        ]);
        follow.line(&Line { domain: "other".into(), text: "blkcheck: ready 1".into() });
        assert_eq!(follow.vbds.keys().copied().collect::<Vec<_>>(), [51712, 51728]);
        let (power, verify) = (&follow.vbds[&51712], &follow.vbds[&51728]);
        let run = power.run().unwrap();
        assert_eq!((run.flushed, run.fua.as_slice(), run.shape.size, power.flushes), (19, &[15][..], 8, 2));
        assert!(verify.ready && verify.done == Some(true) && verify.number("reads") == 5);
        assert_eq!(verify.stalls, [Stall { gap_us: 9000, at_us: 1_234_567 }]);
        assert!(verify.faults().is_empty(), "{:?}", verify.faults());
        assert!(follow.all(1, |v| v.ready) && !follow.all(2, |v| v.ready));
    }

    #[test]
    fn anything_wrong_in_a_report_is_a_fault() {
        for report in [r#"{"vbd":1,"torn":1}"#, r#"{"vbd":1,"errors":2}"#, r#"{"vbd":1,"links":2}"#] {
            assert_eq!(follow(&[&format!("blkcheck: report {report}")]).vbds[&1].faults().len(), 1, "{report}");
        }
        assert!(follow(&["blkcheck: done 1 fail"]).vbds[&1].faults()[0].contains("fail"));
        assert!(follow(&["blkcheck: bad 1 lost 5 2 3"]).vbds[&1].faults()[0].contains("lost 5 2 3"));
    }

    const SYSTEM: &str = "[machine]\nmemory = '64MiB'\ncpus = 1\ndisk = [{ model = 'ahci', address = '00:04.0', size = '1MiB' }]\n\
        [[domain]]\nname = 'control'\nimage = 'control'\nrole = 'control'\nmemory = '4MiB'\n\
        [[domain]]\nname = 'back'\nimage = 'x'\nrole = 'driver'\nmemory = '4MiB'\ndevice = '00:04.0'\n\
        [[domain]]\nname = 'blkcheck'\nimage = 'x'\nrole = 'guest'\nmemory = '4MiB'\n\
        vbd = [{ backend = 'back', name = 'xvda', first = 128, sectors = 64 }]";

    #[test]
    fn an_image_is_judged_where_the_vbd_lies_and_one_wrong_bit_is_found() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let drives = Drives::open(&system).unwrap();
        let mut table = Table::new();
        for sector in 0..64 {
            let mut bytes = [0; SECTOR_SIZE];
            Stamp { vbd: 51712, generation: 3, sector, seed: 7 }.write(&mut bytes);
            table.add(sector, 3);
            drives.get(0).unwrap().file.write_all_at(&bytes, (128 + sector) * 512).unwrap();
        }
        let report = format!(r#"blkcheck: report {{"vbd":51712,"table":"{:016x}"}}"#, table.digest());
        let good = follow(&[BEGIN, &report]);
        let judge = |follow: &Follow| verify(&system, &drives, "blkcheck", 51712, &follow.vbds[&51712]);
        assert_eq!(judge(&good).unwrap().sectors, 64);
        let other = follow(&[BEGIN, r#"blkcheck: report {"vbd":51712,"table":"0000000000000000"}"#]);
        assert!(judge(&other).unwrap_err().to_string().contains("digest"));
        let (file, mut byte) = (&drives.get(0).unwrap().file, [0]);
        file.read_exact_at(&mut byte, 130 * 512 + 40).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 130 * 512 + 40).unwrap();
        assert!(judge(&good).unwrap_err().to_string().contains("corrupt: 1"));
    }

    #[test]
    fn a_flush_that_was_acknowledged_too_early_is_found() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let drives = Drives::open(&system).unwrap();
        let shape = Shape { seed: 7, first: 0, sectors: 64, size: 8, align: 1 };
        let mut upto = 0;
        for step in Sequence::new(shape).take(20) {
            let Step::Write(write) = step else { continue };
            upto = write.generation;
            for sector in write.first..write.end() {
                let mut bytes = [0; SECTOR_SIZE];
                Stamp { vbd: 51712, generation: write.generation, sector, seed: 7 }.write(&mut bytes);
                drives.get(0).unwrap().file.write_all_at(&bytes, (128 + sector) * 512).unwrap();
            }
        }
        let said = |flushed: u32| follow(&[BEGIN, &format!("blkcheck: flushed 51712 7 {flushed}")]);
        let judge = |flushed: u32| {
            let follow = said(flushed);
            Cuts::new("blkcheck", 51712).judge(&system, &drives, &follow.vbds[&51712]).unwrap()
        };
        assert!(judge(upto).clean());
        assert!(!judge(upto + 40).clean(), "writes that a flush covered are missing");
    }
}
