//! What a stock Linux guest gets through our driver domains, beside the same kernel on the bare machine: the same emulator, processor,
//! NIC or drive, memory, initramfs and peer, in turn, so that the host's noise meets both. [`net`] and [`blk`] say what is measured,
//! this file how it is run.
pub mod blk;
pub mod net;

use super::statistics::summary;
use crate::drive::Drives;
use crate::hostnet::Host;
use crate::machine::bare_linux::BareLinux;
use crate::machine::protocol::AllStats;
use crate::machine::shell::Shell;
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::{Domain, System};
use crate::{image, run};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for a prompt.
const BOOT: Duration = Duration::from_secs(90);
/// Longest wait beyond a command's own time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between looks at the console of a guest that boots.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of its end in which a prompt is looked for: the kernel may say something right after it.
const TAIL: u64 = 512;
/// A place on a console that none reaches.
const FAR: u64 = 1 << 48;
/// How long an idle guest is watched.
const IDLE: Duration = Duration::from_secs(3);

/// A Linux that has booted to its prompt.
pub enum Session {
    /// As a guest.
    Guest {
        /// The machine.
        machine: Box<Machine>,
        /// The shell on its console.
        shell: Shell,
        /// Emulator started → prompt.
        boot: Duration,
    },
    /// Alone.
    Bare {
        /// The machine.
        machine: Box<BareLinux>,
        /// Emulator started → prompt.
        boot: Duration,
    },
}

impl Session {
    /// Boots `guest` of a system whose images are built.
    ///
    /// # Errors
    /// There is no prompt.
    pub fn guest(system: &System, guest: &str, drives: &Arc<Drives>) -> Result<Self> {
        let built = image::pack(system)?;
        let drives = Some(Arc::clone(drives));
        let options = Options { name: "bench-linux".into(), public: false, lacks: Lacks::default(), drives };
        let mut machine = Machine::start(system, &built, &options, machine::reserve(0)?, |_| ())?;
        machine.wait_until_ready(run::BOOT_PATIENCE)?;
        let prompt = prompt(guest);
        // Only the console's end, and only once it rests: control's work is the guest's loss.
        let (mut end, mut since) = (0, Instant::now());
        let boot = machine.wait_for(&format!("prompt of `{guest}`"), BOOT, |m| {
            std::thread::sleep(LOOK);
            let look = |seq: u64, max: u64| {
                let request = serde_json::json!({ "cmd": "log", "dom": guest, "seq": seq, "max": max });
                m.control.request(&request).ok()
            };
            // Behind the end there is nothing, and where that is.
            let at = look(FAR, 1)?["next"].as_u64()?;
            if at != end {
                (end, since) = (at, Instant::now());
                return None;
            }
            let tail = look(at.saturating_sub(TAIL), TAIL)?;
            tail["text"].as_str()?.contains(&prompt).then(|| since.duration_since(m.started))
        })?;
        Ok(Self::Guest { machine: Box::new(machine), shell: Shell::new(guest), boot })
    }

    /// Boots the same kernel alone.
    ///
    /// # Errors
    /// There is no prompt.
    pub fn bare(system: &System, guest: &str, drives: &Drives) -> Result<Self> {
        let domain = domain(system, guest)?;
        let mut machine = BareLinux::start(system, domain, drives)?;
        let prompt = prompt(guest);
        machine.wait_for("prompt", BOOT, |text| text.contains(&prompt).then_some(()))?;
        let boot = machine.started.elapsed();
        Ok(Self::Bare { machine: Box::new(machine), boot })
    }

    /// Emulator started → prompt, in seconds.
    pub fn boot_s(&self) -> f64 {
        let (Self::Guest { boot, .. } | Self::Bare { boot, .. }) = self;
        boot.as_secs_f64()
    }

    /// The wire.
    pub fn host(&self) -> &Host {
        match self {
            Self::Guest { machine, .. } => &machine.host,
            Self::Bare { machine, .. } => &machine.host,
        }
    }

    /// Runs a command that takes `seconds` at least; it has to succeed.
    ///
    /// # Errors
    /// It does not.
    pub fn run(&mut self, command: &str, seconds: u32) -> Result<String> {
        let takes = Duration::from_secs(seconds.into());
        let patience = takes + PATIENCE;
        let done = match self {
            Self::Guest { machine, shell, .. } => shell.run_alone(machine, command, takes, patience)?,
            Self::Bare { machine, .. } => machine.run(command, patience)?,
        };
        ensure!(done.code == 0, "`{command}` ended with code {}:\n{}", done.code, done.output);
        Ok(done.output)
    }

    /// The same with what the domains did meanwhile; nothing of that on the bare machine.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn watched(&mut self, command: &str, seconds: u32) -> Result<(String, Option<Spent>)> {
        let before = self.look()?;
        let output = self.run(command, seconds)?;
        let after = self.look()?;
        Ok((output, before.zip(after).map(|(before, after)| Spent::between(&before, &after))))
    }

    /// The emulator's CPU time and the frames on the wire, both ways, so far.
    pub fn work(&self) -> (Duration, u64) {
        let cpu = match self {
            Self::Guest { machine, .. } => machine.qemu.cpu(),
            Self::Bare { machine, .. } => machine.cpu(),
        };
        let counts = self.host().counts();
        (cpu, counts.frames_in + counts.frames_out)
    }

    /// What an idle machine does.
    ///
    /// # Errors
    /// Control does not answer.
    pub fn idle(&self) -> Result<Option<Spent>> {
        let before = self.look()?;
        if before.is_some() {
            std::thread::sleep(IDLE);
        }
        let after = self.look()?;
        Ok(before.zip(after).map(|(before, after)| Spent::between(&before, &after)))
    }

    fn look(&self) -> Result<Option<Look>> {
        let Self::Guest { machine, .. } = self else { return Ok(None) };
        let counts = machine.host.counts();
        let frames = counts.frames_in + counts.frames_out;
        Ok(Some(Look { stats: run::stats(machine)?, frames, at: Instant::now() }))
    }
}

struct Look {
    stats: AllStats,
    frames: u64,
    at: Instant,
}

/// What was done between two looks.
#[derive(Clone, Debug, Serialize)]
pub struct Spent {
    /// Time between them.
    pub seconds: f64,
    /// Frames on the wire, both ways.
    pub frames: u64,
    /// By domain.
    pub domains: Vec<DomainSpent>,
}

/// One domain's part.
#[derive(Clone, Debug, Serialize)]
pub struct DomainSpent {
    /// Name.
    pub name: String,
    /// World switches into it.
    pub switches: u64,
    /// Hypercalls it made.
    pub hypercalls: u64,
    /// CPU time in seconds.
    pub cpu_s: f64,
}

impl Spent {
    fn between(before: &Look, after: &Look) -> Self {
        let pairs = after.stats.domains.iter().zip(&before.stats.domains);
        let domains = pairs.map(|(a, b)| DomainSpent {
            name: a.name.clone(),
            switches: a.world_switches.saturating_sub(b.world_switches),
            hypercalls: a.hypercalls.saturating_sub(b.hypercalls),
            cpu_s: a.cpu_us.saturating_sub(b.cpu_us) as f64 / 1e6,
        });
        Self {
            seconds: after.at.duration_since(before.at).as_secs_f64(),
            frames: after.frames - before.frames,
            domains: domains.collect(),
        }
    }

    /// Rows of a table: per unit of work where there was any, and in percent of one CPU.
    pub fn rows(&self, what: &str, units: Option<f64>) -> Vec<Vec<String>> {
        let per = |count: u64| units.map_or_else(|| "–".into(), |u| format!("{:.2}", count as f64 / u.max(1.0)));
        let row = |d: &DomainSpent| {
            let cpu = format!("{:.1}", d.cpu_s / self.seconds * 100.0);
            let rate = format!("{:.0}", d.switches as f64 / self.seconds);
            vec![what.to_string(), d.name.clone(), per(d.switches), per(d.hypercalls), rate, cpu]
        };
        self.domains.iter().map(row).collect()
    }
}

/// Headings of [`Spent::rows`] with the unit of work.
pub fn spent_heading(unit: &str) -> [String; 6] {
    let per = |what: &str| format!("{what}/{unit}");
    ["while".into(), "domain".into(), per("switches"), per("hypercalls"), "switches/s".into(), "CPU %".into()]
}

/// One figure, on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Medians.
    pub guest: f64,
    /// Medians.
    pub bare: f64,
    /// `guest / bare`.
    pub ratio: f64,
    /// What the ratio shall be: at least, or at most where less is better.
    pub aim: f64,
    /// Less is better.
    pub less: bool,
    all_guest: Vec<f64>,
    all_bare: Vec<f64>,
}

impl Pair {
    /// From all runs.
    pub fn new(name: &str, unit: &'static str, (aim, less): (f64, bool), guest: Vec<f64>, bare: Vec<f64>) -> Self {
        let median = |all: &[f64]| summary(all.iter().copied()).p50;
        let (g, b) = (median(&guest), median(&bare));
        let ratio = if b > 0.0 { g / b } else { 0.0 };
        Self { name: name.into(), unit, guest: g, bare: b, ratio, aim, less, all_guest: guest, all_bare: bare }
    }

    /// It is as aimed for.
    pub fn met(&self) -> bool {
        if self.less { self.ratio <= self.aim } else { self.ratio >= self.aim }
    }

    /// Cells of a table.
    pub fn cells(&self) -> Vec<String> {
        let number = |value: f64| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let sign = if self.less { "≤" } else { "≥" };
        vec![
            self.name.clone(),
            number(self.guest),
            number(self.bare),
            self.unit.to_string(),
            format!("{:.2}", self.ratio),
            format!("{sign} {:.2}", self.aim),
            if self.met() { "met" } else { "missed" }.to_string(),
        ]
    }
}

/// As they are drawn.
pub fn ratios(pairs: &[Pair]) -> Vec<super::plot::Ratio<'_>> {
    pairs.iter().map(|pair| (pair.name.as_str(), pair.ratio, pair.aim)).collect()
}

/// Headings of [`Pair::cells`].
pub const PAIR_HEADING: [&str; 7] = ["figure", "guest", "bare", "unit", "ratio", "aim", ""];

/// The first Linux guest of a system.
///
/// # Errors
/// It has none.
pub fn guest_of(system: &System) -> Result<&str> {
    let guest = system.domains.iter().find(|d| d.linux.is_some());
    guest.map(|d| d.name.as_str()).context("the system has no Linux guest")
}

fn domain<'a>(system: &'a System, name: &str) -> Result<&'a Domain> {
    system.domains.iter().find(|d| d.name == name).with_context(|| format!("there is no domain `{name}`"))
}

fn prompt(guest: &str) -> String {
    format!("\n{guest}# ")
}
