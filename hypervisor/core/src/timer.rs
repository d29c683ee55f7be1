//! The deadlines of one CPU's vCPUs: when the CPU has to look again.
//!
//! A vCPU has few of them ([`Kind`]), each at most once, so a sorted vector of fixed capacity does: setting is a short move,
//! the next one is its last element, and nothing is allocated after [`DeadlineQueue::reserve`].

use crate::sched::VcpuKey;
use alloc::vec::Vec;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The guest's single-shot timer: `VIRQ_TIMER`.
    Timer,
    /// The deadline of a poll.
    Poll,
    /// A watchdog (`SCHEDOP_watchdog` or the fine one): the domain is stopped.
    Watchdog,
}

/// Kinds, so deadlines of a vCPU at most.
pub const KINDS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    at_ns: u64,
    key: VcpuKey,
    kind: Kind,
}

/// Deadlines, the next one last.
#[derive(Debug, Default)]
pub struct DeadlineQueue {
    sorted: Vec<Deadline>,
}

impl DeadlineQueue {
    /// None set.
    pub const fn new() -> Self {
        Self { sorted: Vec::new() }
    }

    /// Makes room for `vcpus`.
    pub fn reserve(&mut self, vcpus: usize) {
        self.sorted.reserve(vcpus.saturating_mul(KINDS));
    }

    /// Sets a deadline in ns of system time in place of the one that was; `None` clears it.
    pub fn set(&mut self, key: VcpuKey, kind: Kind, at_ns: Option<u64>) {
        self.sorted.retain(|d| (d.key, d.kind) != (key, kind));
        if let Some(at_ns) = at_ns {
            let new = Deadline { at_ns, key, kind };
            let at = self.sorted.partition_point(|d| *d > new);
            self.sorted.insert(at, new);
        }
    }

    /// Clears all deadlines of a vCPU.
    pub fn clear(&mut self, key: VcpuKey) {
        self.sorted.retain(|d| d.key != key);
    }

    /// When a deadline is set.
    pub fn get(&self, key: VcpuKey, kind: Kind) -> Option<u64> {
        self.sorted.iter().find(|d| (d.key, d.kind) == (key, kind)).map(|d| d.at_ns)
    }

    /// The next deadline.
    pub fn next_ns(&self) -> Option<u64> {
        self.sorted.last().map(|d| d.at_ns)
    }

    /// Takes a deadline that has passed, the oldest first.
    pub fn expired(&mut self, now_ns: u64) -> Option<(VcpuKey, Kind)> {
        let next = *self.sorted.last().filter(|d| d.at_ns <= now_ns)?;
        self.sorted.pop();
        Some((next.key, next.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomId, VcpuId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KIND: [Kind; KINDS] = [Kind::Timer, Kind::Poll, Kind::Watchdog];

    fn key(n: u16) -> VcpuKey {
        VcpuKey { dom: DomId(n), vcpu: VcpuId(0) }
    }

    proptest! {
        #[test]
        fn queue_agrees_with_a_map(ops in prop::collection::vec((0u16..4, 0usize..KINDS, prop::option::of(0u64..50)), 1..100)) {
            let (mut q, mut model) = (DeadlineQueue::new(), BTreeMap::new());
            q.reserve(4);
            let capacity = q.sorted.capacity();
            for (n, kind, at) in ops {
                q.set(key(n), KIND[kind], at);
                model.remove(&(key(n), KIND[kind]));
                model.extend(at.map(|at| ((key(n), KIND[kind]), at)));
                prop_assert_eq!(q.next_ns(), model.values().min().copied());
                prop_assert_eq!(q.get(key(n), KIND[kind]), at);
            }
            prop_assert_eq!(q.sorted.capacity(), capacity);
            let mut last = 0;
            while let Some(at) = q.next_ns() {
                prop_assert!(at == 0 || q.expired(at - 1).is_none());
                let gone = q.expired(at).unwrap();
                prop_assert_eq!(model.remove(&gone), Some(at));
                prop_assert!(at >= last);
                last = at;
            }
            prop_assert!(model.is_empty());
        }
    }

    #[test]
    fn clearing_a_vcpu_leaves_the_others() {
        let mut q = DeadlineQueue::new();
        for kind in KIND {
            q.set(key(1), kind, Some(5));
        }
        q.set(key(2), Kind::Timer, Some(9));
        q.clear(key(1));
        assert_eq!((q.expired(8), q.expired(9), q.next_ns()), (None, Some((key(2), Kind::Timer)), None));
    }
}
