//! Guests: an honest one that checks everything it gets, and hostile ones that write what they please into what they own.

mod hostile;
mod receive;
mod send;

use crate::own::Own;
use crate::wire::{self, Mac, Seen};
use crate::world::{BACKEND, World};
use abi::{DomId, EvtchnPort, GrantRef};
use hv_core::Mfn;
use ring::{RxFrontRing, TxFrontRing};
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
    /// Bytes per segment of what it leaves to be cut.
    pub mss: u16,
    /// Takes blank checksums.
    pub blank: bool,
    pub split_ports: bool,
    /// Wants only the multicast groups that it names, and what the wire has for it is multicast.
    pub groups: bool,
    /// Packets it sends in its life.
    pub packets: u32,
    /// Breaks the protocol when it can.
    pub hostile: bool,
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
            ("request-multicast-control", flag(self.nature.groups)),
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
}
