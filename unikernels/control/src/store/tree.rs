//! Nodes by path. Knows no permissions, only how nodes hang together and what each owner holds.

use super::quota::Usage;
use abi::DomId;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{Path, Perms};

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub perms: Perms,
    pub value: Vec<u8>,
    pub children: BTreeSet<String>,
    /// Number of the change that last touched the node: value, permissions or children. No two changes share one.
    pub generation: u64,
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<Path, Node>,
    generation: u64,
    usage: BTreeMap<DomId, Usage>,
}

impl Tree {
    pub fn new() -> Self {
        let root = Node {
            perms: Perms::owned_by(DomId::CONTROL),
            value: Vec::new(),
            children: BTreeSet::new(),
            generation: 0,
        };
        let mut this = Self { nodes: BTreeMap::new(), generation: 0, usage: BTreeMap::new() };
        this.put(Path::root(), root);
        this
    }

    pub fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Stores a node with a fresh generation.
    pub fn put(&mut self, path: Path, mut node: Node) {
        self.generation = self.generation.saturating_add(1);
        node.generation = self.generation;
        self.remove(&path);
        let cost = Usage::of_node(&path, node.value.len(), &node.perms);
        let usage = self.usage.entry(node.perms.owner()).or_default();
        *usage = usage.plus(cost);
        self.nodes.insert(path, node);
    }

    /// Takes a node out (not its name out of its parent, nor its children).
    pub fn remove(&mut self, path: &Path) -> Option<Node> {
        let node = self.nodes.remove(path)?;
        let owner = node.perms.owner();
        let left = self.usage(owner).minus(Usage::of_node(path, node.value.len(), &node.perms));
        if left.nodes == 0 {
            self.usage.remove(&owner);
        } else {
            self.usage.insert(owner, left);
        }
        Some(node)
    }

    /// Of the last change.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    pub fn usage(&self, domid: DomId) -> Usage {
        self.usage.get(&domid).copied().unwrap_or_default()
    }

    pub fn total(&self) -> Usage {
        self.usage.values().fold(Usage::default(), |sum, &u| sum.plus(u))
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter()
    }
}
