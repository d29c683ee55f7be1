//! `campaign net`: the network's driver domain is killed under load both ways; memory at the end has to be what it was after the
//! first ten kills.

use super::nodes;
use crate::machine::Machine;
use crate::machine::crash::{KINDS, own_deaths};
use crate::machine::load::Load;
use crate::machine::protocol::{AllStats, System as Memory};
use crate::manifest::System;
use crate::{progress, run};
use anyhow::Result;
use blkcheck::random::Random;
use serde::Serialize;

/// Kills after which memory has settled.
const WARM: u32 = 10;
/// Each way, begun anew until the last kill.
const LOAD_BYTES: u64 = 64 << 20;
/// Crash points are passed tens of thousands of times a second under load; a kill waits for up to this many.
const POINTS: u64 = 5_000;

/// What came of it.
#[derive(Serialize)]
pub struct Report {
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

/// Kills the driver of a machine that was just started.
///
/// # Errors
/// The machine does not come to serve; a kill not survived is a failure in the report.
pub fn run(machine: &mut Machine, system: &System, kills: u32, seed: u64) -> Result<Report> {
    machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
    machine.probe_all()?;
    nodes::published(machine)?;
    kill_all(machine, run::driver(system)?, kills, seed)
}

fn kill_all(machine: &mut Machine, driver: &str, kills: u32, seed: u64) -> Result<Report> {
    let mut random = Random::new(seed);
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
    let mut nodes_before = None;
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
            nodes_before = Some(nodes::all(machine)?);
        }
        if loads.iter().any(Load::stopped) {
            report.failures.push(format!("a transfer ended by kill {number}"));
            break;
        }
    }
    steps.done();
    report.failures.extend(own_deaths(&machine.control, &[driver]));
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
        if let Some(before) = nodes_before {
            report.failures.extend(nodes::grown(machine, &before)?);
        }
    }
    Ok(report)
}

/// The least of a few looks: a restart or a store transaction under way is not a leak.
///
/// # Errors
/// No answer.
fn settled(machine: &Machine) -> Result<AllStats> {
    let mut best = run::stats(machine)?;
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = run::stats(machine)?;
        let system = &mut best.system;
        system.free_kib = system.free_kib.max(now.system.free_kib);
        system.hypervisor_heap_bytes = system.hypervisor_heap_bytes.min(now.system.hypervisor_heap_bytes);
        system.control_heap_bytes = system.control_heap_bytes.min(now.system.control_heap_bytes);
    }
    Ok(best)
}

/// What grew since the first ten kills.
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
    failures
}

impl super::Outcome for Report {
    fn describe(&self) -> String {
        let mut text = format!(
            "{} of {} kills survived (seed {}), {} MiB moved, {} TCP resets\n",
            self.survived,
            self.kills,
            self.seed,
            self.bytes >> 20,
            self.tcp_resets
        );
        for (when, memory) in [("after ten", &self.memory_after_first_ten), ("at the end", &self.memory_at_end)] {
            if let Some(m) = memory {
                text.push_str(&format!(
                    "{when:10}: hypervisor heap {} bytes, frames in use {} KiB, control heap {} bytes, {} store nodes\n",
                    m.hypervisor_heap_bytes,
                    m.total_kib - m.free_kib,
                    m.control_heap_bytes,
                    m.store_nodes
                ));
            }
        }
        text
    }

    fn failures(&self) -> &[String] {
        &self.failures
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
