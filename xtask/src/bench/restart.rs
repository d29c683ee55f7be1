//! Outages: the driver is killed again and again while every guest is probed at 1 kHz.

use super::statistics::{HEADINGS, Summary, summary};
use crate::machine::Machine;
use crate::machine::crash::{KINDS, Outcome};
use crate::machine::load::Load;
use crate::manifest::System;
use crate::{progress, run, table};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::time::Duration;

/// Pause between two kills, so that each finds a system at rest.
const PAUSE: Duration = Duration::from_millis(150);
/// Each way, begun anew until the last kill.
const LOAD_BYTES: u64 = 64 << 20;

/// Kills, and what they come to.
#[derive(Serialize)]
pub struct Outages {
    /// Every kill.
    pub kills: Vec<Outcome>,
    /// Longest time without a delivered packet, ms.
    outage: Summary,
    by_kind: Vec<(String, Summary)>,
    /// Where the time goes, ms.
    phases: Vec<(&'static str, Summary)>,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    /// Of the kills.
    #[serde(flatten)]
    pub outages: Outages,
    load: bool,
    tcp_resets: u64,
}

/// Kills `count` times.
///
/// # Errors
/// A kill was not survived.
pub fn measure(mut machine: Machine, system: &System, count: u32, how: Option<&str>, load: bool) -> Result<Figures> {
    machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
    machine.probe_all()?;
    let driver = run::driver(system)?;
    let port = machine.host.port(0).context("the guest has no page")?;
    let load = load.then(|| Load::start(port, LOAD_BYTES));
    let steps = progress::steps("kills", u64::from(count));
    let kills = kill(&mut machine, driver, how, count, |number, how| {
        steps.tick(&format!("{number}: {how}"));
        ensure!(!load.as_ref().is_some_and(Load::stopped), "a transfer ended before the last kill");
        Ok(())
    })?;
    steps.done();
    let loaded = load.is_some();
    if let Some(load) = load {
        ensure!(load.finish()?.hash_ok(), "a SHA-256 is wrong");
    }
    let counts = machine.host.counts();
    Ok(Figures { outages: Outages::of(kills), load: loaded, tcp_resets: counts.resets_in + counts.resets_out })
}

/// Kills a driver `count` times under probes, which have to run: in one way or in all of them in turn. `before` each it is told.
///
/// # Errors
/// A kill was not survived, or `before` says so.
pub fn kill(
    machine: &mut Machine,
    driver: &str,
    how: Option<&str>,
    count: u32,
    mut before: impl FnMut(u32, &str) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let mut kills = Vec::new();
    for number in 0..count {
        let how = how.unwrap_or(KINDS[number as usize % KINDS.len()]);
        before(number, how)?;
        kills.push(machine.crash(driver, how, 0).with_context(|| format!("kill {number} ({how})"))?);
        std::thread::sleep(PAUSE);
        ensure!(!crate::signals::stop(), "interrupted");
    }
    Ok(kills)
}

fn by_kind(kills: &[Outcome]) -> Vec<(String, Summary)> {
    let of = |kind: &str| summary(kills.iter().filter(|k| k.how == kind).map(|k| k.outage_ms));
    KINDS.iter().map(|kind| ((*kind).to_string(), of(kind))).filter(|(_, s)| s.count > 0).collect()
}

fn phases(kills: &[Outcome]) -> Vec<(&'static str, Summary)> {
    let of = |pick: fn(&crate::machine::protocol::Phases) -> u64| {
        summary(kills.iter().filter_map(|k| k.phases.as_ref()).map(|p| pick(p) as f64 / 1000.0))
    };
    let entered = |k: &Outcome| k.entered_us.map(|us| us as f64 / 1000.0);
    let rest = |k: &Outcome| Some((k.serving_us? as f64 - k.entered_us? as f64) / 1000.0);
    vec![
        ("stop vCPUs", of(|p| p.stop_us)),
        ("block and reset device", of(|p| p.device_us)),
        ("take back mappings, ports", of(|p| p.unbind_us)),
        ("restore image, zero the rest", of(|p| p.image_us)),
        ("make vCPU ready", of(|p| p.enter_us)),
        ("death → entered (sum, with control)", summary(kills.iter().filter_map(entered))),
        ("entered → serving", summary(kills.iter().filter_map(rest))),
    ]
}

impl Outages {
    /// Boils kills down.
    pub fn of(kills: Vec<Outcome>) -> Self {
        Self {
            outage: summary(kills.iter().map(|k| k.outage_ms)),
            by_kind: by_kind(&kills),
            phases: phases(&kills),
            kills,
        }
    }

    /// As they are drawn.
    pub fn points(&self) -> Vec<(String, f64)> {
        self.kills.iter().map(|kill| (kill.how.clone(), kill.outage_ms)).collect()
    }

    /// For people.
    pub fn describe(&self) -> String {
        let row = |name: &str, s: &Summary| std::iter::once(name.to_string()).chain(s.cells()).collect::<Vec<_>>();
        let heading = |first| std::iter::once(first).chain(HEADINGS).collect::<Vec<_>>();
        let mut outages = vec![row("all", &self.outage)];
        outages.extend(self.by_kind.iter().map(|(name, s)| row(name, s)));
        let phases: Vec<_> = self.phases.iter().map(|(name, s)| row(name, s)).collect();
        format!(
            "{}\n{}",
            table::format(&heading("outage, ms"), &outages),
            table::format(&heading("phase, ms"), &phases)
        )
    }
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let kills = self.outages.kills.len();
        let load = if self.load { " under load both ways" } else { "" };
        format!("{}\n{kills} kills{load}, {} TCP resets\n", self.outages.describe(), self.tcp_resets)
    }
}
