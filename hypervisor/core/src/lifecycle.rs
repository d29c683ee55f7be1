//! The events that tell the control domain why a domain stopped.
//!
//! The control domain learns of a stop by `VIRQ_DOM_EXC` and fetches the event (`abi::xenolith::NEXT_EVENT`). The queue holds
//! at most one event per domain, so it is bounded and no stop is ever lost: a newer stop of a domain replaces the older one,
//! which a restart has answered already.

use abi::xenolith::Event;
use alloc::vec::Vec;

/// Events for the control domain, oldest first, one per domain at most.
#[derive(Debug, Default)]
pub struct EventQueue {
    events: Vec<Event>,
}

impl EventQueue {
    /// Empty.
    pub const fn new() -> Self {
        Self { events: Vec::new() }
    }

    /// Adds an event; an unfetched one of the same domain gives way, and the domain keeps its place.
    pub fn push(&mut self, event: Event) {
        match self.events.iter_mut().find(|e| e.domid == event.domid) {
            Some(old) => *old = event,
            None => self.events.push(event),
        }
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Event> {
        if self.events.is_empty() { None } else { Some(self.events.remove(0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DomId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_queue_never_loses_a_domains_last_stop(ops in prop::collection::vec((0u16..4, 1u32..14, any::<bool>()), 1..60)) {
            let (mut q, mut open) = (EventQueue::new(), std::collections::BTreeMap::new());
            for (dom, cause, fetch) in ops {
                q.push(Event { domid: DomId(dom), cause, ..Event::default() });
                open.insert(dom, cause);
                prop_assert!(q.events.len() <= 4);
                if fetch {
                    let e = q.pop().unwrap();
                    prop_assert_eq!(open.remove(&e.domid.0), Some(e.cause));
                }
            }
            while let Some(e) = q.pop() {
                prop_assert_eq!(open.remove(&e.domid.0), Some(e.cause));
            }
            prop_assert!(open.is_empty());
        }
    }
}
