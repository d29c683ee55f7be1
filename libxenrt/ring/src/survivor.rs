//! The survivor page: the one publication a driver domain may be in the middle of when it dies.
//!
//! A restart keeps this page as it is. A backend is single-threaded, so there is at most one publication
//! in flight and the page holds one record. The page is written by code that may have been failing: the state word has
//! two values, each far from zero and from the other, a CRC-32 covers the rest, and the caller checks the record against
//! the ring. If the page is neither clear nor intact nobody can tell which ring has a half-written slot, so every ring
//! is refused.
//!
//! ```text
//! word 0 state   1..=3 ring identity   4 start   5 count   6 words per response   7 CRC-32 of 1..=6 and the entries   8.. entries
//! ```
//!
//! Every store here is a release store: neither compiler nor processor moves one before an earlier one, across pages.

use crate::fault::Mismatch;
use crate::{SharedMem, mutated};
use abi::{DomId, GrantRef};

const STATE: usize = 0;
const HEAD: usize = 1;
const START: usize = 4;
const COUNT: usize = 5;
const WORDS: usize = 6;
const CRC: usize = 7;
const ENTRIES: usize = 8;
/// Words of the record's part of the page: room for every response of a ring of 256 with two words each.
const PAGE_WORDS: usize = SURVIVOR_OWNER / 4;

/// Byte offset from which the survivor page belongs to the domain, for what it wants to find again after a restart.
pub const SURVIVOR_OWNER: usize = 2304;

// A netif ring is published in one batch, however full: a packet's slots become visible together.
const _: () = assert!(PAGE_WORDS - ENTRIES >= 256 * 2);

/// No publication is in flight.
const CLEAR: u32 = 0x5A3C_C1EA;
/// The record below is complete and its slots may be half written.
const IN_FLIGHT: u32 = 0xA5C3_F117;

/// Which ring of which kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RingKind {
    /// netif, packets of the frontend.
    NetTx = 1,
    /// netif, packets for the frontend.
    NetRx = 2,
    /// blkif.
    Block = 3,
}

/// What makes a ring the same ring after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    /// Whose.
    pub frontend: DomId,
    /// Number of the device.
    pub device: u16,
    /// Kind of ring.
    pub kind: RingKind,
    /// Queue of the device, from 0.
    pub queue: u16,
    /// The (first) page of the ring.
    pub gref: GrantRef,
}

impl RingId {
    fn words(&self) -> [u32; 3] {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        [pair(self.frontend.0, self.device), pair(self.kind as u16, self.queue), self.gref.0]
    }
}

/// The survivor page before the rings are attached: what it says is not yet acted upon.
pub struct Recovery<S> {
    page: S,
    state: State,
}

/// What a survivor page was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing in flight.
    Clear,
    /// An intact record.
    InFlight {
        /// First index.
        start: u32,
        /// Responses.
        count: u32,
        /// Words of each.
        words: u32,
    },
    /// Neither.
    Corrupt {
        /// The state word as read.
        state: u32,
    },
}

impl<S: SharedMem> Recovery<S> {
    /// Reads the page. `first_boot` says that this domain never ran before (generation 0), so that a page of zeros is
    /// what the hypervisor made it and not the trace of a failure.
    pub fn open(page: S, first_boot: bool) -> Self {
        if first_boot {
            page.store_release(offset(STATE), CLEAR);
        }
        let state = match page.load_acquire(offset(STATE)) {
            CLEAR => State::Clear,
            IN_FLIGHT => Self::check(&page),
            state => State::Corrupt { state },
        };
        Self { page, state }
    }

    fn check(page: &S) -> State {
        let [start, count, words] = [START, COUNT, WORDS].map(|w| page.read(offset(w)));
        let corrupt = State::Corrupt { state: IN_FLIGHT };
        let Some(entries) = count.checked_mul(words) else { return corrupt };
        if entries == 0 || entries as usize > PAGE_WORDS.saturating_sub(ENTRIES) {
            return corrupt;
        }
        let mut crc = crc32fast::Hasher::new();
        for word in (HEAD..CRC).chain((ENTRIES..PAGE_WORDS).take(entries as usize)) {
            crc.update(&page.read(offset(word)).to_le_bytes());
        }
        if crc.finalize() != page.read(offset(CRC)) && !mutated!(SkipCrc) {
            return corrupt;
        }
        State::InFlight { start, count, words }
    }

    /// The page, for the domain's own part of it ([`SURVIVOR_OWNER`]).
    pub fn page(&self) -> &S {
        &self.page
    }

    /// What the page was found to hold.
    pub fn state(&self) -> State {
        self.state
    }

    /// The record, if it is `ring`'s.
    pub(crate) fn record_of(&self, ring: &RingId) -> Result<Option<(u32, u32, u32)>, Mismatch> {
        match self.state {
            State::Clear => Ok(None),
            State::Corrupt { state } => Err(Mismatch::Corrupt { state }),
            State::InFlight { start, count, words } => {
                let named = [HEAD, HEAD + 1, HEAD + 2].map(|w| self.page.read(offset(w)));
                Ok((named == ring.words() || mutated!(AnyRing)).then_some((start, count, words)))
            }
        }
    }

    /// Word `word` of the record's entry `entry`.
    pub(crate) fn entry(&self, entry: u32, words: u32, word: usize) -> u32 {
        let at = (entry as usize).wrapping_mul(words as usize).wrapping_add(word).wrapping_add(ENTRIES);
        if at < PAGE_WORDS { self.page.read(offset(at)) } else { 0 }
    }

    /// The record's publication is complete.
    pub(crate) fn settle(&mut self) {
        self.page.store_release(offset(STATE), CLEAR);
        self.state = State::Clear;
    }

    /// Ends the recovery: every ring that will be continued has been attached. A record that nobody claimed belonged to a
    /// device that is gone or will reconnect.
    pub fn finish(mut self) -> Survivor<S> {
        if self.state != State::Clear {
            self.settle();
        }
        Survivor { page: self.page }
    }
}

/// The survivor page in service: records the publication about to be made.
pub struct Survivor<S> {
    page: S,
}

impl<S: SharedMem> Survivor<S> {
    /// The page, for the domain's own part of it ([`SURVIVOR_OWNER`]).
    pub fn page(&self) -> &S {
        &self.page
    }

    /// Responses of `words` words that fit one record.
    pub(crate) const fn capacity(words: usize) -> u32 {
        match PAGE_WORDS.saturating_sub(ENTRIES).checked_div(words) {
            Some(n) => n as u32,
            None => 0,
        }
    }

    /// Records that `count` responses are about to be written from `start` on. `response` gives them, by distance.
    pub(crate) fn record<'a, const RSP: usize>(
        &mut self,
        ring: &RingId,
        start: u32,
        count: u32,
        response: impl Fn(u32) -> &'a [u32; RSP],
    ) {
        let mut crc = crc32fast::Hasher::new();
        let mut put = |word: usize, value: u32| {
            crc.update(&value.to_le_bytes());
            self.page.store_release(offset(word), value);
        };
        let [a, b, c] = ring.words();
        for (word, value) in (HEAD..CRC).zip([a, b, c, start, count, RSP as u32]) {
            put(word, value);
        }
        let mut words = ENTRIES..PAGE_WORDS;
        for entry in 0..count {
            for (&value, word) in response(entry).iter().zip(words.by_ref()) {
                put(word, value);
            }
        }
        self.page.store_release(offset(CRC), crc.finalize());
        self.page.store_release(offset(STATE), IN_FLIGHT);
    }

    /// The recorded publication is complete.
    pub(crate) fn clear(&mut self) {
        self.page.store_release(offset(STATE), CLEAR);
    }
}

/// Byte offset of a word of the page.
const fn offset(word: usize) -> usize {
    word.wrapping_mul(4)
}
