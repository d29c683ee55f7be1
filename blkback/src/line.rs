//! The requests of a vbd that were taken and are not answered yet, in ring order, and who must wait for whom.
//!
//! A request that overlaps an earlier one, with a write among the two, waits until the earlier one's answer is *published*, not only until
//! it is done: a fresh instance does again all that was not published, and a read done again after a later write of the same sectors
//! would see what comes after it. The same holds for all that follows a barrier. Responses are published in ring order, so one index says
//! for whom a request waits. A flush waits until all modifications before it are *done*: being done again does them no harm.

use crate::disk::Segment as DeviceSegment;
use crate::request::{Kind, Name};
use crate::run::Run;
use abi::io::blkif::MAX_SEGMENTS_PER_REQUEST;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not begun.
    Waiting,
    /// The drive's cache is (to be) flushed for it.
    Flushing,
    /// Its data may move, or moves.
    Moving,
    /// Its response waits for its turn.
    Answered,
}

/// A request.
pub(crate) struct Request<H> {
    pub name: Name,
    pub kind: Kind,
    pub first: u64,
    /// 0 for a pure flush.
    pub sectors: u64,
    pub segments: Vec<Run>,
    pub phase: Phase,
    /// It waits until this index is published.
    after: Option<u32>,
    /// What is mapped for it.
    pub held: Vec<H>,
    /// The same as the drive sees it; empty until mapped.
    pub data: Vec<DeviceSegment>,
    /// Bytes given to the drive so far.
    pub given: u64,
    /// Commands that the drive has of it.
    pub out: u32,
    /// The first error of one of them.
    pub error: Option<i16>,
}

impl<H> Request<H> {
    /// Nothing yet; what it asks for is filled in.
    pub fn blank() -> Self {
        let (segments, held, data) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            name: Name::default(),
            kind: Kind::Refused,
            first: 0,
            sectors: 0,
            segments,
            phase: Phase::Waiting,
            after: None,
            held,
            data,
            given: 0,
            out: 0,
            error: None,
        }
    }

    /// Blank again, with the memory it had.
    fn wiped(mut self) -> Self {
        self.segments.clear();
        self.held.clear();
        self.data.clear();
        Self { segments: self.segments, held: self.held, data: self.data, ..Self::blank() }
    }

    /// Does it change the disk?
    fn modifies(&self) -> bool {
        match self.kind {
            Kind::Write | Kind::Discard => true,
            Kind::Flush | Kind::Barrier => self.sectors > 0,
            Kind::Read | Kind::Refused => false,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        // Both are within the vbd: no overflow.
        let end = |request: &Self| request.first.saturating_add(request.sectors);
        self.first < end(other) && other.first < end(self)
    }

    /// Bytes.
    pub fn len_bytes(&self) -> u64 {
        self.sectors.saturating_mul(u64::from(abi::io::blkif::SECTOR_SIZE))
    }

    /// The drive has all of it.
    pub fn is_given(&self) -> bool {
        self.given >= self.len_bytes()
    }

    /// Gives the memory of a request of many segments back: kept for each slot of each ring it would be more than the domain has.
    pub fn shrink(&mut self) {
        if self.segments.len() > MAX_SEGMENTS_PER_REQUEST {
            (self.segments, self.held, self.data) = (Vec::new(), Vec::new(), Vec::new());
        }
    }

    /// The device forgot what it was given: again from the begin.
    pub fn again(&mut self) {
        (self.given, self.out, self.error) = (0, 0, None);
    }
}

/// See the module's head.
pub(crate) struct Line<H> {
    requests: VecDeque<Request<H>>,
    /// Ring index of the first.
    first: u32,
    /// Blank ones whose memory is used again.
    spare: Vec<Request<H>>,
}

impl<H> Line<H> {
    /// Of a ring whose next response has this index.
    pub fn new(first: u32) -> Self {
        Self { requests: VecDeque::new(), first, spare: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// The index of the request that is pushed next.
    pub fn next(&self) -> u32 {
        self.first.wrapping_add(self.requests.len() as u32)
    }

    /// Ring indices of all, in order.
    pub fn indices(&self) -> impl Iterator<Item = u32> + use<H> {
        let first = self.first;
        (0..self.requests.len() as u32).map(move |n| first.wrapping_add(n))
    }

    pub fn get(&self, index: u32) -> Option<&Request<H>> {
        self.requests.get(index.wrapping_sub(self.first) as usize)
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Request<H>> {
        self.requests.get_mut(index.wrapping_sub(self.first) as usize)
    }

    /// A blank request, to be filled in and [pushed](Self::push).
    pub fn blank(&mut self) -> Request<H> {
        self.spare.pop().unwrap_or_else(Request::blank)
    }

    /// Puts a request at the end; true if it has to wait for an earlier one.
    pub fn push(&mut self, mut request: Request<H>) -> bool {
        let bound = |earlier: &Request<H>| {
            earlier.kind == Kind::Barrier || (earlier.modifies() || request.modifies()) && earlier.overlaps(&request)
        };
        let places = (0..self.requests.len() as u32).zip(&self.requests);
        let last = places.filter(|(_, earlier)| bound(earlier)).map(|(n, _)| n).next_back();
        request.after = last.map(|n| self.first.wrapping_add(n)).filter(|_| !crate::mutated!(NoOverlapOrder));
        let waits = request.after.is_some();
        self.requests.push_back(request);
        waits
    }

    /// May its work begin?
    pub fn may_begin(&self, index: u32) -> bool {
        let Some(request) = self.get(index) else { return false };
        if request.after.is_some_and(|after| self.get(after).is_some_and(|earlier| self.holds_back(earlier))) {
            return false;
        }
        let before = self.requests.iter().take(index.wrapping_sub(self.first) as usize);
        let mut unfinished = before.filter(|earlier| earlier.phase != Phase::Answered);
        match request.kind {
            Kind::Barrier => unfinished.next().is_none(),
            Kind::Flush => crate::mutated!(EarlyFlush) || !unfinished.any(Request::modifies),
            _ => true,
        }
    }

    /// A request in the line is not published.
    fn holds_back(&self, earlier: &Request<H>) -> bool {
        !crate::mutated!(ReleaseWhenDone) || earlier.phase != Phase::Answered
    }

    /// The first `count` responses were published: their requests are over.
    pub fn published(&mut self, count: u32) {
        let count = (count as usize).min(self.requests.len());
        self.first = self.first.wrapping_add(count as u32);
        self.spare.extend(self.requests.drain(..count).map(Request::wiped));
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Request<H>> {
        self.requests.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::io::blkif::Segment;

    fn line(requests: &[(Kind, u64, u64)]) -> Line<()> {
        let mut line = Line::new(u32::MAX);
        for &(kind, first, sectors) in requests {
            line.push(Request { kind, first, sectors, ..Request::blank() });
        }
        line
    }

    fn begin(line: &Line<()>) -> Vec<bool> {
        line.indices().map(|index| line.may_begin(index)).collect()
    }

    fn done(line: &mut Line<()>, place: u32) {
        line.get_mut(u32::MAX.wrapping_add(place)).unwrap().phase = Phase::Answered;
    }

    use Kind::{Barrier, Discard, Flush, Read, Write};

    #[test]
    fn overlaps_wait_for_the_answer_and_others_do_not() {
        let mut line =
            line(&[(Read, 0, 8), (Write, 7, 2), (Write, 20, 1), (Read, 0, 7), (Read, 8, 1), (Discard, 8, 9)]);
        assert_eq!(begin(&line), [true, false, true, true, false, false]);
        done(&mut line, 0);
        assert!(!begin(&line)[1], "the read is done, but a restart would do it again");
        line.published(1);
        assert_eq!(begin(&line), [true, true, true, false, false]);
    }

    #[test]
    fn only_short_requests_keep_their_memory() {
        for (count, kept) in [(11, 11), (12, 0), (256, 0)] {
            let mut request: Request<()> = Request::blank();
            request.segments = Vec::from_iter(core::iter::repeat_n(Run { first: Segment::default(), pages: 1 }, count));
            request.data.reserve(count);
            request.shrink();
            assert!(request.segments.capacity() >= kept && request.data.capacity() >= kept);
            assert!(kept > 0 || request.segments.capacity() + request.data.capacity() == 0);
        }
    }

    #[test]
    fn a_flush_waits_for_modifications_before_it() {
        let mut line = line(&[(Write, 0, 1), (Read, 5, 1), (Flush, 0, 0), (Write, 9, 1), (Flush, 0, 0)]);
        assert_eq!(begin(&line), [true, true, false, true, false]);
        done(&mut line, 0);
        assert_eq!(begin(&line), [true, true, true, true, false]);
        done(&mut line, 3);
        assert!(begin(&line)[4], "not for the other flush, nor for reads");
    }

    #[test]
    fn a_barrier_orders_both_sides() {
        let mut line = line(&[(Read, 5, 1), (Barrier, 9, 1), (Read, 7, 1), (Flush, 0, 0)]);
        assert_eq!(begin(&line), [true, false, false, false]);
        done(&mut line, 0);
        assert_eq!(begin(&line)[1..], [true, false, false]);
        done(&mut line, 1);
        assert_eq!(begin(&line)[1..], [true, false, false], "not before its answer is published");
        line.published(2);
        assert_eq!(begin(&line), [true, true]);
    }
}
