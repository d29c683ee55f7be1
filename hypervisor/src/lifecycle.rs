//! Stopping and restarting domains (DESIGN §4): who stopped, why, what control is told, and the way back to a running domain.

use crate::domain::{Domain, pause};
use crate::time;
use abi::xenolith::{self, Event};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::SeqCst;
use spin::Mutex;

/// Why a domain stops; the numbers go to `xenolith::Event` as `abi::xenolith::cause` lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// `abi::xenolith::cause`.
    pub cause: u32,
    /// As the cause says.
    pub info: [u64; 4],
}

/// Events kept for the control domain; beyond this the oldest go.
const EVENTS_MAX: usize = 64;
static EVENTS: Mutex<VecDeque<Event>> = Mutex::new(VecDeque::new());

/// Stops `domain`: contained at once, control is told. Does nothing to a domain that is already stopped.
pub fn stop(domain: &Arc<Domain>, cause: Cause) {
    if domain.paused.fetch_or(pause::STOPPED, SeqCst) & pause::STOPPED != 0 {
        return;
    }
    domain.state.store(xenolith::state::STOPPED, SeqCst);
    domain.last_cause.store(cause.cause, SeqCst);
    log::warn!(
        "{} (domain {}) stopped: {} {:#x?}",
        domain.name,
        domain.id,
        xenolith::cause::name(cause.cause),
        cause.info
    );
    let mut event =
        Event { domid: domain.id, cause: cause.cause, time_ns: time::now_ns(), info: cause.info, ..Event::default() };
    let line = domain.console.lock().last_line();
    for (to, from) in event.text.iter_mut().zip(&line) {
        *to = *from;
    }
    let mut events = EVENTS.lock();
    if events.len() == EVENTS_MAX {
        events.pop_front();
    }
    events.push_back(event);
}

/// The oldest event not yet fetched.
pub fn next_event() -> Option<Event> {
    EVENTS.lock().pop_front()
}
