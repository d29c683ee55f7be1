//! One connection's ring and what is out on it: requests become slots, responses are matched to them, and nothing the backend says is
//! believed unseen.
//!
//! An id carries its place and a serial number that no other request of the connection has, so that an answer given twice is noticed
//! even when its place is in use again. A write that has to be stable where there are no barriers is two requests under one
//! place: the write, then a flush.

use super::info::Info;
use super::pool::Buffer;
use super::request::{Completion, IoError, Op, Request};
use super::{Counters, Fault};
use crate::clock::Instant;
use crate::grant::{Access, GrantError, GrantedPage};
use abi::io::blkif::{
    Discard, Indirect, MAX_SEGMENTS_PER_REQUEST, REQUEST_WORDS, ReadWrite, Response, SECTORS_PER_PAGE, Segment, op,
    rsp, slots,
};
use abi::{DomId, GrantRef};
use alloc::vec::Vec;
use ring::{BlkFrontRing, Ids, Pages};
use zerocopy::IntoBytes;

/// Requests in flight at most: the slots of the largest ring.
const IN_FLIGHT_MAX: usize = 256;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its answer is the end.
    Last,
    /// A write whose answer is followed by a flush.
    ThenFlush,
}

/// A request that is out.
struct Out {
    request: Request,
    /// Its id on the ring.
    id: u64,
    /// What was asked, as a response names it.
    operation: u8,
    stage: Stage,
    /// The page with its segments, where they are indirect.
    list: Option<GrantedPage>,
    /// It was reported as timed out; its answer only frees its buffer.
    given_up: bool,
}

pub(super) struct Channel {
    ring: BlkFrontRing<GrantedPage>,
    backend: DomId,
    ids: Ids<IN_FLIGHT_MAX>,
    out: Vec<Option<Out>>,
    serial: u64,
    /// Pages for lists of segments that are not in use.
    lists: Vec<GrantedPage>,
    /// The first deadline of those that are out, or earlier.
    soonest: Option<Instant>,
}

impl Channel {
    /// An empty ring of `1 << order` pages.
    ///
    /// # Errors
    /// Memory or grants are exhausted.
    pub fn new(backend: DomId, order: u32) -> Result<Self, GrantError> {
        let mut pages = Vec::new();
        for _ in 0..1u32.checked_shl(order).unwrap_or(1) {
            pages.push(GrantedPage::alloc(backend, Access::ReadWrite)?);
        }
        let mut out = Vec::new();
        out.resize_with(IN_FLIGHT_MAX, || None);
        Ok(Self {
            ring: BlkFrontRing::init_sized(Pages(pages), slots(order), 0),
            backend,
            ids: Ids::new(),
            out,
            serial: 0,
            lists: Vec::new(),
            soonest: None,
        })
    }

    /// The ring's own grants, for xenstore.
    pub fn grefs(&self) -> Vec<GrantRef> {
        self.ring.mem().0.iter().map(GrantedPage::gref).collect()
    }

    /// Requests that can be pushed.
    pub fn room(&self) -> u32 {
        self.ring.free()
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.ids.outstanding()
    }

    /// Puts a checked request on the ring; the backend sees it after [`Channel::publish`].
    ///
    /// # Errors
    /// The request back, where there is no slot or no memory.
    pub fn push(&mut self, info: &Info, request: Request) -> Result<(), Request> {
        if self.ring.free() == 0 {
            return Err(request);
        }
        let Some((operation, stage)) = Self::plan(info, &request) else { return Err(request) };
        let segments: Vec<Segment> = segments(&request).collect();
        let list = if segments.len() > MAX_SEGMENTS_PER_REQUEST {
            match self.list(&segments) {
                Some(list) => Some(list),
                None => return Err(request),
            }
        } else {
            None
        };
        let Some(index) = self.ids.take() else { return Err(request) };
        let id = self.next_id(index);
        let words = encode(id, operation, &request, &segments, list.as_ref());
        let pushed = self.ring.push(words).is_ok();
        debug_assert!(pushed, "a slot was free");
        self.soonest = match (self.soonest, request.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if let Some(place) = self.out.get_mut(usize::from(index)) {
            *place = Some(Out { request, id, operation, stage, list, given_up: false });
        }
        Ok(())
    }

    /// What is asked for a request, and whether that is all. `None` where the device cannot do it at all.
    fn plan(info: &Info, request: &Request) -> Option<(u8, Stage)> {
        let pages = request.sectors.div_ceil(u32::from(SECTORS_PER_PAGE));
        Some(match request.op {
            Op::Read => (op::READ, Stage::Last),
            Op::Write { fua: true } if info.barrier && pages as usize <= MAX_SEGMENTS_PER_REQUEST => {
                (op::WRITE_BARRIER, Stage::Last)
            }
            Op::Write { fua: true } if info.flush || info.barrier => (op::WRITE, Stage::ThenFlush),
            Op::Write { .. } => (op::WRITE, Stage::Last),
            Op::Flush => (flush_operation(info)?, Stage::Last),
            Op::Discard => (op::DISCARD, Stage::Last),
        })
    }

    fn next_id(&mut self, index: u16) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial << 16 | u64::from(index)
    }

    /// A granted page with the segments in it.
    fn list(&mut self, segments: &[Segment]) -> Option<GrantedPage> {
        let page = match self.lists.pop() {
            Some(page) => page,
            None => GrantedPage::alloc(self.backend, Access::ReadWrite).ok()?,
        };
        page.page()?.copy_in(0, segments.as_bytes());
        Some(page)
    }

    /// Shows the backend all that was pushed; true if it asked to be notified.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Asks for a notification, then looks once more: true where an answer is there already.
    pub fn arm(&mut self) -> bool {
        // A fault shows when the answer is taken.
        self.ring.arm(1).unwrap_or(true)
    }

    /// The next request that has ended. A flush may have been pushed meanwhile, so [`Channel::publish`] afterwards.
    ///
    /// # Errors
    /// The backend broke the protocol.
    pub fn completed(&mut self, info: &Info, counters: &mut Counters) -> Result<Option<Completion>, Fault> {
        while let Some((_, words)) = self.ring.take().map_err(Fault::Ring)? {
            let response = Response::from_words(&words);
            let index = response.id as u16;
            let bad = Fault::BadId(response.id);
            let out = self.out.get_mut(usize::from(index)).and_then(|place| place.take_if(|out| out.id == response.id));
            let Some(mut out) = out else { return Err(bad) };
            if response.operation != out.operation {
                let (asked, answered) = (out.operation, response.operation);
                self.put_back(index, out);
                return Err(Fault::BadOperation { asked, answered });
            }
            let result = match response.status {
                rsp::OKAY => Ok(()),
                rsp::ERROR => Err(IoError::Failed),
                rsp::EOPNOTSUPP => Err(IoError::Unsupported),
                status => {
                    self.put_back(index, out);
                    return Err(Fault::BadStatus(status));
                }
            };
            if let (Ok(()), Stage::ThenFlush, Some(flush)) = (result, out.stage, flush_operation(info)) {
                out.id = self.next_id(index);
                (out.operation, out.stage) = (flush, Stage::Last);
                self.lists.extend(out.list.take());
                let words = encode(out.id, flush, &out.request, &[], None);
                // The answer just taken has freed a slot.
                let pushed = self.ring.push(words).is_ok();
                debug_assert!(pushed, "a slot was free");
                self.put_back(index, out);
                continue;
            }
            self.ids.give(index).map_err(|_| bad)?;
            self.lists.extend(out.list.take());
            if out.given_up {
                continue;
            }
            counters.count(&out.request, result);
            return Ok(Some(out.request.end(result)));
        }
        Ok(None)
    }

    fn put_back(&mut self, index: u16, out: Out) {
        if let Some(place) = self.out.get_mut(usize::from(index)) {
            *place = Some(out);
        }
    }

    /// The earliest deadline, or a time before it.
    pub const fn soonest(&self) -> Option<Instant> {
        self.soonest
    }

    /// Reports one request whose deadline has passed; its buffer stays with the backend until it answers.
    pub fn expired(&mut self, now: Instant) -> Option<Completion> {
        if self.soonest.is_none_or(|at| now < at) {
            return None;
        }
        let mut soonest: Option<Instant> = None;
        let mut found = None;
        for out in self.out.iter_mut().flatten().filter(|out| !out.given_up) {
            let Some(at) = out.request.deadline else { continue };
            if at <= now && found.is_none() {
                out.given_up = true;
                let Request { token, op, .. } = out.request;
                found = Some(Completion { token, op, result: Err(IoError::TimedOut), buffer: None });
            } else {
                soonest = Some(soonest.map_or(at, |s| s.min(at)));
            }
        }
        self.soonest = soonest;
        found
    }

    /// Ends an orderly closed connection: the requests without an answer, in the order in which they were submitted.
    pub fn into_unanswered(self) -> Vec<Request> {
        let mut out: Vec<Out> = self.out.into_iter().flatten().filter(|out| !out.given_up).collect();
        out.sort_unstable_by_key(|out| out.id);
        out.into_iter().map(|out| out.request).collect()
    }

    /// Ends a connection whose backend broke the protocol: every request fails, and no page that it may still use comes back.
    pub fn abandon(&mut self) -> Vec<Completion> {
        let mut ended = Vec::new();
        for mut out in self.out.iter_mut().filter_map(Option::take) {
            if let Some(buffer) = out.request.buffer.take() {
                Buffer::leak(buffer);
            }
            if !out.given_up {
                ended.push(out.request.end(Err(IoError::Broken)));
            }
        }
        ended
    }

    /// The ring's memory, for a test's backend.
    #[cfg(test)]
    pub fn mem(&self) -> &Pages<GrantedPage> {
        self.ring.mem()
    }

    /// The page of segments behind a reference, as the backend finds it.
    #[cfg(test)]
    pub fn list_by_gref(&self, gref: GrantRef) -> Option<&GrantedPage> {
        self.out.iter().flatten().filter_map(|out| out.list.as_ref()).find(|page| page.gref() == gref)
    }
}

impl Request {
    pub(super) fn end(self, result: Result<(), IoError>) -> Completion {
        Completion { token: self.token, op: self.op, result, buffer: self.buffer }
    }
}

/// How the device flushes: by its own operation, or by a barrier without data, which covers all before it.
const fn flush_operation(info: &Info) -> Option<u8> {
    match (info.flush, info.barrier) {
        (true, _) => Some(op::FLUSH_DISKCACHE),
        (false, true) => Some(op::WRITE_BARRIER),
        (false, false) => None,
    }
}

/// The data of a request, page by page.
fn segments(request: &Request) -> impl Iterator<Item = Segment> {
    let mut left = match request.op {
        Op::Read | Op::Write { .. } => request.sectors,
        Op::Flush | Op::Discard => 0,
    };
    request.buffer.iter().flat_map(Buffer::grefs).map_while(move |gref| {
        let here = left.min(u32::from(SECTORS_PER_PAGE));
        left = left.saturating_sub(here);
        let last_sect = here.checked_sub(1)? as u8;
        Some(Segment { gref, first_sect: 0, last_sect, pad: 0 })
    })
}

/// The slot.
fn encode(
    id: u64,
    operation: u8,
    request: &Request,
    segments: &[Segment],
    list: Option<&GrantedPage>,
) -> [u32; REQUEST_WORDS] {
    let sector_number = request.sector;
    if operation == op::DISCARD {
        let nr_sectors = u64::from(request.sectors);
        return Discard { operation, id, sector_number, nr_sectors, ..Discard::default() }.to_words();
    }
    if let Some(list) = list {
        let nr_segments = u16::try_from(segments.len()).unwrap_or(u16::MAX);
        let mut indirect = Indirect { operation: op::INDIRECT, indirect_op: operation, ..Indirect::default() };
        (indirect.id, indirect.sector_number, indirect.nr_segments) = (id, sector_number, nr_segments);
        if let Some(first) = indirect.indirect_grefs.first_mut() {
            *first = list.gref();
        }
        return indirect.to_words();
    }
    // A flush names no sector, also where it follows a write.
    let sector_number = if segments.is_empty() { 0 } else { sector_number };
    let nr_segments = u8::try_from(segments.len()).unwrap_or(0);
    let mut direct = ReadWrite { operation, nr_segments, id, sector_number, ..ReadWrite::default() };
    for (place, segment) in direct.segments.iter_mut().zip(segments) {
        *place = *segment;
    }
    direct.to_words()
}
