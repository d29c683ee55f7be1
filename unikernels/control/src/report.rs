//! What the control socket and xenstore tell about domains: from the hypervisor's numbers and the supervisor's records to JSON
//! objects (`docs/control-protocol.md`) and status nodes (`/xenolith/domain/N/…`).

use crate::history::{Death, Phases};
use crate::json::Object;
use crate::store::Usage;
use crate::supervisor::Supervised;
use abi::xenolith::{DomInfo, Info, cause};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Text of a NUL-padded name.
#[must_use]
pub fn name_text(name: &[u8]) -> String {
    let text = name.split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// What a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This one.
    Control,
    /// Owns devices.
    Driver,
    /// Everything else.
    Guest,
}

impl Kind {
    /// From the text of `/xenolith/domain/N/kind`, as the manifest's compiler wrote it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        match text {
            b"control" => Self::Control,
            b"driver" => Self::Driver,
            _ => Self::Guest,
        }
    }
    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Driver => "driver",
            Self::Guest => "guest",
        }
    }
}

/// All that is known of a domain at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The hypervisor's.
    pub info: &'a DomInfo,
    /// What it is.
    pub kind: Kind,
    /// The supervisor's; none for the control domain.
    pub supervised: Option<&'a Supervised>,
    /// Its last death.
    pub last: Option<&'a Death>,
}

const KIB_PER_PAGE: u64 = abi::PAGE_SIZE as u64 / 1024;

impl Snapshot<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        name_text(&self.info.name)
    }
    /// Its state in one word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let hypervisor = abi::xenolith::state::name(self.info.state);
        self.supervised.map_or(hypervisor, |s| s.state_name(self.info.state))
    }
    fn last_detail(&self) -> &str {
        self.last.map_or("", |d| d.detail.as_str())
    }
    fn why(&self) -> &str {
        self.supervised.map_or("", |s| s.why.as_str())
    }

    fn head(&self, o: &mut Object) {
        let info = self.info;
        o.number("id", info.domid.0).text("name", &self.name());
    }

    fn memory(&self, o: &mut Object) {
        let info = self.info;
        o.number("memory_kib", info.frames.saturating_mul(KIB_PER_PAGE));
        o.number("peak_kib", info.peak_frames.saturating_mul(KIB_PER_PAGE));
    }

    /// The object DOMAIN.
    pub fn list(&self, o: &mut Object) {
        let info = self.info;
        self.head(o);
        o.text("kind", self.kind.name()).text("state", self.state()).number("restarts", info.restarts);
        o.text("last_cause", cause::name(info.last_cause)).text("last_detail", self.last_detail());
        o.optional("last_outage_us", self.last.and_then(|d| d.outage_us));
        o.optional("last_serving_us", self.last.and_then(|d| d.serving_us));
        self.memory(o);
        o.text("on_failure", self.supervised.map_or("stop", |s| s.policy.on_failure.name())).text("why", self.why());
        match self.supervised.and_then(|s| s.order) {
            Some(order) => o.object("order", |o| {
                o.text("what", order.name()).number("since_us", order.since_ns / 1000);
                o.flag("acknowledged", order.acknowledged);
            }),
            None => o.raw("order", "null"),
        };
    }

    /// The object STATS, but for what the domain publishes.
    pub fn stats(&self, o: &mut Object, usage: Usage, watches: usize) {
        let info = self.info;
        self.head(o);
        o.text("state", self.state()).number("restarts", info.restarts);
        self.memory(o);
        o.number("cpu_us", info.cpu_ns / 1000).number("world_switches", info.world_switches);
        o.number("hypercalls", info.hypercalls).number("events", info.events);
        o.number("grant_copies", info.grant_copies).number("grant_copy_bytes", info.grant_copy_bytes);
        o.number("grant_maps", info.grant_maps);
        o.number("store_nodes", usage.nodes as u64).number("store_bytes", usage.bytes as u64);
        o.number("watches", watches as u64);
    }

    /// Names and values of the nodes below `/xenolith/domain/N`.
    #[must_use]
    pub fn nodes(&self) -> Vec<(&'static str, String)> {
        let optional = |us: Option<u64>| us.map_or_else(String::new, |us| format!("{us}"));
        alloc::vec![
            ("name", self.name()),
            ("kind", String::from(self.kind.name())),
            ("state", String::from(self.state())),
            ("why", String::from(self.why())),
            ("restarts", format!("{}", self.info.restarts)),
            ("last-cause", String::from(cause::name(self.info.last_cause))),
            ("last-detail", String::from(self.last_detail())),
            ("last-outage-us", optional(self.last.and_then(|d| d.outage_us))),
            ("last-serving-us", optional(self.last.and_then(|d| d.serving_us))),
            ("memory-kib", format!("{}", self.info.frames.saturating_mul(KIB_PER_PAGE))),
        ]
    }
}

/// The object SYSTEM, but for what is the control domain's own.
pub fn system(info: &Info, now_ns: u64, o: &mut Object) {
    o.number("cpus", info.cpus).number("tsc_khz", info.tsc_khz);
    o.number("total_kib", info.total_frames.saturating_mul(KIB_PER_PAGE));
    o.number("free_kib", info.free_frames.saturating_mul(KIB_PER_PAGE));
    o.number("hypervisor_heap_bytes", info.heap_used_bytes);
    o.number("boot_us", info.boot_ns / 1000).number("time_us", now_ns / 1000);
}

/// The object PHASES.
pub fn phases(phases: &Phases, o: &mut Object) {
    let Phases { stop_us, device_us, unbind_us, image_us, enter_us } = *phases;
    o.number("stop_us", stop_us).number("device_us", device_us).number("unbind_us", unbind_us);
    o.number("image_us", image_us).number("enter_us", enter_us);
}

/// The object DEATH.
pub fn death(death: &Death, o: &mut Object) {
    o.number("id", death.domid.0).text("dom", &death.name).number("time_us", death.time_ns / 1000);
    o.text("cause", death.cause).text("detail", &death.detail).flag("ordered", death.ordered);
    o.text("action", death.action.name());
    o.optional("outage_us", death.outage_us).optional("serving_us", death.serving_us);
    match &death.phases {
        Some(p) => o.object("phases", |o| phases(p, o)),
        None => o.raw("phases", "null"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, bounded};
    use crate::json::Writer;
    use crate::supervisor::{Policy, Supervisor};
    use abi::DomId;

    #[test]
    fn a_domain_is_told_as_documented() {
        let mut info =
            DomInfo { domid: DomId(2), restarts: 3, last_cause: cause::CRASH, frames: 1024, ..DomInfo::default() };
        info.name[..7].copy_from_slice(b"netback");
        let mut supervisor = Supervisor::default();
        supervisor.add(DomId(2), Policy::default(), 0);
        let last = Death {
            domid: DomId(2),
            name: bounded("netback"),
            time_ns: 5_000,
            cause: "panic",
            detail: bounded("at \"x\""),
            ordered: true,
            action: Action::Restarted,
            outage_us: Some(2100),
            serving_us: None,
            phases: Some(Phases { stop_us: 1, ..Phases::default() }),
        };
        let s = Snapshot { info: &info, kind: Kind::Driver, supervised: supervisor.get(DomId(2)), last: Some(&last) };
        let text = Writer::object(|o| s.list(o));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["memory_kib"], 4096);
        assert_eq!((&json["kind"], &json["state"]), (&"driver".into(), &"running".into()));
        assert_eq!((&json["last_outage_us"], &json["last_serving_us"]), (&2100.into(), &serde_json::Value::Null));
        assert_eq!(json["last_detail"], "at \"x\"");
        let json: serde_json::Value = serde_json::from_str(&Writer::object(|o| death(&last, o))).unwrap();
        assert_eq!((&json["phases"]["stop_us"], &json["time_us"]), (&1.into(), &5.into()));
        assert!(s.nodes().contains(&("last-outage-us", "2100".into())));
        assert!(
            serde_json::from_str::<serde_json::Value>(&Writer::object(|o| s.stats(o, Usage::default(), 1))).is_ok()
        );
        assert!(serde_json::from_str::<serde_json::Value>(&Writer::object(|o| system(&Info::default(), 7, o))).is_ok());
    }
}
