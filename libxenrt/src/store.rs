//! The xenstore connection of this domain: requests with a deadline, watches, transactions. Wire format and state machine are
//! `xenstore::client`; here they get the store page and its event port.
//!
//! It also serves the domain's own node `control/crash`: an order found there is removed first and armed then
//! ([`crate::crash`]), so a restarted instance does not meet it again.

mod batch;

use crate::clock::{self, Instant};
use crate::event::{self, Event};
use crate::shared_page::SharedPage;
use crate::{crash, identity};
use abi::{Errno, EvtchnPort, hvm};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use xenstore::{Client, ClientError, RequestId, XsError};

pub use xenstore::{MsgType, WatchEvent};

/// The bytes that end strings in payloads.
const NUL: &[u8] = &[0];
/// The token of the watch on `control/crash`.
const CRASH_TOKEN: &str = "libxenrt/crash";
/// The node, relative to the domain's own directory.
const CRASH_NODE: &str = "control/crash";
/// How long a request may take unless [`Store::set_timeout`] says otherwise: control may be restarting others meanwhile.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The server's answer.
    Server(XsError),
    /// The connection broke or the request was not sendable.
    Client(ClientError),
    /// No answer before the deadline.
    TimedOut(MsgType),
    /// There is no store for this domain, or its port refuses.
    Unavailable(Errno),
    /// The value is not UTF-8.
    NotText,
}

impl From<ClientError> for StoreError {
    fn from(e: ClientError) -> Self {
        Self::Client(e)
    }
}
impl From<Errno> for StoreError {
    fn from(e: Errno) -> Self {
        Self::Unavailable(e)
    }
}

impl StoreError {
    /// Whether the node does not exist.
    #[must_use]
    pub const fn is_no_entry(self) -> bool {
        matches!(self, Self::Server(XsError::NoEnt))
    }
}

/// A transaction, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transaction(u32);

impl Transaction {
    /// Outside of any transaction.
    pub const NONE: Self = Self(0);
}

/// How far an order in `control/crash` has come.
#[derive(Debug)]
enum CrashNode {
    Idle,
    Reading(RequestId),
    Removing(RequestId, crash::Order),
}

/// The connection.
#[derive(Debug)]
pub struct Store {
    page: SharedPage,
    event: Event,
    client: Client,
    timeout: Duration,
    crash: CrashNode,
}

impl Store {
    /// Connects to the page and port the hypervisor made for this domain. Once per domain.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: none there (the control domain serves itself).
    pub fn open() -> Result<Self, StoreError> {
        let pfn = identity::hvm_param(hvm::PARAM_STORE_PFN)?;
        let port = identity::hvm_param(hvm::PARAM_STORE_EVTCHN)?;
        let port = EvtchnPort(u32::try_from(port).map_err(|_| Errno::ERANGE)?);
        if pfn == 0 || port.0 == 0 {
            return Err(Errno::ENODEV.into());
        }
        let page = Self::page_at(pfn)?;
        let client = Client::attach(&page);
        let mut store = Self { page, event: Event::given(port), client, timeout: TIMEOUT, crash: CrashNode::Idle };
        let watch =
            store.client.request(MsgType::Watch, 0, &[CRASH_NODE.as_bytes(), NUL, CRASH_TOKEN.as_bytes(), NUL])?;
        // Nobody waits for the answer; the watch fires once when it is set, and then for each change.
        store.client.forget(watch);
        store.pump()?;
        Ok(store)
    }

    #[cfg(target_os = "none")]
    fn page_at(pfn: u64) -> Result<SharedPage, StoreError> {
        use core::sync::atomic::{AtomicBool, Ordering};
        static OPEN: AtomicBool = AtomicBool::new(false);
        let gpa = pfn.checked_mul(abi::PAGE_SIZE as u64).filter(|&gpa| gpa < crate::memory::window::START);
        let gpa = gpa.ok_or(Errno::ERANGE)?;
        if OPEN.swap(true, Ordering::AcqRel) {
            return Err(Errno::EBUSY.into());
        }
        // SAFETY: I4 – a special page at the end of RAM, which the page allocator does not own.
        Ok(unsafe { SharedPage::fixed(gpa) })
    }
    #[cfg(not(target_os = "none"))]
    fn page_at(_pfn: u64) -> Result<SharedPage, StoreError> {
        Err(Errno::ENOSYS.into())
    }

    /// Gives up the connection for its raw page and port: for a domain that speaks the protocol itself, well or badly.
    #[must_use]
    pub fn into_raw(self) -> (SharedPage, Event) {
        (self.page, self.event)
    }

    /// The port to wait on for watch events; when it is pending, call [`Store::next_event`].
    #[must_use]
    pub const fn port(&self) -> EvtchnPort {
        self.event.port()
    }
    /// How long requests may take from now on.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Takes in what the server sent and sends what waits, without blocking.
    ///
    /// # Errors
    /// The connection broke.
    pub fn pump(&mut self) -> Result<(), StoreError> {
        self.event.take_pending();
        let pumped = self.client.pump(&self.page)?;
        if pumped.notify {
            self.event.notify()?;
        }
        if let CrashNode::Reading(id) | CrashNode::Removing(id, _) = self.crash
            && let Some(reply) = self.client.take_reply(id)
        {
            self.advance_crash(reply)?;
        }
        Ok(())
    }

    fn advance_crash(&mut self, reply: Result<Vec<u8>, XsError>) -> Result<(), StoreError> {
        let done = core::mem::replace(&mut self.crash, CrashNode::Idle);
        match (done, reply) {
            (CrashNode::Reading(_), Ok(value)) if !value.is_empty() => {
                match core::str::from_utf8(&value).ok().and_then(crash::Order::parse) {
                    Some(order) => {
                        let id = self.client.request(MsgType::Rm, 0, &[CRASH_NODE.as_bytes(), NUL])?;
                        self.crash = CrashNode::Removing(id, order);
                        return self.pump();
                    }
                    None => log::warn!("{CRASH_NODE}: not an order"),
                }
            }
            (CrashNode::Removing(_, order), Ok(_)) => crash::arm(order),
            (CrashNode::Removing(_, order), Err(e)) => {
                log::warn!("{CRASH_NODE}: {} not carried out, the node stays: {e:?}", order.kind.name());
            }
            _ => {}
        }
        Ok(())
    }

    /// The oldest watch event not yet taken, without blocking; events of libxenrt's own watches are served inside.
    ///
    /// # Errors
    /// The connection broke.
    pub fn next_event(&mut self) -> Result<Option<WatchEvent>, StoreError> {
        self.pump()?;
        while let Some(event) = self.client.next_event() {
            if event.token != CRASH_TOKEN {
                return Ok(Some(event));
            }
            if matches!(self.crash, CrashNode::Idle) {
                let id = self.client.request(MsgType::Read, 0, &[CRASH_NODE.as_bytes(), NUL])?;
                self.crash = CrashNode::Reading(id);
                self.pump()?;
            }
        }
        Ok(None)
    }

    /// Whether watch events were dropped since this was last asked, because too many waited; then look at all that is watched.
    pub fn events_lost(&mut self) -> bool {
        self.client.events_lost()
    }

    /// Waits for a watch event until `deadline`.
    ///
    /// # Errors
    /// The connection broke.
    pub fn wait_event(&mut self, deadline: Instant) -> Result<Option<WatchEvent>, StoreError> {
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(Some(event));
            }
            if clock::now() >= deadline {
                return Ok(None);
            }
            event::poll(&[self.port()], Some(deadline))?;
        }
    }

    fn call(&mut self, kind: MsgType, tx: Transaction, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let deadline = clock::now() + self.timeout;
        let id = self.client.request(kind, tx.0, parts)?;
        loop {
            self.pump()?;
            if let Some(reply) = self.client.take_reply(id) {
                return reply.map_err(StoreError::Server);
            }
            if clock::now() >= deadline {
                self.client.forget(id);
                return Err(StoreError::TimedOut(kind));
            }
            event::poll(&[self.port()], Some(deadline))?;
        }
    }

    fn text(bytes: Vec<u8>) -> Result<String, StoreError> {
        String::from_utf8(bytes).map_err(|_| StoreError::NotText)
    }

    /// Reads a node.
    ///
    /// # Errors
    /// ENOENT, EACCES, … as [`StoreError::Server`]; [`StoreError::NotText`].
    pub fn read(&mut self, tx: Transaction, path: &str) -> Result<String, StoreError> {
        Self::text(self.call(MsgType::Read, tx, &[path.as_bytes(), NUL])?)
    }

    /// Reads a node that may not exist.
    ///
    /// # Errors
    /// As [`Store::read`], but ENOENT is `Ok(None)`.
    pub fn read_opt(&mut self, tx: Transaction, path: &str) -> Result<Option<String>, StoreError> {
        match self.read(tx, path) {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_no_entry() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads a node as a number; `None` where it does not exist or is none.
    ///
    /// # Errors
    /// As [`Store::read`], but ENOENT is `Ok(None)`.
    pub fn read_number<T: core::str::FromStr>(&mut self, tx: Transaction, path: &str) -> Result<Option<T>, StoreError> {
        Ok(self.read_opt(tx, path)?.and_then(|text| text.trim().parse().ok()))
    }

    /// Writes a node, making it and its parents where needed.
    ///
    /// # Errors
    /// The server's.
    pub fn write(&mut self, tx: Transaction, path: &str, value: &str) -> Result<(), StoreError> {
        self.call(MsgType::Write, tx, &[path.as_bytes(), NUL, value.as_bytes()]).map(|_| ())
    }

    /// Writes a node without waiting for the answer, for statistics.
    ///
    /// # Errors
    /// The connection broke, or too much is under way.
    pub fn post(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        let id = self.client.request(MsgType::Write, 0, &[path.as_bytes(), NUL, value.as_bytes()])?;
        self.client.forget(id);
        self.pump()
    }

    /// Names of a node's children.
    ///
    /// # Errors
    /// The server's.
    pub fn directory(&mut self, tx: Transaction, path: &str) -> Result<Vec<String>, StoreError> {
        let text = Self::text(self.call(MsgType::Directory, tx, &[path.as_bytes(), NUL])?)?;
        Ok(text.split('\0').filter(|name| !name.is_empty()).map(String::from).collect())
    }

    /// Makes an empty node.
    ///
    /// # Errors
    /// The server's.
    pub fn mkdir(&mut self, tx: Transaction, path: &str) -> Result<(), StoreError> {
        self.call(MsgType::Mkdir, tx, &[path.as_bytes(), NUL]).map(|_| ())
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// The server's.
    pub fn rm(&mut self, tx: Transaction, path: &str) -> Result<(), StoreError> {
        self.call(MsgType::Rm, tx, &[path.as_bytes(), NUL]).map(|_| ())
    }

    /// Sets permissions, as the wire writes them: `["n1", "r2"]`.
    ///
    /// # Errors
    /// The server's.
    pub fn set_perms(&mut self, tx: Transaction, path: &str, perms: &[&str]) -> Result<(), StoreError> {
        let mut payload = Vec::from(path.as_bytes());
        payload.push(0);
        for perm in perms {
            payload.extend_from_slice(perm.as_bytes());
            payload.push(0);
        }
        self.call(MsgType::SetPerms, tx, &[&payload]).map(|_| ())
    }

    /// Watches a path: an event with `token` now, and for each change at or below it.
    ///
    /// # Errors
    /// The server's; EEXIST where this watch is set already.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        self.call(MsgType::Watch, Transaction::NONE, &[path.as_bytes(), NUL, token.as_bytes(), NUL]).map(|_| ())
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// ENOENT where there is none such.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        self.call(MsgType::Unwatch, Transaction::NONE, &[path.as_bytes(), NUL, token.as_bytes(), NUL]).map(|_| ())
    }

    /// Runs `body` in a transaction and commits it, again where others changed the same nodes meanwhile, until the time
    /// for a request is over. Where `body` fails, nothing is written.
    ///
    /// # Errors
    /// The server's, `body`'s, or [`StoreError::TimedOut`] where the conflict does not end.
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Self, Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let deadline = clock::now() + self.timeout;
        loop {
            let id = Self::text(self.call(MsgType::TransactionStart, Transaction::NONE, &[NUL])?)?;
            let id = id.trim_end_matches('\0').parse().map_err(|_| StoreError::NotText)?;
            let tx = Transaction(id);
            match body(self, tx) {
                Ok(value) => match self.call(MsgType::TransactionEnd, tx, &[b"T\0"]) {
                    Ok(_) => return Ok(value),
                    Err(StoreError::Server(XsError::Again)) if clock::now() < deadline => {}
                    Err(StoreError::Server(XsError::Again)) => {
                        return Err(StoreError::TimedOut(MsgType::TransactionEnd));
                    }
                    Err(e) => return Err(e),
                },
                Err(e) => {
                    // The transaction is abandoned; its own error says more than this one could.
                    let _ = self.call(MsgType::TransactionEnd, tx, &[b"F\0"]);
                    return Err(e);
                }
            }
        }
    }
}
