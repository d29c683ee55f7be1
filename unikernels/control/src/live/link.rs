//! What binds this domain to one other: its store page, its store port, its connection.

use abi::{GrantRef, hvm};
use alloc::string::String;
use control::connection::Connection;
use control::report::Kind;
use control::store::Store;
use libxenrt::event::Event;
use libxenrt::grant::{self, Access, GrantError};
use libxenrt::{DomId, Errno, EvtchnPort, SharedPage, hypercall, log};

/// The reserved grant through which every domain offers its store page (`docs/architecture.md`, "Boot").
const STORE_GRANT: GrantRef = GrantRef(1);

/// The page and port of one instance of a domain.
struct Attached {
    page: SharedPage,
    event: Event,
    connection: Connection,
}

/// One domain.
pub struct Link {
    pub domid: DomId,
    pub name: String,
    pub kind: Kind,
    attached: Option<Attached>,
    again: bool,
}

/// Why a domain's store could not be attached.
#[derive(Debug)]
pub enum AttachError {
    Param(Errno),
    NoPort,
    Map(GrantError),
    Bind(Errno),
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Param(e) => write!(f, "HVM_PARAM_STORE_EVTCHN: {e}"),
            Self::NoPort => f.write_str("it has no store port"),
            Self::Map(e) => write!(f, "grant {STORE_GRANT}: {e:?}"),
            Self::Bind(e) => write!(f, "binding its store port: {e}"),
        }
    }
}

impl Link {
    pub const fn new(domid: DomId, name: String, kind: Kind) -> Self {
        Self { domid, name, kind, attached: None, again: false }
    }

    pub const fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    pub fn port(&self) -> Option<EvtchnPort> {
        self.attached.as_ref().map(|a| a.event.port())
    }

    /// Lets go of the instance that is gone; its session ends, its nodes stay.
    pub fn detach(&mut self, store: &mut Store) {
        self.attached = None;
        self.again = false;
        store.reset_session(self.domid);
    }

    /// Maps the page and binds the port of the instance that has just been made, after letting go of an older one.
    ///
    /// # Errors
    /// See [`AttachError`]; the domain is then without a store.
    pub fn attach(&mut self, store: &mut Store) -> Result<(), AttachError> {
        self.detach(store);
        let mut param = hvm::HvmParam { domid: self.domid, pad: 0, index: hvm::PARAM_STORE_EVTCHN, value: 0 };
        hypercall::hvm_get_param(&mut param).map_err(AttachError::Param)?;
        let port = u32::try_from(param.value).ok().filter(|&p| p != 0).ok_or(AttachError::NoPort)?;
        let page = grant::map(self.domid, STORE_GRANT, Access::ReadWrite).map_err(AttachError::Map)?;
        let event = Event::bind_interdomain(self.domid, EvtchnPort(port)).map_err(AttachError::Bind)?;
        let connection = Connection::attach(self.domid, &page, store);
        self.attached = Some(Attached { page, event, connection });
        // What the instance wrote before it could notify us is served now.
        self.again = true;
        Ok(())
    }

    /// Whether a turn would do something.
    pub fn wants_turn(&self, store: &Store) -> bool {
        self.attached.as_ref().is_some_and(|a| {
            let events = store.has_events(self.domid) && !a.connection.is_blocked();
            self.again || a.event.is_pending() || events
        })
    }

    /// One bounded turn, if there is a reason for one; answers whether another is wanted at once.
    pub fn turn(&mut self, store: &mut Store) -> bool {
        if !self.wants_turn(store) {
            return false;
        }
        let Some(Attached { page, event, connection }) = &mut self.attached else { return false };
        event.take_pending();
        let turn = connection.turn(page, store);
        self.again = turn.again;
        if turn.notify
            && let Err(e) = event.notify()
        {
            // It died in this moment; the event that says so is on its way.
            log::debug!("{}: notifying failed: {e}", self.name);
        }
        if let Some(fault) = turn.fault {
            log::warn!("{}: store connection shut: {fault}", self.name);
        }
        self.again
    }
}
