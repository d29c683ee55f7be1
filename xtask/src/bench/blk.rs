//! What a disk costs: the same workloads through the driver domain and by the same driver in a bare unikernel, on the same image in the
//! same emulator, in turn, so that the host's noise meets all. The bare one runs twice: with the IOMMU translating, as it does for the
//! driver domain (the ratio is to this one), and on a machine without. Then the stalls of kills under mixed load, and the memory of
//! four vbds.

use super::statistics::{HEADINGS, Summary, summary};
use crate::campaign::blk as campaign;
use crate::drive::Drives;
use crate::machine::bare::{Bare, PACKAGE};
use crate::machine::blkcheck::{Follow, Vbd};
use crate::machine::protocol::AllStats;
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::System;
use crate::{cargo, image, paths, progress, run, table};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

/// The guest with the disk, and what it is measured through.
const GUEST: &str = "blkcheck";
/// Memory for data on either side: all requests of the deepest workload at once.
const POOL_KIB: u32 = 4096;
/// Time beyond the workload's own until it has to be done.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is measured.
struct Workload {
    name: &'static str,
    mode: &'static str,
    size: u32,
    depth: u32,
    /// Requests count, not bytes.
    by_request: bool,
}

const WORKLOADS: [Workload; 4] = [
    Workload { name: "4 KiB random reads, depth 1", mode: "rand-read", size: 4096, depth: 1, by_request: true },
    Workload { name: "4 KiB random reads, depth 32", mode: "rand-read", size: 4096, depth: 32, by_request: true },
    Workload { name: "1 MiB sequential reads", mode: "seq-read", size: 1 << 20, depth: 4, by_request: false },
    Workload { name: "1 MiB sequential writes", mode: "seq-write", size: 1 << 20, depth: 4, by_request: false },
];

/// One workload.
#[derive(Serialize)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    unit: &'static str,
    /// Medians.
    ours: f64,
    bare: f64,
    bare_without_iommu: f64,
    /// `ours / bare`.
    pub ratio: f64,
    ratio_without_iommu: f64,
    all_ours: Vec<f64>,
    all_bare: Vec<f64>,
    all_bare_without_iommu: Vec<f64>,
    latency_us_p50: f64,
    latency_us_p99: f64,
    /// Of all domains, medians.
    switches_per_request: f64,
    hypercalls_per_request: f64,
    cpu_seconds_per_gib: f64,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    /// By workload.
    pub rows: Vec<Row>,
    /// Unless only workloads were asked for.
    pub life: Option<Life>,
}

/// What a driver domain costs besides time.
#[derive(Serialize)]
pub struct Life {
    kills: u32,
    stall_ms: Summary,
    stalls: Vec<(String, Summary)>,
    /// Every stall.
    pub all_stalls_ms: Vec<(String, f64)>,
    /// Bytes of the driver domain's image.
    image_bytes: u64,
    /// Its memory, and the most it had with four vbds under load with the tables that the hypervisor keeps for it.
    memory_kib: u64,
    peak_kib: u64,
}

/// How much of it.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Only workloads with this in their name, without stalls and memory.
    pub only: Option<String>,
    /// Runs of each workload on each side.
    pub rounds: u32,
    /// Of a run.
    pub seconds: u32,
    /// For the stalls.
    pub kills: u32,
}

/// One run of a workload.
#[derive(Clone, Copy, Default)]
struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    switches: f64,
    hypercalls: f64,
    cpu: f64,
}

/// Takes all figures.
///
/// # Errors
/// A machine does not run, or a run has an error.
pub fn measure(effort: &Effort) -> Result<Figures> {
    let wanted = |w: &&Workload| effort.only.as_ref().is_none_or(|only| w.name.contains(only.as_str()));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(wanted).collect();
    ensure!(
        !workloads.is_empty(),
        "no workload has that in its name; there are: {}",
        WORKLOADS.map(|w| w.name).join("; ")
    );
    let system = System::load("disk")?;
    image::prepare(std::iter::once(&system))?;
    cargo::build_freestanding(&[(PACKAGE, &[])])?;
    let drives = Arc::new(Drives::open(&system)?);
    fill(&drives)?;
    let runs = workloads.len() as u64 * u64::from(effort.rounds) * 3;
    let steps = progress::steps("disk", runs + if effort.only.is_none() { 2 } else { 0 });
    let mut rows = Vec::new();
    for workload in workloads {
        let (mut ours, mut bare, mut without) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=effort.rounds {
            steps.next(&format!("{}, through the driver domain, run {round}", workload.name));
            ours.push(guest(&system, &drives, workload, effort.seconds)?);
            steps.next(&format!("{}, bare, run {round}", workload.name));
            bare.push(alone(&system, &drives, workload, effort.seconds, true)?);
            steps.next(&format!("{}, bare without IOMMU, run {round}", workload.name));
            without.push(alone(&system, &drives, workload, effort.seconds, false)?);
        }
        rows.push(row(workload, &ours, &bare, &without));
    }
    drop(drives);
    if effort.only.is_some() {
        steps.done();
        return Ok(Figures { rows, life: None });
    }
    steps.next(&format!("{} kills under mixed load", effort.kills));
    let stalls = stalls(effort.kills)?;
    steps.next("memory of four vbds");
    let (image_bytes, memory_kib, peak_kib) = memory()?;
    steps.done();
    let life = Life {
        kills: effort.kills,
        stall_ms: stalls.stall_ms,
        stalls: stalls.stalls.into_iter().collect(),
        all_stalls_ms: stalls.all_stalls_ms,
        image_bytes,
        memory_kib,
        peak_kib,
    };
    Ok(Figures { rows, life: Some(life) })
}

/// Writes every byte of every image once, so that no read finds a hole and all of it is in the host's page cache.
///
/// # Errors
/// An image cannot be written.
pub fn fill(drives: &Drives) -> Result<()> {
    let chunk = vec![0x5a; 1 << 20];
    for drive in (0..).map_while(|number| drives.get(number)) {
        for at in (0..drive.len).step_by(chunk.len()) {
            let len = usize::try_from(drive.len - at).unwrap_or(chunk.len()).min(chunk.len());
            drive.file.write_all_at(chunk.get(..len).unwrap_or_default(), at).context("the image")?;
        }
    }
    Ok(())
}

fn keys(workload: &Workload, seconds: u32) -> Vec<(&'static str, String)> {
    vec![
        ("mode", workload.mode.to_string()),
        ("size", workload.size.to_string()),
        ("depth", workload.depth.to_string()),
        ("pool-kib", POOL_KIB.to_string()),
        ("duration-ms", (seconds * 1000).to_string()),
        ("then", "wait".to_string()),
    ]
}

/// Through the driver domain.
fn guest(system: &System, drives: &Arc<Drives>, workload: &Workload, seconds: u32) -> Result<Sample> {
    let mut system = system.clone();
    for domain in system.domains.iter_mut().filter(|d| d.name == GUEST) {
        domain.config = keys(workload, seconds).into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    }
    let built = image::pack(&system)?;
    let drives = Some(Arc::clone(drives));
    let options = Options { name: "bench-blk".into(), public: false, lacks: Lacks::default(), drives };
    let mut machine = Machine::start(&system, &built, &options, machine::reserve(0)?, |_| ())?;
    machine.wait_until_ready(run::BOOT_PATIENCE)?;
    let mut follow = Follow::new(GUEST, 0);
    machine.wait_for("begin of the workload", PATIENCE, |m| {
        follow.update(&m.console).all(1, |v| v.begin.is_some()).then_some(())
    })?;
    let before = run::stats(&machine)?;
    machine.wait_for("end of the workload", Duration::from_secs(seconds.into()) + PATIENCE, |m| {
        std::thread::sleep(Duration::from_millis(5));
        follow.update(&m.console).all(1, |v| v.done.is_some()).then_some(())
    })?;
    let after = run::stats(&machine)?;
    let vbd = follow.vbds.values().next().context("no vbd was reported")?;
    let sample = rate(workload, vbd).map_err(|error| machine.failure(&format!("{error:#}")))?;
    let requests = (vbd.number("reads") + vbd.number("writes")).max(1) as f64;
    let gib = (vbd.number("read_bytes") + vbd.number("written_bytes")).max(1) as f64 / f64::from(1 << 30);
    let of = |value: fn(&AllStats) -> u64| value(&after).saturating_sub(value(&before)) as f64;
    Ok(Sample {
        switches: of(|s| s.domains.iter().map(|d| d.world_switches).sum()) / requests,
        hypercalls: of(|s| s.domains.iter().map(|d| d.hypercalls).sum()) / requests,
        cpu: of(|s| s.domains.iter().map(|d| d.cpu_us).sum()) / 1e6 / gib,
        ..sample
    })
}

/// The same driver without a hypervisor, its DMA translated or not.
fn alone(system: &System, drives: &Drives, workload: &Workload, seconds: u32, iommu: bool) -> Result<Sample> {
    let mut config: String = keys(workload, seconds).iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    config.push_str(if iommu { "iommu=1\n" } else { "" });
    let mut bare = Bare::start(system, drives, &paths::executable(PACKAGE), &config, iommu)?;
    bare.wait_for_end(Duration::from_secs(seconds.into()) + PATIENCE)?;
    let mut follow = Follow::new(machine::console::HYPERVISOR, 0);
    let vbd = follow.update(&bare.console).vbds.values().next().cloned();
    let vbd = vbd.ok_or_else(|| bare.failure("the bare unikernel reported nothing"))?;
    rate(workload, &vbd).map_err(|error| bare.failure(&format!("{error:#}")))
}

fn rate(workload: &Workload, vbd: &Vbd) -> Result<Sample> {
    ensure!(vbd.done == Some(true) && vbd.number("errors") == 0, "the workload failed: {}", vbd.faults().join(", "));
    let seconds = vbd.number("elapsed_us") as f64 / 1e6;
    ensure!(seconds > 0.1, "the workload took {seconds} s");
    let amount = if workload.by_request {
        (vbd.number("reads") + vbd.number("writes")) as f64
    } else {
        (vbd.number("read_bytes") + vbd.number("written_bytes")) as f64 / 1e6
    };
    ensure!(amount > 0.0, "nothing was moved");
    let (p50, p99) = (vbd.number("lat_p50") as f64, vbd.number("lat_p99") as f64);
    Ok(Sample { rate: amount / seconds, p50, p99, ..Sample::default() })
}

fn row(workload: &Workload, ours: &[Sample], bare: &[Sample], without: &[Sample]) -> Row {
    let median = |samples: &[Sample], pick: fn(&Sample) -> f64| summary(samples.iter().map(pick)).p50;
    let rate = |samples: &[Sample]| median(samples, |s| s.rate);
    let all = |samples: &[Sample]| samples.iter().map(|s| s.rate).collect();
    let (our_rate, bare_rate, without_rate) = (rate(ours), rate(bare), rate(without));
    Row {
        name: workload.name,
        unit: if workload.by_request { "IOPS" } else { "MB/s" },
        ours: our_rate,
        bare: bare_rate,
        bare_without_iommu: without_rate,
        ratio: our_rate / bare_rate,
        ratio_without_iommu: our_rate / without_rate,
        all_ours: all(ours),
        all_bare: all(bare),
        all_bare_without_iommu: all(without),
        latency_us_p50: median(ours, |s| s.p50),
        latency_us_p99: median(ours, |s| s.p99),
        switches_per_request: median(ours, |s| s.switches),
        hypercalls_per_request: median(ours, |s| s.hypercalls),
        cpu_seconds_per_gib: median(ours, |s| s.cpu),
    }
}

fn boot(system: &System, name: &str) -> Result<(Machine, image::Built)> {
    let built = image::system(system)?;
    let options = Options { name: name.into(), public: false, lacks: Lacks::default(), drives: None };
    Ok((Machine::start(system, &built, &options, machine::reserve(0)?, |_| ())?, built))
}

fn stalls(kills: u32) -> Result<campaign::Report> {
    let mut system = System::load("disk")?;
    campaign::configure(&mut system, 1);
    // Each finds a system that is at work again.
    let plan = campaign::Plan { kills, seed: 1, seconds: f64::from(kills) * 0.4, network: false, progress: false };
    let report = campaign::run(boot(&system, "disk")?.0, &system, &plan)?;
    report.verdict()?;
    Ok(report)
}

/// The driver domain's image, and its memory with four vbds under load.
fn memory() -> Result<(u64, u64, u64)> {
    let mut system = System::load("disks")?;
    campaign::configure(&mut system, 1);
    let driver = system.vbds().next().map(|(_, vbd)| vbd.backend.clone()).context("no vbd")?;
    let image = system.domains.iter().find(|d| d.name == driver).and_then(|d| d.image.clone());
    let vbds = system.vbds().count();
    ensure!(vbds == 4, "the system `disks` has {vbds} vbds");
    let (mut machine, built) = boot(&system, "disks")?;
    machine.wait_until_ready(run::BOOT_PATIENCE)?;
    let domains: std::collections::BTreeSet<&str> = system.vbds().map(|(name, _)| name).collect();
    for domain in domains {
        let mut follow = Follow::new(domain, 0);
        let own = system.vbds().filter(|(name, _)| *name == domain).count();
        machine.wait_for(&format!("readiness of `{domain}`"), PATIENCE, |m| {
            follow.update(&m.console).all(own, |v| v.ready).then_some(())
        })?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let stats = run::stats(&machine)?;
    let peak = stats.domains.iter().find(|d| d.name == driver).map(|d| (d.memory_kib, d.peak_kib));
    let (memory, peak) = peak.context("no such domain")?;
    let weight = built.weights.iter().find(|w| Some(&w.image) == image.as_ref()).map(|w| w.total);
    Ok((weight.context("no such image")?, memory, peak))
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|r| {
                vec![
                    r.name.to_string(),
                    format!("{:.0}", r.ours),
                    format!("{:.0}", r.bare),
                    format!("{:.0}", r.bare_without_iommu),
                    r.unit.to_string(),
                    format!("{:.0} %", r.ratio * 100.0),
                    format!("{:.0} %", r.ratio_without_iommu * 100.0),
                    format!("{:.0}", r.latency_us_p50),
                    format!("{:.0}", r.latency_us_p99),
                    format!("{:.2}", r.switches_per_request),
                    format!("{:.2}", r.hypercalls_per_request),
                    format!("{:.2}", r.cpu_seconds_per_gib),
                ]
            })
            .collect();
        let heading = [
            "workload",
            "driver domain",
            "bare",
            "no IOMMU",
            "unit",
            "ratio",
            "to no IOMMU",
            "p50 µs",
            "p99 µs",
            "switches/req",
            "hypercalls/req",
            "CPU s/GiB",
        ];
        let workloads = table::format(&heading, &rows);
        let Some(life) = &self.life else { return workloads };
        let stall = |name: &str, s: &Summary| std::iter::once(name.to_string()).chain(s.cells()).collect::<Vec<_>>();
        let mut stalls = vec![stall("all", &life.stall_ms)];
        stalls.extend(life.stalls.iter().map(|(how, s)| stall(how, s)));
        let stall_heading: Vec<&str> = std::iter::once("stall on a kill, ms").chain(HEADINGS).collect();
        format!(
            "{workloads}\n{}\n{} kills under mixed load, no error, image right\nimage {}, memory {} KiB at 4 vbds ({} KiB with its tables)\n",
            table::format(&stall_heading, &stalls),
            life.kills,
            crate::units::kib(life.image_bytes),
            life.memory_kib,
            life.peak_kib
        )
    }
}
