//! The survivor page is written by code that may have been failing: a record that is damaged, or does not fit, must never
//! be written into a ring.

use super::world::{Fate, ID, Killed, Mortal, Page, Plain, request, response};
use crate::{AttachError, BackRing, FrontRing, Mismatch, Recovery, RingId, SharedMem, State};
use abi::io::ring::{REQ_PROD, RSP_PROD, SLOTS};
use abi::{DomId, GrantRef};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

type Back<M> = BackRing<M, 4, 3, 1>;

/// A ring whose backend died in the middle of the publication of three responses, one slot written, and its page.
fn torn(start: u32) -> (Rc<Page>, Rc<Page>) {
    let (ring, survivor) = (Page::new(), Page::new());
    let mut front = FrontRing::<_, 4, 3, 1>::init_at(Plain(ring.clone()), start);
    (0..4).for_each(|n| {
        front.push(request(n)).unwrap();
    });
    front.publish();
    // 6 words of head, 3 entries, CRC, state, one slot; and the CLEAR that opening the page stores.
    let fate = Rc::new(Fate::default());
    fate.kills.borrow_mut().push(1 + 6 + 3 + 2 + 1);
    let died = catch_unwind(AssertUnwindSafe(|| {
        let page = |page: &Rc<Page>| Mortal { page: page.clone(), fate: fate.clone() };
        let mut open = Recovery::open(page(&survivor), true).finish();
        let mut back = Back::connect(page(&ring), ID).unwrap();
        for n in 0..3 {
            let (index, _) = back.take().unwrap().unwrap();
            back.complete(index, response(n)).unwrap();
        }
        back.publish(&mut open);
    }));
    assert!(died.unwrap_err().is::<Killed>());
    (ring, survivor)
}

fn attach(ring: &Rc<Page>, survivor: &Rc<Page>, id: RingId) -> Result<u32, AttachError> {
    let mut recovery = Recovery::open(Plain(survivor.clone()), false);
    Back::attach(Plain(ring.clone()), id, &mut recovery).map(|attached| attached.finished)
}

fn words(page: &Page) -> Vec<u32> {
    (0..1024).map(|w| page.word(w * 4).get()).collect()
}

/// Every single flipped bit of a record is noticed, and the ring is left alone.
pub fn flipped_bits_are_noticed() -> Result<(), String> {
    for bit in 0..(8 + 3) * 32 {
        let (ring, survivor) = torn(9);
        let word = survivor.word(bit / 32 * 4);
        word.set(word.get() ^ 1 << (bit % 32));
        let before = words(&ring);
        match attach(&ring, &survivor, ID) {
            Err(AttachError::Reconnect(Mismatch::Corrupt { .. })) if words(&ring) == before => {}
            other => return Err(format!("bit {bit} flipped: {other:?}")),
        }
    }
    Ok(())
}

/// An intact record that stands elsewhere than the ring is refused, and the ring is left alone.
pub fn another_position_is_refused() -> Result<(), String> {
    for moved in [1u32, 2, 4, 100, u32::MAX] {
        let (ring, survivor) = torn(9);
        let (req, rsp) = (13u32.wrapping_add(moved), 9u32.wrapping_add(moved));
        Plain(ring.clone()).write(REQ_PROD, req);
        Plain(ring.clone()).write(RSP_PROD, rsp);
        let before = words(&ring);
        match attach(&ring, &survivor, ID) {
            Err(AttachError::Reconnect(Mismatch::Position { .. })) if words(&ring) == before => {}
            Err(AttachError::Fault(_)) if words(&ring) == before => {}
            other => return Err(format!("moved by {moved}: {other:?}")),
        }
    }
    Ok(())
}

/// A record is applied to no ring but its own, whatever part of the identity differs.
pub fn another_ring_is_left_alone() -> Result<(), String> {
    let others = [
        RingId { frontend: DomId(6), ..ID },
        RingId { device: 1, ..ID },
        RingId { kind: crate::RingKind::NetRx, ..ID },
        RingId { queue: 1, ..ID },
        RingId { gref: GrantRef(18), ..ID },
    ];
    for id in others {
        let (ring, survivor) = torn(9);
        let before = words(&ring);
        match attach(&ring, &survivor, id) {
            Ok(0) if words(&ring) == before => {}
            other => return Err(format!("{id:?}: {other:?}")),
        }
    }
    Ok(())
}

#[test]
fn a_fitting_record_is_finished() {
    for start in [0, 9, u32::MAX - 1] {
        let (ring, survivor) = torn(start);
        assert_eq!(attach(&ring, &survivor, ID), Ok(3));
        let ring = Plain(ring);
        assert_eq!(ring.read(RSP_PROD), start.wrapping_add(3));
        for n in 0..3u32 {
            let slot = SLOTS + (start.wrapping_add(n) & 3) as usize * 12;
            assert_eq!([ring.read(slot)], response(n));
        }
        assert_eq!(Recovery::open(Plain(survivor), false).state(), State::Clear);
    }
}

#[test]
fn damaged_records_are_refused() {
    flipped_bits_are_noticed().unwrap();
    another_position_is_refused().unwrap();
    another_ring_is_left_alone().unwrap();
}

#[test]
fn a_record_of_more_than_was_requested_is_refused() {
    let (ring, survivor) = torn(9);
    Plain(ring.clone()).write(REQ_PROD, 11);
    let refused = AttachError::Reconnect(Mismatch::Shape { count: 3, words: 1 });
    assert_eq!(attach(&ring, &survivor, ID), Err(refused));
}

#[test]
fn a_page_of_zeros_is_clear_only_at_first_boot() {
    assert_eq!(Recovery::open(Plain(Page::new()), true).state(), State::Clear);
    assert_eq!(Recovery::open(Plain(Page::new()), false).state(), State::Corrupt { state: 0 });
}

#[test]
fn garbage_in_the_page_is_never_a_record() {
    let mut x = 0x9E37_79B9u32;
    for _ in 0..2000 {
        let page = Page::new();
        for word in 0..1024 {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            page.word(word * 4).set(x);
        }
        page.word(0).set(0xA5C3_F117); // even with the right state word
        assert!(matches!(Recovery::open(Plain(page), false).state(), State::Corrupt { .. }));
    }
}
