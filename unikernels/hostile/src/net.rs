//! Offences of a network frontend against its backend: packets that are none, grants that are not there, extra infos of unknown kinds,
//! indices that jump, noise over both rings, nodes that make no sense, a store filled up to its quota. What is only useless is answered with an error and the ring
//! goes on; who breaks the protocol loses the vif, and gets it back by an orderly connection.

use crate::frontend::{NOBODY, PATIENCE, nap, offend, read, state, wait_state, write};
use crate::report::Report;
use abi::io::netif::{RX_SLOT, TX_SLOT, TxRequest, extra, rsp, txf};
use abi::io::xenbus::XenbusState;
use abi::{DomId, GrantRef, PAGE_SIZE};
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use libxenrt::clock;
use libxenrt::event::Event;
use libxenrt::grant::{Access, GrantedPage};
use libxenrt::store::{Store, StoreError, Transaction};
use ring::SharedMem;
use xenstore::XsError;

/// Slots of a ring of one page.
const SLOTS: u32 = 256;
/// Where they begin; before them the indices.
const FIRST_SLOT: usize = 64;
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Connections that may be closed before one stands.
const ATTEMPTS: u32 = 5;
/// Times that both rings are overwritten.
const NOISES: u32 = 50;
/// More than any quota of nodes.
const MANY: u32 = 5000;
/// Bytes of a sound packet.
const LEN: u16 = 60;
/// What a node may not be, whatever it means.
const NONSENSE: [&str; 9] = ["", "x", "-1", "0", "7", "4294967295", "4294967296", "18446744073709551616", "1 2"];

/// Both rings with a backend on them.
struct Link {
    tx: GrantedPage,
    rx: GrantedPage,
    event: Event,
    backend: DomId,
    front: String,
    back: String,
    produced: u32,
}

/// All of them.
pub fn net(r: &mut Report) {
    offend("net", r, commit);
}

fn commit(store: &mut Store, r: &mut Report) -> Result<(), String> {
    let mut link = Link::open(store)?;
    let data = GrantedPage::alloc(link.backend, Access::ReadOnly).map_err(|e| format!("{e:?}"))?;
    // To everybody, from us, of an experimental type (IEEE 802, local experimental EtherType 1).
    let mac = read(store, &format!("{}/mac", link.front))?;
    let mut bytes = [0xff; 16];
    mac.split(':').zip(&mut bytes[6..12]).for_each(|(hex, byte)| *byte = u8::from_str_radix(hex, 16).unwrap_or(0));
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    for (at, word) in bytes.chunks_exact(4).enumerate() {
        data.write(at * 4, word.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte)));
    }
    let sound = TxRequest { gref: data.gref(), size: LEN, ..TxRequest::default() };
    r.answer("a sound packet", "sent", format_args!("{}", link.ask(&[sound])?));
    for (what, bad) in [
        ("a grant that is none", TxRequest { gref: NOBODY, ..sound }),
        ("a grant for another domain", TxRequest { gref: GrantRef(1), ..sound }),
        ("a packet without a header", TxRequest { size: 13, ..sound }),
        ("a packet of nothing", TxRequest { size: 0, ..sound }),
    ] {
        r.answer(what, "an error", format_args!("{}", link.ask(&[bad])?));
    }
    r.answer("a sound packet after them", "sent", format_args!("{}", link.ask(&[sound])?));

    let more = TxRequest { flags: txf::MORE_DATA, ..sound };
    let with_extra = TxRequest { flags: txf::EXTRA_INFO, ..sound };
    // An extra info lies over the bytes of grant, offset and flags.
    let info = |kind: u8, flags: u8, size: u16, gso: u8| TxRequest {
        gref: GrantRef(u32::from(kind) | u32::from(flags) << 8 | u32::from(size) << 16),
        offset: u16::from(gso),
        ..TxRequest::default()
    };
    let mut endless = [info(extra::GSO, extra::FLAG_MORE, 1400, extra::GSO_TCPV4); 20];
    endless[0] = with_extra;
    let segments = |size: u16, gso: u8| [with_extra, info(extra::GSO, 0, size, gso)];
    for (what, slots) in [
        ("data that leaves its page", &[TxRequest { offset: 4090, ..sound }][..]),
        ("a packet whose end is not there", &[more]),
        ("a packet of all slots", &[more; SLOTS as usize - 1]),
        ("slots that hold more than the packet", &[more, TxRequest { size: LEN + 1, ..sound }]),
        ("an extra info of an unknown kind", &[with_extra, info(99, 0, 0, 0)]),
        ("extra infos without end", &endless),
        ("segments of an unknown kind", &segments(1400, 9)),
        ("segments of nothing", &segments(0, extra::GSO_TCPV4)),
    ] {
        link.push(slots);
        link = link.lost(store, r, what)?;
    }
    for (what, jump) in
        [("one slot more than there are", SLOTS + 1), ("half the numbers ahead", 1 << 31), ("back", u32::MAX)]
    {
        link.tx.store_release(REQ_PROD, link.produced.wrapping_add(jump));
        let _ = link.event.notify();
        link = link.lost(store, r, &format!("an index that jumps {what}"))?;
    }
    r.answer("a sound packet over a new ring", "sent", format_args!("{}", link.ask(&[sound])?));
    link = noise(link, store)?;
    r.answer("a sound packet after noise", "sent", format_args!("{}", link.ask(&[sound])?));
    link = nodes(link, store)?;
    r.answer("a sound packet after nonsense in nodes", "sent", format_args!("{}", link.ask(&[sound])?));
    let full = (0..MANY).find_map(|n| store.write(Transaction::NONE, &format!("stats/n{n}"), "x").err());
    r.holds("the store's quota is used up", matches!(full, Some(StoreError::Server(XsError::NoSpc))));
    r.answer("a sound packet then", "sent", format_args!("{}", link.ask(&[sound])?));
    link.close(store)
}

/// Writes anything over everything both rings have, again and again.
fn noise(mut link: Link, store: &mut Store) -> Result<Link, String> {
    let mut word = 0x9e37_79b9_u32;
    for round in 0..NOISES {
        for at in (0..PAGE_SIZE).step_by(4) {
            // xorshift32 (Marsaglia 2003): any noise will do, the same each time is easier to look into.
            word ^= word << 13;
            word ^= word >> 17;
            word ^= word << 5;
            // Some indices are possible, or nothing behind them would be read.
            let value = if at < FIRST_SLOT && round % 2 == 0 { word % SLOTS } else { word };
            link.tx.write(at, value);
            link.rx.write(at, value.rotate_left(8));
        }
        let _ = link.event.notify();
        nap(Duration::from_millis(1));
        link.close(store)?;
        link = Link::open(store)?;
    }
    Ok(link)
}

/// Puts nonsense into each node of its own that the backend reads, before and while it is connected.
fn nodes(mut link: Link, store: &mut Store) -> Result<Link, String> {
    let front = link.front.clone();
    for key in
        ["state", "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "request-rx-copy", "feature-sg"]
    {
        for value in NONSENSE {
            write(store, &format!("{front}/{key}"), value)?;
        }
        link.close(store)?;
        // With one of them wrong it asks for a connection all the same, and goes back.
        state(store, &front, XenbusState::Initialising)?;
        for (number, value) in NONSENSE.into_iter().enumerate() {
            write(store, &format!("{front}/{key}"), value)?;
            state(store, &front, if number % 2 == 0 { XenbusState::Initialised } else { XenbusState::Connected })?;
            nap(Duration::from_millis(1));
        }
        for step in 0..64 {
            write(store, &format!("{front}/state"), &format!("{}", step % 9))?;
        }
        store.rm(Transaction::NONE, &format!("{front}/{key}")).map_err(|e| format!("{key}: {e:?}"))?;
        link = Link::open(store)?;
    }
    Ok(link)
}

const fn name(status: i16) -> &'static str {
    match status {
        rsp::OKAY => "sent",
        rsp::ERROR => "an error",
        rsp::DROPPED => "dropped",
        _ => "no status",
    }
}

impl Link {
    /// Makes both rings with the backend of the first vif. Behind states that changed faster than the backend follows, the one it shows
    /// may be its answer to an older one: then it closes once more, and we begin again.
    fn open(store: &mut Store) -> Result<Self, String> {
        for _ in 0..ATTEMPTS {
            if let Some(link) = Self::try_open(store)? {
                return Ok(link);
            }
        }
        Err(format!("the backend closed each of {ATTEMPTS} connections"))
    }

    fn try_open(store: &mut Store) -> Result<Option<Self>, String> {
        let vifs = store.directory(Transaction::NONE, "device/vif").map_err(|e| format!("{e:?}"))?;
        let front = format!("device/vif/{}", vifs.first().ok_or("there is no vif")?);
        let back = read(store, &format!("{front}/backend"))?;
        let backend = read(store, &format!("{front}/backend-id"))?.parse().map(DomId).map_err(|_| "no backend")?;
        state(store, &front, XenbusState::Closed)?;
        wait_state(store, &back, |s| matches!(s, XenbusState::Closed | XenbusState::InitWait))?;
        for key in ["event-channel-tx", "event-channel-rx", "feature-sg"] {
            // It may not be there.
            let _ = store.rm(Transaction::NONE, &format!("{front}/{key}"));
        }
        state(store, &front, XenbusState::Initialising)?;
        wait_state(store, &back, |s| s == XenbusState::InitWait)?;
        let page = || GrantedPage::alloc(backend, Access::ReadWrite).map_err(|e| format!("{e:?}"));
        let (tx, rx) = (page()?, page()?);
        tx.write(RSP_EVENT, 1);
        let event = Event::alloc_unbound(backend).map_err(|e| format!("{e}"))?;
        for (key, value) in [
            ("tx-ring-ref", tx.gref().0),
            ("rx-ring-ref", rx.gref().0),
            ("event-channel", event.port().0),
            ("request-rx-copy", 1),
        ] {
            write(store, &format!("{front}/{key}"), &format!("{value}"))?;
        }
        state(store, &front, XenbusState::Connected)?;
        wait_state(store, &back, |s| matches!(s, XenbusState::Connected | XenbusState::Closed))?;
        if XenbusState::parse(&read(store, &format!("{back}/state"))?) != XenbusState::Connected {
            return Ok(None);
        }
        let link = Self { tx, rx, event, backend, front, back, produced: 0 };
        // Buffers that are none: whatever comes for us has nowhere to go.
        for slot in 0..SLOTS as usize {
            link.rx.write(FIRST_SLOT + slot * RX_SLOT + 4, NOBODY.0);
        }
        link.rx.store_release(REQ_PROD, SLOTS);
        let _ = link.event.notify();
        Ok(Some(link))
    }

    /// Takes the rings away in an orderly way.
    fn close(self, store: &mut Store) -> Result<(), String> {
        state(store, &self.front, XenbusState::Closing)?;
        wait_state(store, &self.back, |s| s != XenbusState::Connected)?;
        state(store, &self.front, XenbusState::Closed)
    }

    /// The vif has to be closed by the backend; then a new link.
    fn lost(self, store: &mut Store, r: &mut Report, what: &str) -> Result<Self, String> {
        let left = wait_state(store, &self.back, |s| s != XenbusState::Connected).is_ok();
        let now = if left { "the vif is closed" } else { "the vif is served" };
        r.answer(what, "the vif is closed", format_args!("{now}"));
        self.close(store)?;
        Self::open(store)
    }

    fn push(&mut self, requests: &[TxRequest]) {
        for request in requests {
            let at = FIRST_SLOT + (self.produced % SLOTS) as usize * TX_SLOT;
            self.tx.write(at, request.gref.0);
            self.tx.write(at + 4, u32::from(request.offset) | u32::from(request.flags) << 16);
            self.tx.write(at + 8, self.produced & 0xffff | u32::from(request.size) << 16);
            self.produced = self.produced.wrapping_add(1);
        }
        self.tx.store_release(REQ_PROD, self.produced);
        let _ = self.event.notify();
    }

    /// A packet with its first slot's answer.
    fn ask(&mut self, requests: &[TxRequest]) -> Result<&'static str, String> {
        let first = self.produced;
        self.push(requests);
        let deadline = clock::now() + PATIENCE;
        while self.tx.load_acquire(RSP_PROD) != self.produced {
            nap(Duration::from_micros(200));
            if clock::now() >= deadline {
                return Err(format!("no answer: {} of {}", self.tx.load_acquire(RSP_PROD), self.produced));
            }
        }
        let answer = self.tx.read(FIRST_SLOT + (first % SLOTS) as usize * TX_SLOT);
        Ok(if answer & 0xffff == first & 0xffff { name((answer >> 16) as i16) } else { "another's answer" })
    }
}
