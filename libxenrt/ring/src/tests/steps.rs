//! Single operations: the window, the event indices, the ids.

use super::world::{ID, Page, Plain, request, response};
use crate::{
    BackRing, BlkBackRing, BlkFrontRing, FrontFault, FrontRing, Full, Ids, Pages, Recovery, RingFault, SharedMem,
};
use abi::io::ring::{REQ_EVENT, RSP_EVENT, RSP_PROD};

type Ends = (FrontRing<Plain, 8, 3, 1>, BackRing<Plain, 8, 3, 1>, crate::Survivor<Plain>, Plain);

fn ends(start: u32, requests: u32) -> Ends {
    let page = Plain(Page::new());
    let mut front = FrontRing::init_at(page.clone(), start);
    for n in 0..requests {
        front.push(request(n)).unwrap();
    }
    front.publish();
    let back = BackRing::connect(page.clone(), ID).unwrap();
    (front, back, Recovery::open(Plain(Page::new()), true).finish(), page)
}

#[test]
fn responses_leave_in_request_order() {
    let start = u32::MAX - 1;
    let (mut front, mut back, mut survivor, _) = ends(start, 4);
    let taken: Vec<u32> = (0..4).map(|_| back.take().unwrap().unwrap().0).collect();
    back.complete(taken[2], response(2)).unwrap();
    back.complete(taken[1], response(1)).unwrap();
    assert_eq!(back.publish(&mut survivor).count, 0);
    assert_eq!(front.take(), Ok(None));
    back.complete(taken[0], response(0)).unwrap();
    assert_eq!(back.publishable(), 3);
    assert_eq!(back.publish(&mut survivor).count, 3);
    for n in 0..3 {
        assert_eq!(front.take(), Ok(Some((start.wrapping_add(n), response(n)))));
    }
    assert_eq!((front.take(), back.in_flight()), (Ok(None), 1));
}

#[test]
fn a_request_is_completed_once_and_only_in_flight() {
    let (_, mut back, mut survivor, _) = ends(u32::MAX, 2);
    let (index, _) = back.take().unwrap().unwrap();
    let fault = |index| Err(RingFault::NotInFlight { index });
    assert_eq!(back.complete(index.wrapping_add(1), [0]), fault(index.wrapping_add(1)));
    back.complete(index, [0]).unwrap();
    assert_eq!(back.complete(index, [0]), fault(index));
    back.publish(&mut survivor);
    assert_eq!(back.complete(index, [0]), fault(index));
}

#[test]
fn peeked_requests_are_consumed_together() {
    let (_, mut back, _, _) = ends(u32::MAX - 1, 3);
    assert_eq!([0, 1, 2].map(|n| back.peek(n)), [0, 1, 2].map(request));
    assert_eq!(back.skip(2), Ok(u32::MAX - 1));
    assert_eq!((back.pending(), back.in_flight()), (Ok(1), 2));
    assert!(back.skip(2).is_err());
}

#[test]
fn events_are_asked_for_and_sent_only_when_the_index_is_passed() {
    for start in [0, u32::MAX - 2] {
        let (mut front, mut back, mut survivor, page) = ends(start, 1);
        assert_eq!(page.read(REQ_EVENT), start.wrapping_add(1));
        let (index, _) = back.take().unwrap().unwrap();
        back.complete(index, [0]).unwrap();
        assert!(back.publish(&mut survivor).notify, "rsp_event was initialised to the first response");
        assert_eq!(back.arm(1), Ok(false));
        front.push(request(1)).unwrap();
        assert!(front.publish(), "the backend waits for one request");
        assert_eq!(back.arm(1), Ok(true));
        assert_eq!(back.arm(3), Ok(false), "three are wanted, one is there");
        front.push(request(2)).unwrap();
        assert!(!front.publish());
        front.push(request(3)).unwrap();
        assert!(front.publish(), "the third passes the event index");
        let (index, _) = back.take().unwrap().unwrap();
        back.complete(index, [0]).unwrap();
        page.write(RSP_EVENT, start); // long past: the frontend polls
        assert!(!back.publish(&mut survivor).notify);
        assert_eq!(front.pending(), Ok(2));
        assert_eq!(front.arm(3), Ok(false));
    }
}

#[test]
fn a_full_ring_takes_no_request() {
    let (mut front, _, _, page) = ends(u32::MAX - 3, 8);
    assert_eq!(front.push(request(8)), Err(crate::Full));
    page.write(RSP_PROD, u32::MAX - 2);
    front.take().unwrap().unwrap();
    assert_eq!(front.free(), 1);
    front.push(request(8)).unwrap();
}

#[test]
fn ids_are_answered_once() {
    let mut ids = Ids::<4>::new();
    let all: Vec<u16> = std::iter::from_fn(|| ids.take()).collect();
    assert_eq!(all, [0, 1, 2, 3]);
    assert_eq!(ids.outstanding(), 4);
    ids.give(2).unwrap();
    assert_eq!(ids.give(2), Err(FrontFault::BadId { id: 2 }));
    assert_eq!(ids.give(4), Err(FrontFault::BadId { id: 4 }));
    assert_eq!(ids.take(), Some(2));
}

/// Slots of 28 words, 64 of them over two pages: some lie across the border.
#[test]
fn a_ring_of_fewer_slots_spans_its_pages() {
    let pages = || Pages(vec![Plain(Page::new()), Plain(Page::new())]);
    let shared = pages();
    let twin = Pages(shared.0.clone());
    let mut front = BlkFrontRing::init_sized(shared, 64, u32::MAX - 9);
    let mut back = BlkBackRing::connect_sized(twin, ID, 64).unwrap();
    let mut survivor = Recovery::open(Plain(Page::new()), true).finish();
    let request = |n: u32| [(); 28].map(|()| n.wrapping_mul(0x0101_0101));
    for round in 0..3 {
        for n in 0..64 {
            front.push(request(round * 64 + n)).unwrap();
        }
        assert_eq!((front.push(request(0)), front.free()), (Err(Full), 0));
        front.publish();
        for n in 0..64 {
            let (index, words) = back.take().unwrap().unwrap();
            assert_eq!(words, request(round * 64 + n));
            back.complete(index, [words[0]; 4]).unwrap();
        }
        assert_eq!(back.publish(&mut survivor).count, 64);
        for n in 0..64 {
            assert_eq!(front.take().unwrap().unwrap().1, [request(round * 64 + n)[0]; 4]);
        }
    }
    assert_eq!([0, 1, 63, 64, 65, 1000].map(|n| crate::fitting(n, 256)), [1, 1, 32, 64, 64, 256]);
}
