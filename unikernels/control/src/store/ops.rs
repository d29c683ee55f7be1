//! The operations, each seen by one domain through one transaction: permissions are checked here.

use super::quota::Quota;
use super::transaction::Transaction;
use super::tree::{Node, Tree};
use super::{Session, Store};
use abi::DomId;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{Access, Path, Perms, XsError};

/// The tree as `caller` sees it in one transaction.
///
/// The operations are not inlined: each has two callers, with a transaction and without, and the image is to stay small.
pub struct View<'a> {
    tree: &'a Tree,
    transaction: &'a mut Transaction,
    quota: Quota,
    caller: DomId,
}

impl View<'_> {
    fn node(&mut self, path: &Path) -> Result<Option<&Node>, XsError> {
        self.transaction.get(self.tree, &self.quota, path)
    }

    /// The node, if the caller has the access that `allowed` asks for.
    ///
    /// # Errors
    /// EACCES; where there is no node: ENOENT, or EACCES if the nearest directory that exists refuses the access.
    #[inline(never)]
    fn existing(&mut self, path: &Path, allowed: fn(Access) -> bool) -> Result<&Node, XsError> {
        let caller = self.caller;
        if self.node(path)?.is_none() {
            let nearest = self.nearest(path)?;
            return Err(if allowed(nearest.perms.access(caller)) { XsError::NoEnt } else { XsError::Acces });
        }
        let node = self.node(path)?.ok_or(XsError::NoEnt)?;
        if allowed(node.perms.access(caller)) { Ok(node) } else { Err(XsError::Acces) }
    }

    /// The nearest directory above `path` that exists.
    fn nearest(&mut self, path: &Path) -> Result<Node, XsError> {
        let mut at = path.parent();
        while let Some(dir) = at {
            if let Some(node) = self.node(&dir)? {
                return Ok(node.clone());
            }
            at = dir.parent();
        }
        Err(XsError::NoEnt)
    }

    /// A node's value.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    #[inline(never)]
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, XsError> {
        Ok(self.existing(path, Access::reads)?.value.clone())
    }

    /// A node's children, and its generation.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    #[inline(never)]
    pub fn directory(&mut self, path: &Path) -> Result<(Vec<String>, u64), XsError> {
        let node = self.existing(path, Access::reads)?;
        Ok((node.children.iter().cloned().collect(), node.generation))
    }

    /// A node's permissions.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    #[inline(never)]
    pub fn perms(&mut self, path: &Path) -> Result<Perms, XsError> {
        Ok(self.existing(path, Access::reads)?.perms.clone())
    }

    /// Sets a value, making the node and missing directories.
    ///
    /// # Errors
    /// EACCES, ENOSPC.
    #[inline(never)]
    pub fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), XsError> {
        if value.len() > self.quota.value_bytes && self.caller != DomId::CONTROL {
            return Err(XsError::NoSpc);
        }
        match self.existing(path, Access::writes) {
            Ok(node) => {
                let node = Node { value: value.to_vec(), ..node.clone() };
                self.transaction.put(&self.quota, path, Some(node))?;
            }
            Err(XsError::NoEnt) => self.create(path, value)?,
            Err(e) => return Err(e),
        }
        self.transaction.record(&self.quota, path, None)
    }

    /// Makes a node with no value, unless it is there.
    ///
    /// # Errors
    /// EACCES, ENOSPC.
    #[inline(never)]
    pub fn mkdir(&mut self, path: &Path) -> Result<(), XsError> {
        match self.existing(path, Access::writes) {
            Ok(_) => Ok(()),
            Err(XsError::NoEnt) => {
                self.create(path, &[])?;
                self.transaction.record(&self.quota, path, None)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes a node and the directories it lacks. They inherit the permissions of the nearest directory that exists,
    /// owned by who makes them (the control domain's inherit the owner as well). Write access was checked.
    #[inline(never)]
    fn create(&mut self, path: &Path, value: &[u8]) -> Result<(), XsError> {
        let mut perms = self.nearest(path)?.perms;
        if self.caller != DomId::CONTROL {
            perms = perms.with_owner(self.caller);
        }
        let mut at = path.clone();
        let (mut value, mut child): (Vec<u8>, Option<String>) = (value.to_vec(), None);
        loop {
            let existing = self.node(&at)?.cloned();
            let is_new = existing.is_none();
            let mut node = existing.unwrap_or_else(|| Node {
                perms: perms.clone(),
                value: core::mem::take(&mut value),
                children: BTreeSet::new(),
                generation: 0,
            });
            node.children.extend(child.take());
            self.transaction.put(&self.quota, &at, Some(node))?;
            let Some(parent) = at.parent().filter(|_| is_new) else { return Ok(()) };
            child = Some(String::from(at.name()));
            at = parent;
        }
    }

    /// Removes a node and everything below it; nothing to do where only the directory exists.
    ///
    /// # Errors
    /// EINVAL for the root; EACCES; ENOENT where the directory is missing too.
    #[inline(never)]
    pub fn rm(&mut self, path: &Path) -> Result<(), XsError> {
        let Some(parent) = path.parent() else { return Err(XsError::Inval) };
        let perms = match self.existing(path, Access::writes).map(|node| node.perms.clone()) {
            Ok(perms) => perms,
            Err(XsError::NoEnt) if self.node(&parent)?.is_some() => return Ok(()),
            Err(e) => return Err(e),
        };
        if let Some(mut dir) = self.node(&parent)?.cloned() {
            dir.children.remove(path.name());
            self.transaction.put(&self.quota, &parent, Some(dir))?;
        }
        let mut rest = alloc::vec![path.clone()];
        while let Some(at) = rest.pop() {
            if let Some(node) = self.node(&at)? {
                rest.extend(node.children.iter().filter_map(|c| join(&at, c)));
                self.transaction.put(&self.quota, &at, None)?;
            }
        }
        self.transaction.record(&self.quota, path, Some(perms))
    }

    /// Sets a node's permissions. Only its owner and the control domain may; only the latter may give it away.
    ///
    /// # Errors
    /// ENOENT, EACCES, EPERM.
    #[inline(never)]
    pub fn set_perms(&mut self, path: &Path, perms: Perms) -> Result<(), XsError> {
        let caller = self.caller;
        let node = self.existing(path, Access::writes)?;
        if caller != DomId::CONTROL {
            if node.perms.owner() != caller {
                return Err(XsError::Acces);
            }
            if perms.owner() != caller {
                return Err(XsError::Perm);
            }
        }
        let node = Node { perms, ..node.clone() };
        self.transaction.put(&self.quota, path, Some(node))?;
        self.transaction.record(&self.quota, path, None)
    }
}

fn join(dir: &Path, name: &str) -> Option<Path> {
    let dir = if dir.is_root() { "" } else { dir.as_str() };
    Path::absolute(&alloc::format!("{dir}/{name}")).ok()
}

impl Store {
    /// Limits of a transaction that may hold `bytes`; of the control domain's own code: the tree bounds it.
    const fn limits(&self, domid: DomId, bytes: usize) -> Quota {
        Quota { transaction_bytes: if domid.0 == DomId::CONTROL.0 { usize::MAX } else { bytes }, ..self.quota }
    }

    /// Limits of one open transaction: what the others have left.
    #[inline(never)]
    fn limits_of(&self, domid: DomId, id: u32) -> Quota {
        let open = self.sessions.get(&domid).into_iter().flat_map(|session| &session.transactions);
        let others = open.filter(|&(&it, _)| it != id).fold(0usize, |sum, (_, t)| sum.saturating_add(t.bytes()));
        self.limits(domid, self.quota.transaction_bytes.saturating_sub(others))
    }

    /// Runs one operation at once, as a transaction of its own, and fires watches.
    ///
    /// # Errors
    /// What `op` says, and ENOSPC where a quota would be exceeded.
    pub fn run<T>(&mut self, domid: DomId, op: impl FnOnce(&mut View) -> Result<T, XsError>) -> Result<T, XsError> {
        let (mut transaction, quota) = (Transaction::default(), self.limits(domid, self.quota.request_bytes));
        let result = op(&mut View { tree: &self.tree, transaction: &mut transaction, quota, caller: domid })?;
        self.apply(transaction, &quota, domid)?;
        Ok(result)
    }

    /// Applies a transaction and fires watches. Not part of each operation's own code, of which there are many.
    #[inline(never)]
    fn apply(&mut self, transaction: Transaction, quota: &Quota, domid: DomId) -> Result<(), XsError> {
        let changes = transaction.commit(&mut self.tree, quota, domid)?;
        self.fire(&changes);
        Ok(())
    }

    /// Runs one operation inside a transaction.
    ///
    /// # Errors
    /// ENOENT for an unknown transaction; else what `op` says, and then the transaction has not changed.
    pub fn run_in<T>(
        &mut self,
        domid: DomId,
        id: u32,
        op: impl FnOnce(&mut View) -> Result<T, XsError>,
    ) -> Result<T, XsError> {
        if id == 0 {
            return self.run(domid, op);
        }
        let quota = self.limits_of(domid, id);
        let session = self.sessions.get_mut(&domid).ok_or(XsError::NoEnt)?;
        let transaction = session.transactions.get_mut(&id).ok_or(XsError::NoEnt)?;
        let result = op(&mut View { tree: &self.tree, transaction: &mut *transaction, quota, caller: domid });
        // A partly made operation must not be committed. What it read stays noted: a refusal is a result that the commit must
        // still stand for.
        transaction.done(result.is_ok());
        result
    }

    /// Opens a transaction.
    ///
    /// # Errors
    /// ENOSPC where the domain has too many.
    pub fn start_transaction(&mut self, domid: DomId) -> Result<u32, XsError> {
        let limit = self.quota.transactions;
        let session: &mut Session = self.sessions.get_mut(&domid).ok_or(XsError::Inval)?;
        if session.transactions.len() >= limit {
            return Err(XsError::NoSpc);
        }
        loop {
            session.next_transaction = session.next_transaction.wrapping_add(1);
            let id = session.next_transaction;
            if id != 0 && !session.transactions.contains_key(&id) {
                session.transactions.insert(id, Transaction::default());
                return Ok(id);
            }
        }
    }

    /// Ends a transaction: applies it, or drops it.
    ///
    /// # Errors
    /// ENOENT, EAGAIN on a conflict, ENOSPC.
    pub fn end_transaction(&mut self, domid: DomId, id: u32, commit: bool) -> Result<(), XsError> {
        let session = self.sessions.get_mut(&domid).ok_or(XsError::NoEnt)?;
        let transaction = session.transactions.remove(&id).ok_or(XsError::NoEnt)?;
        if commit {
            let quota = self.quota;
            self.apply(transaction, &quota, domid)?;
        }
        Ok(())
    }
}
