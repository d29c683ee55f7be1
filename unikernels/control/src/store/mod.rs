//! The xenstore: a tree of small values with permissions by domain, transactions and watches.
//!
//! Every change, also a single write, runs as a transaction ([`transaction`]) that is checked for conflicts and quotas and
//! then applied at once; so there is one path by which the tree ([`tree`]) changes and watches ([`watch`]) fire. Requests
//! from domains come through [`Store::handle`] ([`request`]); the control domain itself calls the same operations
//! as domain 0. Bounds: [`Quota`] per domain, for nodes, bytes, watches, transactions and queued events.

mod ops;
mod quota;
#[cfg(test)]
mod quota_tests;
mod request;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;
mod watch;

pub use quota::{Quota, Usage};
pub use watch::Event;

use abi::DomId;
use alloc::collections::BTreeMap;
use transaction::Transaction;
use tree::Tree;
use watch::Watches;
use xenstore::{Path, Perms, XsError};

/// What a domain's connection holds beyond the tree; gone when the domain's instance is gone.
#[derive(Debug, Default)]
struct Session {
    watches: Watches,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
}

/// The whole store.
#[derive(Debug)]
pub struct Store {
    tree: Tree,
    /// Sessions of introduced domains, the control domain's included.
    sessions: BTreeMap<DomId, Session>,
    quota: Quota,
}

/// `@introduceDomain`: fires when a domain has been introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// `@releaseDomain`: fires when a domain has died or was released.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

impl Store {
    /// A tree with nothing but its root, and a session for the control domain.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let mut this = Self { tree: Tree::new(), sessions: BTreeMap::new(), quota };
        this.sessions.insert(DomId::CONTROL, Session::default());
        this
    }

    /// A domain may talk to the store from now on.
    pub fn introduce(&mut self, domid: DomId) {
        self.sessions.entry(domid).or_default();
        self.fire_special(INTRODUCE_DOMAIN);
    }

    /// A domain's instance died: its watches, transactions and queued events go, its nodes stay.
    pub fn reset_session(&mut self, domid: DomId) {
        if let Some(session) = self.sessions.get_mut(&domid) {
            *session = Session::default();
        }
    }

    /// Tells watchers of `@releaseDomain` that a domain died for good.
    pub fn release(&mut self, domid: DomId) {
        self.reset_session(domid);
        self.fire_special(RELEASE_DOMAIN);
    }

    /// A domain is gone: until it is introduced again it has no session.
    pub fn withdraw(&mut self, domid: DomId) {
        self.sessions.remove(&domid);
        self.fire_special(RELEASE_DOMAIN);
    }

    /// Whether the domain has a session.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.sessions.contains_key(&domid)
    }

    /// The oldest watch event queued for a domain.
    pub fn next_event(&mut self, domid: DomId) -> Option<Event> {
        self.sessions.get_mut(&domid)?.watches.next_event()
    }

    /// Whether events are queued for a domain.
    #[must_use]
    pub fn has_events(&self, domid: DomId) -> bool {
        self.sessions.get(&domid).is_some_and(|s| s.watches.has_events())
    }

    /// Nodes and bytes owned by a domain.
    #[must_use]
    pub fn usage(&self, domid: DomId) -> Usage {
        self.tree.usage(domid)
    }

    /// Nodes and bytes of the whole tree.
    #[must_use]
    pub fn total(&self) -> Usage {
        self.tree.total()
    }

    /// Nodes set so far, a measure of the work done.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.tree.generation()
    }

    /// Watches a domain has registered.
    #[must_use]
    pub fn watch_count(&self, domid: DomId) -> usize {
        self.sessions.get(&domid).map_or(0, |s| s.watches.len())
    }

    /// Sets a node of the initial tree, with its permissions, making missing directories owned by the control domain.
    ///
    /// # Errors
    /// [`XsError::NoSpc`] where the value is too long.
    pub fn preset(&mut self, path: &Path, perms: Perms, value: &[u8]) -> Result<(), XsError> {
        self.run(DomId::CONTROL, |view| {
            view.write(path, value)?;
            view.set_perms(path, perms)
        })
    }
}
