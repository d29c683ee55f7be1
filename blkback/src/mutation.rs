//! Faults that can be put into the backend, one at a time, to show that the tests notice. Not in any image: the module exists under
//! `cfg(test)` and the feature `mutations`, which only the tests' crates name.

use std::cell::Cell;

/// A step that is left out or done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Overlapping requests do not wait for each other.
    NoOverlapOrder,
    /// They wait until the earlier one is done, not until it is published.
    ReleaseWhenDone,
    /// A flush does not wait for the writes before it.
    EarlyFlush,
    /// A flush is answered without the drive's.
    NoFlush,
    /// A write is answered when the drive has it, not when it is done.
    EarlyAnswer,
    /// A kept list of segments may be evicted before the request has read it that was taken with it.
    EarlyEviction,
    /// Data is unmapped while the drive may still move it.
    EarlyUnmap,
    /// The vbd's first sector is left out.
    NoOffset,
    /// A second life gives up what the first did not answer.
    NoReplay,
    /// A controller's reset is taken for the end of its commands.
    ResetIsDone,
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
