//! `campaign lives`: a Linux guest with four virtual CPUs is created and destroyed again and again, every other time at a random moment
//! of its boot, else once it has used its network and its disk. No frame may be lost over a life, nor a node of the store.

use crate::bench::linux::guest_of;
use crate::bench::statistics::{HEADINGS, Summary, summary};
use crate::machine::Machine;
use crate::machine::protocol::System as Memory;
use crate::machine::shell::Shell;
use crate::manifest::System;
use crate::{progress, run, table};
use anyhow::{Context, Result, bail, ensure};
use blkcheck::random::Random;
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// Virtual CPUs of the guest.
const VCPUS: u32 = 4;
/// Longest time from `create` to a shell.
const BOOT: Duration = Duration::from_secs(120);
/// A life that is cut short ends within this time, ms.
const SHORT_MS: u64 = 4_000;
/// Lives in which tables and heaps reach their size.
const WARM: usize = 3;
/// Backends let go of a dead guest's pages in their own time.
const SETTLED: Duration = Duration::from_secs(10);
/// What a whole life does: all CPUs, the network, and the disk with all the pages its ring can hold.
const WORK: &str = "nproc; until ip -4 addr show eth0 | grep -q inet; do sleep 0.1; done; ping -c 3 -i 0.2 10.0.2.2 >/dev/null && fio --name=x --filename=/dev/xvda --ioengine=libaio --direct=1 --rw=read --bs=512k --iodepth=8 --size=64m >/dev/null && echo worked";

/// What came of it.
#[derive(Serialize)]
pub struct Report {
    /// Asked for.
    lives: u32,
    seed: u64,
    /// Came to their end.
    done: u32,
    /// Of these: ended while they booted.
    cut_short: u32,
    vcpus: u32,
    /// `create` → the shell has done its work, s.
    whole_s: Summary,
    /// After each life.
    frames_in_use_kib: Vec<u64>,
    hypervisor_heap_bytes: Vec<u64>,
    store_nodes: Vec<u64>,
    failures: Vec<String>,
}

/// Gives the guest its CPUs. It is there from the beginning.
///
/// # Errors
/// The system has no Linux guest.
pub fn configure(system: &mut System) -> Result<()> {
    let name = guest_of(system)?.to_string();
    let guest = system.domains.iter_mut().find(|domain| domain.name == name).context("no guest")?;
    guest.vcpus = VCPUS;
    Ok(())
}

/// Runs on a machine that was just started.
///
/// # Errors
/// The guest does not come to its prompt at first. What fails later stands in the report.
pub fn run(machine: &mut Machine, system: &System, lives: u32, seed: u64, progress: bool) -> Result<Report> {
    let guest = guest_of(system)?;
    let mut report = Report {
        lives,
        seed,
        done: 0,
        cut_short: 0,
        vcpus: VCPUS,
        whole_s: Summary::default(),
        frames_in_use_kib: Vec::new(),
        hypervisor_heap_bytes: Vec::new(),
        store_nodes: Vec::new(),
        failures: Vec::new(),
    };
    let steps = progress.then(|| progress::steps("lives of a Linux guest", lives.into()));
    let mut random = Random::new(seed);
    let mut whole = Vec::new();
    machine.wait_until_ready(run::BOOT_PATIENCE)?;
    for number in 0..lives {
        let short = (number % 2 == 1).then(|| Duration::from_millis(random.below(SHORT_MS)));
        if let Some(steps) = &steps {
            steps.tick(&format!("{number}{}", if short.is_some() { ", cut short" } else { "" }));
        }
        match life(machine, guest, number > 0, short) {
            Ok(seconds) => whole.extend(seconds),
            Err(error) => {
                report.failures.push(format!("life {number}: {error:#}"));
                break;
            }
        }
        report.done += 1;
        report.cut_short += u32::from(short.is_some());
        let lost = settle(machine, &report.frames_in_use_kib)?;
        report.frames_in_use_kib.push(lost.total_kib - lost.free_kib);
        report.hypervisor_heap_bytes.push(lost.hypervisor_heap_bytes);
        report.store_nodes.push(lost.store_nodes);
    }
    if let Some(steps) = &steps {
        steps.done();
    }
    report.whole_s = summary(whole);
    for (what, values) in [
        ("the frames in use, KiB,", &report.frames_in_use_kib),
        ("the hypervisor's heap", &report.hypervisor_heap_bytes),
        ("the store's nodes", &report.store_nodes),
    ] {
        report.failures.extend(grown(what, values));
    }
    Ok(report)
}

/// One life; returns how long a whole one took.
fn life(machine: &mut Machine, guest: &str, create: bool, short: Option<Duration>) -> Result<Option<f64>> {
    let begin = Instant::now();
    if create {
        machine.control.request(&json!({ "cmd": "create", "dom": guest }))?;
    }
    let seconds = match short {
        Some(time) => {
            std::thread::sleep(time);
            None
        }
        None => {
            let mut shell = Shell::new(guest);
            let done = shell.run(machine, WORK, BOOT)?;
            ensure!(
                done.code == 0 && done.output.starts_with(&format!("{VCPUS}\n")) && done.output.contains("worked"),
                "its work ended with code {}:\n{}",
                done.code,
                done.output
            );
            Some(begin.elapsed().as_secs_f64())
        }
    };
    machine.control.request(&json!({ "cmd": "destroy", "dom": guest }))?;
    machine.wait_for(&format!("`{guest}` destroyed"), SETTLED, |m| {
        std::thread::sleep(Duration::from_millis(20));
        let list = m.control.ask("list").ok()?;
        let record = list["domains"].as_array()?.iter().find(|d| d["name"] == guest)?;
        (record["state"] == "destroyed").then_some(())
    })?;
    Ok(seconds)
}

/// Looks at memory until it is what it was, or the time is up: who holds pages of the dead is not late by that.
fn settle(machine: &Machine, before: &[u64]) -> Result<Memory> {
    let begin = Instant::now();
    let most = before.iter().take(WARM).max().copied();
    let mut last = None;
    loop {
        let now = run::stats(machine)?.system;
        let used = now.total_kib - now.free_kib;
        // Twice the same: while the first lives set the measure, nothing says what it has to come to.
        let still = last.replace(used) == Some(used);
        if still && most.is_none_or(|most| used <= most) || begin.elapsed() > SETTLED {
            return Ok(now);
        }
        if crate::signals::stop() {
            bail!("interrupted");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The first of the values that is above all of the first lives.
fn grown(what: &str, values: &[u64]) -> Option<String> {
    let most = values.iter().take(WARM).max()?;
    let (number, value) = values.iter().enumerate().skip(WARM).find(|(_, value)| *value > most)?;
    Some(format!("{what} grew: {most} after the first {WARM} lives, {value} after {}", number + 1))
}

impl super::Outcome for Report {
    fn describe(&self) -> String {
        let ends = |values: &[u64]| {
            let warm = values.iter().take(WARM).max().copied().unwrap_or(0);
            format!("{warm} → {}", values.last().copied().unwrap_or(0))
        };
        let row: Vec<String> = std::iter::once("whole lives, s".to_string()).chain(self.whole_s.cells()).collect();
        let heading: Vec<&str> = std::iter::once("create → worked → destroyed").chain(HEADINGS).collect();
        format!(
            "{} of {} lives with {} virtual CPUs (seed {}), {} cut short\n{}\nfirst {WARM} → last: frames in use {} KiB, hypervisor heap {} bytes, {} store nodes\n",
            self.done,
            self.lives,
            self.vcpus,
            self.seed,
            self.cut_short,
            table::format(&heading, &[row]),
            ends(&self.frames_in_use_kib),
            ends(&self.hypervisor_heap_bytes),
            ends(&self.store_nodes)
        )
    }

    fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl Report {
    /// For a scenario.
    ///
    /// # Errors
    /// What was not as it has to be.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.failures.is_empty(), "{}", self.failures.join("; "));
        ensure!(self.frames_in_use_kib.len() > WARM, "{} lives tell nothing; at least {}", self.lives, WARM + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_lost_over_a_life_is_found() {
        assert_eq!(grown("x", &[100, 108, 104, 108, 100]), None);
        assert_eq!(grown("x", &[100, 108, 104]), None, "the first lives are the measure");
        assert!(grown("x", &[100, 108, 104, 108, 112]).unwrap().ends_with("108 after the first 3 lives, 112 after 5"));
        assert!(grown("x", &[]).is_none());
    }
}
