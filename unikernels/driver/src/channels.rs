//! Event channels to frontends, the clock and the watchdog: what any backend's `Platform` is made of. Grants differ between backends, so
//! each image adds its own.

use abi::{DomId, Errno, EvtchnPort};
use alloc::vec::Vec;
use backend::Runtime;
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
}

impl Runtime for Channels {
    fn bind(&mut self, dom: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno> {
        let event = Event::bind_interdomain(dom, port)?;
        let local = event.port();
        self.events.push(event);
        Ok(local)
    }

    fn unbind(&mut self, port: EvtchnPort) {
        // Closed by being dropped.
        self.events.retain(|e| e.port() != port);
    }

    fn notify(&mut self, ports: &[EvtchnPort]) {
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

    fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }

    fn crash_point(&mut self) {
        // A turn on a machine without time to spare is long; its steps are not, so each feeds the watchdog.
        self.feed();
        crash::point();
    }
}

/// Makes a type with a field `channels` a [`Runtime`] by them: what `Platform` demands of whoever implements it.
#[macro_export]
macro_rules! runtime_by_channels {
    ($t:ty) => {
        impl $crate::backend::Runtime for $t {
            fn bind(
                &mut self,
                dom: $crate::abi::DomId,
                port: $crate::abi::EvtchnPort,
            ) -> Result<$crate::abi::EvtchnPort, $crate::abi::Errno> {
                self.channels.bind(dom, port)
            }
            fn unbind(&mut self, port: $crate::abi::EvtchnPort) {
                self.channels.unbind(port);
            }
            fn notify(&mut self, ports: &[$crate::abi::EvtchnPort]) {
                self.channels.notify(ports);
            }
            fn now_us(&self) -> u64 {
                self.channels.now_us()
            }
            fn crash_point(&mut self) {
                self.channels.crash_point();
            }
        }
    };
}
