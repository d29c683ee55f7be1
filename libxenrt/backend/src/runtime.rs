//! The part of a domain that every backend needs, whatever it does with grants.

use abi::{DomId, Errno, EvtchnPort};

/// Events, time and crash points. All calls return at once.
pub trait Runtime {
    /// Binds to `dom`'s port (`EVTCHNOP_bind_interdomain`); events of the local port wake the domain.
    ///
    /// # Errors
    /// The port is not there for this domain.
    fn bind(&mut self, dom: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno>;

    /// Closes a local port.
    fn unbind(&mut self, port: EvtchnPort);

    /// Sends events; one multicall where there are several.
    fn notify(&mut self, ports: &[EvtchnPort]);

    /// Microseconds since some start; never goes back.
    fn now_us(&self) -> u64;

    /// A step of the backend is done; fault injection may end the domain here.
    fn crash_point(&mut self) {}
}
