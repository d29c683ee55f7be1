//! Guests: an honest one that checks everything it gets, and hostile ones that write what they please into what they own.

use crate::wire::{self, Mac, Seen};
use crate::world::{BACKEND, World};
use abi::io::netif::{extra, rsp, rxf, txf};
use abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};
use hv_core::Mfn;
use ring::{RxFrontRing, SharedMem, TxFrontRing};
use std::collections::VecDeque;
use std::rc::Rc;

const TX_PAGES: usize = 40;
const RX_PAGES: usize = 48;
const RING_GREFS: [GrantRef; 2] = [GrantRef(8), GrantRef(9)];

fn tx_gref(page: usize) -> GrantRef {
    GrantRef(100 + page as u32)
}
fn rx_gref(page: usize) -> GrantRef {
    GrantRef(200 + page as u32)
}

/// What a guest can do, and will.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    pub sg: bool,
    pub gso: bool,
    /// Takes blank checksums.
    pub blank: bool,
    pub split_ports: bool,
    /// Packets it sends in its life.
    pub packets: u32,
    /// Breaks the protocol when it can.
    pub hostile: bool,
}

/// A page of the guest's own.
#[derive(Clone)]
struct Own(Rc<World>, Mfn);

impl Own {
    fn addr(&self, offset: usize) -> u64 {
        self.1.0 * PAGE_SIZE as u64 + offset as u64
    }
}

impl SharedMem for Own {
    fn read(&self, offset: usize) -> u32 {
        self.0.read32(self.addr(offset))
    }
    fn write(&self, offset: usize, value: u32) {
        self.0.write32(self.addr(offset), value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

/// What stands in a TX slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Data(usize),
    Extra,
}

struct Link {
    tx: TxFrontRing<Own>,
    rx: RxFrontRing<Own>,
    tx_port: EvtchnPort,
    rx_port: EvtchnPort,
    tx_awake: bool,
    rx_awake: bool,
    slots: VecDeque<Slot>,
    free_tx: Vec<usize>,
    /// Buffers in the ring, and the backend's life in which they were posted.
    posted: VecDeque<(usize, u32)>,
    free_rx: Vec<usize>,
    /// A frame of which slots were received, and its flags.
    partial: Vec<u8>,
    first_flags: u16,
    expect_extra: bool,
    cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Waiting,
    Up,
}

/// A guest with one vif.
pub struct Guest {
    world: Rc<World>,
    pub dom: DomId,
    pub nature: Nature,
    frames: Vec<Mfn>,
    phase: Phase,
    link: Option<Link>,
    seen_connected: bool,
    pub peers: Vec<Mac>,
    flow: u32,
    pub to_send: u32,
    pub answered: u64,
    pub refused: u64,
    pub reconnects: u32,
    pub received: Vec<Seen>,
}

impl Guest {
    pub fn new(world: &Rc<World>, dom: DomId, nature: Nature, peers: Vec<Mac>) -> Self {
        world.add_domain(dom);
        if nature.hostile {
            world.hostile.borrow_mut().insert(dom.0 as u8);
        }
        let frames = world.allocate(dom, (2 + TX_PAGES + RX_PAGES) as u64);
        let mut guest = Self {
            world: world.clone(),
            dom,
            nature,
            frames,
            phase: Phase::Start,
            link: None,
            seen_connected: false,
            peers,
            flow: 0,
            to_send: nature.packets,
            answered: 0,
            refused: 0,
            reconnects: 0,
            received: Vec::new(),
        };
        guest.announce();
        guest
    }

    /// What the toolstack writes for a vif.
    fn announce(&mut self) {
        let mut store = self.world.store.borrow_mut();
        let (front, back) = (self.front(""), self.back(""));
        store.set(&format!("{front}state"), "1");
        let mac = wire::mac(self.dom.0 as u8);
        store.set(&format!("{back}mac"), &mac.map(|b| format!("{b:02x}")).join(":"));
        if store.get(&format!("{back}state")).is_none() {
            store.set(&format!("{back}state"), "1");
        }
        store.set(&format!("{back}frontend"), front.trim_end_matches('/'));
    }

    /// The domain dies, wherever it is.
    pub fn die(self) {
        self.world.remove_domain(self.dom, &self.frames);
        let front = self.front("");
        self.world.store.borrow_mut().remove(front.trim_end_matches('/'));
    }

    fn front(&self, node: &str) -> String {
        format!("/local/domain/{}/device/vif/0/{node}", self.dom)
    }
    fn back(&self, node: &str) -> String {
        format!("/local/domain/{BACKEND}/backend/vif/{}/0/{node}", self.dom)
    }
    fn back_state(&self) -> u32 {
        let store = self.world.store.borrow();
        store.get(&self.back("state")).and_then(|state| state.parse().ok()).unwrap_or(0)
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

    /// Looks through the memory of a hostile guest for what is not its own: frames between others, others' memory.
    pub fn search(&self) {
        if self.nature.hostile {
            self.frames[2..].iter().for_each(|&mfn| self.search_page(mfn));
        }
    }

    fn search_page(&self, mfn: Mfn) {
        let hostile = self.world.hostile.borrow();
        let mut page = [0; PAGE_SIZE];
        self.world.read(mfn.0 * PAGE_SIZE as u64, &mut page);
        for head in page.windows(15) {
            let foreign = |mac: &[u8]| mac[..5] == [2, 0, 0, 0, 0] && mac[5] >= 5 && !hostile.contains(&mac[5]);
            if foreign(&head[..6]) && foreign(&head[6..]) && head[12..] == [8, 0, 0x45] {
                return self.world.fail(format!("guest {} has a frame {head:02x?}", self.dom));
            }
        }
        for run in page.chunks(64) {
            let mark = run[0];
            if (5..64).contains(&mark) && !hostile.contains(&mark) && run.iter().all(|&byte| byte == mark) {
                return self.world.fail(format!("guest {} has memory of guest {mark}", self.dom));
            }
        }
    }

    /// An event comes to both ends of the vif, for no reason.
    pub fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            (link.tx_awake, link.rx_awake) = (true, true);
            self.world.send(self.dom, link.tx_port);
        }
    }

    /// Requests sent and not answered.
    pub fn unanswered(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.slots.len())
    }

    /// One step; false if there is nothing it would do before something happens.
    pub fn step(&mut self) -> bool {
        match self.phase {
            Phase::Start => {
                let path = self.front("state");
                self.world.store.borrow_mut().set(&path, "1");
                self.phase = Phase::Waiting;
                true
            }
            Phase::Waiting if self.back_state() == 2 => {
                self.connect();
                true
            }
            Phase::Waiting => false,
            Phase::Up => match (self.back_state(), self.seen_connected) {
                (4, false) => {
                    self.seen_connected = true;
                    true
                }
                // Closed, or offered anew.
                (5 | 6, _) | (2, true) => {
                    self.disconnect();
                    true
                }
                _ if self.nature.hostile && self.chance(3) == 0 => {
                    self.misbehave();
                    true
                }
                _ => self.traffic(),
            },
        }
    }

    fn connect(&mut self) {
        let start = u32::MAX - self.chance(200);
        let [tx_page, rx_page] = [0, 1].map(|n| Own(self.world.clone(), self.frames[n]));
        for (gref, page) in RING_GREFS.into_iter().zip([&tx_page, &rx_page]) {
            self.world.grant(self.dom, gref, page.1, false);
        }
        let port = || self.world.hv.borrow_mut().evtchn.alloc_unbound(self.dom, BACKEND).expect("a port");
        let tx_port = port();
        let rx_port = if self.nature.split_ports { port() } else { tx_port };
        self.link = Some(Link {
            tx: TxFrontRing::init_at(tx_page, start),
            rx: RxFrontRing::init_at(rx_page, start),
            tx_port,
            rx_port,
            tx_awake: false,
            rx_awake: false,
            slots: VecDeque::new(),
            free_tx: (0..TX_PAGES).collect(),
            posted: VecDeque::new(),
            free_rx: (0..RX_PAGES).collect(),
            partial: Vec::new(),
            first_flags: 0,
            expect_extra: false,
            cut: false,
        });
        let flag = |on: bool| if on { "1" } else { "0" }.to_string();
        let mut nodes = vec![
            ("tx-ring-ref", RING_GREFS[0].to_string()),
            ("rx-ring-ref", RING_GREFS[1].to_string()),
            ("request-rx-copy", flag(true)),
            ("feature-sg", flag(self.nature.sg)),
            ("feature-gso-tcpv4", flag(self.nature.gso)),
            ("feature-no-csum-offload", flag(!self.nature.blank)),
        ];
        if self.nature.split_ports {
            nodes.push(("event-channel-tx", tx_port.to_string()));
            nodes.push(("event-channel-rx", rx_port.to_string()));
        } else {
            nodes.push(("event-channel", tx_port.to_string()));
        }
        nodes.push(("state", "4".to_string()));
        for (node, value) in nodes {
            let path = self.front(node);
            self.world.store.borrow_mut().set(&path, &value);
        }
        self.phase = Phase::Up;
    }

    fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.reconnects += 1;
        let mut grefs = RING_GREFS.to_vec();
        grefs.extend(link.slots.iter().filter_map(|slot| match slot {
            Slot::Data(page) => Some(tx_gref(*page)),
            Slot::Extra => None,
        }));
        grefs.extend(link.posted.iter().map(|&(page, _)| rx_gref(page)));
        for gref in grefs {
            if !self.world.revoke(self.dom, gref) {
                self.fail(format!("grant {gref} in use after the backend let go"));
            }
        }
        let mut hv = self.world.hv.borrow_mut();
        let _was = hv.evtchn.close(self.dom, link.tx_port);
        if link.rx_port != link.tx_port {
            let _was = hv.evtchn.close(self.dom, link.rx_port);
        }
        drop(hv);
        let path = self.front("state");
        self.world.store.borrow_mut().set(&path, "6");
        self.phase = Phase::Start;
        self.seen_connected = false;
    }

    fn traffic(&mut self) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        link.tx_awake |= self.world.take_event(self.dom, link.tx_port);
        link.rx_awake |= link.tx_port == link.rx_port && link.tx_awake;
        link.rx_awake |= self.world.take_event(self.dom, link.rx_port);
        link.tx_awake |= link.tx_port == link.rx_port && link.rx_awake;
        let mut moved = false;
        if link.tx_awake {
            moved = true;
            self.take_answers(&mut link);
        }
        if link.rx_awake {
            moved = true;
            self.take_frames(&mut link);
        }
        moved |= self.post(&mut link);
        moved |= self.send(&mut link);
        self.link = Some(link);
        moved
    }

    /// Answers come in the order of the slots, each once, and the grant is free by then.
    fn take_answers(&mut self, link: &mut Link) {
        loop {
            match link.tx.take() {
                Ok(Some((_, [word]))) => {
                    let (id, status) = (word as u16, (word >> 16) as i16);
                    match link.slots.pop_front() {
                        Some(Slot::Extra) if status == rsp::NULL => {}
                        Some(Slot::Data(page)) if usize::from(id) == page && status != rsp::NULL => {
                            self.answered += 1;
                            self.refused += u64::from(status == rsp::ERROR);
                            if !self.world.revoke(self.dom, tx_gref(page)) {
                                self.fail(format!("page {page} in use after its answer"));
                            }
                            // The page is another's now: whatever is still read from it is a leak.
                            self.mark(2 + page);
                            link.free_tx.push(page);
                        }
                        Some(_) => self.fail(format!("answer {word:08x} is another slot's")),
                        None => self.fail("an answer to nothing"),
                    }
                }
                Ok(None) => match link.tx.arm(1) {
                    Ok(true) => {}
                    Ok(false) => break link.tx_awake = false,
                    Err(fault) => break self.fail(fault),
                },
                Err(fault) => break self.fail(fault),
            }
        }
        if self.nature.hostile {
            link.tx_awake = false;
        }
    }

    fn mark(&self, page: usize) {
        if self.nature.hostile {
            self.search_page(self.frames[page]);
        }
        self.world.write(self.frames[page].0 * PAGE_SIZE as u64, &[self.dom.0 as u8; PAGE_SIZE]);
    }

    fn take_frames(&mut self, link: &mut Link) {
        loop {
            match link.rx.take() {
                Ok(Some((_, [head, tail]))) => self.take_slot(link, head, tail),
                Ok(None) => match link.rx.arm(1) {
                    Ok(true) => {}
                    Ok(false) => break link.rx_awake = false,
                    Err(fault) => break self.fail(fault),
                },
                Err(fault) => break self.fail(fault),
            }
        }
        if self.nature.hostile {
            link.rx_awake = false;
        }
    }

    fn take_slot(&mut self, link: &mut Link, head: u32, tail: u32) {
        let Some((page, life)) = link.posted.pop_front() else { return self.fail("a frame in no buffer") };
        if !self.world.revoke(self.dom, rx_gref(page)) {
            self.fail(format!("buffer {page} in use after its answer"));
        }
        link.free_rx.push(page);
        if std::mem::take(&mut link.expect_extra) {
            link.cut = true;
            if head as u8 != extra::GSO || tail as u8 != extra::GSO_TCPV4 || head >> 16 == 0 {
                self.fail(format!("extra info {head:08x} {tail:08x}"));
            }
            if link.first_flags & rxf::MORE_DATA == 0 {
                self.frame(link);
            }
            return;
        }
        let (id, offset) = (head as u16, (head >> 16) as usize);
        let (flags, status) = (tail as u16, (tail >> 16) as i16);
        if usize::from(id) != page {
            return self.fail(format!("frame in buffer {id}, not {page}"));
        }
        let Ok(len) = usize::try_from(status) else { return self.fail(format!("buffer answered with {status}")) };
        if offset + len > PAGE_SIZE {
            return self.fail(format!("{len} bytes at {offset}"));
        }
        let addr = self.frames[2 + TX_PAGES + page].0 * PAGE_SIZE as u64;
        let mut bytes = vec![0; PAGE_SIZE];
        self.world.read(addr, &mut bytes);
        let mark = self.dom.0 as u8;
        // A life that ended before it answered may have left another frame of ours there.
        let untouched = bytes[..offset].iter().chain(&bytes[offset + len..]).all(|&byte| byte == mark);
        if !untouched && life == self.world.generation.get() {
            self.fail("bytes around the frame were written");
        }
        if link.partial.is_empty() {
            link.first_flags = flags;
            link.expect_extra = flags & rxf::EXTRA_INFO != 0;
        }
        link.partial.extend(&bytes[offset..offset + len]);
        if flags & rxf::MORE_DATA == 0 && !link.expect_extra {
            self.frame(link);
        } else if flags & rxf::MORE_DATA == 0 {
            link.first_flags &= !rxf::MORE_DATA;
        }
    }

    /// A whole frame has arrived.
    fn frame(&mut self, link: &mut Link) {
        let frame = std::mem::take(&mut link.partial);
        let cut = std::mem::take(&mut link.cut);
        let blank = link.first_flags & rxf::CSUM_BLANK != 0;
        if (blank && !self.nature.blank) || (cut && !self.nature.gso) || (frame.len() > PAGE_SIZE && !self.nature.sg) {
            self.fail(format!("frame of {} bytes it did not ask for (blank {blank}, to cut {cut})", frame.len()));
        }
        if !cut && frame.len() > 1514 {
            self.fail(format!("frame of {} bytes", frame.len()));
        }
        match wire::check(&frame, blank) {
            _ if self.world.from_hostile(&frame) => {}
            Ok(seen) => {
                if frame[..6] != wire::mac(self.dom.0 as u8) && frame[..6] != [0xFF; 6] {
                    self.fail(format!("a frame for {:02x?}", &frame[..6]));
                }
                self.received.push(seen);
            }
            Err(why) => self.fail(why),
        }
    }

    fn post(&mut self, link: &mut Link) -> bool {
        let mut any = false;
        while let Some(&page) = link.free_rx.last() {
            self.mark(2 + TX_PAGES + page);
            self.world.grant(self.dom, rx_gref(page), self.frames[2 + TX_PAGES + page], false);
            if link.rx.push([page as u32, rx_gref(page).0]).is_err() {
                break;
            }
            link.free_rx.pop();
            link.posted.push_back((page, self.world.generation.get()));
            any = true;
        }
        if link.rx.publish() {
            self.world.send(self.dom, link.rx_port);
        }
        any
    }

    /// Sends a packet or a few.
    fn send(&mut self, link: &mut Link) -> bool {
        let mut any = false;
        for _ in 0..=self.chance(3) {
            let Some(frame) = self.make_frame(link) else { break };
            self.push(link, &frame);
            any = true;
        }
        if link.tx.publish() {
            self.world.send(self.dom, link.tx_port);
        }
        any
    }

    fn make_frame(&mut self, link: &Link) -> Option<(Vec<u8>, bool, Option<u16>)> {
        if self.to_send == 0 || link.free_tx.len() < 20 || link.tx.free() < 22 {
            return None;
        }
        self.to_send -= 1;
        self.flow += 1;
        let sender = self.dom.0 as u8;
        let to = match self.chance(20) {
            0 => [0xFF; 6],
            n => self.peers[n as usize % self.peers.len()],
        };
        let blank = self.chance(2) == 0;
        Some(match self.chance(4) {
            0 if self.nature.gso => {
                let len = 1500 + self.chance(30_000) as usize;
                (wire::tcp(to, sender, self.flow, len, true), true, Some(1448))
            }
            1 => (wire::tcp(to, sender, self.flow, self.chance(1400) as usize, blank), blank, None),
            _ => (wire::udp(to, sender, self.flow, self.chance(1400) as usize, blank), blank, None),
        })
    }

    fn push(&mut self, link: &mut Link, (frame, blank, cut): &(Vec<u8>, bool, Option<u16>)) {
        // A few cuts at random places, more where a page is not enough.
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut rest = frame.as_slice();
        let small = self.chance(3);
        for _ in 0..small {
            let at = 1 + self.chance(200) as usize;
            if self.nature.sg && rest.len() > at {
                let (piece, tail) = rest.split_at(at);
                pieces.push(piece);
                rest = tail;
            }
        }
        pieces.extend(rest.chunks(PAGE_SIZE - 64));
        let count = pieces.len();
        for (n, piece) in pieces.into_iter().enumerate() {
            let page = link.free_tx.pop().expect("a page for each slot");
            let mfn = self.frames[2 + page];
            let offset = self.chance(64) as u64;
            self.world.write(mfn.0 * PAGE_SIZE as u64 + offset, piece);
            self.world.grant(self.dom, tx_gref(page), mfn, true);
            let mut flags = if n + 1 < count { txf::MORE_DATA } else { 0 };
            let mut size = piece.len();
            if n == 0 {
                size = frame.len();
                flags |= if *blank { txf::CSUM_BLANK | txf::DATA_VALIDATED } else { 0 };
                flags |= if cut.is_some() { txf::EXTRA_INFO } else { 0 };
            }
            let slot = [tx_gref(page).0, offset as u32 | u32::from(flags) << 16, page as u32 | (size as u32) << 16];
            link.tx.push(slot).expect("a slot for each page");
            link.slots.push_back(Slot::Data(page));
            if let (0, Some(mss)) = (n, cut) {
                let [low, high] = mss.to_le_bytes();
                let info = [u32::from_le_bytes([extra::GSO, 0, low, high]), u32::from(extra::GSO_TCPV4), 0];
                link.tx.push(info).expect("a slot for the extra info");
                link.slots.push_back(Slot::Extra);
            }
        }
    }

    /// Something that no honest frontend does, in memory and with calls that are its own.
    fn misbehave(&mut self) {
        let dice = || self.world.chance.borrow_mut().draw();
        let (what, where_, value) = (dice() % 8, dice(), dice());
        let Some(link) = &mut self.link else { return };
        let page = if where_ & 1 == 0 { self.frames[0] } else { self.frames[1] };
        let base = page.0 * PAGE_SIZE as u64;
        match what {
            // An index, near to what it was or anywhere.
            0 => {
                let at = base + u64::from(where_ >> 1 & 3) * 4;
                let old = self.world.read32(at);
                let new = if value & 1 == 0 { old.wrapping_add(value >> 24).wrapping_sub(60) } else { value };
                self.world.write32(at, new);
            }
            // A slot, whole or in part.
            1..=3 => {
                let at = base + 64 + u64::from(where_ >> 1) % 1000 * 4;
                self.world.write32(at, if value & 1 == 0 { value } else { value >> 20 });
            }
            // Any grant, in use or not.
            4 => {
                let gref = GrantRef(if where_ & 7 == 0 { 8 + (value & 1) } else { 100 + value % 150 });
                self.world.tear(self.dom, gref);
            }
            5 => self.world.send(self.dom, link.tx_port),
            // A wish for something not its own.
            6 => {
                let _full = link.tx.push([value % 300, 0, where_ << 16]);
                if link.tx.publish() {
                    self.world.send(self.dom, link.tx_port);
                }
            }
            _ if where_ % 16 == 0 => {
                let path = self.front("state");
                self.world.store.borrow_mut().set(&path, &(value % 9).to_string());
            }
            _ => link.tx_awake = true,
        }
    }
}
