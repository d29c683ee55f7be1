//! The demonstration: a transfer in each direction, the driver domain crashed in the middle, and proof that nobody noticed.

use super::show::Printer;
use crate::machine::Machine;
use crate::machine::blkcheck::Follow;
use crate::machine::load::{Direction, Load};
use crate::manifest::System;
use anyhow::Result;
use std::time::Duration;

/// The guest that checks a disk.
const CHECKER: &str = "blkcheck";
/// Bytes each way.
const BYTES: u64 = 16 << 20;

/// Runs it. False when something was not as it should be, which has been said.
///
/// # Errors
/// The machine ended, or an answer did not come.
pub fn run(machine: &mut Machine, system: &System, printer: &Printer) -> Result<bool> {
    let driver = super::driver(system)?;
    let port = machine.host.port(0).unwrap_or_default();
    printer.say(&format!("demonstration: {} MiB each way, and {driver} crashes in the middle", BYTES >> 20));
    machine.probe_all()?;
    let before = machine.host.counts();
    let load = Load::start(port, BYTES);
    machine.wait_for("progress of the transfers", Duration::from_secs(60), |_| {
        (load.progress() > BYTES / 2 || load.stopped()).then_some(())
    })?;
    let outcome = machine.crash(driver, "panic", 0)?;
    printer.say(&format!("{driver} died: {} ({})", outcome.cause, outcome.detail));
    printer.say(&format!(
        "a fresh {driver} runs; {:.1} ms without a packet (of them {:.1} ms to restart it)",
        outcome.outage_ms,
        outcome.entered_us.unwrap_or_default() as f64 / 1000.0
    ));
    let totals = load.finish()?;
    machine.host.probe(None);
    let after = machine.host.counts();
    let resets = after.resets_in + after.resets_out - before.resets_in - before.resets_out;
    let good = totals.hash_ok() && resets == 0;
    printer.say(&format!(
        "the same two TCP connections went on: {} MiB down at {:.0} Mbit/s, {} MiB up at {:.0} Mbit/s, SHA-256 {}, {resets} resets",
        totals.bytes(Direction::Down) >> 20,
        totals.rate(Direction::Down),
        totals.bytes(Direction::Up) >> 20,
        totals.rate(Direction::Up),
        if totals.hash_ok() { "right" } else { "WRONG" },
    ));
    Ok(disk(machine, system, printer)? && good)
}

/// The same for the disk, where a guest checks one: its driver domain crashes in the middle of checked reads and writes.
fn disk(machine: &mut Machine, system: &System, printer: &Printer) -> Result<bool> {
    let checked = system.vbds().find(|(name, _)| *name == CHECKER).map(|(_, vbd)| vbd);
    let Some(vbd) = checked else { return Ok(true) };
    let mut follow = Follow::new(CHECKER, 0);
    machine.wait_for("readiness of blkcheck", Duration::from_secs(60), |m| {
        follow.update(&m.console).all(1, |v| v.ready).then_some(())
    })?;
    machine.probe_all()?;
    let outcome = machine.crash(&vbd.backend, "panic", 0)?;
    machine.host.probe(None);
    printer.say(&format!("{} died: {} ({})", vbd.backend, outcome.cause, outcome.detail));
    std::thread::sleep(Duration::from_secs(2));
    let wrong: Vec<String> = follow.update(&machine.console).vbds.values().flat_map(|v| v.faults()).collect();
    let verdict =
        if wrong.is_empty() { "no error, no wrong sector".to_string() } else { format!("WRONG: {}", wrong.join(", ")) };
    printer.say(&format!("a fresh {} runs; {CHECKER} goes on checking {}: {verdict}", vbd.backend, vbd.name.text));
    Ok(wrong.is_empty())
}
