//! Who is restarted, when, and when to give up. Events and times in, decisions out; nothing is done here.
//!
//! The first failures of a domain are answered by a restart at once, because the outage is what counts; later ones wait,
//! twice as long each time; more than `max_restarts` failures within `window` of *running* time end it. Running time is
//! what counts, because waiting must not make a domain that dies at every start look stable. Deaths that were ordered (an
//! administrator's, or by a domain with the right) are restarted at once and do not count. A domain that reboots by itself is
//! restarted whatever its policy says of failures, but counts as one that failed: a loop of reboots is held back and ended like
//! one of crashes.

use crate::history::detail;
use abi::DomId;
use abi::xenolith::{Event, cause, state};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;

/// What becomes of a failed domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It is restarted.
    Restart,
    /// It stays as it is, with its memory.
    Stop,
    /// Its memory is taken and its nodes are removed.
    Destroy,
}

impl OnFailure {
    const ALL: [Self; 3] = [Self::Restart, Self::Stop, Self::Destroy];

    /// As manifests and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
        }
    }
}

/// What to do when a domain fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What becomes of a failed domain.
    pub on_failure: OnFailure,
    /// The first wait, once restarts at once have not helped, ns.
    pub back_off_ns: u64,
    /// Failures within the window that are still answered.
    pub max_restarts: u32,
    /// ns of running time.
    pub window_ns: u64,
}

/// Failures within the window that are answered by a restart at once.
pub const IMMEDIATE: u32 = 3;
/// No wait is longer, ns.
pub const MAX_BACK_OFF_NS: u64 = 10_000_000_000;
/// Upper bound of [`Policy::max_restarts`]: the failures remembered per domain.
pub const MAX_RESTARTS: u32 = 1000;
const MS: u64 = 1_000_000;
/// Why a killed domain does not run.
const KILLED: &str = "killed by order";

impl Default for Policy {
    /// Restart, 100 ms doubling, at most 10 within a minute of running.
    fn default() -> Self {
        Self { on_failure: OnFailure::Restart, back_off_ns: 100 * MS, max_restarts: 10, window_ns: 60_000 * MS }
    }
}

/// Why a policy node was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// Not a key of `/xenolith/policy/N`.
    UnknownKey,
    /// Not a value of that key.
    BadValue,
}

impl Policy {
    /// Sets one node of `/xenolith/policy/N`.
    ///
    /// # Errors
    /// [`PolicyError`]; nothing changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), PolicyError> {
        let number = || value.parse::<u32>().map_err(|_| PolicyError::BadValue);
        match key {
            "on-failure" => {
                let known = OnFailure::ALL.into_iter().find(|it| it.name() == value);
                self.on_failure = known.ok_or(PolicyError::BadValue)?;
            }
            "back-off-ms" => self.back_off_ns = u64::from(number()?).saturating_mul(MS),
            "max-restarts" => self.max_restarts = number()?.min(MAX_RESTARTS),
            "window-ms" => self.window_ns = u64::from(number()?).saturating_mul(MS),
            _ => return Err(PolicyError::UnknownKey),
        }
        Ok(())
    }
}

/// What the main loop is to do about an event, at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// DOM_RESTART now.
    Restart,
    /// Restart when [`Supervisor::due`] says so.
    BackOff {
        /// ns from the event.
        delay_ns: u64,
        /// Failures within the window.
        failures: u32,
    },
    /// No more restarts.
    GiveUp {
        /// Failures within the window.
        failures: u32,
    },
    /// Leave it as it is: policy, a clean shutdown, or an order to kill.
    Leave,
    /// Destroy it: policy.
    Destroy,
    /// The event is older than the instance that runs now.
    Stale,
}

/// What the supervisor takes a domain for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It runs since this time.
    Running {
        /// System time, ns.
        since_ns: u64,
    },
    /// Paused by an administrator.
    Paused {
        /// When it was started, moved on by the pauses so far.
        since_ns: u64,
        /// When it was paused.
        paused_ns: u64,
    },
    /// Waits for its next start.
    BackOff {
        /// System time, ns.
        until_ns: u64,
    },
    /// Not restarted: policy, shutdown, kill.
    Stopped,
    /// Not restarted: it failed too often.
    GaveUp,
    /// It has no memory: not created yet, or destroyed.
    Absent,
}

/// What a guest was asked to do, and has not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// To reboot; else to switch itself off.
    pub reboot: bool,
    /// System time, ns.
    pub since_ns: u64,
    /// It has said that it heard.
    pub acknowledged: bool,
}

impl Order {
    /// The value of `control/shutdown`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        if self.reboot { "reboot" } else { "poweroff" }
    }
}

/// One domain.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// From the manifest.
    pub policy: Policy,
    /// Now.
    pub standing: Standing,
    /// Why it does not run, for people; empty when it does.
    pub why: String,
    /// Running time used by finished instances, ns.
    ran_ns: u64,
    /// Running time at each failure that counts, oldest first; at most `max_restarts + 1`.
    failures: VecDeque<u64>,
    /// The next death was ordered.
    ordered: bool,
    /// The next death is to be left.
    killed: bool,
    /// What it was asked to do.
    pub order: Option<Order>,
}

/// All domains but the control domain.
#[derive(Debug, Default)]
pub struct Supervisor {
    domains: BTreeMap<DomId, Supervised>,
}

/// Cause and detail in one line.
fn what(event: &Event) -> String {
    let (name, text) = (cause::name(event.cause), detail(event));
    if text.is_empty() { String::from(name) } else { format!("{name}: {text}") }
}

impl Supervised {
    fn new(policy: Policy, now_ns: u64) -> Self {
        Self {
            policy,
            standing: Standing::Running { since_ns: now_ns },
            why: String::new(),
            ran_ns: 0,
            failures: VecDeque::new(),
            ordered: false,
            killed: false,
            order: None,
        }
    }

    /// Ends the running time of the instance that stopped at `at_ns`.
    fn account(&mut self, at_ns: u64) {
        let ran = match self.standing {
            Standing::Running { since_ns } => at_ns.saturating_sub(since_ns),
            Standing::Paused { since_ns, paused_ns } => paused_ns.saturating_sub(since_ns),
            _ => 0,
        };
        self.ran_ns = self.ran_ns.saturating_add(ran);
    }

    /// Notes a failure; how many there are within the window, with this one.
    fn note_failure(&mut self) -> u32 {
        let oldest = self.ran_ns.saturating_sub(self.policy.window_ns);
        self.failures.retain(|&at| at >= oldest);
        // One more than the policy allows is enough to know that it is too many.
        if self.failures.len() <= self.policy.max_restarts as usize {
            self.failures.push_back(self.ran_ns);
        }
        u32::try_from(self.failures.len()).unwrap_or(u32::MAX)
    }

    /// Counts a failure and decides. `what` is told to people, and only made where the domain does not run on: a restart waits
    /// for nothing.
    fn after_failure(&mut self, now_ns: u64, what: impl FnOnce() -> String) -> Decision {
        let failures = self.note_failure();
        if failures > self.policy.max_restarts {
            self.standing = Standing::GaveUp;
            self.why = format!("gave up after {failures} failures: {}", what());
            return Decision::GiveUp { failures };
        }
        if failures <= IMMEDIATE {
            return Decision::Restart;
        }
        let doublings = failures.saturating_sub(IMMEDIATE).saturating_sub(1);
        let delay_ns = self.policy.back_off_ns.saturating_mul(1u64 << doublings.min(30)).min(MAX_BACK_OFF_NS);
        self.standing = Standing::BackOff { until_ns: now_ns.saturating_add(delay_ns) };
        self.why = format!("waits {} ms after {failures} failures: {}", delay_ns / MS, what());
        Decision::BackOff { delay_ns, failures }
    }

    /// The state for tables: the supervisor's word where it has one, else the hypervisor's.
    #[must_use]
    pub const fn state_name(&self, hypervisor: u32) -> &'static str {
        match self.standing {
            Standing::BackOff { .. } => "back-off",
            Standing::GaveUp => "gave-up",
            _ => state::name(hypervisor),
        }
    }
}

impl Supervisor {
    /// A domain that has no memory yet.
    pub fn add_absent(&mut self, domid: DomId, policy: Policy) {
        self.add(domid, policy, 0);
        self.on_destroyed(domid, String::from("not created yet (start = false)"));
    }

    /// A domain that runs since `now_ns`.
    pub fn add(&mut self, domid: DomId, policy: Policy, now_ns: u64) {
        self.domains.insert(domid, Supervised::new(policy, now_ns));
    }

    /// A domain's record.
    #[must_use]
    pub fn get(&self, domid: DomId) -> Option<&Supervised> {
        self.domains.get(&domid)
    }

    /// Decides about a stop. The first thing that happens after an event was fetched; `true` if the death was ordered.
    pub fn on_event(&mut self, event: &Event, now_ns: u64) -> (Decision, bool) {
        let Some(domain) = self.domains.get_mut(&event.domid) else { return (Decision::Leave, false) };
        let stale = match domain.standing {
            Standing::Running { since_ns } | Standing::Paused { since_ns, .. } => event.time_ns < since_ns,
            // It was not running: the event tells of a stop that was already answered.
            Standing::BackOff { .. } | Standing::Stopped | Standing::GaveUp | Standing::Absent => true,
        };
        if stale {
            return (Decision::Stale, false);
        }
        domain.account(event.time_ns);
        let ordered = core::mem::take(&mut domain.ordered);
        let killed = core::mem::take(&mut domain.killed);
        let reboot = event.cause == cause::REBOOT;
        let asked = domain.order.take().is_some_and(|order| order.reboot == reboot);
        domain.standing = Standing::Stopped;
        if killed || event.cause == cause::POWEROFF {
            domain.why = if killed { String::from(KILLED) } else { what(event) };
            return (Decision::Leave, ordered || asked);
        }
        match domain.policy.on_failure {
            OnFailure::Restart => {}
            _ if reboot => {}
            OnFailure::Stop | OnFailure::Destroy => {
                domain.why = what(event);
                let destroy = domain.policy.on_failure == OnFailure::Destroy;
                return (if destroy { Decision::Destroy } else { Decision::Leave }, ordered);
            }
        }
        if ordered || (asked && reboot) {
            return (Decision::Restart, true);
        }
        (domain.after_failure(now_ns, || what(event)), false)
    }

    /// The domain was entered again; `began_ns` is when DOM_RESTART was called.
    pub fn on_restarted(&mut self, domid: DomId, began_ns: u64) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.standing = Standing::Running { since_ns: began_ns };
            domain.why.clear();
            // An order was for the instance that is gone.
            (domain.ordered, domain.killed, domain.order) = (false, false, None);
        }
    }

    /// The domain has no memory any more, or none yet; `why` tells people.
    pub fn on_destroyed(&mut self, domid: DomId, why: String) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.standing = Standing::Absent;
            domain.why = why;
            (domain.ordered, domain.killed, domain.order) = (false, false, None);
        }
    }

    /// The domain was asked to reboot or to switch itself off.
    pub fn order_shutdown(&mut self, domid: DomId, reboot: bool, now_ns: u64) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.order = Some(Order { reboot, since_ns: now_ns, acknowledged: false });
        }
    }

    /// It could not be asked.
    pub fn forget_shutdown(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.order = None;
        }
    }

    /// The domain has said that it heard.
    pub fn on_acknowledged(&mut self, domid: DomId) {
        if let Some(order) = self.domains.get_mut(&domid).and_then(|domain| domain.order.as_mut()) {
            order.acknowledged = true;
        }
    }

    /// DOM_RESTART failed: counts as one more failure.
    pub fn on_restart_failed(&mut self, domid: DomId, error: &str, now_ns: u64) -> Decision {
        let Some(domain) = self.domains.get_mut(&domid) else { return Decision::Leave };
        match domain.after_failure(now_ns, || format!("restart failed: {error}")) {
            // Trying again at once would fail at once again.
            Decision::Restart => {
                let delay_ns = domain.policy.back_off_ns.clamp(MS, MAX_BACK_OFF_NS);
                domain.standing = Standing::BackOff { until_ns: now_ns.saturating_add(delay_ns) };
                domain.why = format!("restart failed: {error}");
                Decision::BackOff { delay_ns, failures: u32::try_from(domain.failures.len()).unwrap_or(u32::MAX) }
            }
            other => other,
        }
    }

    /// A domain whose wait is over; it is the caller's to restart.
    #[must_use]
    pub fn due(&self, now_ns: u64) -> Option<DomId> {
        let waits = self
            .domains
            .iter()
            .find(|(_, d)| matches!(d.standing, Standing::BackOff { until_ns } if until_ns <= now_ns));
        waits.map(|(&domid, _)| domid)
    }

    /// When the next wait is over.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let until = |d: &Supervised| match d.standing {
            Standing::BackOff { until_ns } => Some(until_ns),
            _ => None,
        };
        self.domains.values().filter_map(until).min()
    }

    /// The domain was told to crash: its next death does not count.
    pub fn order_crash(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.ordered = true;
        }
    }

    /// The domain will be killed: its next death is left. `false` undoes it (the kill failed). One that waits for its next start
    /// dies no more: its wait is ended here, and the answer is `true`.
    pub fn order_kill(&mut self, domid: DomId, on: bool) -> bool {
        let Some(domain) = self.domains.get_mut(&domid) else { return false };
        let waits = matches!(domain.standing, Standing::BackOff { .. });
        if waits {
            domain.standing = Standing::Stopped;
            domain.why = String::from(KILLED);
        } else {
            (domain.killed, domain.ordered) = (on, on);
        }
        waits
    }

    /// An administrator restarts the domain, whatever its standing: what it did before is forgiven.
    pub fn order_restart(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.failures.clear();
            (domain.ordered, domain.killed) = (false, false);
        }
    }

    /// The domain was paused or goes on.
    pub fn on_paused(&mut self, domid: DomId, paused: bool, now_ns: u64) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        match (&domain.standing, paused) {
            (&Standing::Running { since_ns }, true) => {
                domain.standing = Standing::Paused { since_ns, paused_ns: now_ns };
                domain.why = String::from("paused by order");
            }
            (&Standing::Paused { since_ns, paused_ns }, false) => {
                let pause = now_ns.saturating_sub(paused_ns);
                domain.standing = Standing::Running { since_ns: since_ns.saturating_add(pause) };
                domain.why.clear();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
