//! Boot times, and the memory a fresh system takes.

use super::statistics::{HEADINGS, Summary, summary};
use crate::machine::Machine;
use crate::{progress, run, table};
use anyhow::{Context, Result};
use serde::Serialize;

/// Milliseconds from the hypervisor's first word on its console.
#[derive(Serialize)]
pub struct Figures {
    qemu_to_entry: Summary,
    control_ready: Summary,
    address: Summary,
    answer: Summary,
}

/// Boots `runs` times.
///
/// # Errors
/// A boot fails.
pub fn measure(start: impl Fn() -> Result<Machine>, runs: u32) -> Result<Figures> {
    let steps = progress::steps("boots", u64::from(runs));
    let mut all: [Vec<f64>; 4] = Default::default();
    for number in 0..runs {
        steps.tick(&number.to_string());
        let mut machine = start()?;
        let (ready, answer) = machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
        let entry = machine.console.first_byte().context("the hypervisor said nothing")?;
        let address = machine.host.up(0).context("the guest has no address")?;
        let ms = |to: std::time::Instant, from| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        let values = [ms(entry, machine.started), ms(ready, entry), ms(address, entry), ms(answer, entry)];
        for (list, value) in all.iter_mut().zip(values) {
            list.push(value);
        }
    }
    steps.done();
    let [qemu, control, address, answer] = all.map(summary);
    Ok(Figures { qemu_to_entry: qemu, control_ready: control, address, answer })
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let row = |name: &str, s: &Summary| std::iter::once(name.to_string()).chain(s.cells()).collect::<Vec<_>>();
        let heading: Vec<&str> = std::iter::once("ms").chain(HEADINGS).collect();
        let rows = [
            row("QEMU started → hypervisor's first word", &self.qemu_to_entry),
            row("first word → control ready", &self.control_ready),
            row("first word → guest has its address", &self.address),
            row("first word → first answer of the page", &self.answer),
        ];
        table::format(&heading, &rows)
    }
}

/// What every domain of a fresh system takes: a table, and the same for programs.
///
/// # Errors
/// The system does not come up.
pub fn memory(mut machine: Machine) -> Result<(String, serde_json::Value)> {
    machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
    let stats = run::stats(&machine)?;
    let rows: Vec<Vec<String>> =
        stats.domains.iter().map(|d| vec![d.name.clone(), d.memory_kib.to_string(), d.peak_kib.to_string()]).collect();
    let mut text = table::format(&["domain", "KiB", "peak KiB with its tables"], &rows);
    text.push_str(&format!("\nhypervisor heap: {} KiB\n", stats.system.hypervisor_heap_bytes >> 10));
    Ok((text, serde_json::to_value(stats)?))
}
