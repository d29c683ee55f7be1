//! `campaign blk` and `campaign both`: disk driver domains die under mixed load of every blkcheck of the system. Nobody may see an
//! error, no acknowledged sector may be lost, torn or stale; at the end the image is read on the host and judged again, without our
//! driver.

use super::Outcome as _;
use super::memory::Most;
use super::nodes::{self, Nodes};
use crate::bench::statistics::{HEADINGS, Summary, summary};
use crate::machine::Machine;
use crate::machine::blkcheck::{self, Follow, Vbd};
use crate::machine::crash::{KINDS, Order, Outcome, is_its_own, own_deaths};
use crate::machine::load::Load;
use crate::machine::standing::HELD;
use crate::manifest::System;
use crate::{progress, run, table};
use ::blkcheck::random::Random;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The image whose domains are looked at.
const CHECKER: &str = "blkcheck";
/// A kill waits for up to this many crash points; under load a driver domain passes thousands a second.
const POINTS: u64 = 2_000;
/// Kills after which memory has settled.
const WARM: u32 = 10;
/// With fewer kills memory is not judged: what is mapped at a look depends on when it is, and each half has to see the most of it.
const JUDGED: u32 = 40;
/// Longest wait for every sector to be written once.
const READY: Duration = Duration::from_secs(120);
/// Longest wait for the last requests, the final reading and the report.
const DONE: Duration = Duration::from_secs(180);
/// Each way, begun anew until the last kill.
const LOAD_BYTES: u64 = 16 << 20;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills, of each victim.
    pub kills: u32,
    /// Of ways and points.
    pub seed: u64,
    /// Seconds over which the kills are spread at least.
    pub seconds: f64,
    /// The network's driver domain is killed with the disks'.
    pub network: bool,
    /// A bar is shown.
    pub progress: bool,
}

/// What came of it.
#[derive(Serialize)]
pub struct Report {
    seed: u64,
    kills: u32,
    survived: u32,
    seconds: f64,
    /// Deaths that something else than the order caused, with what it was. A host without time to spare makes a watchdog bite.
    other_causes: Vec<String>,
    /// Deaths beside one that was ordered to point its device at foreign memory: an IOMMU that names no device has all stopped that
    /// may be it (`docs/isolation.md`).
    along: u32,
    /// Restarts of the victims, those that nobody ordered among them.
    restarts: u64,
    /// Kills by domain and way.
    ways: BTreeMap<String, u32>,
    /// Longest time without a completed request around each kill of a disk driver, ms, as the frontend saw it.
    pub stall_ms: Summary,
    /// The same by way.
    pub stalls: BTreeMap<String, Summary>,
    /// Every one of them.
    pub all_stalls_ms: Vec<(String, f64)>,
    /// blkcheck's own reports, by domain and vbd.
    reports: BTreeMap<String, Map<String, Value>>,
    /// Sectors of the image found right on the host.
    image_sectors: u64,
    /// TCP resets on the wire, where there is a network.
    tcp_resets: u64,
    transferred_bytes: u64,
    /// The most of each half of the kills: what is mapped and queued at one time varies, so no two looks are the same.
    memory: [Option<Most>; 2],
    /// Nodes of the store after the first kills.
    #[serde(skip)]
    nodes: Option<Nodes>,
    failures: Vec<String>,
}

/// Domains of the system that check disks, with the number of their vbds.
fn checkers(system: &System) -> Vec<(&str, usize)> {
    let checkers = system.domains.iter().filter(|d| d.image.as_deref() == Some(CHECKER) && !d.vbds.is_empty());
    checkers.map(|d| (d.name.as_str(), d.vbds.len())).collect()
}

/// Gives every blkcheck an endless mixed load that tells its stalls.
pub fn configure(system: &mut System, seed: u64) {
    for domain in system.domains.iter_mut().filter(|d| d.image.as_deref() == Some(CHECKER)) {
        for (key, value) in [("mode", "verify"), ("duration-ms", "0"), ("bytes", "0"), ("stall-us", "3000")] {
            domain.config.insert(key.to_string(), value.to_string());
        }
        domain.config.insert("seed".to_string(), seed.to_string());
    }
}

/// Runs on a machine that was just started from a configured system; it is ended here.
///
/// # Errors
/// The machine does not come to serve. What is not survived stands in the report.
pub fn run(mut machine: Machine, system: &System, plan: &Plan) -> Result<Report> {
    let checkers = checkers(system);
    if checkers.is_empty() {
        bail!("the system has no domain with image = \"{CHECKER}\" and a vbd");
    }
    machine.wait_until_ready(run::BOOT_PATIENCE)?;
    let mut follows: Vec<Follow> = checkers.iter().map(|(name, _)| Follow::new(name, 0)).collect();
    for (follow, (name, vbds)) in follows.iter_mut().zip(&checkers) {
        machine.wait_for(&format!("readiness of `{name}`"), READY, |m| {
            std::thread::sleep(Duration::from_millis(10));
            let follow = follow.update(&m.console);
            (follow.all(*vbds, |v| v.ready || v.done.is_some())).then_some(())
        })?;
    }
    let loads = network(&mut machine, plan)?;
    nodes::published(&mut machine)?;
    let start = Instant::now();
    let mut this = Report {
        seed: plan.seed,
        kills: plan.kills,
        survived: 0,
        seconds: 0.0,
        other_causes: Vec::new(),
        along: 0,
        restarts: 0,
        ways: BTreeMap::new(),
        stall_ms: Summary::default(),
        stalls: BTreeMap::new(),
        all_stalls_ms: Vec::new(),
        reports: BTreeMap::new(),
        image_sectors: 0,
        tcp_resets: 0,
        transferred_bytes: 0,
        memory: [None; 2],
        nodes: None,
        failures: Vec::new(),
    };
    let deaths = this.kill_all(&mut machine, system, plan, &mut follows, &loads);
    this.seconds = start.elapsed().as_secs_f64();
    let deaths = deaths.unwrap_or_else(|error| {
        this.failures.push(format!("{error:#}"));
        Vec::new()
    });
    let held = victims(system, plan).and_then(|victims| this.hold(&mut machine, &victims));
    if let Err(error) = held {
        this.failures.push(format!("{error:#}"));
    }
    if let Err(error) = this.finish(&mut machine, &checkers, &mut follows, loads) {
        this.failures.push(format!("{error:#}"));
    }
    this.stalls_of(&deaths, &follows);
    let drives = Arc::clone(&machine.drives);
    drop(machine);
    for ((name, _), follow) in checkers.iter().zip(&follows) {
        for (number, vbd) in &follow.vbds {
            this.judge(system, &drives, name, *number, vbd);
        }
    }
    Ok(this)
}

/// Begins transfers with every guest on the wire, where there are such.
fn network(machine: &mut Machine, plan: &Plan) -> Result<Vec<Load>> {
    if !plan.network || machine.guests.is_empty() {
        return Ok(Vec::new());
    }
    for guest in 0..machine.guests.len() {
        machine.wait_until_page(guest, run::BOOT_PATIENCE)?;
    }
    machine.probe_all()?;
    let ports: Vec<u16> = (0..machine.guests.len()).filter_map(|g| machine.host.port(g)).collect();
    Ok(ports.into_iter().map(|port| Load::start(port, LOAD_BYTES)).collect())
}

impl Report {
    /// The kills, each on time or as soon as the one before is over. Returns the deaths of disk drivers.
    fn kill_all(
        &mut self,
        machine: &mut Machine,
        system: &System,
        plan: &Plan,
        follows: &mut [Follow],
        loads: &[Load],
    ) -> Result<Vec<Outcome>> {
        let victims = victims(system, plan)?;
        let mut random = Random::new(plan.seed);
        let steps = plan.progress.then(|| progress::steps("kills", u64::from(plan.kills)));
        let pace = plan.seconds / f64::from(plan.kills.max(1));
        let (start, mut deaths) = (Instant::now(), Vec::new());
        for number in 0..plan.kills {
            // Anywhere in its share of the time.
            let share = random.below(1000) as f64 / 1000.0;
            let due = start + Duration::from_secs_f64(pace * (f64::from(number) + share));
            machine.wait_for("time of the next kill", Duration::from_secs(3600), |_| {
                (Instant::now() >= due).then_some(())
            })?;
            let mut orders = Vec::new();
            let mut strays = false;
            for (victim, disk) in &victims {
                let how = KINDS[random.below(KINDS.len() as u64) as usize];
                strays |= how == "dma";
                let count = u32::try_from(random.below(POINTS)).unwrap_or(0);
                let what = format!("kill {number} of {victim} ({how} after {count} points)");
                if let Some(steps) = steps.as_ref().filter(|_| orders.is_empty()) {
                    steps.tick(&what);
                }
                *self.ways.entry(format!("{victim} {how}")).or_default() += 1;
                let held = |why: &str| steps.iter().for_each(|steps| steps.say(why));
                orders.push((order(machine, victim, how, count, held).context(what.clone())?, *disk, what));
            }
            for (order, disk, what) in orders {
                let outcome = machine.await_crash(&order).context(what.clone())?;
                if strays && !outcome.as_ordered && outcome.cause == "iommu-fault" {
                    self.along += 1;
                } else if !outcome.as_ordered {
                    let other = format!("{what}: {} {}", outcome.cause, outcome.detail);
                    self.failures.extend(is_its_own(&outcome.cause).then(|| other.clone()));
                    self.other_causes.push(other);
                }
                if disk {
                    deaths.push(outcome);
                }
            }
            self.survived += 1;
            for follow in &mut *follows {
                let wrong =
                    follow.update(&machine.console).vbds.iter().find(|(_, v)| v.done.is_some() || !v.bad.is_empty());
                if let Some((vbd, state)) = wrong {
                    bail!("vbd {vbd} ended or went wrong by kill {number}: {}", state.faults().join(", "));
                }
            }
            if loads.iter().any(Load::stopped) {
                bail!("a transfer ended by kill {number}");
            }
            if number == WARM {
                self.nodes = Some(nodes::all(machine)?);
            }
            if plan.kills >= JUDGED && number >= WARM {
                let most = &mut self.memory[usize::from(number >= plan.kills.saturating_add(WARM) / 2)];
                *most = Some(most.unwrap_or_default().with(&crate::run::stats(machine)?.system));
            }
        }
        // What is left of the time is load as well.
        let end = start + Duration::from_secs_f64(plan.seconds);
        machine.wait_for("end of the time", Duration::from_secs(3600), |_| (Instant::now() >= end).then_some(()))?;
        if let Some(steps) = steps {
            steps.done();
        }
        Ok(deaths)
    }

    /// Most of the deaths have to be the ones that were ordered, as what else ends a domain is no part of the plan; none may be a
    /// domain's own.
    fn hold(&mut self, machine: &mut Machine, victims: &[(&str, bool)]) -> Result<()> {
        let domains = machine.domains()?;
        self.restarts = domains.iter().filter(|d| victims.iter().any(|(v, _)| *v == d.name)).map(|d| d.restarts).sum();
        let names: Vec<&str> = victims.iter().map(|(name, _)| *name).collect();
        self.failures.extend(own_deaths(&machine.control, &names));
        let most = u64::from(self.survived) * victims.len() as u64 / 10 + 2;
        if self.other_causes.len() as u64 > most {
            self.failures.push(format!(
                "{} deaths had another cause than was ordered: {}",
                self.other_causes.len(),
                self.other_causes.first().cloned().unwrap_or_default()
            ));
        }
        Ok(())
    }

    /// Lets the load come to its end and takes the reports.
    fn finish(
        &mut self,
        machine: &mut Machine,
        checkers: &[(&str, usize)],
        follows: &mut [Follow],
        loads: Vec<Load>,
    ) -> Result<()> {
        let good = self.failures.is_empty();
        if let (true, [Some(first), Some(second)]) = (good, self.memory) {
            self.failures.extend(first.grown(second));
        }
        if let (true, Some(before)) = (good, &self.nodes) {
            self.failures.extend(nodes::grown(machine, before)?);
        }
        for load in loads {
            self.transferred_bytes += load.progress();
            if good && !load.finish()?.hash_ok() {
                self.failures.push("a SHA-256 is wrong".into());
            }
        }
        let counts = machine.host.counts();
        self.tcp_resets = counts.resets_in + counts.resets_out;
        if self.tcp_resets > 0 {
            self.failures.push(format!("{} TCP resets on the wire", self.tcp_resets));
        }
        for (name, _) in checkers {
            machine.ask(&json!({ "cmd": "shutdown", "dom": name }))?;
        }
        for (follow, (name, vbds)) in follows.iter_mut().zip(checkers) {
            machine.wait_for(&format!("end of `{name}`"), DONE, |m| {
                std::thread::sleep(Duration::from_millis(10));
                follow.update(&m.console).all(*vbds, |v| v.done.is_some()).then_some(())
            })?;
        }
        Ok(())
    }

    /// Finds the stall that each death lies in.
    fn stalls_of(&mut self, deaths: &[Outcome], follows: &[Follow]) {
        let stalls: Vec<_> = follows.iter().flat_map(|f| f.vbds.values()).flat_map(|v| &v.stalls).collect();
        for death in deaths {
            let around = stalls.iter().filter(|s| {
                let from = s.at_us.saturating_sub(s.gap_us);
                from <= death.time_us && death.time_us <= s.at_us
            });
            if let Some(longest) = around.map(|s| s.gap_us).max() {
                self.all_stalls_ms.push((death.how.clone(), longest as f64 / 1000.0));
            }
        }
        self.stall_ms = summary(self.all_stalls_ms.iter().map(|(_, ms)| *ms));
        for how in KINDS {
            let of = summary(self.all_stalls_ms.iter().filter(|(h, _)| h == how).map(|(_, ms)| *ms));
            if of.count > 0 {
                self.stalls.insert(how.to_string(), of);
            }
        }
    }

    /// Judges a vbd by its report and by its image.
    fn judge(&mut self, system: &System, drives: &crate::drive::Drives, name: &str, number: u32, vbd: &Vbd) {
        let what = format!("{name} vbd {number}");
        self.failures.extend(vbd.faults().into_iter().map(|fault| format!("{what}: {fault}")));
        let served = system.machine.disks.iter().enumerate().filter_map(|(n, _)| drives.get(n)?.server.as_ref());
        for server in served {
            if let Err(error) = server.settle() {
                self.failures.push(format!("{what}: {error}"));
            }
        }
        if vbd.done.is_some() {
            match blkcheck::verify(system, drives, name, number, vbd) {
                Ok(findings) => self.image_sectors += findings.sectors,
                Err(error) => self.failures.push(format!("{what}: {error:#}")),
            }
        }
        self.reports.insert(what, vbd.report.clone());
    }
}

/// Orders a crash of a domain once it runs: what is ordered between a death and the restart is for the instance that is gone. `tell`
/// hears why it does not run yet.
pub fn order(machine: &mut Machine, victim: &str, how: &str, count: u32, mut tell: impl FnMut(&str)) -> Result<Order> {
    let deadline = Instant::now() + HELD;
    loop {
        machine.await_running(victim, &mut tell)?;
        match machine.order_crash(victim, how, count) {
            // It died once more meanwhile.
            Err(error) if format!("{error:#}").contains("is not running") && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// Who is killed: every backend of a blkcheck's disk, and of a guest on the wire where the plan says so.
fn victims<'a>(system: &'a System, plan: &Plan) -> Result<Vec<(&'a str, bool)>> {
    let names = checkers(system);
    let mut victims: Vec<(&str, bool)> = Vec::new();
    for (_, vbd) in system.vbds().filter(|(name, _)| names.iter().any(|(n, _)| n == name)) {
        if !victims.iter().any(|(v, _)| *v == vbd.backend) {
            victims.push((&vbd.backend, true));
        }
    }
    if plan.network {
        let (_, vif) = system.vifs().next().context("the system has no guest on the wire")?;
        victims.push((&vif.backend, false));
    }
    Ok(victims)
}

impl super::Outcome for Report {
    fn describe(&self) -> String {
        let mut text = format!(
            "{} of {} kills survived in {:.0} s (seed {}); {} restarts, {} deaths by another cause than ordered, {} along with a stray device\n\n",
            self.survived,
            self.kills,
            self.seconds,
            self.seed,
            self.restarts,
            self.other_causes.len(),
            self.along
        );
        let row = |name: &str, s: &Summary| std::iter::once(name.to_string()).chain(s.cells()).collect::<Vec<_>>();
        let mut rows = vec![row("all", &self.stall_ms)];
        rows.extend(self.stalls.iter().map(|(how, s)| row(how, s)));
        let heading: Vec<&str> = std::iter::once("stall at the frontend, ms").chain(HEADINGS).collect();
        text.push_str(&table::format(&heading, &rows));
        let keys = [
            "reads",
            "writes",
            "flushes",
            "errors",
            "timeouts",
            "lost",
            "torn",
            "stale",
            "misplaced",
            "corrupt",
            "links",
        ];
        let rows: Vec<Vec<String>> = self
            .reports
            .iter()
            .map(|(name, report)| {
                let cell = |key: &&str| report.get(*key).map_or_else(|| "–".to_string(), Value::to_string);
                std::iter::once(name.clone()).chain(keys.iter().map(cell)).collect()
            })
            .collect();
        let heading: Vec<&str> = std::iter::once("blkcheck").chain(keys).collect();
        text.push_str(&format!("\n{}", table::format(&heading, &rows)));
        for (half, most) in ["first", "second"].iter().zip(self.memory) {
            if let Some(most) = most {
                text.push_str(&format!(
                    "most memory, {half} half: hypervisor heap {} bytes, frames in use {} KiB, control heap {} bytes\n",
                    most.hypervisor_heap_bytes, most.used_kib, most.control_heap_bytes
                ));
            }
        }
        text.push_str(&format!("image: {} sectors found right on the host\n", self.image_sectors));
        if self.transferred_bytes > 0 {
            let mib = self.transferred_bytes >> 20;
            text.push_str(&format!("network: {mib} MiB moved, {} TCP resets\n", self.tcp_resets));
        }
        text
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
        match self.failures() {
            [] => Ok(()),
            failures => bail!("{}", failures.join("; ")),
        }
    }
}
