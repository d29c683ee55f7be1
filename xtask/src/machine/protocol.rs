//! The objects of `docs/control-protocol.md`, as far as reports and tables use them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// DOMAIN.
#[derive(Clone, Debug, Deserialize)]
pub struct Domain {
    /// Number.
    pub id: u16,
    /// Name.
    pub name: String,
    /// control, driver or guest.
    pub kind: String,
    /// See the protocol.
    pub state: String,
    /// Restarts in place.
    pub restarts: u64,
    /// Of the last stop.
    pub last_cause: String,
    /// What it said of it.
    #[serde(default)]
    pub last_detail: Option<String>,
    /// stop → entered again.
    pub last_outage_us: Option<u64>,
    /// stop → serving.
    pub last_serving_us: Option<u64>,
    /// Memory it has.
    pub memory_kib: u64,
    /// Why it does not run.
    #[serde(default)]
    pub why: Option<String>,
    /// What it was asked to do and has not done yet.
    #[serde(default)]
    pub order: Option<Order>,
}

/// What a guest was asked to do.
#[derive(Clone, Debug, Deserialize)]
pub struct Order {
    /// `poweroff` or `reboot`.
    pub what: String,
    /// System time.
    pub since_us: u64,
    /// It said that it heard.
    pub acknowledged: bool,
}

impl Order {
    /// For tables.
    pub fn told(&self) -> String {
        let heard = if self.acknowledged { "and has heard" } else { "but has not heard yet" };
        format!("was asked at {:.1} s to {}, {heard}", self.since_us as f64 / 1e6, self.what)
    }
}

/// SYSTEM.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct System {
    /// CPUs running.
    pub cpus: u32,
    /// Memory of the machine.
    pub total_kib: u64,
    /// Memory nobody has.
    pub free_kib: u64,
    /// Heap of the hypervisor in use.
    pub hypervisor_heap_bytes: u64,
    /// Entry of the first domain.
    pub boot_us: u64,
    /// Now.
    pub time_us: u64,
    /// Heap of control in use.
    #[serde(default)]
    pub control_heap_bytes: u64,
    /// Nodes of the store.
    #[serde(default)]
    pub store_nodes: u64,
    /// Bytes of them.
    #[serde(default)]
    pub store_bytes: u64,
}

/// STATS.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stats {
    /// Number.
    pub id: u16,
    /// Name.
    pub name: String,
    /// Restarts in place.
    pub restarts: u64,
    /// Memory it has.
    pub memory_kib: u64,
    /// Most it ever had, with tables.
    pub peak_kib: u64,
    /// CPU time.
    pub cpu_us: u64,
    /// World switches into it.
    pub world_switches: u64,
    /// Hypercalls it made.
    pub hypercalls: u64,
    /// Events it got.
    pub events: u64,
    /// Grant copies done for it.
    pub grant_copies: u64,
    /// Bytes of them.
    pub grant_copy_bytes: u64,
    /// Mappings it holds.
    pub grant_maps: u64,
    /// What it publishes itself.
    #[serde(default)]
    pub published: BTreeMap<String, serde_json::Value>,
}

/// The reply to `stats`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AllStats {
    /// The machine.
    pub system: System,
    /// Its domains.
    pub domains: Vec<Stats>,
}

/// PHASES.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Phases {
    /// vCPUs stopped.
    pub stop_us: u64,
    /// Device blocked and reset.
    pub device_us: u64,
    /// Mappings taken back, ports unbound.
    pub unbind_us: u64,
    /// Image restored.
    pub image_us: u64,
    /// Entered.
    pub enter_us: u64,
}

/// DEATH.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Death {
    /// Number.
    pub id: u16,
    /// Name.
    pub dom: String,
    /// When, in the hypervisor's time.
    pub time_us: u64,
    /// Why.
    pub cause: String,
    /// What was said of it.
    #[serde(default)]
    pub detail: Option<String>,
    /// It was asked for.
    #[serde(default)]
    pub ordered: bool,
    /// What the supervisor did.
    pub action: String,
    /// stop → entered again.
    pub outage_us: Option<u64>,
    /// stop → serving.
    pub serving_us: Option<u64>,
    /// Where the time went.
    pub phases: Option<Phases>,
}
