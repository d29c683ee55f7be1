//! What a scenario does to its machine: a step is a table with one key, the deed.

use super::pattern::Pattern;
use crate::linux::peer;
use crate::machine::Machine;
use crate::machine::blkcheck::{self, Follow};
use crate::machine::load::{Direction, Load};
use crate::machine::shell::Shell;
use crate::manifest::System;
use crate::units::{Size, Span};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// A deed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Wait for control's `ready`.
    Ready {},
    /// Wait until a guest's page answers, and its probes do; by the guest's number on the wire.
    Serving(usize),
    /// Wait for a line.
    Line(Pattern),
    /// Let time pass in which nothing forbidden may be written.
    Quiet(Span),
    /// Begin transfers of this size in both directions with a guest.
    Load {
        /// Guest's number on the wire.
        #[serde(default)]
        guest: usize,
        /// Each way.
        size: Size,
    },
    /// Wait for the transfers; both hashes have to be right, and no reset may have been on the wire.
    Loaded {},
    /// Crash a domain under supervision, and wait until every guest on the wire gets packets again.
    Crash {
        /// Domain.
        dom: String,
        /// See `ctl crash`.
        how: String,
        /// Crash points passed before.
        #[serde(default)]
        count: u32,
    },
    /// Send a request of the control protocol; the answer has to match.
    Ask {
        /// The request, without id.
        request: toml::Table,
        /// In the answer as JSON.
        expect: Pattern,
    },
    /// Send a line as it is, however malformed; the answer has to match.
    Say {
        /// The line.
        line: String,
        /// In the answer as JSON.
        expect: Pattern,
    },
    /// Wait until a domain is in a state, as `ctl list` has it.
    State {
        /// Domain.
        dom: String,
        /// State.
        is: String,
        /// In its record as JSON.
        #[serde(default)]
        expect: Option<Pattern>,
    },
    /// Wait for an event of a kind about a domain.
    Event {
        /// Kind.
        kind: String,
        /// Domain.
        dom: String,
        /// In the event as JSON.
        #[serde(default)]
        expect: Option<Pattern>,
    },
    /// A guest answers another hundred probes from now on.
    Answers(usize),
    /// Wait until every vbd of a blkcheck is done; each has to have passed, and its image is judged on the host as well.
    Checked {
        /// Domain.
        dom: String,
    },
    /// Wait until a vbd of a blkcheck is done, passed or not; its report has to match.
    Reported {
        /// Domain.
        dom: String,
        /// Linux's number of the vbd.
        vbd: u32,
        /// In the merged report as JSON.
        expect: Vec<Pattern>,
    },
    /// Run a command in the shell on a Linux guest's console, once that answers; its exit code and output have to match.
    Run {
        /// Domain.
        dom: String,
        /// One line for `sh -c`, without input.
        command: String,
        /// In its output, each of them.
        #[serde(default)]
        expect: Patterns,
        /// Not in its output, none of them.
        #[serde(default)]
        forbid: Patterns,
        /// Its exit code.
        #[serde(default)]
        code: u32,
        /// Longest time, as far as the deadline of all allows.
        #[serde(default)]
        within: Option<Span>,
    },
    /// Put iperf3's server and the HTTP server of bytes on the wire (`xtask/src/linux/peer.rs`); `{peer}` and `{peer6}` in commands of
    /// later steps are iperf3's addresses.
    Peer {},
    /// Probe every guest on the wire from now on, and wait until all answer: `crash` looks for their answers.
    Probed {},
    /// A guest answers pings of IPv6 at the address it made of the advertised prefix.
    Ipv6(usize),
}

/// One pattern or several.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
pub enum Patterns {
    /// None.
    #[default]
    None,
    /// One.
    One(Pattern),
    /// Several.
    Several(Vec<Pattern>),
}

impl Patterns {
    fn all(&self) -> &[Pattern] {
        match self {
            Self::None => &[],
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Several(patterns) => patterns,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready {} => f.write_str("ready"),
            Self::Serving(guest) => write!(f, "serving {guest}"),
            Self::Line(pattern) => write!(f, "line `{pattern}`"),
            Self::Quiet(span) => write!(f, "quiet {:?}", span.0),
            Self::Load { size, .. } => write!(f, "load {size}"),
            Self::Loaded {} => f.write_str("loaded"),
            Self::Crash { dom, how, .. } => write!(f, "crash {dom} by {how}"),
            Self::Ask { request, .. } => write!(f, "ask {request}"),
            Self::Say { line, .. } => write!(f, "say {line}"),
            Self::State { dom, is, .. } => write!(f, "{dom} is {is}"),
            Self::Event { kind, dom, .. } => write!(f, "{kind} of {dom}"),
            Self::Answers(guest) => write!(f, "answers of {guest}"),
            Self::Checked { dom } => write!(f, "checked {dom}"),
            Self::Reported { dom, vbd, .. } => write!(f, "report of vbd {vbd} of {dom}"),
            Self::Run { dom, command, .. } => write!(f, "{dom} runs `{command}`"),
            Self::Peer {} => f.write_str("peer"),
            Self::Probed {} => f.write_str("probed"),
            Self::Ipv6(guest) => write!(f, "ipv6 of {guest}"),
        }
    }
}

/// What lasts from step to step.
pub struct State<'a> {
    system: &'a System,
    ready: bool,
    load: Option<(Load, Size)>,
    events: usize,
    shells: BTreeMap<String, Shell>,
    /// Dropped in this order: what is on the wire before what it serves from.
    attached: Option<peer::Attached>,
    peer: Option<peer::Peer>,
}

impl<'a> State<'a> {
    /// Before the first step.
    pub fn new(system: &'a System) -> Self {
        Self { system, ready: false, load: None, events: 0, shells: BTreeMap::new(), attached: None, peer: None }
    }

    /// Does one step; `patience` is what is left of the deadline.
    ///
    /// # Errors
    /// What did not hold.
    pub fn take(&mut self, machine: &mut Machine, step: &Step, patience: Duration) -> Result<()> {
        match step {
            Step::Ready {} => self.ready(machine, patience),
            Step::Serving(guest) => {
                self.ready(machine, patience)?;
                machine.wait_until_page(*guest, patience)?;
                machine.probe_all()
            }
            Step::Line(pattern) => machine.wait_for(&format!("line with `{pattern}`"), patience, |m| {
                m.console.since(0).iter().any(|line| pattern.found(&line.full())).then_some(())
            }),
            Step::Quiet(span) => {
                let end = Instant::now() + span.0;
                machine.wait_for("quiet", patience, |_| (Instant::now() >= end).then_some(()))
            }
            Step::Load { guest, size } => {
                let port = machine.host.port(*guest).context("there is no such guest on the wire")?;
                self.load = Some((Load::start(port, size.0), *size));
                Ok(())
            }
            Step::Loaded {} => self.loaded(machine, patience),
            Step::Crash { dom, how, count } => {
                self.ready(machine, patience)?;
                machine.crash(dom, how, *count).map(|_| ())
            }
            Step::Ask { request, expect } => {
                self.ready(machine, patience)?;
                let request = serde_json::to_value(request)?;
                let reply = machine.control.forward(request.as_object().cloned().unwrap_or_default())?;
                holds(expect, &reply)
            }
            Step::Say { line, expect } => {
                self.ready(machine, patience)?;
                holds(expect, &machine.control.raw(line)?)
            }
            Step::State { dom, is, expect } => self.state(machine, dom, is, expect.as_ref(), patience),
            Step::Event { kind, dom, expect } => self.event(machine, kind, dom, expect.as_ref(), patience),
            Step::Answers(guest) => answers(machine, *guest, patience),
            Step::Checked { dom } => self.checked(machine, dom, patience),
            Step::Reported { dom, vbd, expect } => {
                let follow = blkcheck_done(machine, dom, patience, |follow| {
                    follow.vbds.get(vbd).is_some_and(|v| v.done.is_some())
                })?;
                let report = follow.vbds.get(vbd).map(|v| Value::Object(v.report.clone())).unwrap_or_default();
                expect.iter().try_for_each(|pattern| holds(pattern, &report))
            }
            Step::Run { dom, command, expect, forbid, code, within } => {
                self.ready(machine, patience)?;
                let patience = within.map_or(patience, |span| span.0.min(patience));
                let shell = self.shells.entry(dom.clone()).or_insert_with(|| Shell::new(dom));
                let [v4, v6] = self.attached.as_ref().map_or(peer::GATEWAY, |attached| attached.iperf);
                let command = command.replace("{peer}", v4).replace("{peer6}", v6);
                let done = shell.run(machine, &command, patience)?;
                let output = &done.output;
                ensure!(done.code == *code, "it ended with code {}, not {code}; its output:\n{output}", done.code);
                for pattern in expect.all() {
                    ensure!(pattern.found(output), "`{pattern}` is not in its output:\n{output}");
                }
                for pattern in forbid.all() {
                    ensure!(!pattern.found(output), "forbidden (`{pattern}`) in its output:\n{output}");
                }
                Ok(())
            }
            Step::Peer {} => {
                let peer = peer::Peer::start()?;
                self.attached = Some(peer.attach(&machine.host)?);
                self.peer = Some(peer);
                Ok(())
            }
            Step::Probed {} => machine.probe_all(),
            Step::Ipv6(guest) => {
                machine.host.ping6(*guest);
                machine.wait_for("answer over IPv6", patience, |m| m.host.answered6(*guest).then_some(()))
            }
        }
    }

    fn checked(&self, machine: &mut Machine, dom: &str, patience: Duration) -> Result<()> {
        let vbds = self.system.vbds().filter(|(name, _)| *name == dom).count();
        ensure!(vbds > 0, "`{dom}` has no vbd");
        let follow = blkcheck_done(machine, dom, patience, |f| f.all(vbds, |v| v.done.is_some()))?;
        for (number, vbd) in &follow.vbds {
            ensure!(vbd.faults().is_empty(), "vbd {number} of {dom}: {}", vbd.faults().join(", "));
            blkcheck::verify(self.system, &machine.drives, dom, *number, vbd)
                .with_context(|| format!("vbd {number} of {dom}"))?;
        }
        Ok(())
    }

    fn ready(&mut self, machine: &mut Machine, patience: Duration) -> Result<()> {
        if !self.ready {
            machine.wait_until_ready(patience)?;
            self.ready = true;
        }
        Ok(())
    }

    fn loaded(&mut self, machine: &mut Machine, patience: Duration) -> Result<()> {
        let (load, size) = self.load.take().context("no `load` step went before")?;
        load.wind_down();
        machine.wait_for("end of the transfers", patience, |_| load.ended().then_some(()))?;
        let ended = load.finish();
        let counts = machine.host.counts();
        let resets = counts.resets_in + counts.resets_out;
        let told = format!(
            "{} TCP resets from the guest, {} to it; up to the first:\n{}",
            counts.resets_in,
            counts.resets_out,
            machine.host.resets()
        );
        let totals = ended.map_err(|error| if resets == 0 { error } else { error.context(told.clone()) })?;
        ensure!(totals.hash_ok(), "a SHA-256 is wrong");
        ensure!(resets == 0, told);
        for direction in [Direction::Down, Direction::Up] {
            ensure!(totals.bytes(direction) >= size.0, "{} bytes {direction:?} of {size}", totals.bytes(direction));
        }
        Ok(())
    }

    fn state(
        &mut self,
        machine: &mut Machine,
        dom: &str,
        is: &str,
        expect: Option<&Pattern>,
        patience: Duration,
    ) -> Result<()> {
        self.ready(machine, patience)?;
        let mut last = String::new();
        let found = machine.wait_for(&format!("`{dom}` in state {is}"), patience, |m| {
            std::thread::sleep(Duration::from_millis(50));
            let all = m.control.ask("list").ok()?;
            let record = all["domains"].as_array()?.iter().find(|d| d["name"] == dom)?.clone();
            last = record.to_string();
            (record["state"] == is).then_some(record)
        });
        let record = found.with_context(|| format!("the last record was {last}"))?;
        expect.map_or(Ok(()), |pattern| holds(pattern, &record))
    }

    fn event(
        &mut self,
        machine: &mut Machine,
        kind: &str,
        dom: &str,
        expect: Option<&Pattern>,
        patience: Duration,
    ) -> Result<()> {
        self.ready(machine, patience)?;
        let from = self.events;
        let matches = |event: &Value| {
            event["event"] == kind
                && event["dom"] == dom
                && expect.is_none_or(|pattern| pattern.found(&event.to_string()))
        };
        machine.wait_for(&format!("event {kind} of `{dom}`"), patience, |m| {
            m.control.event(from, Duration::ZERO, matches)
        })?;
        self.events = machine.control.event_count();
        Ok(())
    }
}

/// Reads a blkcheck's lines until what it says is enough.
fn blkcheck_done(
    machine: &mut Machine,
    dom: &str,
    patience: Duration,
    enough: impl Fn(&Follow) -> bool,
) -> Result<Follow> {
    let mut follow = Follow::new(dom, 0);
    machine.wait_for(&format!("end of `{dom}`"), patience, |m| {
        std::thread::sleep(Duration::from_millis(5));
        enough(follow.update(&m.console)).then_some(())
    })?;
    Ok(follow)
}

fn holds(pattern: &Pattern, value: &Value) -> Result<()> {
    let text = value.to_string();
    if !pattern.found(&text) {
        bail!("`{pattern}` is not in the answer {}", json!(text));
    }
    Ok(())
}

fn answers(machine: &mut Machine, guest: usize, patience: Duration) -> Result<()> {
    let before = machine.host.probes(guest, |log| log.counts().1).context("there is no such guest on the wire")?;
    machine.wait_for(&format!("another hundred answers of guest {guest}"), patience, |m| {
        m.host.probes(guest, |log| log.counts().1 >= before + 100).filter(|&enough| enough)
    })?;
    Ok(())
}
