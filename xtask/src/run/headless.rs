//! The scripted main job: both directions under load on one connection each, ten crashes over all kinds, and a report in
//! which every condition stands with its answer.

use crate::hostnet::Counts;
use crate::machine::Machine;
use crate::machine::crash::{KINDS, Outcome};
use crate::machine::load::{Direction, Load, Totals};
use crate::machine::protocol::{AllStats, Stats};
use crate::manifest::System;
use crate::progress;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Crashes of one run.
const CRASHES: usize = 10;
/// Longest time without any progress of a transfer.
const STALL: Duration = Duration::from_secs(30);

/// What the report holds.
#[derive(Serialize)]
struct Report {
    system: String,
    qemu: String,
    accelerator: &'static str,
    /// Hypervisor's first word → the web guest's first answer.
    boot_ms: f64,
    /// Start of the emulator → the web guest's first answer.
    start_ms: f64,
    restarts: Vec<Outcome>,
    bytes_down: u64,
    bytes_up: u64,
    mbit_down: f64,
    mbit_up: f64,
    hash_ok: bool,
    tcp_resets: u64,
    connections: usize,
    guest_lines: Vec<String>,
    memory: BTreeMap<String, Memory>,
    hypervisor_heap_bytes: u64,
    packets: u64,
    per_packet: BTreeMap<String, PerPacket>,
    failures: Vec<String>,
}

#[derive(Serialize)]
struct Memory {
    now_kib: u64,
    peak_kib: u64,
}

/// Over the frames on the wire while the transfers ran.
#[derive(Serialize)]
struct PerPacket {
    world_switches: f64,
    hypercalls: f64,
    events: f64,
}

/// The job.
///
/// # Errors
/// The machine does not run so far that there is anything to report.
pub fn run(machine: &mut Machine, system: &System, qemu: &str, bytes: u64, file: Option<&Path>) -> Result<ExitCode> {
    let steps = progress::steps("main job", CRASHES as u64 + 3);
    steps.say("booting");
    let (_, served) = machine.wait_until_serving(0, super::BOOT_PATIENCE)?;
    let first = machine.console.first_byte().unwrap_or(machine.started);
    steps.next("probing");
    machine.probe_all()?;
    let driver = super::driver(system)?;
    let guest = machine.guests[0].name.clone();
    let port = machine.host.port(0).context("the guest has no page")?;
    let before = (stats(machine)?, machine.host.counts(), machine.console.len());
    let load = Load::start(port, bytes);
    let mut failures = Vec::new();
    let restarts = crash_all(machine, driver, &load, bytes, &steps, &mut failures);
    steps.next("finishing the transfers");
    let totals = finish(machine, load, &mut failures);
    machine.host.probe(None);
    let after = (stats(machine)?, machine.host.counts());
    let resets = after.1.resets_in + after.1.resets_out - before.1.resets_in - before.1.resets_out;
    let packets = frames(&after.1) - frames(&before.1);
    let guest_lines: Vec<String> =
        machine.console.since(before.2).into_iter().filter(|l| l.domain == guest).map(|l| l.text).collect();
    let mut hold = |condition: bool, text: String| {
        if !condition {
            failures.push(text);
        }
    };
    hold(restarts.len() == CRASHES, format!("{} of {CRASHES} crashes were survived", restarts.len()));
    hold(resets == 0, format!("{resets} TCP resets on the wire"));
    hold(
        guest_lines.is_empty(),
        format!("guest `{guest}` noticed: {}", guest_lines.first().cloned().unwrap_or_default()),
    );
    if let Some(totals) = &totals {
        hold(totals.hash_ok(), "a SHA-256 is wrong".to_string());
        for (direction, name) in [(Direction::Down, "down"), (Direction::Up, "up")] {
            hold(totals.bytes(direction) >= bytes, format!("{} bytes {name} of {bytes}", totals.bytes(direction)));
        }
    }
    let report = Report {
        system: system.domains.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", "),
        qemu: qemu.to_string(),
        accelerator: if crate::setup::kvm() { "kvm" } else { "tcg" },
        boot_ms: ms(served, first),
        start_ms: ms(served, machine.started),
        bytes_down: totals.as_ref().map_or(0, |t| t.bytes(Direction::Down)),
        bytes_up: totals.as_ref().map_or(0, |t| t.bytes(Direction::Up)),
        mbit_down: totals.as_ref().map_or(0.0, |t| t.rate(Direction::Down)),
        mbit_up: totals.as_ref().map_or(0.0, |t| t.rate(Direction::Up)),
        hash_ok: totals.as_ref().is_some_and(Totals::hash_ok),
        connections: totals.as_ref().map_or(0, |t| t.down.len() + t.up.len()),
        restarts,
        tcp_resets: resets,
        guest_lines,
        memory: memory(&after.0),
        hypervisor_heap_bytes: after.0.system.hypervisor_heap_bytes,
        packets,
        per_packet: per_packet(&before.0, &after.0, packets),
        failures,
    };
    steps.done();
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    print(&report);
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Spreads the crashes over the transfers, each after the one before is over.
fn crash_all(
    machine: &mut Machine,
    driver: &str,
    load: &Load,
    bytes: u64,
    steps: &progress::Steps,
    failures: &mut Vec<String>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for number in 0..CRASHES {
        let how = KINDS[number % KINDS.len()];
        steps.next(&format!("crash {} of {CRASHES}: {how}", number + 1));
        let due = 2 * bytes / (CRASHES as u64 + 2) * (number as u64 + 1);
        let mut last = (load.progress(), Instant::now());
        let moving = machine.wait_for("progress of the transfers", Duration::from_secs(600), |_| {
            let now = load.progress();
            if now != last.0 {
                last = (now, Instant::now());
            }
            let stalled = last.1.elapsed() > STALL;
            (now >= due || load.stopped() || stalled).then_some(!stalled)
        });
        match moving {
            Ok(true) => {}
            Ok(false) => failures.push(format!("the transfers stood still for {} s before {how}", STALL.as_secs())),
            Err(error) => {
                failures.push(format!("{error:#}"));
                break;
            }
        }
        match machine.crash(driver, how, 0) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => {
                failures.push(format!("crash {} ({how}): {error:#}", number + 1));
                break;
            }
        }
    }
    outcomes
}

/// Waits for the transfers, but not for ever on ones that stand still.
fn finish(machine: &mut Machine, load: Load, failures: &mut Vec<String>) -> Option<Totals> {
    let finished =
        if failures.is_empty() { load.finish() } else { Err(anyhow::anyhow!("the transfers were given up")) };
    match finished {
        Ok(totals) => Some(totals),
        Err(error) => {
            failures.push(format!("{error:#}"));
            failures.push(machine.failure("the machine at that time").to_string());
            None
        }
    }
}

fn ms(to: Instant, from: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

fn frames(counts: &Counts) -> u64 {
    counts.frames_in + counts.frames_out
}

/// What control knows of all domains.
///
/// # Errors
/// No answer, or one that is not as the protocol says.
pub fn stats(machine: &Machine) -> Result<AllStats> {
    serde_json::from_value(machine.control.ask("stats")?).context("control's answer to `stats`")
}

fn memory(stats: &AllStats) -> BTreeMap<String, Memory> {
    let of = |d: &Stats| Memory { now_kib: d.memory_kib, peak_kib: d.peak_kib };
    stats.domains.iter().map(|d| (d.name.clone(), of(d))).collect()
}

fn per_packet(before: &AllStats, after: &AllStats, packets: u64) -> BTreeMap<String, PerPacket> {
    let per = |a: u64, b: u64| a.saturating_sub(b) as f64 / packets.max(1) as f64;
    after
        .domains
        .iter()
        .filter_map(|a| Some((a, before.domains.iter().find(|b| b.id == a.id)?)))
        .map(|(a, b)| {
            let ratios = PerPacket {
                world_switches: per(a.world_switches, b.world_switches),
                hypercalls: per(a.hypercalls, b.hypercalls),
                events: per(a.events, b.events),
            };
            (a.name.clone(), ratios)
        })
        .collect()
}

fn print(report: &Report) {
    let rows: Vec<Vec<String>> = report
        .restarts
        .iter()
        .map(|o| {
            vec![
                o.how.clone(),
                o.cause.clone(),
                format!("{:.1}", o.outage_ms),
                o.entered_us.map_or("–".into(), |us| format!("{:.2}", us as f64 / 1000.0)),
                o.serving_us.map_or("–".into(), |us| format!("{:.2}", us as f64 / 1000.0)),
                o.iommu.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let heading = ["how", "cause", "outage ms", "restart ms", "serving ms", "IOMMU"];
    print!("{}", crate::table::format(&heading, &rows));
    println!(
        "boot {:.0} ms · {} MiB down at {:.0} Mbit/s, {} MiB up at {:.0} Mbit/s · SHA-256 {} · {} TCP resets · {} packets",
        report.boot_ms,
        report.bytes_down >> 20,
        report.mbit_down,
        report.bytes_up >> 20,
        report.mbit_up,
        if report.hash_ok { "right" } else { "WRONG" },
        report.tcp_resets,
        report.packets
    );
    for failure in &report.failures {
        println!("FAILED: {failure}");
    }
}
