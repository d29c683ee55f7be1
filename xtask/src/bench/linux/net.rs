//! The network of a Linux guest beside bare Linux: one TCP connection each way over both protocols, echo requests, time to the prompt;
//! then what is lost by a kill per second, and how long the guest is without its network each time.

use super::{PAIR_HEADING, Pair, Session, Spent, spent_heading};
use crate::bench::restart::{self, Outages};
use crate::bench::statistics::summary;
use crate::campaign::linux::iperf::{self, WAYS};
use crate::campaign::linux::kill::Kills;
use crate::drive::Drives;
use crate::linux::peer::{self, Peer};
use crate::manifest::System;
use crate::{image, progress, run, table};
use anyhow::{Context, Result, bail, ensure};
use blkcheck::random::Random;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Figures by name, beside the transfers'.
const PING: &str = "ping, median";
const BOOT: &str = "boot to the prompt";
/// Echo requests of a run, and the time between them.
const PINGS: u32 = 100;
const PING_PACE: &str = "0.02";
const PING_SECONDS: u32 = 2;
/// Seconds of a transfer before those that count: the emulator translates code when it meets it first.
const WARM: u32 = 1;
/// Seconds at the start of each transfer that do not count: the sender's window grows.
const OMITTED: u32 = 2;
/// Probes while throughput is measured under kills, as without: at 1 kHz they would be a load of their own.
const SLOW_PACE: Duration = Duration::from_millis(20);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Boots of each side.
    pub rounds: u32,
    /// Of a transfer.
    pub seconds: u32,
    /// For the outages, while the guest rests.
    pub kills: u32,
    /// Of a transfer under kills, one per second.
    pub kill_seconds: u32,
    /// Of ways and moments.
    pub seed: u64,
}

/// Throughput with a kill per second.
#[derive(Serialize)]
struct Loss {
    way: String,
    kills: usize,
    plain_mbit: f64,
    killed_mbit: f64,
    /// Segments sent again under kills.
    again: u64,
    /// Share that is lost.
    loss: f64,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    /// Guest and bare.
    pub pairs: Vec<Pair>,
    costs: Vec<Cost>,
    spent: Vec<(String, Spent)>,
    losses: Vec<Loss>,
    /// Of a guest at rest.
    pub outages: Outages,
    /// Why the peer has not Linux's TCP, if it has not.
    instead: Option<String>,
}

/// One side's values, by figure.
#[derive(Default)]
struct Values {
    pairs: BTreeMap<String, Vec<f64>>,
    /// CPU time of the emulator per frame, µs.
    costs: BTreeMap<String, Vec<f64>>,
}

impl Values {
    fn cost(&mut self, name: String, before: (Duration, u64), after: (Duration, u64)) {
        let frames = after.1.saturating_sub(before.1).max(1) as f64;
        self.costs.entry(name).or_default().push(after.0.saturating_sub(before.0).as_secs_f64() * 1e6 / frames);
    }
}

/// CPU time of the emulator per frame on the wire, medians: what is left of a comparison where the machine has other work as well.
#[derive(Serialize)]
struct Cost {
    name: String,
    guest_us: f64,
    bare_us: f64,
}

/// Takes all figures.
///
/// # Errors
/// A machine does not run, or a run fails.
pub fn measure(system: &System, effort: Effort) -> Result<Figures> {
    image::prepare(std::iter::once(system))?;
    let guest = super::guest_of(system)?;
    let drives = Arc::new(Drives::open(system)?);
    let peer = Peer::start()?;
    // A step is one line: boot, warm-up, each way, echo requests, the idle guest; then boot, outages, each way without and with kills.
    let each = WAYS.len() as u64 + 3;
    let steps = progress::steps("Linux's network", u64::from(effort.rounds) * 2 * each + 7);
    let (mut ours, mut bare) = (Values::default(), Values::default());
    let mut spent = Vec::new();
    let mut instead = None;
    for round in 1..=effort.rounds {
        let of = format!("{round} of {}", effort.rounds);
        let last = round == effort.rounds;
        for (side, values) in [("guest", &mut ours), ("bare", &mut bare)] {
            let say = |what: &str| steps.next(&format!("{side} {of}: {what}"));
            say("boot");
            let mut session = match side {
                "guest" => Session::guest(system, guest, &drives)?,
                _ => Session::bare(system, guest, &drives)?,
            };
            let attached = peer.attach(session.host())?;
            let costs = one(&mut session, attached.iperf, effort.seconds, values, &say)?;
            instead = attached.instead.clone();
            if last && side == "guest" {
                say("at rest");
                spent = costs;
                spent.extend(session.idle()?.map(|cost| ("idle".to_string(), cost)));
            }
        }
    }
    let say = |what: &str| steps.next(&format!("kills: {what}"));
    say("boot");
    let mut session = Session::guest(system, guest, &drives)?;
    let attached = peer.attach(session.host())?;
    let (outages, losses) = kills(&mut session, attached.iperf, system, effort, &say)?;
    steps.done();
    let pairs = ours.pairs.iter().map(|(name, values)| {
        let (unit, aim) = match name.as_str() {
            PING => ("ms", (2.5, true)),
            BOOT => ("s", (1.5, true)),
            _ => ("Mbit/s", (0.8, false)),
        };
        Pair::new(name, unit, aim, values.clone(), bare.pairs.get(name).cloned().unwrap_or_default())
    });
    let median = |side: &Values, name: &str| summary(side.costs.get(name).into_iter().flatten().copied()).p50;
    let cost = |name: &String| Cost { name: name.clone(), guest_us: median(&ours, name), bare_us: median(&bare, name) };
    let costs = ours.costs.keys().map(cost).collect();
    Ok(Figures { pairs: pairs.collect(), costs, spent, losses, outages, instead })
}

/// One boot: every figure once.
fn one(
    session: &mut Session,
    to: [&str; 2],
    seconds: u32,
    values: &mut Values,
    say: &impl Fn(&str),
) -> Result<Vec<(String, Spent)>> {
    let mut spent = Vec::new();
    values.pairs.entry(BOOT.into()).or_default().push(session.boot_s());
    say("first transfers");
    // Its IPv6 address is its own once nobody has objected for a second.
    session.run(
        &format!("for n in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 1 {} >/dev/null && exit 0; sleep 1; done; exit 1", to[1]),
        0,
    )?;
    for way in &WAYS[..2] {
        session.run(&way.command(to, 0, WARM), WARM)?;
    }
    for way in WAYS {
        say(&way.name());
        let before = session.work();
        let (output, cost) = session.watched(&way.command(to, OMITTED, seconds), OMITTED + seconds)?;
        values.cost(way.name(), before, session.work());
        values.pairs.entry(way.name()).or_default().push(iperf::parse(&output)?.mbit);
        spent.extend(cost.map(|cost| (way.name(), cost)));
    }
    say("ping");
    let before = session.work();
    let (output, cost) = session.watched(&ping_command(), PING_SECONDS)?;
    values.cost(PING.into(), before, session.work());
    values.pairs.entry(PING.into()).or_default().push(ping(&output)?);
    spent.extend(cost.map(|cost| (PING.to_string(), cost)));
    Ok(spent)
}

/// Echo requests, of which only the times are written: a console is slow.
fn ping_command() -> String {
    let host = peer::GATEWAY[0];
    format!("ping -c {PINGS} -i {PING_PACE} {host} | sed -n \"s/.*time=\\([0-9.]*\\) ms/\\1/p\"")
}

/// The median of a time in each line, ms.
fn ping(output: &str) -> Result<f64> {
    let times = summary(output.lines().filter_map(|line| line.trim().parse().ok()));
    ensure!(times.count as u32 >= PINGS * 9 / 10, "{} of {PINGS} echo requests were answered", times.count);
    Ok(times.p50)
}

/// Outages without load at 1 kHz, then throughput without and with kills in turn.
fn kills(
    session: &mut Session,
    to: [&str; 2],
    system: &System,
    effort: Effort,
    say: &impl Fn(&str),
) -> Result<(Outages, Vec<Loss>)> {
    let Session::Guest { machine, shell, .. } = session else { bail!("only driver domains can be killed") };
    let victim = run::driver(system)?;
    let seconds = effort.kill_seconds;
    let patience = Duration::from_secs(u64::from(seconds) * 3 + 60);
    say(&format!("{} outages of a guest at rest", effort.kills));
    machine.probe_all()?;
    let outages = Outages::of(restart::kill(machine, victim, None, effort.kills, |_, _| Ok(()))?);
    machine.host.probe(Some(SLOW_PACE));
    let mut kills = Kills { victims: vec![victim], pace: Duration::from_secs(1), random: Random::new(effort.seed) };
    let mut nobody = Kills { victims: Vec::new(), pace: kills.pace, random: Random::new(effort.seed) };
    let mut losses = Vec::new();
    for way in WAYS.into_iter().filter(|way| !way.v6) {
        let command = way.command(to, OMITTED, seconds);
        let mut throughput = |kills: &mut Kills<'_>| {
            let done = kills.run(machine, shell, &command, patience, |_| ())?;
            ensure!(done.code == 0, "iperf3 ended with code {}:\n{}", done.code, done.output);
            let summary = iperf::parse(&done.output).context(way.name())?;
            Ok((summary, done.deaths.len()))
        };
        say(&format!("{} without", way.name()));
        let (plain, _) = throughput(&mut nobody)?;
        say(&format!("{} with a kill per second", way.name()));
        let (killed, deaths) = throughput(&mut kills)?;
        losses.push(Loss {
            way: way.name(),
            kills: deaths,
            plain_mbit: plain.mbit,
            killed_mbit: killed.mbit,
            again: killed.again,
            loss: 1.0 - killed.mbit / plain.mbit.max(1.0),
        });
    }
    Ok((outages, losses))
}

impl Figures {
    /// For people.
    pub fn describe(&self) -> String {
        let pairs: Vec<Vec<String>> = self.pairs.iter().map(Pair::cells).collect();
        let costs: Vec<Vec<String>> = self
            .spent
            .iter()
            .flat_map(|(what, spent)| spent.rows(what, (what != "idle").then_some(spent.frames as f64)))
            .collect();
        let cpu: Vec<Vec<String>> = self
            .costs
            .iter()
            .map(|c| {
                let ratio = c.guest_us / c.bare_us.max(0.001);
                let cell = |value: f64| format!("{value:.1}");
                vec![c.name.clone(), cell(c.guest_us), cell(c.bare_us), format!("{ratio:.2}")]
            })
            .collect();
        let losses: Vec<Vec<String>> = self
            .losses
            .iter()
            .map(|l| {
                vec![
                    l.way.clone(),
                    l.kills.to_string(),
                    format!("{:.0}", l.plain_mbit),
                    format!("{:.0}", l.killed_mbit),
                    l.again.to_string(),
                    format!("{:.0} %", l.loss * 100.0),
                ]
            })
            .collect();
        let spent = spent_heading("packet");
        let spent: Vec<&str> = spent.iter().map(String::as_str).collect();
        format!(
            "{}\n{}\n{}\n{}\n{}{}",
            table::format(&PAIR_HEADING, &pairs),
            table::format(&["emulator's CPU, µs per frame", "guest", "bare", "ratio"], &cpu),
            table::format(&spent, &costs),
            table::format(
                &["a kill per second", "kills", "Mbit/s without", "Mbit/s with", "sent again", "loss"],
                &losses
            ),
            self.outages.describe(),
            self.instead
                .as_ref()
                .map(|why| format!("\nthe peer has smoltcp's TCP, not Linux's: {why}\n"))
                .unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_pings_needs_most_of_the_answers() {
        let all: String = (0..100).map(|ms| format!("{ms}.500\n")).collect();
        assert_eq!(ping(&all).unwrap(), 49.5);
        assert!(ping("1.2\nping: sendto: no route\n").unwrap_err().to_string().contains("1 of 100"));
    }
}
