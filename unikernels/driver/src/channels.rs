//! Event channels to frontends, the clock and the watchdog: what any backend's `Platform` is made of. Grants differ between backends, so
//! each image adds its own.

use abi::{DomId, Errno, EvtchnPort};
use alloc::vec::Vec;
use libxenrt::event::Event;
use libxenrt::hypercall::Batch;
use libxenrt::watchdog::Watchdog;
use libxenrt::{clock, crash};

/// Events in one multicall.
const BATCH: usize = 16;

/// Ports bound to frontends.
#[derive(Debug, Default)]
pub struct Channels {
    events: Vec<Event>,
    watchdog: Option<Watchdog>,
}

impl Channels {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { events: Vec::new(), watchdog: None }
    }

    /// From now on a step that takes longer than `watchdog` allows ends the domain.
    pub fn watch(&mut self, watchdog: Watchdog) {
        self.watchdog = Some(watchdog);
    }

    /// A step is done.
    pub fn feed(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.feed(clock::now());
        }
    }

    /// All ports bound.
    pub fn ports(&self) -> impl Iterator<Item = EvtchnPort> {
        self.events.iter().map(Event::port)
    }

    /// Binds to `dom`'s port and gives the local one.
    ///
    /// # Errors
    /// The port is not there for this domain.
    pub fn bind(&mut self, dom: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno> {
        let event = Event::bind_interdomain(dom, port)?;
        let local = event.port();
        self.events.push(event);
        Ok(local)
    }

    /// Closes a local port.
    pub fn unbind(&mut self, port: EvtchnPort) {
        // Closed by being dropped.
        self.events.retain(|e| e.port() != port);
    }

    /// Sends events; one multicall where there are several.
    pub fn notify(&self, ports: &[EvtchnPort]) {
        for chunk in ports.chunks(BATCH) {
            let mut batch = Batch::<BATCH>::new();
            for &port in chunk {
                batch.notify(port);
            }
            if let Err(e) = batch.issue() {
                log::warn!("notification refused: {e}");
            }
        }
    }

    /// Microseconds of system time.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }

    /// A step of the backend is done; fault injection may end the domain here. A turn on a machine without time to spare is long;
    /// its steps are not, so each feeds the watchdog.
    pub fn crash_point(&mut self) {
        self.feed();
        crash::point();
    }
}
