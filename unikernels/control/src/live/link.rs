//! What binds this domain to one other: its store page and port with its connection, and, where the manifest gives it a
//! console ring, that page and port.

use abi::{GrantRef, hvm};
use alloc::string::String;
use control::connection::Connection;
use control::report::Kind;
use control::store::Store;
use control::terminal::Terminal;
use control::throttle::Throttle;
use libxenrt::event::Event;
use libxenrt::grant::{self, Access, GrantError};
use libxenrt::{DomId, Errno, EvtchnPort, SharedPage, clock, hypercall, log};

/// The reserved grant through which every domain offers its store page (`docs/architecture.md`, "Boot").
const STORE_GRANT: GrantRef = GrantRef(1);
/// The same for the console page.
const CONSOLE_GRANT: GrantRef = GrantRef(0);

/// The page and port of one instance of a domain.
struct Attached {
    page: SharedPage,
    event: Event,
    connection: Connection,
    /// Console page and port, for a domain with a console ring.
    console: Option<(SharedPage, Event)>,
}

/// One domain.
pub struct Link {
    pub domid: DomId,
    pub name: String,
    pub kind: Kind,
    attached: Option<Attached>,
    terminal: Option<Terminal>,
    again: bool,
    lines: Throttle,
}

/// A domain's console from number `seq` on: where it has a ring, what came by it and before it; else what it told the hypervisor.
///
/// # Errors
/// The hypervisor's.
pub fn console_bytes(links: &mut [Link], domid: DomId, seq: u64, buffer: &mut [u8]) -> Result<(u64, usize), Errno> {
    match links.iter_mut().find(|l| l.domid == domid).and_then(|l| l.terminal.as_mut()) {
        Some(terminal) => {
            if !terminal.spoke() {
                terminal.follow_log(log_of(domid));
            }
            Ok(terminal.read(seq, buffer))
        }
        None => hypercall::console_read(domid, seq, buffer),
    }
}

/// What a domain told the hypervisor, as [`Terminal::follow_log`] wants it.
fn log_of(domid: DomId) -> impl FnMut(u64, &mut [u8]) -> Option<(u64, usize)> {
    move |seq, buffer| hypercall::console_read(domid, seq, buffer).ok()
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
            Self::Param(e) => write!(f, "the HVM parameter of its port: {e}"),
            Self::NoPort => f.write_str("it has no port"),
            Self::Map(e) => write!(f, "its grant: {e:?}"),
            Self::Bind(e) => write!(f, "binding its port: {e}"),
        }
    }
}

impl Link {
    pub fn new(domid: DomId, name: String, kind: Kind, console: bool) -> Self {
        Self {
            domid,
            name,
            kind,
            attached: None,
            terminal: console.then(Terminal::default),
            again: false,
            lines: Throttle::default(),
        }
    }

    /// Whether a line that the domain provoked may be written now.
    pub fn may_log(&mut self) -> bool {
        self.lines.allows(clock::now().as_ns())
    }

    /// Its console, if it has a ring for it.
    pub const fn terminal(&mut self) -> Option<&mut Terminal> {
        self.again = true;
        self.terminal.as_mut()
    }

    pub const fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    pub fn ports(&self) -> impl Iterator<Item = EvtchnPort> {
        let console = |a: &Attached| a.console.as_ref().map(|(_, event)| event.port());
        self.attached.iter().flat_map(move |a| [Some(a.event.port()), console(a)]).flatten()
    }

    /// Lets go of the instance that is gone; its session ends, its nodes stay.
    pub fn detach(&mut self, store: &mut Store) {
        if let (Some(_), Some(terminal)) = (self.attached.take(), &mut self.terminal) {
            // What the next life says begins behind what this one said.
            terminal.follow_log(log_of(self.domid));
        }
        self.again = false;
        store.reset_session(self.domid);
    }

    /// Maps the page and binds the port of the instance that has just been made, after letting go of an older one.
    ///
    /// # Errors
    /// See [`AttachError`]; the domain is then without a store.
    pub fn attach(&mut self, store: &mut Store) -> Result<(), AttachError> {
        self.detach(store);
        let (page, event) = self.open(hvm::PARAM_STORE_EVTCHN, STORE_GRANT)?;
        let connection = Connection::attach(self.domid, &page, store);
        let console = self.terminal.is_some().then(|| self.open(hvm::PARAM_CONSOLE_EVTCHN, CONSOLE_GRANT));
        // A domain is served without its console rather than not at all.
        let console = console.and_then(|it| it.inspect_err(|e| log::warn!("{}: no console: {e}", self.name)).ok());
        if let Some(terminal) = &mut self.terminal {
            terminal.restarted();
        }
        self.attached = Some(Attached { page, event, connection, console });
        // What the instance wrote before it could notify us is served now.
        self.again = true;
        Ok(())
    }

    /// Maps one of its special pages and binds the port that goes with it.
    fn open(&self, param: u32, grant: GrantRef) -> Result<(SharedPage, Event), AttachError> {
        let mut param = hvm::HvmParam { domid: self.domid, pad: 0, index: param, value: 0 };
        hypercall::hvm_get_param(&mut param).map_err(AttachError::Param)?;
        let port = u32::try_from(param.value).ok().filter(|&p| p != 0).ok_or(AttachError::NoPort)?;
        let page = grant::map(self.domid, grant, Access::ReadWrite).map_err(AttachError::Map)?;
        let event = Event::bind_interdomain(self.domid, EvtchnPort(port)).map_err(AttachError::Bind)?;
        Ok((page, event))
    }

    /// Whether a turn would do something.
    pub fn wants_turn(&self, store: &Store) -> bool {
        self.attached.as_ref().is_some_and(|a| {
            let events = store.has_events(self.domid) && !a.connection.is_blocked();
            let console = a.console.as_ref().is_some_and(|(_, event)| event.is_pending());
            self.again || a.event.is_pending() || events || console
        })
    }

    /// One bounded turn, if there is a reason for one; answers whether another is wanted at once.
    pub fn turn(&mut self, store: &mut Store) -> bool {
        if !self.wants_turn(store) {
            return false;
        }
        let Some(Attached { page, event, connection, console }) = &mut self.attached else { return false };
        if let (Some((page, event)), Some(terminal)) = (console, &mut self.terminal) {
            event.take_pending();
            if terminal.turn(page, log_of(self.domid))
                && let Err(e) = event.notify()
            {
                log::debug!("{}: notifying its console failed: {e}", self.name);
            }
        }
        event.take_pending();
        let turn = connection.turn(page, store);
        self.again = turn.again;
        if turn.notify
            && let Err(e) = event.notify()
        {
            // It died in this moment; the event that says so is on its way.
            log::debug!("{}: notifying failed: {e}", self.name);
        }
        if let Some(fault) = turn.fault
            && self.may_log()
        {
            log::warn!("{}: store connection shut: {fault}", self.name);
        }
        self.again
    }
}
