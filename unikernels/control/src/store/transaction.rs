//! Transactions: what was read and what is to be written, kept beside the tree until the end.
//!
//! Optimistic, as in xenstored: the generation of each node is noted when it is first touched; at the end the
//! transaction is applied only if none of them has changed, else EAGAIN. So a committed transaction is as if
//! it had run alone at the moment of its end. A node that was absent, came and went again in between is noticed by its
//! directory, which whoever asks for an absent node touches as well.

use super::quota::{Quota, Usage};
use super::tree::{Node, Tree};
use abi::DomId;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use xenstore::{Path, Perms, XsError};

/// What a touched node takes beside its texts, and a change: entries of half-full maps and of vectors that grow by doubling.
const TOUCHED_BYTES: usize = 256;
const CHANGE_BYTES: usize = 128;

/// A node a transaction has looked at or changed.
#[derive(Clone, Debug)]
struct Touched {
    /// Generation at first touch; `None` where there was no node.
    base: Option<u64>,
    /// What it becomes: unchanged, a node, or nothing.
    new: Option<Option<Node>>,
    /// Bytes charged for `new`.
    cost: usize,
}

/// A change that watchers hear of.
#[derive(Clone, Debug)]
pub struct Change {
    pub path: Path,
    /// The permissions it had, where it was removed.
    pub removed: Option<Perms>,
    /// Only watches of exactly this path hear of it (a node below a removed one).
    pub exact: bool,
}

/// An open transaction.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    touched: BTreeMap<Path, Touched>,
    changes: Vec<Change>,
    bytes: usize,
}

impl Transaction {
    /// The node as the transaction sees it.
    ///
    /// # Errors
    /// [`XsError::NoSpc`] where it would touch more nodes than `quota` allows.
    pub fn get<'a>(&'a mut self, tree: &'a Tree, quota: &Quota, path: &Path) -> Result<Option<&'a Node>, XsError> {
        let now = tree.get(path);
        let generation = now.map(|n| n.generation);
        if !self.touched.contains_key(path) {
            self.charge(path.as_str().len().saturating_add(TOUCHED_BYTES), quota)?;
            if self.touched.len() >= quota.touched {
                return Err(XsError::NoSpc);
            }
            self.touched.insert(path.clone(), Touched { base: generation, new: None, cost: 0 });
        }
        let Some(touched) = self.touched.get(path) else { return Ok(now) };
        match &touched.new {
            Some(new) => Ok(new.as_ref()),
            None => Ok(now),
        }
    }

    /// Makes the node `new` at the end; the path has been touched by [`Transaction::get`].
    pub fn put(&mut self, quota: &Quota, path: &Path, new: Option<Node>) -> Result<(), XsError> {
        let bytes = new.as_ref().map_or(0, |n| {
            let names = n.children.iter().fold(0usize, |sum, c| sum.saturating_add(c.len()));
            n.value.len().saturating_add(names)
        });
        if let Some(touched) = self.touched.get_mut(path) {
            self.bytes = self.bytes.saturating_sub(core::mem::replace(&mut touched.cost, bytes));
            touched.new = Some(new);
        }
        self.charge(bytes, quota)
    }

    fn charge(&mut self, bytes: usize, quota: &Quota) -> Result<(), XsError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > quota.transaction_bytes { Err(XsError::NoSpc) } else { Ok(()) }
    }

    pub fn record(&mut self, quota: &Quota, path: &Path, removed: Option<Perms>) -> Result<(), XsError> {
        // A node that is written again is told of once.
        let last = self.changes.iter().rfind(|change| change.path == *path);
        if removed.is_none() && last.is_some_and(|change| change.removed.is_none()) {
            return Ok(());
        }
        self.charge(path.as_str().len().saturating_add(CHANGE_BYTES), quota)?;
        self.changes.push(Change { path: path.clone(), removed, exact: false });
        Ok(())
    }

    /// Whether another change came in between.
    fn conflicts(&self, tree: &Tree) -> bool {
        self.touched.iter().any(|(path, t)| tree.get(path).map(|n| n.generation) != t.base)
    }

    /// The first owner (but the control domain) that would hold more than it may and more than before.
    fn over_quota(&self, tree: &Tree, quota: &Quota) -> Option<DomId> {
        let mut after: BTreeMap<DomId, Usage> = BTreeMap::new();
        for (path, touched) in &self.touched {
            let Some(new) = &touched.new else { continue };
            if let Some(old) = tree.get(path) {
                let usage = after.entry(old.perms.owner()).or_insert_with(|| tree.usage(old.perms.owner()));
                *usage = usage.minus(Usage::of_node(path, old.value.len(), &old.perms));
            }
            if let Some(new) = new {
                let usage = after.entry(new.perms.owner()).or_insert_with(|| tree.usage(new.perms.owner()));
                *usage = usage.plus(Usage::of_node(path, new.value.len(), &new.perms));
            }
        }
        let grew = |domid: DomId, u: Usage| u.nodes > tree.usage(domid).nodes || u.bytes > tree.usage(domid).bytes;
        after.into_iter().find(|&(d, u)| d != DomId::CONTROL && u.exceeds(quota) && grew(d, u)).map(|(d, _)| d)
    }

    /// Applies it; returns what watchers are to hear, in order.
    ///
    /// # Errors
    /// [`XsError::Again`] on a conflict, [`XsError::NoSpc`] where `caller` is not the control domain and a quota would be
    /// exceeded; the tree is as before.
    pub fn commit(self, tree: &mut Tree, quota: &Quota, caller: DomId) -> Result<Vec<Change>, XsError> {
        if self.conflicts(tree) {
            return Err(XsError::Again);
        }
        if caller != DomId::CONTROL && self.over_quota(tree, quota).is_some() {
            return Err(XsError::NoSpc);
        }
        let mut changes = self.changes;
        for (path, touched) in self.touched {
            match touched.new {
                None => {}
                Some(Some(node)) => tree.put(path, node),
                Some(None) => {
                    let Some(old) = tree.remove(&path) else { continue };
                    if !changes.iter().any(|c| c.path == path) {
                        changes.push(Change { path, removed: Some(old.perms), exact: true });
                    }
                }
            }
        }
        Ok(changes)
    }
}
