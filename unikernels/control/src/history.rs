//! The last deaths of domains, newest first: what people ask for after the fact. Bounded, and all of its memory is taken at
//! the start, so that a domain that dies for the hundredth time makes this one no larger than at first.

use abi::DomId;
use abi::xenolith::{DomOp, Event, cause};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// How a death was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// At once.
    Restarted,
    /// After a wait.
    BackOff,
    /// Not any more.
    GaveUp,
    /// By policy or order.
    Left,
    /// By policy.
    Destroyed,
}

impl Action {
    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::BackOff => "back-off",
            Self::GaveUp => "gave-up",
            Self::Left => "left",
            Self::Destroyed => "destroyed",
        }
    }
}

/// Where the time of a restart went, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// vCPUs stopped.
    pub stop_us: u64,
    /// Device silenced and reset.
    pub device_us: u64,
    /// Grants and ports taken back.
    pub unbind_us: u64,
    /// Image restored.
    pub image_us: u64,
    /// vCPU made ready.
    pub enter_us: u64,
}

impl From<&DomOp> for Phases {
    fn from(op: &DomOp) -> Self {
        Self {
            stop_us: op.stop_ns / 1000,
            device_us: op.device_ns / 1000,
            unbind_us: op.unbind_ns / 1000,
            image_us: op.image_ns / 1000,
            enter_us: op.enter_ns / 1000,
        }
    }
}

/// What an event says beyond its cause, for people: the text where it belongs to the cause, and the numbers that the cause defines.
#[must_use]
pub fn detail(event: &Event) -> String {
    let text = event.text.split(|&b| b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    // The text of other causes is only the last line the domain happened to write. A panic's begins with the word that the
    // cause says already.
    let text = match event.cause {
        cause::CRASH => {
            text.strip_prefix(cause::name(event.cause)).map_or(&*text, |rest| rest.trim_start_matches(": "))
        }
        _ => "",
    };
    let [rip, a, b, _] = event.info;
    let numbers = match event.cause {
        cause::ADMIN => return String::from("by order"),
        cause::CRASH | cause::WATCHDOG | cause::HALT => format!("at {rip:#x}"),
        cause::TRIPLE_FAULT => format!("at {rip:#x}, cr2 {a:#x}"),
        cause::NPT_FAULT => format!("at {rip:#x}, address {a:#x}, code {b:#x}"),
        cause::PORT_IO => format!("at {rip:#x}, {} port {a:#x}", if b == 1 { "write to" } else { "read of" }),
        cause::MSR => format!("at {rip:#x}, msr {a:#x}"),
        // `rip` is the first of `info`: here bus, device and function.
        cause::IOMMU_FAULT => {
            let (bus, device, function) = (rip >> 8 & 0xff, rip >> 3 & 0x1f, rip & 7);
            let place = if a == cause::UNKNOWN_ADDRESS {
                String::from("an address the IOMMU does not tell")
            } else {
                format!("address {a:#x}, flags {b:#x}")
            };
            format!("device {bus:02x}:{device:02x}.{function} at {place}")
        }
        cause::BAD_EXIT => format!("at {rip:#x}, exit {a:#x}"),
        cause::IRQ_STORM => format!("pirq {rip}"),
        _ => String::new(),
    };
    match (text.is_empty(), numbers.is_empty()) {
        (true, _) => numbers,
        (false, true) => String::from(text),
        (false, false) => format!("{text} ({numbers})"),
    }
}

/// A domain's name, kept inline.
pub type Name = heapless::String<{ abi::xenolith::NAME_LEN }>;
/// A detail, kept inline.
pub type Detail = heapless::String<192>;

/// As much of a text as fits.
#[must_use]
pub fn bounded<const N: usize>(text: &str) -> heapless::String<N> {
    let mut kept = heapless::String::new();
    for c in text.chars() {
        if kept.push(c).is_err() {
            break;
        }
    }
    kept
}

/// One death and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Who.
    pub domid: DomId,
    /// By name.
    pub name: Name,
    /// When it stopped, ns of system time.
    pub time_ns: u64,
    /// `abi::xenolith::cause::name`.
    pub cause: &'static str,
    /// For people.
    pub detail: Detail,
    /// Asked for.
    pub ordered: bool,
    /// The answer.
    pub action: Action,
    /// Stop → entered again; `None` while it is not.
    pub outage_us: Option<u64>,
    /// Stop → the new instance reported that it serves.
    pub serving_us: Option<u64>,
    /// Of the restart.
    pub phases: Option<Phases>,
}

impl Death {
    /// One line of `/xenolith/history`.
    #[must_use]
    pub fn line(&self) -> String {
        let outage = self.outage_us.map_or(String::from("-"), |us| format!("{us}"));
        let Self { time_ns, name, cause, .. } = self;
        format!("{} {name} {cause} {} {outage} {}", time_ns / 1000, self.action.name(), self.detail)
    }
}

/// The list.
#[derive(Debug)]
pub struct History {
    deaths: VecDeque<Death>,
    total: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { deaths: VecDeque::with_capacity(Self::MAX), total: 0 }
    }
}

impl History {
    /// Deaths kept.
    pub const MAX: usize = 64;

    /// Notes a death.
    pub fn push(&mut self, death: Death) {
        self.deaths.truncate(Self::MAX.saturating_sub(1));
        self.deaths.push_front(death);
        self.total = self.total.saturating_add(1);
    }

    /// The last death of a domain.
    pub fn last_mut(&mut self, domid: DomId) -> Option<&mut Death> {
        self.deaths.iter_mut().find(|d| d.domid == domid)
    }

    /// The last death of a domain.
    #[must_use]
    pub fn last(&self, domid: DomId) -> Option<&Death> {
        self.deaths.iter().find(|d| d.domid == domid)
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Death> {
        self.deaths.iter()
    }

    /// Deaths since boot, also those no longer kept.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The value of `/xenolith/history`: a line for each of the last `max` deaths, newest first.
    #[must_use]
    pub fn text(&self, max: usize) -> String {
        let mut text = String::new();
        for death in self.deaths.iter().take(max) {
            text.push_str(&death.line());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(n: u64) -> Death {
        Death {
            domid: DomId((n % 3) as u16),
            name: bounded("netback"),
            time_ns: n * 1000,
            cause: "panic",
            detail: bounded("at x"),
            ordered: false,
            action: Action::Restarted,
            outage_us: Some(7),
            serving_us: None,
            phases: None,
        }
    }

    #[test]
    fn details_name_the_offending_thing() {
        let dma = Event { cause: cause::IOMMU_FAULT, info: [3 << 3, 0xdead_0000, 0x10, 0], ..Event::default() };
        assert_eq!(detail(&dma), "device 00:03.0 at address 0xdead0000, flags 0x10");
        let untold = Event { info: [3 << 3, cause::UNKNOWN_ADDRESS, 0, 0], ..dma };
        assert_eq!(detail(&untold), "device 00:03.0 at an address the IOMMU does not tell");
        let mut port = Event { cause: cause::PORT_IO, info: [0x1000, 0x80, 1, 0], ..Event::default() };
        assert_eq!(detail(&port), "at 0x1000, write to port 0x80");
        port.text[..9].copy_from_slice(b"panic: hm");
        assert_eq!(detail(&port), "at 0x1000, write to port 0x80");
        port.cause = cause::CRASH;
        assert_eq!(detail(&port), "hm (at 0x1000)");
        assert_eq!(detail(&Event { cause: cause::ADMIN, ..Event::default() }), "by order");
    }

    #[test]
    fn it_keeps_the_newest() {
        let mut h = History::default();
        (0..1000).for_each(|n| h.push(death(n)));
        assert_eq!((h.iter().count(), h.total()), (History::MAX, 1000));
        assert_eq!(h.last(DomId(0)).unwrap().time_ns, 999_000);
        assert_eq!(h.last_mut(DomId(1)).unwrap().time_ns, 997_000);
        assert_eq!(h.text(2), "999 netback panic restarted 7 at x\n998 netback panic restarted 7 at x\n");
        assert_eq!(h.deaths.capacity(), History::default().deaths.capacity());
        assert_eq!(bounded::<4>("abcéf"), "abc");
    }
}
