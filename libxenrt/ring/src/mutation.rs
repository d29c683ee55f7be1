//! Faults that can be put into the ring code, one at a time, to show that the tests notice. Not in any image: the module
//! exists under `cfg(test)` and the feature `mutations`, which only the tests' crates name.

use std::cell::Cell;

/// A step that is left out or done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Publish without a survivor record.
    NoRecord,
    /// Write the slots before the record.
    SlotsFirst,
    /// Clear the record before `rsp_prod` has moved.
    ClearFirst,
    /// Move `rsp_prod` before the slots are written.
    IndexFirst,
    /// Take a record whose checksum is wrong.
    SkipCrc,
    /// Take a record that stands elsewhere than the ring.
    AnyPosition,
    /// Take another ring's record.
    AnyRing,
    /// Believe any `req_prod`.
    TrustProducer,
    /// Store slots and index without release.
    RelaxedStore,
    /// Load the peer's index without acquire.
    RelaxedLoad,
    /// No fence between an index and the look at the peer's event index.
    NoPublishFence,
    /// No fence between the own event index and the look at the peer's index.
    NoArmFence,
    /// Wait without looking again after arming.
    NoRecheck,
}

thread_local! {
    static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Is `mutation` switched on in this thread?
pub(crate) fn active(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// Runs `f` with `mutation` switched on in this thread, also when `f` panics.
pub fn with<R>(mutation: Option<Mutation>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Mutation>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _restore = Restore(ACTIVE.replace(mutation));
    f()
}
