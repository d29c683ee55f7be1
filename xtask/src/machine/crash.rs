//! One crash as it is seen from outside: ordered over the control line, its outage measured by probes on the wire.

use super::Machine;
use super::control::Control;
use super::monitor::FRAME;
use super::protocol::{Death, Phases};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The ways a domain can be told to crash.
pub const KINDS: [&str; 7] = ["panic", "page-fault", "stack-overflow", "hang", "irq-hang", "dma", "port-io"];
/// Pace of the probes.
pub const PACE: Duration = Duration::from_millis(1);
/// Longest wait for each step of a restart.
const PATIENCE: Duration = Duration::from_secs(15);

/// Entries of control's history among which a death is looked for: others may have died since.
const HISTORY: u32 = 16;

/// Where a driver domain points its device for the crash kind `dma` unless its configuration says otherwise: a frame it does
/// not own, neither as a machine address nor as one of its own.
const DMA_TARGET: u64 = 0x1000_0000;
/// The key of its configuration. Where the default is in a guest, that writes it itself, and a look at it says nothing.
pub const DMA_TARGET_KEY: &str = "dma-target";

/// The cause the hypervisor must give for a way to crash.
pub fn expected_causes(how: &str) -> &'static [&'static str] {
    match how {
        "hang" | "irq-hang" => &["watchdog"],
        "dma" => &["iommu-fault"],
        "port-io" => &["port-io"],
        // A fault of the domain's own pages ends in its trap handler, which reports it as a panic does.
        _ => &["panic", "triple-fault", "nested-page-fault"],
    }
}

/// Causes of a death that are not the domain's own doing: a busy host lets the watchdog run out, and QEMU's IOMMU does not say whose
/// device went astray, so that one ordered of another driver stops all.
const NOT_ITS_OWN: [&str; 2] = ["watchdog", "iommu-fault"];

/// Whether a domain that nobody told to die like this has a defect.
pub fn is_its_own(cause: &str) -> bool {
    !NOT_ITS_OWN.contains(&cause)
}

/// The deaths that nobody ordered and that are the domains' own doing: none may be.
pub fn own_deaths(control: &Control, domains: &[&str]) -> Vec<String> {
    control.all_of(|event| {
        let (dom, cause) = (event["dom"].as_str()?, event["cause"].as_str()?);
        let own = event["event"] == "died" && event["ordered"] == false && is_its_own(cause) && domains.contains(&dom);
        own.then(|| format!("{dom} died by itself: {cause} {}", event["detail"].as_str().unwrap_or_default()))
    })
}

/// What one crash came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How it was ordered.
    pub how: String,
    /// What the hypervisor took it for.
    pub cause: String,
    /// That is a cause the order has; otherwise something else ended the domain first.
    pub as_ordered: bool,
    /// What it said of it.
    pub detail: String,
    /// When, in the hypervisor's time.
    pub time_us: u64,
    /// Longest time without a packet delivered, of all guests on the wire.
    pub outage_ms: f64,
    /// The same for each guest.
    pub outages_ms: Vec<f64>,
    /// Order given → domain stopped, as far as the control line tells.
    pub detect_ms: f64,
    /// Stopped → entered again, as the hypervisor has it.
    pub entered_us: Option<u64>,
    /// Stopped → serving, as the domain has it.
    pub serving_us: Option<u64>,
    /// Where the time went.
    pub phases: Option<Phases>,
    /// Where the IOMMU named the device and the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<String>,
}

/// A crash that was ordered, with what was seen before.
pub struct Order {
    dom: String,
    how: String,
    events: usize,
    lines: usize,
    refused: usize,
    /// The frame a stray device is pointed at, and what it held.
    before: Option<(u64, Vec<u8>)>,
    from: Instant,
}

/// The death that an order caused.
struct Died {
    /// Of the event.
    number: usize,
    at: Instant,
    event: Value,
}

impl Order {
    /// Whether it was carried out, or something else ended the domain that had it.
    pub fn died(&self, control: &Control, patience: Duration) -> bool {
        control.event(self.events, patience, |event| self.caused(event)).is_some()
    }

    /// The event of a death that control took for ordered. Others may come after the order was given, as control tells of a death when
    /// it has time: the order is then for the next instance.
    fn caused(&self, event: &Value) -> bool {
        event["event"] == "died" && event["dom"] == self.dom.as_str() && event["ordered"] == true
    }

    fn death(&self, control: &Control) -> Option<Died> {
        let number = control.position(self.events, |event| self.caused(event))?;
        let (at, event) = control.event(number, Duration::ZERO, |_| true)?;
        Some(Died { number, at, event })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Machine {
    /// Starts the probes and waits until every guest that is there from the beginning answers them.
    ///
    /// # Errors
    /// A guest does not.
    pub fn probe_all(&mut self) -> Result<()> {
        self.host.probe(Some(PACE));
        for guest in (0..self.guests.len()).filter(|&guest| self.guests[guest].starts).collect::<Vec<_>>() {
            let what = format!("answers of guest `{}` to probes", self.guests[guest].name);
            // A Linux guest boots for some seconds.
            self.wait_for(&what, Duration::from_secs(60), |m| {
                m.host.probes(guest, |log| log.counts().1 >= 5).filter(|&enough| enough)
            })?;
        }
        Ok(())
    }

    /// Crashes a domain after `count` more of its crash points, and waits until it serves again and every guest on the wire
    /// got a packet. Probes have to run if there are such guests.
    ///
    /// # Errors
    /// A step of the restart did not come; the cause is not that of the crash.
    pub fn crash(&mut self, dom: &str, how: &str, count: u32) -> Result<Outcome> {
        let order = self.order_crash(dom, how, count)?;
        let outcome = self.await_crash(&order)?;
        ensure!(
            outcome.as_ordered,
            "`{dom}` was crashed by {how}, but the hypervisor took it for {}: {}",
            outcome.cause,
            outcome.detail
        );
        Ok(outcome)
    }

    /// The order alone, so that several domains can die at once.
    ///
    /// # Errors
    /// It was not taken.
    pub fn order_crash(&mut self, dom: &str, how: &str, count: u32) -> Result<Order> {
        let (events, lines) = (self.control.event_count(), self.console.len());
        let refused = self.qemu.refused().len();
        let target = self.dma_targets.get(dom).copied().unwrap_or(DMA_TARGET);
        let before = if how == "dma" { Some((target, self.frame(target)?)) } else { None };
        let from = Instant::now();
        self.ask(&json!({ "cmd": "crash", "dom": dom, "how": how, "count": count }))?;
        Ok(Order { dom: dom.to_string(), how: how.to_string(), events, lines, refused, before, from })
    }

    /// Waits until an order was carried out and is overcome. Something else may have ended the domain before the order did
    /// ([`Outcome::as_ordered`]).
    ///
    /// # Errors
    /// A step of the restart did not come.
    pub fn await_crash(&mut self, order: &Order) -> Result<Outcome> {
        let Order { dom, how, lines, refused, before, from, .. } = order;
        let (lines, refused, from) = (*lines, *refused, *from);
        let (dom, how) = (dom.as_str(), how.as_str());
        let found = self.wait_for(&format!("death of `{dom}` by {how}"), PATIENCE, |m| order.death(&m.control))?;
        let Died { number, at: died_at, event: died } = found;
        let what = format!("restart of `{dom}` after {how}");
        let restarted = |e: &Value| e["event"] == "restarted" && e["dom"] == dom;
        let (back_at, _) =
            self.wait_beyond_back_off(&what, PATIENCE, |m| m.control.event(number, Duration::ZERO, restarted))?;
        let mut outages = Vec::new();
        for guest in (0..self.guests.len()).filter(|&guest| self.guests[guest].starts).collect::<Vec<_>>() {
            let what = format!("packet delivered to guest `{}` after {how}", self.guests[guest].name);
            // The answer that counts went through the new instance: it came after that was entered.
            let answer = |m: &Self| m.host.probes(guest, |log| log.first_after(back_at)).flatten();
            self.wait_beyond_back_off(&what, PATIENCE, answer)?;
            let gap = self.host.probes(guest, |log| log.longest_gap(from, back_at)).flatten();
            outages.push(ms(gap.context("no probe was delivered before the crash")?));
        }
        let cause = died["cause"].as_str().unwrap_or("unknown").to_string();
        // The stray device of another domain may have taken this one along before it came to its own.
        let along = how == "dma" && names_no_address(&died["detail"]) && self.qemu.refused().len() == refused;
        let as_ordered = expected_causes(how).contains(&cause.as_str()) && !along;
        let history = self.ask(&json!({ "cmd": "history", "max": HISTORY }))?;
        let deaths: Vec<Death> = serde_json::from_value(history["history"].clone()).context("history of control")?;
        let this = |d: &Death| d.dom == dom && died["time_us"] == d.time_us;
        let death = deaths.into_iter().find(this).context("the history lacks the crash")?;
        if let Some((target, before)) = before {
            let traced = self.qemu.refused().split_off(refused);
            let address = |a: &String| u64::from_str_radix(a.trim_start_matches("0x"), 16).ok();
            // Commands that were in flight may be refused as well.
            let watched = traced.iter().filter_map(address).any(|at| at & !(FRAME - 1) == *target);
            ensure!(
                watched || traced.is_empty() || !as_ordered,
                "the device was pointed at {}, not at the frame {target:#x} that is watched",
                traced.join(", ")
            );
            let same = self.frame(*target)? == *before;
            ensure!(same, "the machine frame at {target:#x}, which is not `{dom}`'s, was changed by its device");
        }
        let iommu =
            if how == "dma" && as_ordered { Some(self.iommu_line(lines, refused, &died["detail"])?) } else { None };
        Ok(Outcome {
            how: how.to_string(),
            cause,
            as_ordered,
            detail: died["detail"].as_str().unwrap_or_default().to_string(),
            time_us: death.time_us,
            outage_ms: outages.iter().copied().fold(0.0, f64::max),
            outages_ms: outages,
            detect_ms: ms(died_at.duration_since(from)),
            entered_us: death.outage_us,
            serving_us: death.serving_us,
            phases: death.phases,
            iommu,
        })
    }

    /// What a machine frame holds; where QEMU does not tell, the error has the console's end.
    fn frame(&mut self, address: u64) -> Result<Vec<u8>> {
        self.monitor.frame(address).map_err(|error| self.failure(&format!("frame {address:#x}: {error:#}")))
    }

    /// The report of the IOMMU fault, with device and address. An emulated IOMMU that tells the hypervisor no address has told it
    /// to QEMU's trace, which had `refused` addresses before.
    fn iommu_line(&self, from: usize, refused: usize, detail: &Value) -> Result<String> {
        if let Some(detail) = detail.as_str().filter(|_| names_no_address(detail)) {
            let traced = self.qemu.refused();
            let address = traced.get(refused).context("neither the IOMMU nor QEMU's trace names an address")?;
            return Ok(format!("{detail}; QEMU's trace says {address}"));
        }
        let names_both = |text: &str| text.to_lowercase().contains("iommu") && has_bdf(text) && text.contains("0x");
        let line = self.console.since(from).into_iter().map(|l| l.text).find(|text| names_both(text));
        line.or_else(|| detail.as_str().filter(|d| has_bdf(d) && d.contains("0x")).map(str::to_string))
            .context("no report of the IOMMU fault names device and address")
    }
}

/// Whether a report of an IOMMU fault names the device, but no address.
fn names_no_address(detail: &Value) -> bool {
    detail.as_str().is_some_and(|d| has_bdf(d) && !d.contains("0x"))
}

/// Whether a text holds a PCI address as `00:03.0`.
fn has_bdf(text: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':' || c == '.')).any(|word| {
        word.trim_matches([':', '.']).rsplit(':').take(2).count() == 2 && is_bdf(word.trim_matches([':', '.']))
    })
}

fn is_bdf(word: &str) -> bool {
    // The last seven characters, so that a segment group before them does no harm.
    word.len() >= 7 && word.get(word.len() - 7..).is_some_and(|tail| tail.parse::<crate::manifest::Bdf>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_found_in_a_sentence() {
        assert!(has_bdf("IOMMU fault: device 00:03.0 at 0x1000"));
        assert!(has_bdf("fault of 0000:00:03.0, address 0xdead"));
        assert!(!has_bdf("fault at 12:34, address 0x00"));
    }

    #[test]
    fn a_death_that_control_tells_of_late_is_not_the_one_ordered() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let control = Control::start(ours).unwrap();
        let died =
            |ordered: bool, time: u64| json!({ "event": "died", "dom": "a", "time_us": time, "ordered": ordered });
        let order = Order {
            dom: "a".into(),
            how: "panic".into(),
            events: control.event_count(),
            lines: 0,
            refused: 0,
            before: None,
            from: Instant::now(),
        };
        let tell = |event: Value| std::io::Write::write_all(&mut &theirs, format!("{event}\n").as_bytes()).unwrap();
        tell(died(false, 1));
        tell(json!({ "event": "restarted", "dom": "a" }));
        tell(json!({ "event": "died", "dom": "b", "time_us": 2, "ordered": true }));
        assert!(control.event(0, Duration::from_secs(10), |e| e["dom"] == "b").is_some());
        assert!(!order.died(&control, Duration::ZERO) && order.death(&control).is_none());
        tell(died(true, 3));
        assert!(order.died(&control, Duration::from_secs(10)));
        let death = order.death(&control).unwrap();
        assert_eq!((death.number, death.event["time_us"].as_u64()), (3, Some(3)));
    }

    #[test]
    fn a_driver_that_dies_by_itself_is_told_from_a_late_and_a_stray_one() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let control = Control::start(ours).unwrap();
        let died = |dom: &str, cause: &str, ordered: bool| {
            let event = json!({ "event": "died", "dom": dom, "cause": cause, "detail": "x", "ordered": ordered });
            std::io::Write::write_all(&mut &theirs, format!("{event}\n").as_bytes()).unwrap();
        };
        died("netback", "panic", true);
        died("netback", "watchdog", false);
        died("netback", "iommu-fault", false);
        died("guest", "panic", false);
        died("netback", "port-io", false);
        died("last", "panic", true);
        assert!(control.event(0, Duration::from_secs(10), |e| e["dom"] == "last").is_some());
        assert_eq!(own_deaths(&control, &["blkback", "netback"]), ["netback died by itself: port-io x"]);
        assert!(is_its_own("panic") && is_its_own("nested-page-fault") && !is_its_own("watchdog"));
    }

    #[test]
    fn every_way_to_crash_has_its_causes() {
        for how in KINDS {
            assert!(!expected_causes(how).is_empty());
        }
        assert_eq!(expected_causes("dma"), ["iommu-fault"]);
    }
}
