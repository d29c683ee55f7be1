//! `cargo xtask campaign net`: the driver is killed at random points, in random ways, under load both ways, until it is clear
//! that nothing leaks: memory at the end has to be what it was after the first ten.

use crate::machine::crash::KINDS;
use crate::machine::load::Load;
use crate::machine::protocol::{AllStats, System as Memory};
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::System;
use crate::random::Random;
use crate::{image, progress, run, setup};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Kills after which memory has settled.
const WARM: u32 = 10;
/// Each way, begun anew until the last kill.
const LOAD_BYTES: u64 = 64 << 20;
/// Crash points are passed tens of thousands of times a second under load; a kill waits for up to this many.
const POINTS: u64 = 5_000;

/// Arguments of `campaign`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Kill the network driver domain
    Net {
        /// How many times
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..))]
        kills: u32,
        /// Seed of ways and points; the same seed gives the same orders
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// System
        #[arg(long, default_value = "default")]
        system: String,
        /// Where the report goes (JSON)
        #[arg(long)]
        report: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Report {
    seed: u64,
    kills: u32,
    survived: u32,
    outages_ms: Vec<f64>,
    tcp_resets: u64,
    bytes: u64,
    memory_after_first_ten: Option<Memory>,
    memory_at_end: Option<Memory>,
    failures: Vec<String>,
}

/// The command.
///
/// # Errors
/// Whatever keeps the machine from running at all; a kill not survived is a failure in the report.
pub fn run(args: &Args) -> Result<ExitCode> {
    let What::Net { kills, seed, system: name, report: file } = &args.what;
    let system = System::load(name)?;
    setup::ensure_all()?;
    let built = image::system(&system, name)?;
    let options = Options { name: name.clone(), public: true, lacks: Lacks::default(), drives: None };
    let mut machine = Machine::start(&system, &built, &options, machine::reserve(0)?, |_| ())?;
    machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
    machine.probe_all()?;
    let report = kill_all(&mut machine, run::driver(&system)?, *kills, *seed)?;
    if let Some(file) = file {
        std::fs::write(file, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    print(&report);
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kill_all(machine: &mut Machine, driver: &str, kills: u32, seed: u64) -> Result<Report> {
    let mut random = Random(seed);
    let loads: Vec<Load> =
        (0..machine.guests.len()).filter_map(|g| machine.host.port(g)).map(|p| Load::start(p, LOAD_BYTES)).collect();
    let steps = progress::steps("kills", u64::from(kills));
    let mut report = Report {
        seed,
        kills,
        survived: 0,
        outages_ms: Vec::new(),
        tcp_resets: 0,
        bytes: 0,
        memory_after_first_ten: None,
        memory_at_end: None,
        failures: Vec::new(),
    };
    for number in 0..kills {
        let how = KINDS[random.below(KINDS.len() as u64) as usize];
        let count = u32::try_from(random.below(POINTS)).unwrap_or(0);
        std::thread::sleep(std::time::Duration::from_millis(random.below(120)));
        steps.tick(&format!("{number}: {how} after {count} points"));
        match machine.crash(driver, how, count) {
            Ok(outcome) => {
                report.survived += 1;
                report.outages_ms.push(outcome.outage_ms);
            }
            Err(error) => {
                report.failures.push(format!("kill {number} ({how} after {count} points): {error:#}"));
                break;
            }
        }
        if number + 1 == WARM {
            report.memory_after_first_ten = Some(settled(machine)?.system);
        }
        if loads.iter().any(Load::stopped) {
            report.failures.push(format!("a transfer ended by kill {number}"));
            break;
        }
    }
    steps.done();
    let alive = report.failures.is_empty();
    for load in loads {
        report.bytes += load.progress();
        if alive {
            match load.finish() {
                Ok(totals) if totals.hash_ok() => {}
                Ok(_) => report.failures.push("a SHA-256 is wrong".into()),
                Err(error) => report.failures.push(format!("{error:#}")),
            }
        }
    }
    let counts = machine.host.counts();
    report.tcp_resets = counts.resets_in + counts.resets_out;
    if report.tcp_resets > 0 {
        report.failures.push(format!("{} TCP resets on the wire", report.tcp_resets));
    }
    if alive {
        let end = settled(machine)?.system;
        report.failures.extend(grown(report.memory_after_first_ten.as_ref(), &end));
        report.memory_at_end = Some(end);
    }
    Ok(report)
}

/// The least of a few looks: a restart or a store transaction under way is not a leak.
fn settled(machine: &Machine) -> Result<AllStats> {
    let mut best = run::stats(machine)?;
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = run::stats(machine)?;
        let system = &mut best.system;
        system.free_kib = system.free_kib.max(now.system.free_kib);
        system.hypervisor_heap_bytes = system.hypervisor_heap_bytes.min(now.system.hypervisor_heap_bytes);
        system.control_heap_bytes = system.control_heap_bytes.min(now.system.control_heap_bytes);
        system.store_nodes = system.store_nodes.min(now.system.store_nodes);
        system.store_bytes = system.store_bytes.min(now.system.store_bytes);
    }
    Ok(best)
}

fn grown(first: Option<&Memory>, end: &Memory) -> Vec<String> {
    let Some(first) = first else { return vec!["memory was not looked at after the first ten".into()] };
    // The history keeps a bounded number of deaths and texts of varying length; all else has to be the same.
    let slack = 16 << 10;
    let mut failures = Vec::new();
    let mut compare = |what: &str, before: u64, after: u64, slack: u64| {
        if after > before + slack {
            failures.push(format!("{what} grew from {before} to {after}"));
        }
    };
    compare("the hypervisor's heap", first.hypervisor_heap_bytes, end.hypervisor_heap_bytes, 0);
    compare("the frames in use, KiB,", first.total_kib - first.free_kib, end.total_kib - end.free_kib, 0);
    compare("control's heap", first.control_heap_bytes, end.control_heap_bytes, slack);
    compare("the store's nodes", first.store_nodes, end.store_nodes, 0);
    failures
}

fn print(report: &Report) {
    println!(
        "{} of {} kills survived (seed {}), {} MiB moved, {} TCP resets",
        report.survived,
        report.kills,
        report.seed,
        report.bytes >> 20,
        report.tcp_resets
    );
    for (when, memory) in [("after ten", &report.memory_after_first_ten), ("at the end", &report.memory_at_end)] {
        if let Some(m) = memory {
            println!(
                "{when:10}: hypervisor heap {} bytes, frames in use {} KiB, control heap {} bytes, {} store nodes",
                m.hypervisor_heap_bytes,
                m.total_kib - m.free_kib,
                m.control_heap_bytes,
                m.store_nodes
            );
        }
    }
    for failure in &report.failures {
        println!("FAILED: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(heap: u64, free: u64, control: u64) -> Memory {
        let text = format!(
            r#"{{"cpus":2,"total_kib":1000,"free_kib":{free},"hypervisor_heap_bytes":{heap},"boot_us":1,"time_us":2,
               "control_heap_bytes":{control},"store_nodes":5,"store_bytes":9}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_leak_of_one_frame_or_one_byte_of_the_hypervisor_is_a_failure() {
        let first = memory(100, 500, 1000);
        assert!(grown(Some(&first), &memory(100, 500, 1500)).is_empty());
        assert!(grown(Some(&first), &memory(101, 500, 1000))[0].contains("hypervisor's heap grew from 100 to 101"));
        assert!(grown(Some(&first), &memory(100, 496, 1000))[0].contains("frames"));
        assert!(grown(Some(&first), &memory(100, 500, 100_000))[0].contains("control's heap"));
        assert!(!grown(None, &first).is_empty());
    }
}
