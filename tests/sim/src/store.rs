//! Xenstore as a tree with the driver domain's watches. (The real store has its own tests in `unikernels/control`.)

use crate::world::World;
use netback::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// All nodes.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, String>,
    watches: BTreeSet<String>,
    /// Paths to tell the driver domain of.
    pub changed: Vec<String>,
}

impl Tree {
    pub fn get(&self, path: &str) -> Option<&str> {
        self.nodes.get(path).map(String::as_str)
    }
    pub fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.into(), value.into());
        self.tell(path);
    }
    /// Removes a node and all below it.
    pub fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|node, _| node != path && !node.starts_with(&below));
        self.tell(path);
    }
    fn tell(&mut self, path: &str) {
        if self.watches.iter().any(|w| path == w || path.strip_prefix(w.as_str()).is_some_and(|r| r.starts_with('/'))) {
            self.changed.push(path.into());
        }
    }
    /// The driver domain is restarted: its connection begins anew.
    pub fn forget_watches(&mut self) {
        self.watches.clear();
        self.changed.clear();
    }
}

/// The driver domain's connection.
pub struct Connection(pub Rc<World>);

impl Store for Connection {
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        self.0.point();
        let tree = self.0.store.borrow();
        Ok(paths.iter().map(|path| tree.get(path).map(String::from)).collect())
    }
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        self.0.point();
        let tree = self.0.store.borrow();
        let children = |path: &String| -> Vec<String> {
            let inside = tree.nodes.keys().filter_map(|key| key.strip_prefix(path.as_str())?.strip_prefix('/'));
            let names: BTreeSet<&str> = inside.filter_map(|rest| rest.split('/').next()).collect();
            names.into_iter().map(String::from).collect()
        };
        Ok(paths.iter().map(children).collect())
    }
    fn write(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError> {
        for (path, value) in nodes {
            self.0.point();
            self.0.store.borrow_mut().set(path, value);
        }
        Ok(())
    }
    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.0.point();
        let mut tree = self.0.store.borrow_mut();
        tree.watches.insert(path.into());
        tree.changed.push(path.into());
        Ok(())
    }
    fn unwatch(&mut self, path: &str) {
        self.0.store.borrow_mut().watches.remove(path);
    }
}
