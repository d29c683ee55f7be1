//! Offences of a block frontend against its backend: places that the vbd does not have, segments that are none, grants that are not
//! there or go away, requests that change while they are read, indices that jump. What is only wrong in itself is answered with an error
//! and the ring goes on; who lies about the ring itself loses the vbd.

use crate::frontend::{NOBODY, PATIENCE, nap, offend, read, state, wait_state, write};
use crate::report::Report;
use abi::io::blkif::{Indirect, MAX_SEGMENTS_PER_REQUEST, PROTOCOL, ReadWrite, SLOT, Segment, info, op, rsp};
use abi::io::xenbus::XenbusState;
use abi::{DomId, GrantRef};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use libxenrt::clock;
use libxenrt::event::Event;
use libxenrt::grant::{Access, GrantedPage};
use libxenrt::store::{Store, Transaction};
use ring::SharedMem;

/// Slots of a ring of one page.
const SLOTS: u32 = 32;
/// Where they begin; before them the indices.
const FIRST_SLOT: usize = 64;
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Requests that change while they are read, and grants that go away in flight.
const RACES: u32 = 300;

/// A ring with a backend on it.
struct Link {
    ring: GrantedPage,
    event: Event,
    backend: DomId,
    front: String,
    back: String,
    produced: u32,
}

/// All of them.
pub fn blk(r: &mut Report) {
    offend("blk", r, commit);
}

fn commit(store: &mut Store, r: &mut Report) -> Result<(), String> {
    let mut link = Link::open(store)?;
    let sectors: u64 = read(store, &format!("{}/sectors", link.back))?.parse().map_err(|_| "no number of sectors")?;
    let data = GrantedPage::alloc(link.backend, Access::ReadWrite).map_err(|e| format!("{e:?}"))?;
    let fixed = GrantedPage::alloc(link.backend, Access::ReadOnly).map_err(|e| format!("{e:?}"))?;
    let whole = Segment { gref: data.gref(), last_sect: 7, ..Segment::default() };
    let with = |s: Segment| request(op::READ, 0, &[s]);
    let at = |operation: u8, sector: u64| request(operation, sector, &[whole]);
    for (what, bad) in [
        ("a read behind the end", at(op::READ, sectors)),
        ("a write behind the end", at(op::WRITE, sectors)),
        ("a read over the end", at(op::READ, sectors.saturating_sub(1))),
        ("a write over the end", at(op::WRITE, sectors.saturating_sub(1))),
        ("a sector that wraps", at(op::WRITE, u64::MAX - 3)),
        ("a sector of half the numbers", at(op::READ, 1 << 63)),
        ("no segment", request(op::READ, 0, &[])),
        ("a segment too many", counted(op::READ, 12, &[whole; MAX_SEGMENTS_PER_REQUEST])),
        ("255 segments", counted(op::WRITE, 255, &[whole; MAX_SEGMENTS_PER_REQUEST])),
        ("a segment that ends before it begins", with(Segment { first_sect: 5, last_sect: 2, ..whole })),
        ("a segment that leaves its page", with(Segment { last_sect: 8, ..whole })),
        ("a grant that is none", with(Segment { gref: NOBODY, ..whole })),
        ("a grant for another domain", with(Segment { gref: GrantRef(1), ..whole })),
        ("a read into a page granted for reading", with(Segment { gref: fixed.gref(), ..whole })),
        ("an unknown operation", at(77, 0)),
        ("65535 indirect segments", indirect(op::READ, u16::MAX, data.gref())),
        ("no indirect segment", indirect(op::READ, 0, data.gref())),
        ("indirect segments in no page", indirect(op::READ, 12, NOBODY)),
        ("indirect segments of an indirect request", indirect(op::INDIRECT, 12, data.gref())),
        ("indirect segments of a flush", indirect(op::FLUSH_DISKCACHE, 12, data.gref())),
    ] {
        let status = link.ask(&bad)?;
        r.answer(what, "an error", format_args!("{}", name(status)));
    }
    let flags: u32 = read(store, &format!("{}/info", link.back))?.parse().map_err(|_| "no number in info")?;
    if flags & info::READONLY != 0 {
        let status = link.ask(&at(op::WRITE, 0))?;
        r.answer("a write to a read-only vbd", "an error", format_args!("{}", name(status)));
    }
    r.answer("a sound read after them", "success", format_args!("{}", name(link.ask(&at(op::READ, 0))?)));
    link.change(&at(op::READ, 0))?;
    r.answer("a sound read after changing ones", "success", format_args!("{}", name(link.ask(&at(op::READ, 0))?)));
    link.revoke()?;
    r.answer("a sound read after revoked grants", "success", format_args!("{}", name(link.ask(&at(op::READ, 0))?)));
    for (what, jump) in
        [("one slot more than there are", SLOTS + 1), ("half the numbers ahead", 1 << 31), ("back", u32::MAX)]
    {
        let prod = link.produced.wrapping_add(jump);
        link.ring.store_release(REQ_PROD, prod);
        let _ = link.event.notify();
        let left = wait_state(store, &link.back, |s| s != XenbusState::Connected).is_ok();
        r.answer(&format!("an index that jumps {what}"), "the vbd is closed", format_args!("{}", closed(left)));
        link.close(store)?;
        link = Link::open(store)?;
    }
    r.answer("a sound read over a new ring", "success", format_args!("{}", name(link.ask(&at(op::READ, 0))?)));
    link.close(store)
}

fn closed(left: bool) -> &'static str {
    if left { "the vbd is closed" } else { "the vbd is served" }
}

/// An error is an error: which of the two is the backend's to choose.
const fn name(status: i16) -> &'static str {
    match status {
        rsp::OKAY => "success",
        rsp::ERROR | rsp::EOPNOTSUPP => "an error",
        _ => "no status",
    }
}

type Words = [u32; SLOT / 4];

fn counted(operation: u8, nr_segments: u8, segments: &[Segment]) -> Words {
    let mut list = [Segment::default(); MAX_SEGMENTS_PER_REQUEST];
    list.iter_mut().zip(segments).for_each(|(to, from)| *to = *from);
    ReadWrite { operation, nr_segments, segments: list, ..ReadWrite::default() }.to_words()
}

fn request(operation: u8, sector: u64, segments: &[Segment]) -> Words {
    let words = counted(operation, segments.len() as u8, segments);
    ReadWrite { sector_number: sector, ..ReadWrite::from_words(&words) }.to_words()
}

fn indirect(indirect_op: u8, nr_segments: u16, page: GrantRef) -> Words {
    let indirect_grefs = [page; 8];
    Indirect { operation: op::INDIRECT, indirect_op, nr_segments, indirect_grefs, ..Indirect::default() }.to_words()
}

impl Link {
    /// Makes a ring with the backend of the first vbd.
    fn open(store: &mut Store) -> Result<Self, String> {
        let vbds = store.directory(Transaction::NONE, "device/vbd").map_err(|e| format!("{e:?}"))?;
        let front = format!("device/vbd/{}", vbds.first().ok_or("there is no vbd")?);
        let back = read(store, &format!("{front}/backend"))?;
        let backend = read(store, &format!("{front}/backend-id"))?.parse().map(DomId).map_err(|_| "no backend")?;
        state(store, &front, XenbusState::Initialising)?;
        wait_state(store, &back, |s| s == XenbusState::InitWait)?;
        let ring = GrantedPage::alloc(backend, Access::ReadWrite).map_err(|e| format!("{e:?}"))?;
        ring.write(RSP_EVENT, 1);
        let event = Event::alloc_unbound(backend).map_err(|e| format!("{e}"))?;
        for (key, value) in [
            ("ring-ref", format!("{}", ring.gref().0)),
            ("event-channel", format!("{}", event.port().0)),
            ("protocol", String::from(PROTOCOL)),
        ] {
            write(store, &format!("{front}/{key}"), &value)?;
        }
        state(store, &front, XenbusState::Initialised)?;
        wait_state(store, &back, |s| s == XenbusState::Connected)?;
        state(store, &front, XenbusState::Connected)?;
        Ok(Self { ring, event, backend, front, back, produced: 0 })
    }

    /// Takes the ring away in an orderly way.
    fn close(self, store: &mut Store) -> Result<(), String> {
        state(store, &self.front, XenbusState::Closing)?;
        wait_state(store, &self.back, |s| s != XenbusState::Connected)?;
        state(store, &self.front, XenbusState::Closed)?;
        wait_state(store, &self.back, |s| matches!(s, XenbusState::Closed | XenbusState::InitWait))
    }

    fn slot(&self, number: u32) -> usize {
        FIRST_SLOT + (number % SLOTS) as usize * SLOT
    }

    fn push(&mut self, words: &Words) {
        let slot = self.slot(self.produced);
        words.iter().enumerate().for_each(|(i, &word)| self.ring.write(slot + i * 4, word));
        self.produced = self.produced.wrapping_add(1);
        self.ring.store_release(REQ_PROD, self.produced);
        let _ = self.event.notify();
    }

    /// Waits until all is answered; `meanwhile` is called again and again.
    fn wait(&self, mut meanwhile: impl FnMut(&Self)) -> Result<(), String> {
        let deadline = clock::now() + PATIENCE;
        while self.ring.load_acquire(RSP_PROD) != self.produced {
            meanwhile(self);
            if clock::now() >= deadline {
                return Err(format!("no answer: {} of {}", self.ring.load_acquire(RSP_PROD), self.produced));
            }
        }
        Ok(())
    }

    /// A request with its answer.
    fn ask(&mut self, words: &Words) -> Result<i16, String> {
        self.push(words);
        self.wait(|_| nap(Duration::from_micros(200)))?;
        let slot = self.slot(self.produced.wrapping_sub(1));
        Ok((self.ring.read(slot + 8) >> 16) as i16)
    }

    /// Changes requests while the backend may be reading them; any answer will do.
    fn change(&mut self, words: &Words) -> Result<(), String> {
        for round in 0..RACES {
            let slot = self.slot(self.produced);
            self.push(words);
            self.wait(|link| {
                for value in [u32::MAX, round, 0] {
                    // The operation and its segments' number, the sector, a segment's grant.
                    link.ring.write(slot, value);
                    link.ring.write(slot + 16, value);
                    link.ring.write(slot + 24, value);
                }
            })?;
        }
        Ok(())
    }

    /// Takes grants away while they are in use.
    fn revoke(&mut self) -> Result<(), String> {
        for _ in 0..RACES / 4 {
            let mut pages = Vec::new();
            for sector in 0..8 {
                let page = GrantedPage::alloc(self.backend, Access::ReadWrite).map_err(|e| format!("{e:?}"))?;
                let segment = Segment { gref: page.gref(), last_sect: 7, ..Segment::default() };
                self.push(&request(op::READ, sector * 8, &[segment]));
                pages.push(page);
            }
            drop(pages);
            self.wait(|_| nap(Duration::from_micros(200)))?;
        }
        Ok(())
    }
}
