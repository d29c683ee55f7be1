//! The receive half: empty pages posted on the RX ring for good, filled by the backend, copied out once and posted again.
//!
//! The backend may write a page at any time, so a frame is copied into private memory before anything looks at it. Answers come
//! in the order of the requests (the protocol's rule for this ring, since an extra-info slot has no id): the page an answer is
//! about is known by its place, and an id that says otherwise spoils the frame.

use super::Counters;
use super::checksum::{self, Found};
use crate::grant::{Access, GrantError, GrantedPage};
use abi::io::netif::{RxRequest, RxResponse, extra, rxf};
use abi::{DomId, GrantRef, PAGE_SIZE};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use ring::RxFrontRing;
use zerocopy::transmute;

/// Slots of the ring.
const SLOTS: usize = 256;
/// Longest frame taken: an IP packet of 64 KiB and its Ethernet header.
const FRAME_MAX: usize = 65_535 + 14;
/// Pages posted again before the backend is shown them.
const PUBLISH_EVERY: u32 = 32;

/// A frame being put together from several answers.
#[derive(Clone, Copy, Debug, Default)]
struct Partial {
    /// Between the first and the last answer of a frame.
    open: bool,
    /// The next answer is an extra-info slot.
    extra: bool,
    /// More data follows the extra slots.
    more: bool,
    len: usize,
    /// Spoilt: consume to its end, then drop it.
    bad: bool,
    /// The backend vouches for the transport checksum, or there is none to check.
    validated: bool,
}

/// The receive half of a link.
pub struct Rx {
    ring: RxFrontRing<GrantedPage>,
    pages: Vec<GrantedPage>,
    /// Which page was posted at which place of the ring.
    posted: [u16; SLOTS],
    unpublished: u32,
    partial: Partial,
    frame: Box<[u8]>,
}

impl Rx {
    /// A ring with `buffers` pages posted (at most as many as it has slots).
    ///
    /// # Errors
    /// Memory or grants are exhausted.
    pub fn new(backend: DomId, buffers: u16) -> Result<Self, GrantError> {
        let ring = RxFrontRing::init(GrantedPage::alloc(backend, Access::ReadWrite)?);
        let count = buffers.min(SLOTS as u16);
        let mut pages = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            pages.push(GrantedPage::alloc(backend, Access::ReadWrite)?);
        }
        let frame = vec![0; FRAME_MAX].into_boxed_slice();
        let mut rx = Self { ring, pages, posted: [0; SLOTS], unpublished: 0, partial: Partial::default(), frame };
        for page in 0..count {
            rx.post(page);
        }
        Ok(rx)
    }

    /// The ring's own grant, for xenstore.
    pub fn gref(&self) -> GrantRef {
        self.ring.mem().gref()
    }

    fn post(&mut self, page: u16) {
        let Some(gref) = self.pages.get(usize::from(page)).map(GrantedPage::gref) else { return };
        let words: [u32; 2] = transmute!(RxRequest { id: page, pad: 0, gref });
        // There are no more pages than slots, so there is room.
        let Ok(index) = self.ring.push(words) else { return };
        if let Some(place) = self.posted.get_mut(index as usize % SLOTS) {
            *place = page;
        }
        self.unpublished = self.unpublished.wrapping_add(1);
    }

    /// Shows the backend the pages posted again; true where it wants a notification.
    pub fn publish(&mut self) -> bool {
        self.unpublished = 0;
        self.ring.publish()
    }

    /// Bytes of the next whole frame, now in [`Rx::frame`]; `None` when there is none yet. `notify` is raised where the backend
    /// wants to hear of pages posted again.
    pub fn next(&mut self, counters: &mut Counters, notify: &mut bool) -> Option<usize> {
        loop {
            let (index, words) = match self.ring.take() {
                Ok(Some(taken)) => taken,
                Ok(None) => return None,
                Err(_) => {
                    counters.ring_faults = counters.ring_faults.wrapping_add(1);
                    return None;
                }
            };
            let page = self.posted.get(index as usize % SLOTS).copied().unwrap_or(0);
            let whole = if self.partial.extra { self.accept_extra(words) } else { self.accept_data(page, words) };
            self.post(page);
            if self.unpublished >= PUBLISH_EVERY {
                *notify |= self.publish();
            }
            if whole {
                let done = core::mem::take(&mut self.partial);
                if done.bad {
                    counters.bad_responses = counters.bad_responses.wrapping_add(1);
                } else if done.len == 0 {
                    // The backend had nothing for this page: an answered, empty slot.
                    counters.rx_empty = counters.rx_empty.wrapping_add(1);
                } else if !done.validated && !self.checksum_holds(done.len) {
                    counters.rx_checksum = counters.rx_checksum.wrapping_add(1);
                } else {
                    return Some(done.len);
                }
            }
        }
    }

    /// Takes an extra-info slot; answers whether the frame is whole with it.
    fn accept_extra(&mut self, words: [u32; 2]) -> bool {
        let [kind, flags, ..] = words[0].to_le_bytes();
        // Segmentation information is of no use to a receiver that takes frames of any length; other kinds were not asked for.
        self.partial.bad |= kind != extra::GSO;
        self.partial.extra = flags & extra::FLAG_MORE != 0;
        !self.partial.extra && !self.partial.more
    }

    /// Takes a data slot; answers whether the frame is whole with it.
    fn accept_data(&mut self, page: u16, words: [u32; 2]) -> bool {
        let response: RxResponse = transmute!(words);
        let partial = &mut self.partial;
        if !partial.open {
            partial.open = true;
            partial.validated = response.flags & (rxf::DATA_VALIDATED | rxf::CSUM_BLANK) != 0;
            partial.extra = response.flags & rxf::EXTRA_INFO != 0;
        }
        partial.more = response.flags & rxf::MORE_DATA != 0;
        match Self::extent(&response, page, partial.len) {
            Some((offset, len)) => {
                let end = partial.len.saturating_add(len);
                let to = self.frame.get_mut(partial.len..end).unwrap_or_default();
                let copied = self.pages.get(usize::from(page)).and_then(GrantedPage::page);
                let copied = copied.map_or(0, |from| from.copy_out(offset, to));
                partial.bad |= copied != len;
                partial.len = end;
            }
            None => partial.bad = true,
        }
        !partial.more && !partial.extra
    }

    /// Where the data of an answer is, if it can be true.
    fn extent(response: &RxResponse, page: u16, so_far: usize) -> Option<(usize, usize)> {
        // A negative status is the backend's error: the slot came back empty.
        let len = usize::try_from(response.status).ok()?;
        let offset = usize::from(response.offset);
        let inside = offset.checked_add(len)? <= PAGE_SIZE && so_far.checked_add(len)? <= FRAME_MAX;
        (inside && response.id == page).then_some((offset, len))
    }

    fn checksum_holds(&self, len: usize) -> bool {
        let frame = self.frame.get(..len).unwrap_or_default();
        match checksum::find(frame) {
            Found::Transport(at) => at.verify(frame),
            Found::Other => true,
            // A stack that was promised checked transport data must not meet unchecked.
            Found::Fragment | Found::Malformed => false,
        }
    }

    /// The frame [`Rx::next`] has put together.
    pub fn frame(&self, len: usize) -> &[u8] {
        self.frame.get(..len).unwrap_or_default()
    }

    /// Asks for a notification with the next answer; true where one is there already.
    pub fn arm(&mut self) -> bool {
        self.ring.arm(1).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::io::{netif, ring as layout};
    use ring::SharedMem;

    struct Backend {
        index: u32,
    }
    impl Backend {
        fn page<'a>(&self, rx: &'a Rx) -> (u16, &'a GrantedPage) {
            let at = layout::SLOTS + (self.index as usize % SLOTS) * netif::RX_SLOT;
            let words: [u32; 2] = [rx.ring.mem().read(at), rx.ring.mem().read(at + 4)];
            let request: RxRequest = transmute!(words);
            let page = &rx.pages[usize::from(request.id)];
            assert_eq!(page.gref(), request.gref);
            (request.id, page)
        }
        fn put(&mut self, rx: &Rx, words: [u32; 2]) {
            let at = layout::SLOTS + (self.index as usize % SLOTS) * netif::RX_SLOT;
            rx.ring.mem().write(at, words[0]);
            rx.ring.mem().write(at + 4, words[1]);
            self.index += 1;
            rx.ring.mem().store_release(layout::RSP_PROD, self.index);
        }
        fn send(&mut self, rx: &Rx, data: &[u8], flags: u16) {
            let (id, page) = self.page(rx);
            page.page().unwrap().copy_in(16, data);
            self.put(rx, transmute!(RxResponse { id, offset: 16, flags, status: data.len() as i16 }));
        }
    }

    fn next(rx: &mut Rx, counters: &mut Counters) -> Option<Vec<u8>> {
        let mut notify = false;
        let len = rx.next(counters, &mut notify)?;
        Some(rx.frame(len).to_vec())
    }

    #[test]
    fn frames_of_several_slots_and_extras_come_out_whole() {
        let (mut rx, mut c) = (Rx::new(DomId(1), 8).unwrap(), Counters::default());
        rx.publish();
        let mut backend = Backend { index: 0 };
        let gso = [u32::from_le_bytes([extra::GSO, 0, 0xa8, 5]), 1];
        for round in 0..300u32 {
            let byte = round as u8;
            backend.send(&rx, &[byte; 4000], rxf::DATA_VALIDATED | rxf::MORE_DATA | rxf::EXTRA_INFO);
            backend.put(&rx, gso);
            if round % 2 == 0 {
                assert_eq!(next(&mut rx, &mut c), None, "half a frame is none");
            }
            backend.send(&rx, &[byte; 100], 0);
            assert_eq!(next(&mut rx, &mut c), Some(vec![byte; 4100]));
            rx.publish();
        }
        assert_eq!(c.bad_responses + c.ring_faults, 0);
    }

    #[test]
    fn lies_spoil_only_their_own_frame() {
        let (mut rx, mut c) = (Rx::new(DomId(1), 16).unwrap(), Counters::default());
        rx.publish();
        let mut backend = Backend { index: 0 };
        let (id, _) = backend.page(&rx);
        backend.put(&rx, transmute!(RxResponse { id: id + 1, offset: 0, flags: 1, status: 60 }));
        let (id, _) = backend.page(&rx);
        backend.put(&rx, transmute!(RxResponse { id, offset: 4000, flags: 1, status: 97 }));
        let (id, _) = backend.page(&rx);
        backend.put(&rx, transmute!(RxResponse { id, offset: 0, flags: 1, status: -1 }));
        backend.send(&rx, &[1; 60], rxf::EXTRA_INFO | 1);
        backend.put(&rx, [u32::from(extra::MCAST_ADD), 0]);
        backend.send(&rx, &[7; 60], rxf::DATA_VALIDATED);
        assert_eq!(next(&mut rx, &mut c), Some(vec![7; 60]));
        assert_eq!(c.bad_responses, 4);
        rx.ring.mem().write(layout::RSP_PROD, 1000);
        assert_eq!(next(&mut rx, &mut c), None);
        assert_eq!(c.ring_faults, 1);
    }

    #[test]
    fn a_frame_longer_than_any_ip_packet_is_dropped() {
        let (mut rx, mut c) = (Rx::new(DomId(1), 32).unwrap(), Counters::default());
        rx.publish();
        let mut backend = Backend { index: 0 };
        for _ in 0..17 {
            backend.send(&rx, &[1; 4000], rxf::DATA_VALIDATED | rxf::MORE_DATA);
        }
        backend.send(&rx, &[1; 10], 0);
        assert_eq!(next(&mut rx, &mut c), None);
        assert_eq!(c.bad_responses, 1);
    }

    #[test]
    fn what_nobody_vouches_for_is_checked_here() {
        let (mut rx, mut c) = (Rx::new(DomId(1), 8).unwrap(), Counters::default());
        rx.publish();
        let mut backend = Backend { index: 0 };
        let mut frame = vec![0u8; 12];
        frame.extend([8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0, 1, 0, 2, 0, 11, 0xb7, 0x6e, b'a', b'b', b'c']);
        backend.send(&rx, &frame, 0);
        assert_eq!(next(&mut rx, &mut c), Some(frame.clone()));
        frame[44] = b'd';
        backend.send(&rx, &frame, 0);
        assert_eq!(next(&mut rx, &mut c), None);
        assert_eq!(c.rx_checksum, 1);
        backend.send(&rx, &frame, rxf::DATA_VALIDATED);
        assert_eq!(next(&mut rx, &mut c), Some(frame));
    }
}
