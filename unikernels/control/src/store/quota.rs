//! What one domain may hold. The control domain has no quota, because nothing makes it write but its own code.

use xenstore::{Path, Perms};

/// Limits per domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nodes it owns.
    pub nodes: usize,
    /// Bytes of its nodes: names, values, permissions and a fixed cost each.
    pub bytes: usize,
    /// Bytes of one value.
    pub value_bytes: usize,
    /// Watches.
    pub watches: usize,
    /// Bytes of watch paths and tokens.
    pub watch_bytes: usize,
    /// Watch events queued and not yet sent.
    pub events: usize,
    /// Bytes of their paths and tokens.
    pub event_bytes: usize,
    /// Transactions open at a time.
    pub transactions: usize,
    /// Bytes that all its open transactions may hold together: what they read, what they would write, what watchers are to hear.
    pub transaction_bytes: usize,
    /// The same for one request outside of any transaction, whose cost is gone when it is answered: enough to remove all nodes.
    pub request_bytes: usize,
}

impl Default for Quota {
    /// Enough for a Linux guest with a dozen devices: 10 transactions and 2 KiB values as xenstored has by default.
    fn default() -> Self {
        Self {
            nodes: 1000,
            bytes: 128 * 1024,
            value_bytes: 2048,
            watches: 128,
            watch_bytes: 32 * 1024,
            events: 128,
            event_bytes: 32 * 1024,
            transactions: 10,
            // Some 200 nodes looked at or 100 made. A domain that exhausts all its quotas costs the heap half a MiB: 300 KiB of
            // nodes (at 1000 of them), 64 here, 60 each of watches and events.
            transaction_bytes: 64 * 1024,
            request_bytes: 512 * 1024,
        }
    }
}

/// What is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nodes.
    pub nodes: usize,
    /// Bytes, as [`Quota::bytes`] counts.
    pub bytes: usize,
}

impl Usage {
    /// Bytes counted for a node beyond its texts: map entry, parent's list entry, headers.
    const NODE_BYTES: usize = 128;

    /// What one node costs.
    #[must_use]
    pub fn of_node(path: &Path, value_len: usize, perms: &Perms) -> Self {
        let texts = path.as_str().len().saturating_add(value_len);
        let perms = perms.entries().len().saturating_mul(size_of::<xenstore::Perm>());
        Self { nodes: 1, bytes: texts.saturating_add(perms).saturating_add(Self::NODE_BYTES) }
    }
    /// The sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { nodes: self.nodes.saturating_add(other.nodes), bytes: self.bytes.saturating_add(other.bytes) }
    }
    /// The difference.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self { nodes: self.nodes.saturating_sub(other.nodes), bytes: self.bytes.saturating_sub(other.bytes) }
    }
    /// Whether this is more than `quota` allows.
    #[must_use]
    pub const fn exceeds(self, quota: &Quota) -> bool {
        self.nodes > quota.nodes || self.bytes > quota.bytes
    }
}
