//! What the domain tells about itself under `/local/domain/N/stats`: one node per subject, its value `name=number` words; once a second
//! while they change.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use libxenrt::store::Store;
use libxenrt::{Instant, clock};

/// A subject's path below `stats`, and its counters.
pub type Subject = (String, String);

/// Time between two publications.
const PERIOD: Duration = Duration::from_secs(1);

/// What was published, and when.
#[derive(Debug)]
pub(crate) struct Statistics {
    due: Instant,
    published: Vec<Subject>,
    turns: u64,
}

impl Statistics {
    pub(crate) fn new() -> Self {
        Self { due: clock::now() + PERIOD, published: Vec::new(), turns: 0 }
    }

    /// Publishes what has changed if it is time, without waiting for answers; says when to come back, if anything has happened
    /// (`turns` of the backend tell).
    pub(crate) fn publish(
        &mut self,
        now: Instant,
        turns: u64,
        collect: impl FnOnce() -> Vec<Subject>,
        store: &mut Store,
    ) -> Option<Instant> {
        if now < self.due {
            return (turns > self.turns.saturating_add(1)).then_some(self.due);
        }
        self.due = now + PERIOD;
        self.turns = turns;
        for (node, value) in collect() {
            let known = self.published.iter_mut().find(|(n, _)| *n == node);
            if known.as_ref().is_some_and(|(_, v)| *v == value) {
                continue;
            }
            // Relative to the domain's own directory.
            if let Err(e) = store.post(&format!("stats/{node}"), &value) {
                log::debug!("statistics: {e:?}");
                return Some(self.due);
            }
            match known {
                Some((_, v)) => *v = value,
                None => self.published.push((node, value)),
            }
        }
        None
    }
}
