//! A domain's life: running, paused, stopped, restarting, destroyed; why it stopped; and the events that tell the control
//! domain.
//!
//! Numbers of states and causes are the ABI's (`abi::xenolith`). The control domain learns of a stop by `VIRQ_DOM_EXC` and
//! fetches the event; the queue holds at most one event per domain, so it is bounded and no stop is ever lost: a newer stop
//! of a domain replaces the older one, which a restart has answered already.

use crate::DomId;
use abi::Errno;
use abi::xenolith::{Event, cause, state};
use alloc::vec::Vec;

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// vCPUs may run.
    Running = state::RUNNING,
    /// Paused by the control domain.
    Paused = state::PAUSED,
    /// Stopped and contained.
    Stopped = state::STOPPED,
    /// Being restarted in place.
    Restarting = state::RESTARTING,
    /// Gone.
    Destroyed = state::DESTROYED,
}

/// An operation that does not fit the state; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongState(pub State);

impl From<WrongState> for Errno {
    fn from(e: WrongState) -> Self {
        match e.0 {
            State::Destroyed => Self::ESRCH,
            State::Restarting => Self::EBUSY,
            State::Running | State::Paused | State::Stopped => Self::EINVAL,
        }
    }
}

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    state: State,
    last_cause: u32,
    restarts: u32,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { state: State::Running, last_cause: cause::NONE, restarts: 0 }
    }
}

impl Lifecycle {
    /// What it does.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }
    /// `abi::xenolith::cause` of the last stop.
    #[must_use]
    pub const fn last_cause(&self) -> u32 {
        self.last_cause
    }
    /// Times restarted in place; the generation.
    #[must_use]
    pub const fn restarts(&self) -> u32 {
        self.restarts
    }
    /// Whether its vCPUs may run.
    #[must_use]
    pub fn may_run(&self) -> bool {
        self.state == State::Running
    }

    /// It stops for `cause`. Says whether it does: only the first of several causes counts (two vCPUs may fault at once).
    #[must_use]
    pub fn stop(&mut self, cause: u32) -> bool {
        let stops = matches!(self.state, State::Running | State::Paused);
        if stops {
            self.state = State::Stopped;
            self.last_cause = cause;
        }
        stops
    }

    /// # Errors
    /// Unless it runs.
    pub fn pause(&mut self) -> Result<(), WrongState> {
        self.step(State::Running, State::Paused)
    }
    /// # Errors
    /// Unless it is paused.
    pub fn unpause(&mut self) -> Result<(), WrongState> {
        self.step(State::Paused, State::Running)
    }

    /// A restart begins, from any state that is not the end. Of a domain that had not stopped the cause is the administrator.
    ///
    /// # Errors
    /// Of a destroyed domain, or while it restarts already.
    pub fn begin_restart(&mut self) -> Result<(), WrongState> {
        match self.state {
            State::Destroyed | State::Restarting => return Err(WrongState(self.state)),
            State::Running | State::Paused => self.last_cause = cause::ADMIN,
            State::Stopped => {}
        }
        self.state = State::Restarting;
        Ok(())
    }

    /// The new instance is ready to run.
    ///
    /// # Errors
    /// Unless it restarts.
    pub fn end_restart(&mut self) -> Result<(), WrongState> {
        self.step(State::Restarting, State::Running)?;
        self.restarts = self.restarts.saturating_add(1);
        Ok(())
    }

    /// A restart failed (its image no longer fits): it stays stopped.
    ///
    /// # Errors
    /// Unless it restarts.
    pub fn fail_restart(&mut self) -> Result<(), WrongState> {
        self.step(State::Restarting, State::Stopped)
    }

    /// The end.
    pub fn destroy(&mut self) {
        self.state = State::Destroyed;
    }

    fn step(&mut self, from: State, to: State) -> Result<(), WrongState> {
        if self.state != from {
            return Err(WrongState(self.state));
        }
        self.state = to;
        Ok(())
    }
}

/// Events for the control domain, oldest first, one per domain at most.
#[derive(Debug, Default)]
pub struct EventQueue {
    events: Vec<Event>,
}

impl EventQueue {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self { events: Vec::new() }
    }

    /// Makes room for the events of `domains`.
    pub fn reserve(&mut self, domains: usize) {
        self.events.reserve(domains);
    }

    /// Adds an event; an unfetched one of the same domain gives way, and the domain keeps its place.
    pub fn push(&mut self, event: Event) {
        match self.events.iter_mut().find(|e| e.domid == event.domid) {
            Some(old) => *old = event,
            None => self.events.push(event),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Event> {
        if self.events.is_empty() { None } else { Some(self.events.remove(0)) }
    }

    /// Forgets a domain's event.
    pub fn forget(&mut self, dom: DomId) {
        self.events.retain(|e| e.domid != dom);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stop_is_counted_once_and_answered_by_a_restart() {
        let mut l = Lifecycle::default();
        assert!(l.stop(cause::NPT_FAULT));
        assert!(!l.stop(cause::WATCHDOG));
        assert_eq!(l.pause(), Err(WrongState(State::Stopped)));
        assert_eq!(l.begin_restart(), Ok(()));
        assert_eq!(l.begin_restart().map_err(Errno::from), Err(Errno::EBUSY));
        assert!(!l.stop(cause::CRASH) && !l.may_run());
        assert_eq!(l.end_restart(), Ok(()));
        assert_eq!((l.may_run(), l.last_cause(), l.restarts()), (true, cause::NPT_FAULT, 1));
        assert_eq!(l.end_restart(), Err(WrongState(State::Running)));
    }

    #[test]
    fn a_restart_of_a_paused_domain_runs_and_names_the_administrator() {
        let mut l = Lifecycle::default();
        assert_eq!(l.pause(), Ok(()));
        assert_eq!(l.begin_restart(), Ok(()));
        assert_eq!(l.end_restart(), Ok(()));
        assert_eq!((l.state(), l.last_cause()), (State::Running, cause::ADMIN));
        l.destroy();
        assert_eq!(l.begin_restart().map_err(Errno::from), Err(Errno::ESRCH));
        assert!(!l.stop(cause::CRASH));
    }

    #[test]
    fn a_failed_restart_leaves_the_domain_stopped_with_its_first_cause() {
        let mut l = Lifecycle::default();
        assert!(l.stop(cause::CRASH));
        assert_eq!(l.begin_restart(), Ok(()));
        assert_eq!(l.fail_restart(), Ok(()));
        assert_eq!((l.state(), l.last_cause(), l.restarts()), (State::Stopped, cause::CRASH, 0));
    }

    proptest! {
        #[test]
        fn the_queue_never_loses_a_domains_last_stop(ops in prop::collection::vec((0u16..4, 1u32..14, any::<bool>()), 1..60)) {
            let (mut q, mut open) = (EventQueue::new(), std::collections::BTreeMap::new());
            for (dom, cause, fetch) in ops {
                q.push(Event { domid: DomId(dom), cause, ..Event::default() });
                open.insert(dom, cause);
                prop_assert!(q.events.len() <= 4);
                if fetch {
                    let e = q.pop().unwrap();
                    prop_assert_eq!(open.remove(&e.domid.0), Some(e.cause));
                }
            }
            while let Some(e) = q.pop() {
                prop_assert_eq!(open.remove(&e.domid.0), Some(e.cause));
            }
            prop_assert!(open.is_empty());
        }
    }
}
