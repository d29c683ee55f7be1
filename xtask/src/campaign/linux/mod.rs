//! `campaign linux`: a stock Linux guest at work while its driver domains die once a second, in all ways: iperf3 in both directions over
//! both protocols, a long checked download, fio that verifies what it wrote, and a file system with a tree of files that is made,
//! unpacked, read back and checked. Programs and kernel may notice nothing.

pub mod iperf;
pub mod kill;
mod tree;

use crate::bench::statistics::{HEADINGS, Summary, summary};
use crate::linux::peer::{self, Peer};
use crate::machine::Machine;
use crate::machine::crash::{is_its_own, own_deaths};
use crate::machine::shell::Shell;
use crate::manifest::System;
use crate::{progress, run, table};
use anyhow::{Context, Result, bail, ensure};
use blkcheck::random::Random;
use iperf::{WAYS, Way};
use kill::{Death, Killed, Kills, Told};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Time between kills.
const PACE: Duration = Duration::from_secs(1);
/// Longest wait for the guest's shell.
const SHELL: Duration = Duration::from_secs(90);
/// Bytes of the file system for each file of the tree: its content (15 KiB on average), the rest of its last block, its inode.
const ROOM: u64 = 24 << 10;
/// Of the downloaded stream.
const STREAM_SEED: u64 = 7;
/// What the guest's kernel must not have said. The first is a stock kernel's word of anything it did not expect.
const FORBIDDEN: [&str; 16] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "hung_task",
    "blocked for more than",
    "soft lockup",
    "rcu_sched",
    "rcu_preempt",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Buffer I/O",
    "Remounting",
    "reconnect",
    "link is not ready",
];
/// What a stock kernel says of the emulated processor, on the bare machine as well.
const EXPECTED: [&str; 1] = ["Speculative Return Stack Overflow"];
/// Said by Xen's frontends when they are taken through a reconnect: once each at boot.
const CONNECTS: [&str; 1] = ["blkfront: xvda: "];

/// A part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// iperf3, both directions over IPv4 and IPv6, under kills of the network's driver.
    Net,
    /// A download with its SHA-256, under the same.
    Http,
    /// fio with verification at three depths, under kills of the disk's driver.
    Fio,
    /// A file system with a tree of files, under kills of both at once.
    Tree,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of fio; a transfer has a tenth of it, and a third of that without kills.
    pub minutes: f64,
    /// Files of the tree.
    pub files: u32,
    /// Of ways, points and moments.
    pub seed: u64,
    /// Which of it.
    pub parts: Vec<Part>,
}

/// One job under kills.
#[derive(Serialize)]
struct Row {
    job: String,
    kills: usize,
    seconds: f64,
    /// Mbit/s without and with kills, where the job is a transfer.
    mbit: Option<[f64; 2]>,
    /// What came of it.
    result: String,
}

/// What came of it.
#[derive(Serialize)]
pub struct Report {
    seed: u64,
    minutes: f64,
    rows: Vec<Row>,
    kills: usize,
    /// Deaths by another cause than the ordered one.
    other_causes: Vec<String>,
    /// Deaths by another's stray device: no such cause.
    along: u32,
    /// Times control held a driver back that had died too often by another cause than an order.
    held: usize,
    /// Kills by victim and way.
    ways: BTreeMap<String, u32>,
    /// Longest time without a delivered packet around a kill of the network's driver, probes at 1 kHz, under load.
    outage_ms: Summary,
    /// TCP resets on the wire while connections were at work.
    tcp_resets: u64,
    /// Why the peer has not Linux's TCP, if it has not.
    instead: Option<String>,
    /// Lines of the guest's kernel that must not be.
    complaints: Vec<String>,
    failures: Vec<String>,
}

/// The machine with its guest, and who dies.
struct Scene<'a> {
    machine: &'a mut Machine,
    shell: Shell,
    network: &'a str,
    disk: &'a str,
    iperf: [&'static str; 2],
    random: Random,
    steps: progress::Steps,
    outages: Vec<f64>,
}

/// Makes drives that are files of the run large enough for the tree.
pub fn configure(system: &mut System, plan: &Plan) {
    let least = ROOM * u64::from(plan.files);
    let sizes = system.machine.disks.iter_mut().filter_map(|disk| disk.size.as_mut());
    sizes.for_each(|size| size.0 = size.0.max(least.next_multiple_of(1 << 30)));
}

/// Runs on a machine that was just started from a configured system.
///
/// # Errors
/// The guest does not come to its prompt. What is not survived stands in the report.
pub fn run(machine: &mut Machine, system: &System, plan: &Plan) -> Result<Report> {
    let guest = crate::bench::linux::guest_of(system)?;
    let (_, vbd) = system.vbds().find(|(name, _)| *name == guest).context("the guest has no vbd")?;
    let server = Peer::start()?;
    let attached = server.attach(&machine.host)?;
    machine.wait_until_ready(run::BOOT_PATIENCE)?;
    let mut shell = Shell::new(guest);
    shell.ready(machine, SHELL)?;
    machine.probe_all()?;
    let mut scene = Scene {
        shell,
        network: run::driver(system)?,
        disk: &vbd.backend,
        iperf: attached.iperf,
        random: Random::new(plan.seed),
        steps: progress::steps("Linux under kills", plan.parts.len() as u64),
        outages: Vec::new(),
        machine,
    };
    let mut report = Report {
        seed: plan.seed,
        minutes: plan.minutes,
        rows: Vec::new(),
        kills: 0,
        other_causes: Vec::new(),
        along: 0,
        held: 0,
        ways: BTreeMap::new(),
        outage_ms: Summary::default(),
        tcp_resets: 0,
        instead: attached.instead.clone(),
        complaints: Vec::new(),
        failures: Vec::new(),
    };
    for part in &plan.parts {
        scene.steps.next(&format!("{part:?}"));
        let result = match part {
            Part::Net => WAYS.into_iter().try_for_each(|way| report.transfer(&mut scene, way, plan)),
            Part::Http => report.download(&mut scene, plan),
            Part::Fio => report.fio(&mut scene, plan),
            Part::Tree => report.tree(&mut scene, &server, plan),
        };
        if let Err(error) = result {
            report.failures.push(format!("{part:?}: {error:#}"));
            break;
        }
    }
    if let Err(error) = report.kernel(&mut scene) {
        report.failures.push(format!("{error:#}"));
    }
    scene.steps.done();
    report.outage_ms = summary(scene.outages);
    report.held = scene.machine.control.all_of(|event| (event["event"] == "back-off").then_some(())).len();
    report.failures.extend(own_deaths(&scene.machine.control, &[scene.network, scene.disk]));
    if report.other_causes.len() > report.kills / 10 + 2 {
        report.failures.push(format!("{} deaths had another cause than was ordered", report.other_causes.len()));
    }
    if report.tcp_resets > 0 {
        report.failures.push(format!("{} TCP resets on the wire", report.tcp_resets));
    }
    Ok(report)
}

impl Scene<'_> {
    /// Runs a command while `victims` die.
    fn job(&mut self, victims: &[&str], command: &str, patience: Duration) -> Result<Killed> {
        // Stragglers of the job before.
        std::thread::sleep(Duration::from_secs(1));
        let random = Random::new(self.random.below(u64::MAX));
        let mut kills = Kills { victims: victims.to_vec(), pace: PACE, random };
        let steps = &self.steps;
        let done = kills.run(self.machine, &mut self.shell, command, patience, |told| match told {
            Told::Death(what) => steps.tick(what),
            Told::Held(why) => steps.say(why),
        })?;
        let of_network = done.deaths.iter().filter(|death| death.victim == self.network);
        self.outages.extend(of_network.map(|death| death.outcome.outage_ms));
        Ok(done)
    }
}

impl Report {
    fn note(&mut self, done: &Killed) {
        self.kills += done.deaths.len();
        self.tcp_resets += done.resets;
        for Death { victim, outcome, along } in &done.deaths {
            *self.ways.entry(format!("{victim} {}", outcome.how)).or_default() += 1;
            if *along {
                self.along += 1;
            } else if !outcome.as_ordered {
                let other = format!("{} of {victim}: {} {}", outcome.how, outcome.cause, outcome.detail);
                self.failures.extend(is_its_own(&outcome.cause).then(|| other.clone()));
                self.other_causes.push(other);
            }
        }
    }

    fn row(&mut self, scene: &Scene<'_>, job: &str, done: &Killed, mbit: Option<[f64; 2]>, result: &str) {
        let kills = done.deaths.len();
        scene.steps.say(&format!("{job}: {result}, {kills} kills in {:.0} s", done.seconds));
        self.rows.push(Row { job: job.into(), kills, seconds: done.seconds, mbit, result: result.into() });
    }

    fn transfer(&mut self, scene: &mut Scene<'_>, way: Way, plan: &Plan) -> Result<()> {
        let seconds = (plan.minutes * 6.0).max(5.0) as u32;
        let patience = Duration::from_secs(u64::from(seconds) * 2 + 60);
        let plain = scene.job(&[], &way.command(scene.iperf, 0, (seconds / 3).max(3)), patience)?;
        ensure!(plain.code == 0, "{} without kills: {}", way.name(), plain.output);
        let plain = iperf::parse(&plain.output)?.mbit;
        let network = scene.network;
        let done = scene.job(&[network], &way.command(scene.iperf, 0, seconds), patience)?;
        self.note(&done);
        ensure!(done.code == 0, "{} did not live: {}", way.name(), done.output);
        let mbit = iperf::parse(&done.output)?.mbit;
        ensure!(mbit > 0.0, "{} moved nothing", way.name());
        self.row(scene, &way.name(), &done, Some([plain, mbit]), "lived");
        Ok(())
    }

    fn download(&mut self, scene: &mut Scene<'_>, plan: &Plan) -> Result<()> {
        let bytes = ((plan.minutes * 32.0).max(4.0) as u64) << 20;
        let command =
            format!("wget -q -O - http://{}:{}/{bytes}/{STREAM_SEED} | sha256sum", peer::GATEWAY[0], peer::HTTP);
        let network = scene.network;
        let done = scene.job(&[network], &command, Duration::from_secs(120 + bytes / 100_000))?;
        self.note(&done);
        let expected = peer::sha256(bytes, STREAM_SEED)?;
        ensure!(
            done.output.starts_with(&expected),
            "{} MiB by HTTP came with another digest: {}",
            bytes >> 20,
            done.output
        );
        self.row(scene, &format!("{} MiB by HTTP", bytes >> 20), &done, None, "SHA-256 right");
        Ok(())
    }

    fn fio(&mut self, scene: &mut Scene<'_>, plan: &Plan) -> Result<()> {
        let seconds = (plan.minutes * 60.0).max(5.0) as u64;
        // A third of the disk for each depth.
        let jobs: String = [(1, "4k", 0), (8, "16k", 33), (32, "64k", 66)]
            .iter()
            .map(|(depth, size, at)| {
                format!(" --name=depth{depth} --iodepth={depth} --bs={size} --offset={at}% --size=33%")
            })
            .collect();
        let command = format!(
            "fio --filename=/dev/xvda --ioengine=libaio --direct=1 --rw=randrw --verify=crc32c --verify_backlog=256 --verify_fatal=1 --fsync=64 --time_based --runtime={seconds} --group_reporting=0{jobs}"
        );
        let disk = scene.disk;
        let done = scene.job(&[disk], &command, Duration::from_secs(seconds * 2 + 180))?;
        self.note(&done);
        let good = done.output.lines().filter(|line| line.contains("err= 0")).count();
        ensure!(done.code == 0 && good == 3, "fio ended with code {}: {}", done.code, done.output);
        self.row(scene, "fio, verify=crc32c at depths 1, 8, 32", &done, None, "no error");
        Ok(())
    }

    fn tree(&mut self, scene: &mut Scene<'_>, server: &Peer, plan: &Plan) -> Result<()> {
        let tree = tree::make(plan.files, plan.seed);
        let mib = tree.bytes >> 20;
        server.offer("tree", tree.archive);
        let (network, disk) = (scene.network, scene.disk);
        let commands = [
            ("mkfs.ext4", "mkfs.ext4 -q -F /dev/xvda".to_string()),
            (
                "unpacked",
                format!(
                    "mkdir -p /mnt/t && mount /dev/xvda /mnt/t && cd /mnt/t && wget -q -O - http://{}:{}/tree | cpio -id 2>/dev/null && sync",
                    peer::GATEWAY[0],
                    peer::HTTP
                ),
            ),
            (
                "compared",
                format!(
                    "umount /mnt/t && echo 3 >/proc/sys/vm/drop_caches && mount /dev/xvda /mnt/t && cd /mnt/t && sha256sum -c -s SUMS && [ $(find . -type f | wc -l) = {} ]",
                    plan.files + 1
                ),
            ),
            ("e2fsck", "cd / && umount /mnt/t && e2fsck -fn /dev/xvda".to_string()),
        ];
        for (what, command) in commands {
            let patience = Duration::from_secs(300 + u64::from(plan.files) / 10);
            let done = scene.job(&[network, disk], &command, patience)?;
            self.note(&done);
            ensure!(done.code == 0, "{what} ended with code {}: {}", done.code, done.output);
            self.row(scene, &format!("tree of {} files, {mib} MiB: {what}", plan.files), &done, None, "right");
        }
        Ok(())
    }

    /// Reads the kernel's log.
    fn kernel(&mut self, scene: &mut Scene<'_>) -> Result<()> {
        let log = scene.shell.run(scene.machine, "dmesg", SHELL)?;
        if log.code != 0 || log.output.lines().count() < 50 {
            bail!("the guest's kernel log has {} lines", log.output.lines().count());
        }
        self.complaints = complaints(&log.output);
        if let Some(first) = self.complaints.first() {
            self.failures.push(format!("{} complaints of the guest's kernel: {first}", self.complaints.len()));
        }
        Ok(())
    }
}

/// Lines of a kernel's log that must not be.
fn complaints(log: &str) -> Vec<String> {
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    let bad = log.lines().filter(|line| has(line, &FORBIDDEN) && !has(line, &EXPECTED));
    let mut all: Vec<String> = bad.map(str::to_string).collect();
    for word in CONNECTS {
        let again = log.lines().filter(|line| line.contains(word)).skip(1);
        all.extend(again.map(|line| format!("a second time: {line}")));
    }
    all
}

impl super::Outcome for Report {
    fn describe(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let [plain, killed, loss] = row.mbit.map_or_else(
                    || ["–".to_string(), "–".to_string(), "–".to_string()],
                    |[a, b]| [format!("{a:.0}"), format!("{b:.0}"), format!("{:.0} %", (1.0 - b / a.max(1.0)) * 100.0)],
                );
                let seconds = format!("{:.0}", row.seconds);
                vec![row.job.clone(), row.kills.to_string(), seconds, plain, killed, loss, row.result.clone()]
            })
            .collect();
        let heading = ["job", "kills", "seconds", "Mbit/s without", "with", "loss", "result"];
        let outage: Vec<String> = std::iter::once("outage, ms".to_string()).chain(self.outage_ms.cells()).collect();
        let outage_heading: Vec<&str> = std::iter::once("network's kills").chain(HEADINGS).collect();
        let instead = self.instead.as_ref().map(|why| format!("the peer has smoltcp's TCP, not Linux's: {why}\n"));
        format!(
            "{}\n{}\n{} kills in {} ways (seed {}), {} by another cause than ordered, {} along with a stray device, {} starts held back by control, {} TCP resets, {} complaints of the guest's kernel\n{}",
            table::format(&heading, &rows),
            table::format(&outage_heading, &[outage]),
            self.kills,
            self.ways.len(),
            self.seed,
            self.other_causes.len(),
            self.along,
            self.held,
            self.tcp_resets,
            self.complaints.len(),
            instead.unwrap_or_default()
        )
    }

    fn failures(&self) -> &[String] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_must_not_say_is_found() {
        let good = "[ 1.0] blkfront: xvda: flush diskcache: enabled\n[ 2.0] EXT4-fs (xvda): mounted filesystem\n";
        assert!(complaints(good).is_empty());
        for line in
            ["blk_update_request: I/O error, dev xvda", "INFO: task x blocked for more than 120 seconds", "BUG: soft"]
        {
            assert_eq!(complaints(&format!("{good}[ 3.0] {line}\n")).len(), 1, "{line}");
        }
        let again = format!("{good}[ 9.0] blkfront: xvda: flush diskcache: enabled\n");
        assert!(complaints(&again)[0].starts_with("a second time"));
    }
}
