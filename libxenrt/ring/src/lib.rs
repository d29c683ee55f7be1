//! Shared rings as journals: the back ring a driver domain serves and continues after a restart, and its front twin.
//!
//! Neighbours: `netback` and `blkback` drive [`BackRing`], `libxenrt`'s frontends drive [`FrontRing`]; both stand on
//! [`SharedMem`], which libxenrt implements over a page, the tests over a vector that kills its user after any store, and
//! the models over `loom` atomics. Layout and indices are Xen's (`public/io/ring.h`).
//!
//! Why a journal: responses are published strictly in request order, so what a dead backend left unanswered is exactly
//! `[rsp_prod, req_prod)`, and a fresh one needs nothing else. The one moment at which this is not so, a response half
//! written over its request, is covered by the [`Survivor`] record.
#![cfg_attr(not(any(test, feature = "mutations")), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

mod back;
mod fault;
mod front;
mod ids;
mod mem;
#[cfg(any(test, feature = "mutations"))]
pub mod mutation;
mod polling;
mod survivor;
#[cfg(feature = "test-page")]
mod test_page;
mod window;

pub use back::{Attached, BackRing, Published};
pub use fault::{AttachError, FrontFault, Mismatch, RingFault};
pub use front::{FrontRing, Full};
pub use ids::Ids;
pub use mem::{Pages, SharedMem};
pub use polling::Polling;
pub use survivor::{Recovery, RingId, RingKind, SURVIVOR_OWNER, State, Survivor};
#[cfg(feature = "test-page")]
pub use test_page::TestPage;

/// The back end of a netif TX ring: 12-byte requests, 4-byte responses, 256 slots.
pub type TxBackRing<M> = BackRing<M, 256, 3, 1>;
/// The back end of a netif RX ring: 8-byte requests and responses, 256 slots.
pub type RxBackRing<M> = BackRing<M, 256, 2, 2>;
/// The front end of a netif TX ring.
pub type TxFrontRing<M> = FrontRing<M, 256, 3, 1>;
/// The front end of a netif RX ring.
pub type RxFrontRing<M> = FrontRing<M, 256, 2, 2>;
/// The back end of a blkif ring of up to 8 pages: 112-byte requests, 16-byte responses, 32 slots a page.
pub type BlkBackRing<M> = BackRing<Pages<M>, 256, 28, 4>;
/// The front end of a blkif ring.
pub type BlkFrontRing<M> = FrontRing<Pages<M>, 256, 28, 4>;

/// Byte offset of word `word` of the slot that index `index` names, in a ring of `n` slots of `slot_words` words.
/// `n` is a power of two, so the mask is exact and the sum stays far below `usize::MAX`.
const fn slot_offset(index: u32, n: u32, slot_words: usize, word: usize) -> usize {
    let slot = (index & n.wrapping_sub(1)) as usize;
    abi::io::ring::SLOTS.wrapping_add(slot.wrapping_mul(slot_words).wrapping_add(word).wrapping_mul(4))
}

/// The power of two up to `n` that is nearest below `slots`.
const fn fitting(slots: u32, n: usize) -> u32 {
    let slots = if slots as usize > n { n as u32 } else { slots };
    match slots.checked_ilog2() {
        Some(log) => 1 << log,
        None => 1,
    }
}

/// Words of a slot: the larger of request and response, which share it (`DEFINE_RING_TYPES`' union).
const fn slot_words(req: usize, rsp: usize) -> usize {
    if req > rsp { req } else { rsp }
}

/// Does moving a producer index from `old` to `new` pass the index at which the peer wants an event? Modular, as
/// `RING_PUSH_*_AND_CHECK_NOTIFY`.
const fn passes_event(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// Is this step left out by the mutation under test? Without the feature, never: the branch folds away.
#[cfg(any(test, feature = "mutations"))]
macro_rules! mutated {
    ($name:ident) => {
        $crate::mutation::active($crate::mutation::Mutation::$name)
    };
}
#[cfg(not(any(test, feature = "mutations")))]
macro_rules! mutated {
    ($name:ident) => {
        false
    };
}
pub(crate) use mutated;

#[cfg(test)]
mod tests;
