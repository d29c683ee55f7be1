//! The network of a Linux guest beside bare Linux: one TCP connection each way over both protocols, echo requests, time to the prompt;
//! then what is lost by a kill per second, and how long the guest is without its network each time.

use super::{PAIR_HEADING, Pair, Session, Spent, spent_heading};
use crate::bench::statistics::{HEADINGS, Summary, summary};
use crate::campaign::linux::iperf::{self, WAYS};
use crate::campaign::linux::kill::Kills;
use crate::drive::Drives;
use crate::linux::peer::{self, Peer};
use crate::machine::crash::PACE;
use crate::manifest::System;
use crate::{image, progress, run, table};
use anyhow::{Context, Result, bail, ensure};
use blkcheck::random::Random;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Echo requests of a run, and the time between them.
const PINGS: u32 = 100;
const PING_PACE: &str = "0.02";
/// Probes while throughput is measured under kills, as without: at 1 kHz they would be a load of their own.
const SLOW_PACE: Duration = Duration::from_millis(20);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Boots of each side.
    pub rounds: u32,
    /// Of a transfer.
    pub seconds: u32,
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
    /// Share that is lost.
    loss: f64,
}

/// All that was measured.
#[derive(Serialize)]
pub struct Figures {
    /// Guest and bare.
    pub pairs: Vec<Pair>,
    spent: Vec<(String, Spent)>,
    losses: Vec<Loss>,
    outage_ms: Summary,
    outages: BTreeMap<String, Summary>,
    /// Every outage.
    pub all_outages_ms: Vec<(String, f64)>,
    /// Why the peer has not Linux's TCP, if it has not.
    instead: Option<String>,
}

/// One boot's values, by figure.
type Values = BTreeMap<String, Vec<f64>>;

/// Takes all figures.
///
/// # Errors
/// A machine does not run, or a run fails.
pub fn measure(system: &System, effort: Effort) -> Result<Figures> {
    image::prepare(std::iter::once(system))?;
    let guest = super::guest_of(system)?;
    let drives = Arc::new(Drives::open(system)?);
    let peer = Peer::start()?;
    let steps = progress::steps("Linux's network", u64::from(effort.rounds) * 2 + 2);
    let (mut ours, mut bare) = (Values::new(), Values::new());
    let mut spent = Vec::new();
    let mut instead = None;
    for round in 1..=effort.rounds {
        steps.next(&format!("guest, boot {round}"));
        let mut session = Session::guest(system, guest, &drives)?;
        let attached = peer.attach(session.host())?;
        spent = one(&mut session, attached.iperf, effort.seconds, &mut ours)?;
        drop(session);
        steps.next(&format!("bare, boot {round}"));
        let mut session = Session::bare(system, guest, &drives)?;
        let attached = peer.attach(session.host())?;
        one(&mut session, attached.iperf, effort.seconds, &mut bare)?;
        instead = attached.instead.clone();
    }
    steps.next("a kill per second");
    let mut session = Session::guest(system, guest, &drives)?;
    let attached = peer.attach(session.host())?;
    let (losses, all_outages_ms) = kills(&mut session, attached.iperf, system, effort)?;
    steps.done();
    let pairs = ours.iter().map(|(name, values)| {
        let (unit, aim) = match name.as_str() {
            "ping, median" => ("ms", (2.5, true)),
            "boot to the prompt" => ("s", (1.5, true)),
            _ => ("Mbit/s", (0.8, false)),
        };
        Pair::new(name, unit, aim, values.clone(), bare.get(name).cloned().unwrap_or_default())
    });
    let by_kind = |how: &str| summary(all_outages_ms.iter().filter(|(h, _)| h == how).map(|(_, ms)| *ms));
    Ok(Figures {
        pairs: pairs.collect(),
        spent,
        losses,
        outage_ms: summary(all_outages_ms.iter().map(|(_, ms)| *ms)),
        outages: all_outages_ms.iter().map(|(how, _)| (how.clone(), by_kind(how))).collect(),
        all_outages_ms,
        instead,
    })
}

/// One boot: every figure once.
fn one(session: &mut Session, to: [&str; 2], seconds: u32, values: &mut Values) -> Result<Vec<(String, Spent)>> {
    let mut spent = Vec::new();
    let mut note = |name: String, value: f64| values.entry(name).or_default().push(value);
    note("boot to the prompt".into(), session.boot_s());
    // Its IPv6 address is its own once nobody has objected for a second.
    session.run(
        &format!("for n in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 1 {} >/dev/null && exit 0; sleep 1; done; exit 1", to[1]),
        20,
    )?;
    // The emulator translates code when it meets it first: both sides start warm.
    for way in &WAYS[..2] {
        session.run(&way.command(to, 2), 2)?;
    }
    for way in WAYS {
        let (output, cost) = session.watched(&way.command(to, seconds), seconds)?;
        note(way.name(), iperf::parse(&output)?.mbit);
        spent.extend(cost.map(|cost| (way.name(), cost)));
    }
    let (output, cost) = session.watched(&format!("ping -c {PINGS} -i {PING_PACE} {}", peer::GATEWAY[0]), 10)?;
    note("ping, median".into(), ping(&output)?);
    spent.extend(cost.map(|cost| ("ping".to_string(), cost)));
    spent.extend(session.idle()?.map(|cost| ("idle".to_string(), cost)));
    Ok(spent)
}

/// The median of what `ping` says of each answer, ms.
fn ping(output: &str) -> Result<f64> {
    let times = output.split("time=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
    let times = summary(times);
    ensure!(times.count as u32 >= PINGS * 9 / 10, "{} of {PINGS} echo requests were answered", times.count);
    Ok(times.p50)
}

/// Outages without load at 1 kHz, then throughput with and without kills in turn.
#[allow(clippy::type_complexity, reason = "two things that belong to one machine")]
fn kills(
    session: &mut Session,
    to: [&str; 2],
    system: &System,
    effort: Effort,
) -> Result<(Vec<Loss>, Vec<(String, f64)>)> {
    let Session::Guest { machine, shell, .. } = session else { bail!("only driver domains can be killed") };
    let victim = run::driver(system)?;
    let seconds = effort.kill_seconds;
    let mut kills = Kills { victims: vec![victim], pace: Duration::from_secs(1), random: Random::new(effort.seed) };
    let patience = Duration::from_secs(u64::from(seconds) * 3 + 60);
    machine.probe_all()?;
    machine.host.probe(Some(PACE));
    let quiet = kills.run(machine, shell, &format!("sleep {seconds}"), patience, |_| ())?;
    let outages = quiet.deaths.into_iter().map(|(_, death)| (death.how, death.outage_ms)).collect();
    machine.host.probe(Some(SLOW_PACE));
    let mut losses = Vec::new();
    for way in WAYS.into_iter().filter(|way| !way.v6) {
        let command = way.command(to, seconds);
        let mut throughput = |kills: &mut Kills<'_>| {
            let done = kills.run(machine, shell, &command, patience, |_| ())?;
            ensure!(done.code == 0, "iperf3 ended with code {}:\n{}", done.code, done.output);
            Ok((iperf::parse(&done.output).context(way.name())?.mbit, done.deaths.len()))
        };
        let mut nobody = Kills { victims: Vec::new(), pace: kills.pace, random: Random::new(effort.seed) };
        let (plain_mbit, _) = throughput(&mut nobody)?;
        let (killed_mbit, deaths) = throughput(&mut kills)?;
        let loss = 1.0 - killed_mbit / plain_mbit.max(1.0);
        losses.push(Loss { way: way.name(), kills: deaths, plain_mbit, killed_mbit, loss });
    }
    Ok((losses, outages))
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
        let losses: Vec<Vec<String>> = self
            .losses
            .iter()
            .map(|l| {
                vec![
                    l.way.clone(),
                    l.kills.to_string(),
                    format!("{:.0}", l.plain_mbit),
                    format!("{:.0}", l.killed_mbit),
                    format!("{:.0} %", l.loss * 100.0),
                ]
            })
            .collect();
        let outage = |name: &str, s: &Summary| std::iter::once(name.to_string()).chain(s.cells()).collect::<Vec<_>>();
        let mut outages = vec![outage("all", &self.outage_ms)];
        outages.extend(self.outages.iter().map(|(how, s)| outage(how, s)));
        let heading: Vec<&str> = std::iter::once("outage on a kill, ms").chain(HEADINGS).collect();
        let spent = spent_heading("packet");
        let spent: Vec<&str> = spent.iter().map(String::as_str).collect();
        format!(
            "{}\n{}\n{}\n{}{}",
            table::format(&PAIR_HEADING, &pairs),
            table::format(&spent, &costs),
            table::format(&["a kill per second", "kills", "Mbit/s without", "Mbit/s with", "loss"], &losses),
            table::format(&heading, &outages),
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
        let line = |ms: u32| format!("64 bytes from 10.0.2.2: seq={ms} ttl=64 time={ms}.500 ms\n");
        let all: String = (0..100).map(line).collect();
        assert_eq!(ping(&all).unwrap(), 49.5);
        assert!(ping(&line(1)).unwrap_err().to_string().contains("1 of 100"));
    }
}
