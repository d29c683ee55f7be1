//! Guests with a block device. An honest one knows what every sector must hold: its requests count in ring order, so what a read must
//! give is known when it is asked. A hostile one writes what it pleases into what it owns.

mod ask;
mod hostile;
mod judge;

pub use judge::Judge;

use crate::own::Own;
use crate::world::{BACKEND, World};
use abi::io::blkif::{Response, Segment, op, rsp, slots};
use abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};
use hv_core::Mfn;
use ring::{BlkFrontRing, Pages};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Its number for its device.
pub const DEVICE: u16 = 51712;
const RING_PAGES: usize = 4;
const DATA_PAGES: usize = 56;
const LISTS: usize = 6;

fn ring_gref(page: usize) -> GrantRef {
    GrantRef(8 + page as u32)
}
fn data_gref(page: usize) -> GrantRef {
    GrantRef(100 + page as u32)
}
fn list_gref(list: usize) -> GrantRef {
    GrantRef(200 + list as u32)
}

/// What a guest can do, and will.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Pages of its ring, as a power of two: 0 to 2.
    pub order: u32,
    pub persistent: bool,
    /// Requests with more segments than a slot has.
    pub indirect: bool,
    /// Requests it makes in its life.
    pub requests: u32,
    /// Only reads.
    pub read_only: bool,
    /// Sectors at a time must be a multiple of this.
    pub granularity: u64,
    /// Breaks the protocol when it can.
    pub hostile: bool,
}

/// A request that is out.
struct Out {
    operation: u8,
    first: u64,
    sectors: u64,
    segments: Vec<Segment>,
    pages: Vec<usize>,
    list: Option<usize>,
    /// What the judge knows it by.
    case: judge::Case,
}

struct Link {
    ring: BlkFrontRing<Own>,
    port: EvtchnPort,
    awake: bool,
    out: BTreeMap<u64, Out>,
    /// Ids in the order of the ring.
    order: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Waiting,
    Up,
    /// Closed by us for good.
    Ended,
}

/// A guest with one vbd.
pub struct Guest {
    world: Rc<World>,
    pub dom: DomId,
    pub nature: Nature,
    frames: Vec<Mfn>,
    free_pages: Vec<usize>,
    free_lists: Vec<usize>,
    phase: Phase,
    link: Option<Link>,
    seen_connected: bool,
    /// It asks for nothing more on this connection.
    closing: bool,
    pub judge: Judge,
    next_id: u64,
    /// Requests that a closed connection left unanswered, in order.
    again: Vec<Out>,
    pub to_ask: u32,
    pub answered: u64,
    pub errors: u64,
    pub reconnects: u32,
    /// Answers that say "not supported" or "failed" are no failure: the drive is bad, or gone.
    pub bears_errors: bool,
}

impl Guest {
    /// A guest whose vbd is `sectors` from `first` on (of 512 bytes), named by `source`.
    pub fn new(world: &Rc<World>, dom: DomId, nature: Nature, (first, sectors): (u64, u64), source: &str) -> Self {
        world.add_domain(dom);
        if nature.hostile {
            world.hostile.borrow_mut().insert(dom.0 as u8);
        }
        let frames = world.allocate(dom, (RING_PAGES + DATA_PAGES + LISTS) as u64);
        let mut guest = Self {
            world: world.clone(),
            dom,
            nature,
            frames,
            free_pages: (0..DATA_PAGES).collect(),
            free_lists: (0..LISTS).collect(),
            phase: Phase::Start,
            link: None,
            seen_connected: false,
            closing: false,
            judge: Judge::new(dom, first, sectors),
            next_id: u64::from(dom.0) << 40,
            again: Vec::new(),
            to_ask: nature.requests,
            answered: 0,
            errors: 0,
            reconnects: 0,
            bears_errors: false,
        };
        guest.announce(source);
        guest
    }

    /// What the toolstack writes for a vbd.
    fn announce(&mut self, source: &str) {
        let mut store = self.world.store.borrow_mut();
        store.set(&self.front("state"), "1");
        store.set(&self.back("source"), source);
        store.set(&self.back("mode"), if self.nature.read_only { "r" } else { "w" });
        if store.get(&self.back("state")).is_none() {
            store.set(&self.back("state"), "1");
        }
        store.set(&self.back("frontend"), self.front("").trim_end_matches('/'));
    }

    /// The domain dies, wherever it is.
    pub fn die(self) {
        self.world.remove_domain(self.dom, &self.frames);
        let front = self.front("");
        self.world.store.borrow_mut().remove(front.trim_end_matches('/'));
    }

    fn front(&self, node: &str) -> String {
        format!("/local/domain/{}/device/vbd/{DEVICE}/{node}", self.dom)
    }
    pub fn back(&self, node: &str) -> String {
        format!("/local/domain/{BACKEND}/backend/vbd/{}/{DEVICE}/{node}", self.dom)
    }
    fn say(&self, node: &str, value: &str) {
        let path = self.front(node);
        self.world.store.borrow_mut().set(&path, value);
    }
    pub fn back_state(&self) -> u32 {
        let store = self.world.store.borrow();
        store.get(&self.back("state")).and_then(|state| state.parse().ok()).unwrap_or(0)
    }
    /// The backend has nothing for it.
    pub fn back_state_is_closed(&self, store: &crate::store::Tree) -> bool {
        store.get(&self.back("state")) == Some("6")
    }
    fn chance(&self, n: u32) -> u32 {
        self.world.chance.borrow_mut().below(n)
    }
    fn fail(&self, why: impl std::fmt::Display) {
        // What happens to one who cheats is not looked at.
        if !self.nature.hostile {
            self.world.fail(format!("guest {}: {why}", self.dom));
        }
    }

    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up && self.link.is_some()
    }
    pub fn unanswered(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.out.len()) + self.again.len()
    }
    /// It has nothing left to do.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Ended || self.is_up() && !self.closing && self.unanswered() == 0 && self.to_ask == 0
    }

    /// An event comes to both ends, for no reason.
    pub fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            link.awake = true;
            self.world.send(self.dom, link.port);
        }
    }

    /// Closes in order, as a module that is removed does, once all is answered; then it begins anew.
    pub fn close(&mut self) {
        self.closing = self.is_up();
    }

    /// One step; false if there is nothing it would do before something happens.
    pub fn step(&mut self) -> bool {
        match self.phase {
            Phase::Ended => false,
            Phase::Start => {
                self.say("state", "1");
                self.phase = Phase::Waiting;
                true
            }
            Phase::Waiting if self.link.is_some() => self.wait_for_the_end(),
            Phase::Waiting if self.back_state() == 2 => {
                self.connect();
                true
            }
            Phase::Waiting => false,
            Phase::Up => match (self.back_state(), self.seen_connected) {
                (4, false) => {
                    self.seen_connected = true;
                    self.say("state", "4");
                    true
                }
                // What is out is still answered where the backend can.
                (5, _) => {
                    self.say("state", "6");
                    self.phase = Phase::Waiting;
                    true
                }
                // Closed, or offered anew.
                (6, _) | (2, true) => {
                    self.disconnect();
                    true
                }
                _ if self.nature.hostile && self.chance(3) == 0 => {
                    self.misbehave();
                    true
                }
                _ if self.seen_connected => self.traffic(),
                _ => false,
            },
        }
    }

    /// Both sides close: the grants end when the backend has let go.
    fn wait_for_the_end(&mut self) -> bool {
        let mut moved = false;
        if let Some(mut link) = self.link.take() {
            moved = self.world.take_event(self.dom, link.port);
            if moved {
                self.take_answers(&mut link);
            }
            self.link = Some(link);
        }
        let said = self.world.store.borrow().get(&self.front("state")).map(String::from);
        match self.back_state() {
            5 if said.as_deref() != Some("6") => self.say("state", "6"),
            6 => self.disconnect(),
            _ => return moved,
        }
        true
    }

    fn connect(&mut self) {
        let start = u32::MAX - self.chance(40);
        let count = 1 << self.nature.order;
        let pages: Vec<Own> = self.frames[..count].iter().map(|&mfn| Own(self.world.clone(), mfn)).collect();
        for (n, page) in pages.iter().enumerate() {
            self.world.write(page.1.0 * PAGE_SIZE as u64, &[0; PAGE_SIZE]);
            self.world.grant(self.dom, ring_gref(n), page.1, false);
        }
        let port = self.world.hv.borrow_mut().evtchn.alloc_unbound(self.dom, BACKEND).expect("a port");
        let ring = BlkFrontRing::init_sized(Pages(pages), slots(self.nature.order), start);
        self.link = Some(Link { ring, port, awake: true, out: BTreeMap::new(), order: Vec::new() });
        if self.nature.order == 0 {
            self.say("ring-ref", &ring_gref(0).to_string());
        } else {
            self.say("ring-page-order", &self.nature.order.to_string());
            (0..count).for_each(|n| self.say(&format!("ring-ref{n}"), &ring_gref(n).to_string()));
        }
        self.say("event-channel", &port.to_string());
        self.say("protocol", "x86_64-abi");
        self.say("feature-persistent", if self.nature.persistent { "1" } else { "0" });
        self.say("state", "3");
        self.phase = Phase::Up;
    }

    fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.reconnects += 1;
        let mut out = link.out;
        let unanswered: Vec<Out> = link.order.iter().filter_map(|id| out.remove(id)).collect();
        for n in 0..1 << self.nature.order {
            self.end(ring_gref(n));
        }
        // Where grants are kept, all of them end now.
        (0..DATA_PAGES).for_each(|page| self.end(data_gref(page)));
        (0..LISTS).for_each(|list| self.end(list_gref(list)));
        let _was = self.world.hv.borrow_mut().evtchn.close(self.dom, link.port);
        self.again = unanswered.into_iter().chain(std::mem::take(&mut self.again)).collect();
        self.say("state", "6");
        self.phase = if self.to_ask > 0 || !self.again.is_empty() { Phase::Start } else { Phase::Ended };
        self.seen_connected = false;
        self.closing = false;
    }

    fn end(&self, gref: GrantRef) {
        if !self.world.revoke(self.dom, gref) {
            self.fail(format!("grant {gref} in use after the backend let go"));
        }
    }

    fn traffic(&mut self) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        link.awake |= self.world.take_event(self.dom, link.port);
        let mut moved = false;
        if link.awake {
            moved = true;
            self.take_answers(&mut link);
        }
        while let Some(out) = (!self.again.is_empty() && link.ring.free() > 0).then(|| self.again.remove(0)) {
            self.put(&mut link, out);
            moved = true;
        }
        if self.closing {
            if link.out.is_empty() {
                self.closing = false;
                self.say("state", "5");
                self.phase = Phase::Waiting;
                moved = true;
            }
        } else if self.again.is_empty() && self.to_ask > 0 {
            let burst = 1 + self.chance(4);
            for _ in 0..burst.min(self.to_ask) {
                let Some(out) = self.invent(link.ring.free()) else { break };
                self.put(&mut link, out);
                self.to_ask -= 1;
                moved = true;
            }
        }
        if link.ring.publish() {
            self.world.send(self.dom, link.port);
        }
        self.link = Some(link);
        moved
    }

    fn address(&self, page: usize) -> u64 {
        self.frames[RING_PAGES + page].0 * PAGE_SIZE as u64
    }

    /// Memory of a request, sector by sector.
    fn places(&self, out: &Out) -> Vec<u64> {
        let pairs = out.segments.iter().zip(&out.pages);
        let sectors = |(s, &page): (&Segment, &usize)| {
            let base = self.address(page);
            (s.first_sect..=s.last_sect).map(move |n| base + u64::from(n) * 512)
        };
        pairs.flat_map(sectors).collect()
    }

    fn take_answers(&mut self, link: &mut Link) {
        link.awake = false;
        loop {
            match link.ring.take() {
                Ok(Some((_, words))) => self.answer(link, Response::from_words(&words)),
                Ok(None) => match link.ring.arm(1) {
                    Ok(false) => return,
                    Ok(true) => {}
                    Err(fault) => return self.fail(format!("{fault}")),
                },
                Err(fault) => return self.fail(format!("{fault}")),
            }
        }
    }

    fn answer(&mut self, link: &mut Link, response: Response) {
        let Some(out) = link.out.remove(&response.id) else {
            return self.fail(format!("request {:#x} is answered, which is not out", response.id));
        };
        if link.order.first() == Some(&response.id) {
            link.order.remove(0);
        } else {
            self.fail("answers are not in ring order");
            link.order.retain(|id| *id != response.id);
        }
        // Also of an indirect request, as Linux' frontend has it.
        let operation = out.operation;
        if response.operation != operation {
            self.fail(format!("operation {operation} is answered as {}", response.operation));
        }
        self.answered += 1;
        let done = response.status == rsp::OKAY;
        if !done {
            self.errors += 1;
            if !self.bears_errors {
                self.fail(format!(
                    "operation {operation} at {}+{}: status {}",
                    out.first, out.sectors, response.status
                ));
            }
        }
        let read: Vec<[u8; 512]> = match out.operation {
            op::READ if done => self.places(&out).iter().map(|&addr| self.sector_at(addr)).collect(),
            _ => Vec::new(),
        };
        if let Err(why) = self.judge.answered(&out.case, done, &read) {
            self.fail(why);
        }
        // Kept grants stay; the others end, as the backend has let go of them.
        if !self.nature.persistent {
            out.pages.iter().for_each(|&page| self.end(data_gref(page)));
            out.list.iter().for_each(|&list| self.end(list_gref(list)));
        }
        self.free_pages.extend(out.pages);
        self.free_lists.extend(out.list);
    }

    fn sector_at(&self, addr: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.world.read(addr, &mut bytes);
        bytes
    }
}
