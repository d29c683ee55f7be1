//! Frontends and backends that lie: indices that jump, slots rewritten at every access, garbage event indices. The honest
//! end reports a fault or goes on; it never reads outside of the ring, never takes more than the ring holds, and reads
//! each word of a request exactly once.

use super::world::{ID, Page, Plain};
use crate::{BackRing, FrontFault, FrontRing, Recovery, RingFault, SharedMem};
use abi::io::ring::{REQ_PROD, RSP_PROD, SLOTS};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A page that changes under its reader: before each access the next lie is written. Counts reads per word.
#[derive(Clone)]
struct Lying {
    page: Rc<Page>,
    lies: Rc<RefCell<Vec<(usize, u32)>>>,
    reads: Rc<RefCell<Vec<u32>>>,
    ring_bytes: usize,
    outside: Rc<Cell<bool>>,
}

impl Lying {
    fn new(lies: Vec<(usize, u32)>, ring_bytes: usize) -> Self {
        Self {
            page: Page::new(),
            lies: Rc::new(RefCell::new(lies)),
            reads: Rc::new(RefCell::new(vec![0; 1024])),
            ring_bytes,
            outside: Rc::default(),
        }
    }
    fn lie(&self, offset: usize) {
        if offset >= self.ring_bytes {
            self.outside.set(true);
        }
        if let Some((word, value)) = self.lies.borrow_mut().pop() {
            self.page.word(word * 4).set(value);
        }
    }
}

impl SharedMem for Lying {
    fn read(&self, offset: usize) -> u32 {
        self.lie(offset);
        self.reads.borrow_mut()[offset / 4] += 1;
        self.page.word(offset).get()
    }
    fn write(&self, offset: usize, value: u32) {
        self.lie(offset);
        self.page.word(offset).set(value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// A backend against a page of lies; an error is a property that does not hold.
pub fn backend_among_lies(lies: Vec<(usize, u32)>, start: u32) -> Result<(), String> {
    let mem = Lying::new(lies, SLOTS + 8 * 8);
    Plain(mem.page.clone()).write(REQ_PROD, start);
    Plain(mem.page.clone()).write(RSP_PROD, start);
    let mut survivor = Recovery::open(Plain(Page::new()), true).finish();
    let Ok(mut ring) = BackRing::<_, 8, 2, 2>::connect(mem.clone(), ID) else { return Ok(()) };
    for round in 0..200u32 {
        mem.reads.borrow_mut().fill(0);
        let mut taken = Vec::new();
        let fault = loop {
            match ring.take() {
                Ok(Some((index, _))) => taken.push(index),
                Ok(None) => break false,
                Err(_) => break true,
            }
            if ring.in_flight() > 8 || taken.len() > 8 {
                return Err(format!("{} requests in flight in a ring of 8", ring.in_flight()));
            }
        };
        if mem.reads.borrow()[SLOTS / 4..].iter().any(|&n| n > 1) {
            return Err("a word of a request was read twice".into());
        }
        if fault {
            break;
        }
        for index in taken {
            ring.complete(index, [round, index]).map_err(|e| e.to_string())?;
        }
        ring.publish(&mut survivor);
        if ring.arm(1).is_err() {
            break;
        }
    }
    if mem.outside.get() { Err("the ring was left".into()) } else { Ok(()) }
}

/// The canonical lies about `req_prod` are faults.
pub fn jumps_are_faults(start: u32) -> Result<(), String> {
    let page = Page::new();
    let mut front = FrontRing::<_, 8, 2, 2>::init_at(Plain(page.clone()), start);
    let mut back = BackRing::<_, 8, 2, 2>::connect(Plain(page.clone()), ID).map_err(|e| e.to_string())?;
    front.push([1, 2]).map_err(|_| "full")?;
    front.publish();
    back.take().map_err(|e| e.to_string())?;
    let cons = start.wrapping_add(1);
    for prod in [start, cons.wrapping_add(8), start.wrapping_sub(1), cons.wrapping_add(1 << 31)] {
        Plain(page.clone()).write(REQ_PROD, prod);
        if back.pending() != Err(RingFault::BadProducer { prod, cons }) {
            return Err(format!("req_prod {prod} with {cons} consumed was believed"));
        }
    }
    for prod in [cons, cons.wrapping_add(7)] {
        Plain(page.clone()).write(REQ_PROD, prod);
        back.pending().map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[test]
fn producer_jumps_are_faults() {
    for start in [0, 5, u32::MAX - 3, u32::MAX] {
        jumps_are_faults(start).unwrap();
    }
}

#[test]
fn a_lying_backend_is_a_fault() {
    for start in [0, u32::MAX] {
        let page = Page::new();
        let mut front = FrontRing::<_, 8, 2, 2>::init_at(Plain(page.clone()), start);
        front.push([1, 2]).unwrap();
        let mem = Plain(page);
        mem.write(RSP_PROD, start.wrapping_add(1)); // answers what is not published
        let cons = start;
        assert_eq!(front.pending(), Err(FrontFault::BadProducer { prod: start.wrapping_add(1), cons }));
        front.publish();
        assert_eq!(front.take().map(|taken| taken.map(|(index, _)| index)), Ok(Some(start)));
        for prod in [start, start.wrapping_add(2), start.wrapping_add(1 << 31)] {
            mem.write(RSP_PROD, prod);
            assert_eq!(front.pending(), Err(FrontFault::BadProducer { prod, cons: start.wrapping_add(1) }));
        }
    }
}

fn lies() -> impl Strategy<Value = Vec<(usize, u32)>> {
    let index = prop_oneof![0u32..12, (u32::MAX - 6)..=u32::MAX, any::<u32>()];
    prop::collection::vec((0usize..32, index), 0..600)
}

proptest! {
    #[test]
    fn no_lie_leads_the_backend_out_of_the_ring(lies in lies(), start in prop_oneof![Just(0u32), Just(u32::MAX - 1)]) {
        prop_assert_eq!(backend_among_lies(lies, start), Ok(()));
    }

    #[test]
    fn no_lie_leads_the_frontend_out_of_the_ring(lies in lies(), start in prop_oneof![Just(0u32), Just(u32::MAX - 1)]) {
        let mem = Lying::new(lies, SLOTS + 8 * 8);
        let mut front = FrontRing::<_, 8, 2, 2>::init_at(mem.clone(), start);
        for n in 0..200 {
            while front.push([n, n]).is_ok() {}
            front.publish();
            prop_assert!(front.in_flight() <= 8);
            if front.take().is_err() || front.arm(1).is_err() {
                break;
            }
        }
        prop_assert!(!mem.outside.get());
    }
}
