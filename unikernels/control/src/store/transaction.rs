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
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{Path, Perms, XsError};

/// A node a transaction has looked at or changed.
#[derive(Debug)]
struct Touched {
    /// Generation at first touch; `None` where there was no node.
    base: Option<u64>,
    /// What it becomes: unchanged, a node, or nothing.
    new: Option<Option<Node>>,
    /// Bytes charged for `new`.
    cost: usize,
    /// Its place in the changes, once it has one.
    change: Option<usize>,
}

/// A change that watchers hear of.
#[derive(Debug)]
pub struct Change {
    pub path: Path,
    /// The permissions it had, where it was removed.
    pub removed: Option<Perms>,
    /// Only watches of exactly this path hear of it (a node below a removed one).
    pub exact: bool,
}

/// Bytes charged beyond texts: for a node looked at, a change noted, a name of a directory that is kept. Twice the entry, because
/// a B-tree's leaf may be half empty and a vector has doubled; and the block of its text.
const TOUCHED_BYTES: usize = 2 * size_of::<(Path, Touched)>() + BLOCK_BYTES;
const CHANGE_BYTES: usize = 2 * size_of::<Change>() + BLOCK_BYTES;
const NAME_BYTES: usize = 2 * size_of::<String>() + BLOCK_BYTES;
const BLOCK_BYTES: usize = 16;

/// Bytes charged for a node that a transaction holds.
fn cost(node: &Node) -> usize {
    let names = node.children.iter().fold(0usize, |sum, c| sum.saturating_add(c.len()).saturating_add(NAME_BYTES));
    names.saturating_add(node.value.len()).saturating_add(size_of_val(node.perms.entries()))
}

/// An open transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    touched: BTreeMap<Path, Touched>,
    changes: Vec<Change>,
    bytes: usize,
    /// What the operation under way has replaced: the node as it was to become before, and the bytes charged for it.
    undo: Vec<(Path, Option<Option<Node>>, usize)>,
}

impl Transaction {
    /// Bytes it holds, as [`Quota::transaction_bytes`] counts.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the heap it holds, counted from the outside: entries at the usual fill of a B-tree, capacities, texts.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let nodes = self.touched.iter().map(|(path, t)| {
            let new = t.new.iter().flatten().map(|n| {
                let names: usize = n.children.iter().map(|c| c.len() + 2 * size_of::<String>()).sum();
                names + n.value.capacity() + size_of_val(n.perms.entries())
            });
            11 * size_of::<(Path, Touched)>() / 6 + path.as_str().len() + new.sum::<usize>()
        });
        let changes = self.changes.iter().map(|c| c.path.as_str().len()).sum::<usize>();
        nodes.sum::<usize>() + changes + self.changes.capacity() * size_of::<Change>()
    }

    /// The node as the transaction sees it.
    ///
    /// # Errors
    /// [`XsError::NoSpc`] where it would hold more bytes than `quota` allows; nothing has changed.
    #[inline(never)]
    pub fn get<'a>(&'a mut self, tree: &'a Tree, quota: &Quota, path: &Path) -> Result<Option<&'a Node>, XsError> {
        let now = tree.get(path);
        if !self.touched.contains_key(path) {
            self.charge(path.as_str().len().saturating_add(TOUCHED_BYTES), 0, quota)?;
            let base = now.map(|n| n.generation);
            self.touched.insert(path.clone(), Touched { base, new: None, cost: 0, change: None });
        }
        let Some(touched) = self.touched.get(path) else { return Ok(now) };
        match &touched.new {
            Some(new) => Ok(new.as_ref()),
            None => Ok(now),
        }
    }

    /// Makes the node `new` at the end; the path has been touched by [`Transaction::get`].
    ///
    /// # Errors
    /// As of [`Transaction::get`].
    #[inline(never)]
    pub fn put(&mut self, quota: &Quota, path: &Path, new: Option<Node>) -> Result<(), XsError> {
        let bytes = new.as_ref().map_or(0, cost);
        self.charge(bytes, self.touched.get(path).map_or(0, |t| t.cost), quota)?;
        if let Some(touched) = self.touched.get_mut(path) {
            let old = touched.new.replace(new);
            self.undo.push((path.clone(), old, core::mem::replace(&mut touched.cost, bytes)));
        }
        Ok(())
    }

    /// The operation under way is over: it `stands`, or what it has put is taken back. What it looked at stays noted, and it has
    /// recorded nothing, for that comes last.
    #[inline(never)]
    pub fn done(&mut self, stands: bool) {
        let undo = core::mem::take(&mut self.undo);
        for (path, old, cost) in undo.into_iter().rev().filter(|_| !stands) {
            if let Some(touched) = self.touched.get_mut(&path) {
                touched.new = old;
                self.bytes =
                    self.bytes.saturating_sub(core::mem::replace(&mut touched.cost, cost)).saturating_add(cost);
            }
        }
    }

    /// Charges `more` bytes in place of `less` that were charged.
    fn charge(&mut self, more: usize, less: usize, quota: &Quota) -> Result<(), XsError> {
        let bytes = self.bytes.saturating_sub(less).saturating_add(more);
        if more > less && bytes > quota.transaction_bytes {
            return Err(XsError::NoSpc);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Notes for the watchers that a touched node has changed; once, however often it does. What was removed at first is what
    /// others could see.
    ///
    /// # Errors
    /// As of [`Transaction::get`].
    #[inline(never)]
    pub fn record(&mut self, quota: &Quota, path: &Path, removed: Option<Perms>) -> Result<(), XsError> {
        let known = self.touched.get(path).and_then(|t| t.change);
        if let Some(change) = known.and_then(|at| self.changes.get_mut(at)) {
            change.removed = change.removed.take().or(removed);
            return Ok(());
        }
        self.charge(path.as_str().len().saturating_add(CHANGE_BYTES), 0, quota)?;
        if let Some(touched) = self.touched.get_mut(path) {
            touched.change = Some(self.changes.len());
        }
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
                    if touched.change.is_none() {
                        changes.push(Change { path, removed: Some(old.perms), exact: true });
                    }
                }
            }
        }
        Ok(changes)
    }
}
