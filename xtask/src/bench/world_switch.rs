//! What a packet costs: throughput of one connection, and world switches and hypercalls per frame on the wire.

use crate::hostnet::client::{self, Transfer};
use crate::machine::Machine;
use crate::machine::protocol::AllStats;
use crate::{run, table};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// How long the idle system is watched.
const IDLE: Duration = Duration::from_secs(5);

/// One domain in one phase.
#[derive(Serialize)]
struct Cost {
    phase: &'static str,
    domain: String,
    switches_per_packet: Option<f64>,
    hypercalls_per_packet: Option<f64>,
    switches_per_second: f64,
    cpu_percent: f64,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    mbit_down: f64,
    mbit_up: f64,
    packets_down: u64,
    packets_up: u64,
    costs: Vec<Cost>,
}

struct Snapshot {
    stats: AllStats,
    frames: u64,
    at: Instant,
}

fn snapshot(machine: &Machine) -> Result<Snapshot> {
    let counts = machine.host.counts();
    Ok(Snapshot { stats: run::stats(machine)?, frames: counts.frames_in + counts.frames_out, at: Instant::now() })
}

fn costs(phase: &'static str, before: &Snapshot, after: &Snapshot, packets: bool) -> Vec<Cost> {
    let frames = (after.frames - before.frames).max(1) as f64;
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let pairs = after.stats.domains.iter().zip(&before.stats.domains);
    pairs
        .map(|(a, b)| {
            let switches = a.world_switches.saturating_sub(b.world_switches) as f64;
            let hypercalls = a.hypercalls.saturating_sub(b.hypercalls) as f64;
            Cost {
                phase,
                domain: a.name.clone(),
                switches_per_packet: packets.then_some(switches / frames),
                hypercalls_per_packet: packets.then_some(hypercalls / frames),
                switches_per_second: switches / seconds,
                cpu_percent: a.cpu_us.saturating_sub(b.cpu_us) as f64 / 1e4 / seconds,
            }
        })
        .collect()
}

fn rate(transfer: &Transfer) -> f64 {
    transfer.bytes as f64 * 8.0 / 1000.0 / transfer.millis.max(1) as f64
}

/// Transfers `bytes` down, then up, then watches the idle system.
///
/// # Errors
/// A transfer fails.
pub fn measure(mut machine: Machine, bytes: u64) -> Result<Figures> {
    machine.wait_until_serving(0, run::BOOT_PATIENCE)?;
    let port = machine.host.port(0).context("the guest has no page")?;
    let start = snapshot(&machine)?;
    let down = client::download(port, bytes, 1, &AtomicU64::new(0))?;
    let middle = snapshot(&machine)?;
    let up = client::upload(port, bytes, 2, &AtomicU64::new(0))?;
    let end = snapshot(&machine)?;
    ensure!(down.hash_ok && up.hash_ok, "a SHA-256 is wrong");
    std::thread::sleep(IDLE);
    let rest = snapshot(&machine)?;
    let mut all = costs("down", &start, &middle, true);
    all.extend(costs("up", &middle, &end, true));
    all.extend(costs("idle", &end, &rest, false));
    Ok(Figures {
        mbit_down: rate(&down),
        mbit_up: rate(&up),
        packets_down: middle.frames - start.frames,
        packets_up: end.frames - middle.frames,
        costs: all,
    })
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_string(), |v| format!("{v:.2}"));
        let rows: Vec<Vec<String>> = self
            .costs
            .iter()
            .map(|c| {
                vec![
                    c.phase.to_string(),
                    c.domain.clone(),
                    number(c.switches_per_packet),
                    number(c.hypercalls_per_packet),
                    format!("{:.0}", c.switches_per_second),
                    format!("{:.1}", c.cpu_percent),
                ]
            })
            .collect();
        let heading = ["phase", "domain", "switches/packet", "hypercalls/packet", "switches/s", "CPU %"];
        format!(
            "guest → host {:.0} Mbit/s ({} frames on the wire), host → guest {:.0} Mbit/s ({} frames)\n\n{}",
            self.mbit_down,
            self.packets_down,
            self.mbit_up,
            self.packets_up,
            table::format(&heading, &rows)
        )
    }
}
