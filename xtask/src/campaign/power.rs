//! `campaign power`: QEMU is killed at random points while the drive's cache is volatile. Every write that a completed flush covered,
//! and every forced write that was acknowledged, has to be in the image. In some cuts the driver domain is killed first, while the
//! drive holds a flush back: the drive counts its flushes, so an acknowledgement that came too early is seen twice.

use crate::drive::{Drives, Server};
use crate::machine::blkcheck::{Cuts, Follow};
use crate::machine::crash::KINDS;
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::System;
use crate::manifest::disk::{Deed, Fault};
use crate::units::Span;
use crate::{image, progress, run};
use ::blkcheck::random::Random;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The domain that writes, and the mode it writes in.
const CHECKER: &str = "blkcheck";
/// One cut in so many has a kill while a flush is held.
const KILL_EVERY: u32 = 3;
/// How long such a flush is held.
const HELD: Duration = Duration::from_millis(400);
/// Longest load before a cut, ms.
const LOAD_MS: u64 = 2_500;

/// What came of it.
#[derive(Default, Serialize)]
pub struct Report {
    seed: u64,
    cuts: u32,
    survived: u32,
    /// Of them with the driver killed while a flush was held.
    kills_in_flush: u32,
    /// Flushes and forced writes that blkcheck had acknowledged.
    flushes_acknowledged: u64,
    /// Flushes that the drive completed.
    flushes_completed: u64,
    /// Sectors that no flush had covered at a cut.
    uncovered: u64,
    /// Of them lost.
    dropped: u64,
    /// Sectors looked at after the cuts.
    sectors: u64,
    lost: u64,
    torn: u64,
    stale: u64,
    misplaced: u64,
    corrupt: u64,
    failures: Vec<String>,
}

/// Gives blkcheck the endless sequence that the host knows.
pub fn configure(system: &mut System) {
    for domain in system.domains.iter_mut().filter(|d| d.image.as_deref() == Some(CHECKER)) {
        for (key, value) in [("mode", "power"), ("duration-ms", "0"), ("bytes", "0")] {
            domain.config.insert(key.to_string(), value.to_string());
        }
    }
}

/// Cuts `cuts` times; images have to be built. The drive is the same over all cuts.
///
/// # Errors
/// A machine does not come so far that anything is written; a wrong sector is a failure in the report.
pub fn run(system: &System, name: &str, cuts: u32, seed: u64, bar: bool) -> Result<Report> {
    let mut system = system.clone();
    let checker = system
        .domains
        .iter()
        .position(|d| d.image.as_deref() == Some(CHECKER))
        .context("the system has no blkcheck")?;
    let drives = Arc::new(Drives::open(&system)?);
    let domain = system.domains[checker].clone();
    let vbd = domain.vbds.first().context("blkcheck has no vbd")?;
    let disk = system.disk_of(vbd).context("the vbd is on no drive")?;
    let server = drives
        .get(disk)
        .and_then(|d| d.server.clone())
        .context("the drive is not `volatile`, nothing could be lost")?;
    let mut ledger = Cuts::new(&domain.name, vbd.name.device);
    let mut random = Random::new(seed);
    let steps = bar.then(|| progress::steps("cuts", u64::from(cuts)));
    let mut report = Report { seed, cuts, ..Report::default() };
    for number in 0..cuts {
        if let Some(steps) = &steps {
            steps.tick(&format!("cut {number}"));
        }
        // Sectors carry the seed: each run has its own.
        let run_seed = seed.wrapping_mul(1_000_000) + u64::from(number) + 1;
        system.domains[checker].config.insert("seed".to_string(), run_seed.to_string());
        let cut =
            Cut { system: &system, name, drives: &drives, server: &server, domain: &domain.name, vbd: vbd.name.device };
        let kill = (number % KILL_EVERY == KILL_EVERY - 1).then_some(vbd.backend.as_str());
        match cut.run(kill, &mut random, &mut ledger, &mut report) {
            Ok(()) => report.survived += 1,
            Err(error) => report.failures.push(format!("cut {number}: {error:#}")),
        }
        if !report.failures.is_empty() || crate::signals::stop() {
            break;
        }
    }
    if let Some(steps) = steps {
        steps.done();
    }
    if report.failures.is_empty() && cuts >= 10 && report.dropped == 0 {
        report.failures.push("no cut lost anything, so nothing was tested".into());
    }
    Ok(report)
}

/// One cut.
struct Cut<'a> {
    system: &'a System,
    name: &'a str,
    drives: &'a Arc<Drives>,
    server: &'a Server,
    domain: &'a str,
    vbd: u32,
}

impl Cut<'_> {
    fn run(&self, kill: Option<&str>, random: &mut Random, ledger: &mut Cuts, report: &mut Report) -> Result<()> {
        self.server.calm();
        let built = image::pack(self.system)?;
        let drives = Some(Arc::clone(self.drives));
        let options = Options { name: self.name.to_string(), public: false, lacks: Lacks::default(), drives };
        let mut machine = Machine::start(self.system, &built, &options, machine::reserve(0)?, |_| ())?;
        machine.wait_until_ready(run::BOOT_PATIENCE)?;
        let mut follow = Follow::new(self.domain, 0);
        machine.wait_for("first flush of blkcheck", Duration::from_secs(60), |m| {
            follow.update(&m.console).all(1, |v| v.flushes > 0).then_some(())
        })?;
        let before = self.server.counts();
        let due = Instant::now() + Duration::from_millis(random.below(LOAD_MS));
        machine.wait_for("time of the cut", Duration::from_secs(60), |_| (Instant::now() >= due).then_some(()))?;
        if let Some(driver) = kill {
            self.kill_in_flush(&mut machine, driver, random)?;
            report.kills_in_flush += 1;
        }
        machine.qemu.kill();
        machine.console.settle();
        let follow = follow.update(&machine.console).clone();
        let counts = self.server.counts();
        let lost = self.server.cut(random).context("the drive's image")?;
        drop(machine);
        let vbd = follow.vbds.get(&self.vbd).context("blkcheck said nothing of its vbd")?;
        ensure!(vbd.done.is_none() && vbd.bad.is_empty(), "blkcheck ended: {}", vbd.faults().join(", "));
        // The one before the load, and each since: blkcheck waits for a flush before it goes on.
        report.flushes_acknowledged += vbd.flushes;
        report.flushes_completed += counts.flushes - before.flushes + 1;
        report.uncovered += lost.uncovered;
        report.dropped += lost.lost;
        let findings = ledger.judge(self.system, self.drives, vbd)?;
        report.sectors += findings.sectors;
        report.lost += findings.lost;
        report.torn += findings.torn;
        report.stale += findings.stale;
        report.misplaced += findings.misplaced;
        report.corrupt += findings.corrupt;
        ensure!(findings.clean(), "wrong sectors in the image: {findings:?}");
        Ok(())
    }

    /// Kills the driver while the drive holds a flush that it has got, and sees that nobody acknowledged it before the drive did.
    fn kill_in_flush(&self, machine: &mut Machine, driver: &str, random: &mut Random) -> Result<()> {
        let flush =
            Fault { on: Deed::Flush, first: 0, sectors: None, after: 0, times: None, delay: Span(HELD), error: false };
        let arrived = self.server.counts().flushes_arrived;
        self.server.rule(flush);
        machine.wait_for("flush at the drive", Duration::from_secs(20), |_| {
            (self.server.counts().flushes_arrived > arrived).then_some(())
        })?;
        let mut follow = Follow::new(self.domain, 0);
        let acknowledged =
            |follow: &mut Follow, m: &Machine| follow.update(&m.console).vbds.get(&self.vbd).map_or(0, |v| v.flushes);
        // The line of the flush before has come by then, and this one is held for much longer.
        std::thread::sleep(HELD / 4);
        let (acks, done) = (acknowledged(&mut follow, machine), self.server.counts().flushes);
        let how = KINDS[random.below(KINDS.len() as u64) as usize];
        let order = machine.order_crash(driver, how, 0)?;
        machine.await_crash(&order).with_context(|| format!("{how} while a flush was held"))?;
        // First what was acknowledged, then what the drive has done: in the other order a flush done in between would look early.
        let acks = acknowledged(&mut follow, machine) - acks;
        let done = self.server.counts().flushes - done;
        ensure!(acks <= done, "{acks} flushes were acknowledged while the drive completed {done}");
        Ok(())
    }
}

impl super::Outcome for Report {
    fn describe(&self) -> String {
        format!(
            "{} of {} power cuts survived (seed {}), {} of them with the driver killed while the drive held a flush\n\
             {} flushes acknowledged, {} completed by the drive; {} sectors uncovered at the cuts, {} of them lost\n\
             {} sectors judged: {} lost, {} torn, {} stale, {} misplaced, {} corrupt\n",
            self.survived,
            self.cuts,
            self.seed,
            self.kills_in_flush,
            self.flushes_acknowledged,
            self.flushes_completed,
            self.uncovered,
            self.dropped,
            self.sectors,
            self.lost,
            self.torn,
            self.stale,
            self.misplaced,
            self.corrupt
        )
    }

    fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl Report {
    /// An error if anything was not as it has to be.
    ///
    /// # Errors
    /// All failures in one.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.failures.is_empty(), "{}", self.failures.join("; "));
        Ok(())
    }
}
