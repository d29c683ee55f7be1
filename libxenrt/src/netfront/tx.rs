//! The transmit half: buffers granted read-only for good, frames written straight into them, requests on the TX ring.
//!
//! Because no peer can write them (the hypervisor enforces the grant's right), buffers are the one kind of granted memory that is
//! handed out as a byte slice, and a frame needs no copy on this side. A buffer is reused only after every slot that names
//! it was answered; an answer for an id that is not out is counted and ignored.

use super::Counters;
use crate::grant::{Access, Grant, GrantError, GrantedPage};
use crate::memory::Pages;
use abi::io::netif::{self, ExtraGso, TxRequest, extra, rsp, txf};
use abi::{DomId, GrantRef, PAGE_SHIFT, PAGE_SIZE};
use alloc::vec::Vec;
use ring::{Ids, TxFrontRing};
use zerocopy::transmute;

/// Slots of the ring.
const SLOTS: usize = 256;
/// Pages of a large buffer: a segment of nearly 64 KiB with its headers.
const LARGE_PAGES: usize = 16;
/// Most slots a frame takes: its pages and the GSO slot.
const FRAME_SLOTS: u32 = LARGE_PAGES as u32 + 1;
const _: () = assert!(FRAME_SLOTS <= netif::NR_SLOTS_MIN);

/// Longest frame for segmentation offload: what the size field and [`LARGE_PAGES`] hold, with room to spare.
pub const GSO_FRAME_MAX: usize = LARGE_PAGES * PAGE_SIZE - 512;

/// Segmentation asked of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes per segment.
    pub mss: u16,
    /// TCP over IPv6 rather than IPv4.
    pub v6: bool,
}

/// Contiguous pages, each granted read-only to the backend.
#[derive(Debug)]
struct Buffer {
    /// `None` only while being dropped.
    pages: Option<Pages>,
    grants: Vec<Grant>,
    /// Slots that name it and are not answered.
    out: u16,
}

impl Buffer {
    fn alloc(backend: DomId, count: usize) -> Result<Self, GrantError> {
        let pages = Pages::alloc(count).ok_or(GrantError::NoRoom)?;
        let first = pages.gpa() >> PAGE_SHIFT;
        let mut buffer = Self { pages: Some(pages), grants: Vec::with_capacity(count), out: 0 };
        for page in 0..count as u64 {
            // SAFETY: I6 – the pages live in the same value and outlive the grants (see `drop`).
            let grant = unsafe { Grant::new(backend, first.wrapping_add(page), Access::ReadOnly) }?;
            buffer.grants.push(grant);
        }
        Ok(buffer)
    }

    fn bytes(&mut self, len: usize) -> Option<&mut [u8]> {
        let pages = self.pages.as_mut()?;
        if len > pages.count().wrapping_mul(PAGE_SIZE) {
            return None;
        }
        // SAFETY: I11 – owned, initialised (zeroed) pages of at least `len` bytes that only this domain can write.
        Some(unsafe { core::slice::from_raw_parts_mut(pages.base().as_ptr(), len) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let busy = self.grants.iter_mut().map(Grant::end).filter(Result::is_err).count();
        if busy > 0 {
            // Still readable by the backend: it must never hold anything else.
            core::mem::forget(self.pages.take());
        }
    }
}

/// A buffer taken for one frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u16);

/// The transmit half of a link.
pub struct Tx {
    ring: TxFrontRing<GrantedPage>,
    ids: Ids<SLOTS>,
    /// Which buffer an id that is out belongs to.
    owner: [u16; SLOTS],
    buffers: Vec<Buffer>,
    small: Vec<u16>,
    large: Vec<u16>,
    first_large: u16,
}

impl Tx {
    /// A ring and its buffers: `small` of one page and `large` of sixteen.
    ///
    /// # Errors
    /// Memory or grants are exhausted.
    pub fn new(backend: DomId, small: u16, large: u16) -> Result<Self, GrantError> {
        let ring = TxFrontRing::init(GrantedPage::alloc(backend, Access::ReadWrite)?);
        let total = small.saturating_add(large);
        let mut buffers = Vec::with_capacity(usize::from(total));
        for index in 0..total {
            buffers.push(Buffer::alloc(backend, if index < small { 1 } else { LARGE_PAGES })?);
        }
        Ok(Self {
            ring,
            ids: Ids::new(),
            owner: [0; SLOTS],
            buffers,
            small: (0..small).collect(),
            large: (small..total).collect(),
            first_large: small,
        })
    }

    /// The ring's own grant, for xenstore.
    pub fn gref(&self) -> GrantRef {
        self.ring.mem().gref()
    }

    /// Whether a frame of any length can be sent now.
    pub fn has_room(&self) -> bool {
        let pools = !self.small.is_empty() && (!self.large.is_empty() || self.has_no_large());
        pools && self.ring.free() >= FRAME_SLOTS
    }

    fn has_no_large(&self) -> bool {
        usize::from(self.first_large) == self.buffers.len()
    }

    /// Takes a buffer for a frame of `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<Slot> {
        if self.ring.free() < FRAME_SLOTS {
            return None;
        }
        let pool = if len <= PAGE_SIZE { &mut self.small } else { &mut self.large };
        pool.pop().map(Slot)
    }

    /// The buffer's first `len` bytes.
    pub fn bytes(&mut self, slot: &Slot, len: usize) -> Option<&mut [u8]> {
        self.buffers.get_mut(usize::from(slot.0))?.bytes(len)
    }

    fn give_back(&mut self, index: u16) {
        let pool = if index < self.first_large { &mut self.small } else { &mut self.large };
        pool.push(index);
    }

    /// Puts the frame of `len` bytes in `slot` on the ring. `flags` are those of its first slot ([`txf`]).
    /// Answers false where it had to be dropped.
    pub fn send(&mut self, slot: Slot, len: usize, flags: u16, gso: Option<Gso>) -> bool {
        let pages = len.div_ceil(PAGE_SIZE);
        let grefs: Option<Vec<GrantRef>> = self
            .buffers
            .get(usize::from(slot.0))
            .and_then(|b| b.grants.get(..pages))
            .map(|grants| grants.iter().map(Grant::gref).collect());
        let room = self.ring.free() as usize > pages;
        let (Some(grefs), Ok(total), true) = (grefs, u16::try_from(len), room && pages > 0) else {
            self.give_back(slot.0);
            return false;
        };
        let mut left = len;
        for (i, gref) in grefs.iter().enumerate() {
            let here = left.min(PAGE_SIZE);
            left = left.saturating_sub(here);
            // There are as many ids as slots, and a slot is free.
            let Some(id) = self.ids.take() else { break };
            if let Some(owner) = self.owner.get_mut(usize::from(id)) {
                *owner = slot.0;
            }
            let first = i == 0;
            let mut request = TxRequest { gref: *gref, offset: 0, flags: 0, id, size: here as u16 };
            if first {
                request.size = total;
                request.flags = flags | if gso.is_some() { txf::EXTRA_INFO } else { 0 };
            }
            if left > 0 {
                request.flags |= txf::MORE_DATA;
            }
            let words: [u32; 3] = transmute!(request);
            let pushed = self.ring.push(words).is_ok();
            debug_assert!(pushed);
            if let Some(buffer) = self.buffers.get_mut(usize::from(slot.0)) {
                buffer.out = buffer.out.saturating_add(1);
            }
            if let (true, Some(gso)) = (first, gso) {
                let gso_type = if gso.v6 { extra::GSO_TCPV6 } else { extra::GSO_TCPV4 };
                let info = ExtraGso { kind: extra::GSO, flags: 0, size: gso.mss, gso_type, pad: 0, features: 0 };
                let [a, b]: [u32; 2] = transmute!(info);
                let pushed = self.ring.push([a, b, 0]).is_ok();
                debug_assert!(pushed);
            }
        }
        true
    }

    /// Shows the backend what was sent; true where it wants a notification.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes back what the backend is done with.
    pub fn reap(&mut self, counters: &mut Counters) {
        loop {
            let [word] = match self.ring.take() {
                Ok(Some((_, response))) => response,
                Ok(None) => return,
                Err(_) => {
                    counters.ring_faults = counters.ring_faults.wrapping_add(1);
                    return;
                }
            };
            let (id, status) = (word as u16, (word >> 16) as u16 as i16);
            // The answer to an extra-info slot, which has no id.
            if status == rsp::NULL {
                continue;
            }
            if self.ids.give(id).is_err() {
                counters.bad_responses = counters.bad_responses.wrapping_add(1);
                continue;
            }
            if status != rsp::OKAY {
                counters.tx_errors = counters.tx_errors.wrapping_add(1);
            }
            let index = self.owner.get(usize::from(id)).copied().unwrap_or(0);
            let Some(buffer) = self.buffers.get_mut(usize::from(index)) else { continue };
            buffer.out = buffer.out.saturating_sub(1);
            if buffer.out == 0 {
                self.give_back(index);
            }
        }
    }

    /// Where there is no room, asks for a notification once half of what is under way is done; true where that is so already.
    pub fn arm(&mut self) -> bool {
        if self.has_room() {
            return false;
        }
        let wanted = (self.ring.in_flight() / 2).max(1);
        self.ring.arm(wanted).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::io::ring as layout;
    use ring::SharedMem;

    /// The backend's side of the page, slot by slot.
    fn request(tx: &Tx, index: u32) -> TxRequest {
        let at = layout::SLOTS + (index as usize % SLOTS) * netif::TX_SLOT;
        let words: [u32; 3] = [0, 4, 8].map(|o| tx.ring.mem().read(at + o));
        transmute!(words)
    }
    fn answer(tx: &Tx, index: u32, id: u16, status: i16) {
        let at = layout::SLOTS + (index as usize % SLOTS) * netif::TX_SLOT;
        tx.ring.mem().write(at, u32::from(id) | u32::from(status as u16) << 16);
        tx.ring.mem().store_release(layout::RSP_PROD, index + 1);
    }

    #[test]
    fn a_large_frame_takes_a_slot_per_page_and_one_for_gso() {
        let (mut tx, mut counters) = (Tx::new(DomId(1), 4, 2).unwrap(), Counters::default());
        let slot = tx.take(10_000).expect("room");
        tx.bytes(&slot, 10_000).expect("fits").fill(0xab);
        assert!(tx.send(slot, 10_000, txf::CSUM_BLANK, Some(Gso { mss: 1448, v6: false })));
        assert!(tx.publish());
        let first = request(&tx, 0);
        assert_eq!((first.size, first.flags), (10_000, txf::CSUM_BLANK | txf::EXTRA_INFO | txf::MORE_DATA));
        assert_eq!((request(&tx, 2).size, request(&tx, 2).flags), (4096, txf::MORE_DATA));
        assert_eq!((request(&tx, 3).size, request(&tx, 3).flags), (10_000 - 8192, 0));
        assert_eq!(tx.large.len(), 1);
        answer(&tx, 0, first.id, rsp::OKAY);
        answer(&tx, 1, 0, rsp::NULL);
        answer(&tx, 2, request(&tx, 2).id, rsp::OKAY);
        tx.reap(&mut counters);
        assert_eq!(tx.large.len(), 1, "one slot of the buffer is still out");
        answer(&tx, 3, request(&tx, 3).id, rsp::ERROR);
        tx.reap(&mut counters);
        assert_eq!((tx.large.len(), counters.tx_errors, counters.bad_responses), (2, 1, 0));
    }

    #[test]
    fn answers_out_of_order_and_lies_free_nothing_twice() {
        let (mut tx, mut counters) = (Tx::new(DomId(1), 4, 0).unwrap(), Counters::default());
        for _ in 0..2 {
            let slot = tx.take(60).unwrap();
            assert!(tx.send(slot, 60, 0, None));
        }
        tx.publish();
        let (a, b) = (request(&tx, 0).id, request(&tx, 1).id);
        answer(&tx, 0, b, rsp::OKAY);
        tx.reap(&mut counters);
        assert_eq!(tx.small.len(), 3);
        answer(&tx, 1, b, rsp::OKAY);
        tx.reap(&mut counters);
        assert_eq!((tx.small.len(), counters.bad_responses), (3, 1));
        assert_ne!(a, b);
        tx.ring.mem().write(layout::RSP_PROD, 77);
        tx.reap(&mut counters);
        assert_eq!(counters.ring_faults, 1);
    }

    #[test]
    fn nothing_is_sent_when_no_buffer_is_left() {
        let mut tx = Tx::new(DomId(1), 1, 1).unwrap();
        assert!(tx.has_room());
        let slot = tx.take(60).unwrap();
        assert_eq!(tx.take(60), None);
        assert!(tx.take(5000).is_some());
        assert!(!tx.has_room());
        assert!(tx.send(slot, 60, 0, None));
        let mut tx = Tx::new(DomId(1), 1, 0).unwrap();
        assert_eq!(tx.take(5000), None);
        let slot = tx.take(60).unwrap();
        assert!(!tx.send(slot, 5000, 0, None), "longer than its buffer");
        assert!(tx.has_room());
    }
}
