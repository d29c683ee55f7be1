//! A command in a Linux guest's shell while driver domains die again and again.

use crate::campaign::blk::order;
use crate::machine::Machine;
use crate::machine::crash::{KINDS, Outcome};
use crate::machine::shell::Shell;
use anyhow::{Context, Result, ensure};
use blkcheck::random::Random;
use std::time::{Duration, Instant};

/// A kill waits for up to this many of the victim's crash points; under load it passes thousands a second.
const POINTS: u64 = 1_000;
/// Between looks whether the command has ended.
const LOOK: Duration = Duration::from_secs(1);
/// What a program does to its connections at its end is its own: the receiver of iperf3 leaves what is on its way.
const CLOSING: Duration = Duration::from_secs(3);
/// Longest wait for a death without more work: the command may make none for a time, or have ended.
const WORKED: Duration = Duration::from_secs(2);
/// How often work is made for one death.
const TRIES: u32 = 10;
/// Blocks of 4 KiB that are read to make work for the disk's driver, each time others: dropping the guest's caches instead would take
/// a large tree's inodes from the command that reads it, and seconds.
const BLOCKS: u64 = 500;
/// Among so many, which the smallest drive has (1 GiB).
const SPAN: u64 = (1 << 18) - BLOCKS;
/// Its exit code, if it has.
const LOOKING: &str = "cat /tmp/job.code 2>/dev/null; true";
/// Longest wait for the guest's shell: a guest that unpacks a large tree on a busy host has other things to do.
const SHELL: Duration = Duration::from_secs(120);

/// Who dies, and how often.
pub struct Kills<'a> {
    /// All of them at once each time. None = nobody dies.
    pub victims: Vec<&'a str>,
    /// Once in this time, at a random moment of it.
    pub pace: Duration,
    /// Of ways, points and moments.
    pub random: Random,
}

/// What is told while it goes on.
pub enum Told<'a> {
    /// A death that was ordered.
    Death(&'a str),
    /// Why a victim does not run and the next death has to wait: control holds it back, or is restarting it.
    Held(&'a str),
}

/// A death that was ordered, or came before the ordered one.
pub struct Death {
    /// Whose.
    pub victim: String,
    /// How.
    pub outcome: Outcome,
    /// By a stray device that was ordered of another at the same time: QEMU's IOMMU names none, so all are stopped.
    pub along: bool,
}

/// What came of it.
pub struct Killed {
    /// What the command wrote.
    pub output: String,
    /// Its exit code.
    pub code: u32,
    /// In their order.
    pub deaths: Vec<Death>,
    /// How long it ran.
    pub seconds: f64,
    /// TCP resets on the wire while it was at work, until [`CLOSING`] before its end.
    pub resets: u64,
}

/// Work for both driver domains: reads blocks from `first` on, and sends. Nobody waits for its end, which a guest that has much else to do
/// comes to in seconds.
fn work(first: u64) -> String {
    format!(
        "(dd if=/dev/xvda of=/dev/null bs=4k skip={first} count={BLOCKS}; ping -c 3 -i 0.1 -w 1 10.0.2.2) >/dev/null 2>&1 & true"
    )
}

impl Kills<'_> {
    /// Runs a command in the background of the guest's shell until it ends; the probes have to run.
    ///
    /// # Errors
    /// No shell, no end in time, a victim that does not come back.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        shell: &mut Shell,
        command: &str,
        patience: Duration,
        mut tell: impl FnMut(Told<'_>),
    ) -> Result<Killed> {
        let start = format!("rm -f /tmp/job.*; ({command}; echo $? >/tmp/job.code) >/tmp/job.log 2>&1 &");
        shell.run(machine, &start, SHELL)?;
        let begin = Instant::now();
        let mut deaths = Vec::new();
        let resets = |m: &Machine| m.host.counts().resets_in + m.host.counts().resets_out;
        let mut samples = vec![(begin, resets(machine))];
        let mut look = begin + LOOK;
        let mut due = begin + self.moment();
        let mut turn = begin;
        loop {
            if crate::signals::stop() {
                anyhow::bail!("interrupted");
            }
            if !self.victims.is_empty() && Instant::now() >= due {
                deaths.extend(self.kill(machine, shell, &mut tell)?);
                // What took longer than its time is not caught up: a burst of deaths leaves the command no time in between.
                turn = (turn + self.pace).max(Instant::now());
                due = turn + self.moment();
            }
            if Instant::now() >= look {
                look = Instant::now() + LOOK;
                samples.push((Instant::now(), resets(machine)));
                let code = shell.run(machine, LOOKING, SHELL)?;
                if let Ok(code) = code.output.trim().parse() {
                    let seconds = begin.elapsed().as_secs_f64();
                    let output = shell.run(machine, "cat /tmp/job.log", SHELL)?.output;
                    let at_work = samples.iter().rfind(|(at, _)| at.elapsed() >= CLOSING).map_or(0, |(_, n)| *n);
                    let resets = at_work.saturating_sub(samples.first().map_or(0, |(_, n)| *n));
                    return Ok(Killed { output, code, deaths, seconds, resets });
                }
            }
            ensure!(begin.elapsed() < patience, "`{command}` did not end within {} s", patience.as_secs());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn moment(&mut self) -> Duration {
        self.pace * u32::try_from(self.random.below(1000)).unwrap_or(0) / 1000
    }

    fn kill(
        &mut self,
        machine: &mut Machine,
        shell: &mut Shell,
        tell: &mut impl FnMut(Told<'_>),
    ) -> Result<Vec<Death>> {
        let mut orders = Vec::new();
        let mut strays = false;
        for victim in &self.victims {
            let how = KINDS[self.random.below(KINDS.len() as u64) as usize];
            strays |= how == "dma";
            let count = u32::try_from(self.random.below(POINTS)).unwrap_or(0);
            let what = format!("{how} of {victim} after {count} points");
            let order = order(machine, victim, how, count, |why| tell(Told::Held(why))).context(what.clone())?;
            tell(Told::Death(&what));
            orders.push((*victim, order, what));
        }
        for (_, order, _) in &orders {
            for _ in 0..TRIES {
                if order.died(&machine.control, WORKED) {
                    break;
                }
                shell.run(machine, &work(self.random.below(SPAN)), SHELL)?;
            }
        }
        let wait = |(victim, order, what): (&str, _, String)| {
            let outcome = machine.await_crash(&order).context(what)?;
            let along = strays && !outcome.as_ordered && outcome.cause == "iommu-fault";
            Ok(Death { victim: victim.to_string(), outcome, along })
        };
        orders.into_iter().map(wait).collect()
    }
}
