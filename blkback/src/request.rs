//! From a slot to what it asks for. Everything in it is an allegation: it was copied once by the ring, is checked here against the vbd's
//! bounds, and what is wrong with it is answered with an error. Sectors are blkif's, of 512 bytes, within the vbd.

use crate::run::Run;
use abi::GrantRef;
use abi::io::blkif::{
    Discard, Indirect, MAX_SEGMENTS_PER_REQUEST, REQUEST_WORDS, RESPONSE_WORDS, ReadWrite, Response,
    SEGMENTS_PER_INDIRECT_PAGE, Segment, op, rsp,
};
use alloc::vec::Vec;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// Everything completed is stable; then its own data, if any, is written and made stable.
    Flush,
    /// As a flush, after all before it and before all after it.
    Barrier,
    Discard,
    /// Nothing: it was refused.
    Refused,
}

/// How its response is addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    pub id: u64,
    pub operation: u8,
}

impl Name {
    /// The same place in all three forms, but for the operation of an indirect request, which Linux' frontend wants to see answered as
    /// what it does (`indirect_op`, the second byte); anything else it takes for a broken backend.
    pub fn of(words: &[u32; REQUEST_WORDS]) -> Self {
        let [first, _, low, high, ..] = *words;
        let [operation, indirect_op, ..] = first.to_le_bytes();
        let operation = if operation == op::INDIRECT { indirect_op } else { operation };
        Self { id: u64::from(low) | u64::from(high) << 32, operation }
    }

    pub fn response(self, status: i16) -> [u32; RESPONSE_WORDS] {
        Response { id: self.id, operation: self.operation, status, ..Response::default() }.to_words()
    }
}

/// Bounds of a vbd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sectors.
    pub sectors: u64,
    /// Sectors of one of the drive's.
    pub ratio: u64,
    pub read_only: bool,
    /// Segments of an indirect request.
    pub indirect: u16,
    pub discard: bool,
    /// Alignment the drive wants of data, in sectors.
    pub segment_ratio: u64,
}

/// Where the segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// In the slot: so many of them ([`direct`]).
    Direct(u8),
    /// In a page: so many of them.
    Indirect(GrantRef, u16),
    /// There are none: sectors.
    None(u64),
}

/// What a slot asks for, its segments not yet looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub kind: Kind,
    pub first: u64,
    pub data: Data,
}

/// Reads a slot.
///
/// # Errors
/// The status to answer with.
pub(crate) fn parse(words: &[u32; REQUEST_WORDS], limits: &Limits) -> Result<Asked, i16> {
    let operation = ReadWrite::from_words(words).operation;
    let kind = |operation| match operation {
        op::READ => Ok(Kind::Read),
        op::WRITE => Ok(Kind::Write),
        op::WRITE_BARRIER => Ok(Kind::Barrier),
        op::FLUSH_DISKCACHE => Ok(Kind::Flush),
        op::DISCARD => Ok(Kind::Discard),
        _ => Err(rsp::EOPNOTSUPP),
    };
    match operation {
        op::DISCARD => {
            let form = Discard::from_words(words);
            if !limits.discard || form.flag != 0 {
                return Err(rsp::EOPNOTSUPP);
            }
            check(limits, Kind::Discard, form.sector_number, form.nr_sectors)?;
            Ok(Asked { kind: Kind::Discard, first: form.sector_number, data: Data::None(form.nr_sectors) })
        }
        op::INDIRECT => {
            let form = Indirect::from_words(words);
            let kind = match form.indirect_op {
                op::READ => Kind::Read,
                op::WRITE => Kind::Write,
                _ => return Err(rsp::EOPNOTSUPP),
            };
            if form.nr_segments == 0 || form.nr_segments > limits.indirect {
                return Err(rsp::ERROR);
            }
            let [page, ..] = form.indirect_grefs;
            Ok(Asked { kind, first: form.sector_number, data: Data::Indirect(page, form.nr_segments) })
        }
        operation => {
            let kind = kind(operation)?;
            let form = ReadWrite::from_words(words);
            let count = form.nr_segments;
            match kind {
                _ if usize::from(count) > MAX_SEGMENTS_PER_REQUEST => Err(rsp::ERROR),
                Kind::Flush | Kind::Barrier if count == 0 => Ok(Asked { kind, first: 0, data: Data::None(0) }),
                _ if count == 0 => Err(rsp::ERROR),
                _ => Ok(Asked { kind, first: form.sector_number, data: Data::Direct(count) }),
            }
        }
    }
}

/// Appends the segments that are in the slot.
pub(crate) fn direct(words: &[u32; REQUEST_WORDS], count: u8, segments: &mut Vec<Run>) {
    let all = ReadWrite::from_words(words).segments.into_iter();
    all.take(usize::from(count)).for_each(|segment| Run::append(segments, segment));
}

/// Appends the segments of an indirect page, each of whose words is read once.
pub(crate) fn indirect(count: u16, word: impl Fn(usize) -> u32, segments: &mut Vec<Run>) {
    let count = usize::from(count).min(SEGMENTS_PER_INDIRECT_PAGE);
    let pairs = (0..count).map(|n| n.saturating_mul(8));
    let all = pairs.map(|at| Segment::from_words([word(at), word(at.saturating_add(4))]));
    all.for_each(|segment| Run::append(segments, segment));
}

/// Sectors of all segments, each within its page and all of them within the vbd.
///
/// # Errors
/// The status to answer with.
pub(crate) fn measure(limits: &Limits, kind: Kind, first: u64, segments: &[Run]) -> Result<u64, i16> {
    let mut sectors: u64 = 0;
    for &Run { first: segment, pages } in segments {
        let here = u64::from(segment.sectors().ok_or(rsp::ERROR)?);
        // Most drives want none, and a division for each page of a request is felt.
        let aligned = |n: u64| limits.segment_ratio <= 1 || n.is_multiple_of(limits.segment_ratio);
        if !aligned(here) || !aligned(u64::from(segment.first_sect)) {
            return Err(rsp::ERROR);
        }
        sectors = sectors.saturating_add(here.saturating_mul(u64::from(pages)));
    }
    check(limits, kind, first, sectors)?;
    Ok(sectors)
}

fn check(limits: &Limits, kind: Kind, first: u64, sectors: u64) -> Result<(), i16> {
    let inside = first.checked_add(sectors).is_some_and(|end| end <= limits.sectors);
    let ratio = limits.ratio.max(1);
    let aligned = first.is_multiple_of(ratio) && sectors.is_multiple_of(ratio);
    let allowed = kind == Kind::Read || !limits.read_only;
    if inside && aligned && allowed && sectors > 0 { Ok(()) } else { Err(rsp::ERROR) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { sectors: 1000, ratio: 1, read_only: false, indirect: 64, discard: true, segment_ratio: 1 };

    fn segment(first_sect: u8, last_sect: u8) -> Segment {
        Segment { gref: GrantRef(9), first_sect, last_sect, pad: 0 }
    }

    fn slot(operation: u8, sector_number: u64, segments: &[Segment]) -> [u32; REQUEST_WORDS] {
        let nr_segments = segments.len() as u8;
        let mut form = ReadWrite { operation, nr_segments, sector_number, id: 7, ..ReadWrite::default() };
        form.segments[..segments.len()].copy_from_slice(segments);
        form.to_words()
    }

    #[test]
    fn each_operation_is_understood() {
        let one = [segment(0, 7)];
        for (operation, kind) in [(0, Kind::Read), (1, Kind::Write), (2, Kind::Barrier), (3, Kind::Flush)] {
            let asked = parse(&slot(operation, 8, &one), &LIMITS);
            assert_eq!(asked, Ok(Asked { kind, first: 8, data: Data::Direct(1) }));
        }
        for (operation, kind) in [(2, Kind::Barrier), (3, Kind::Flush)] {
            let asked = parse(&slot(operation, u64::MAX, &[]), &LIMITS);
            assert_eq!(asked, Ok(Asked { kind, first: 0, data: Data::None(0) }));
        }
        let form = Discard { operation: op::DISCARD, sector_number: 990, nr_sectors: 10, ..Discard::default() };
        let asked = Asked { kind: Kind::Discard, first: 990, data: Data::None(10) };
        assert_eq!(parse(&form.to_words(), &LIMITS), Ok(asked));
    }

    #[test]
    fn an_indirect_request_is_answered_as_what_it_does() {
        for indirect_op in [op::READ, op::WRITE] {
            let form = Indirect { operation: op::INDIRECT, indirect_op, nr_segments: 20, id: 9, ..Indirect::default() };
            assert_eq!(Name::of(&form.to_words()), Name { id: 9, operation: indirect_op });
        }
        assert_eq!(Name::of(&slot(op::WRITE, 8, &[])), Name { id: 7, operation: op::WRITE });
    }

    #[test]
    fn what_is_wrong_is_answered_with_an_error() {
        let error = |words: [u32; REQUEST_WORDS], limits: &Limits| parse(&words, limits).unwrap_err();
        assert_eq!(error(slot(op::READ, 0, &[]), &LIMITS), rsp::ERROR);
        for unknown in [4, 7, 255] {
            assert_eq!(error(slot(unknown, 0, &[segment(0, 7)]), &LIMITS), rsp::EOPNOTSUPP);
        }
        let many = ReadWrite { operation: op::WRITE, nr_segments: 12, ..ReadWrite::default() };
        assert_eq!(error(many.to_words(), &LIMITS), rsp::ERROR);
        let list = |indirect_op, nr_segments| {
            Indirect { operation: op::INDIRECT, indirect_op, nr_segments, ..Indirect::default() }.to_words()
        };
        assert_eq!(error(list(op::WRITE_BARRIER, 1), &LIMITS), rsp::EOPNOTSUPP);
        assert_eq!(error(list(op::READ, 0), &LIMITS), rsp::ERROR);
        assert_eq!(error(list(op::READ, 65), &LIMITS), rsp::ERROR);
        assert!(parse(&list(op::READ, 64), &LIMITS).is_ok());
        let discard = Discard { operation: op::DISCARD, nr_sectors: 1, ..Discard::default() };
        assert_eq!(error(Discard { flag: 1, ..discard }.to_words(), &LIMITS), rsp::EOPNOTSUPP);
        assert_eq!(error(discard.to_words(), &Limits { discard: false, ..LIMITS }), rsp::EOPNOTSUPP);
        assert_eq!(error(Discard { sector_number: u64::MAX, ..discard }.to_words(), &LIMITS), rsp::ERROR);
        assert_eq!(error(Discard { nr_sectors: 0, ..discard }.to_words(), &LIMITS), rsp::ERROR);
        assert_eq!(error(discard.to_words(), &Limits { read_only: true, ..LIMITS }), rsp::ERROR);
    }

    #[test]
    fn segments_stay_in_their_pages_and_in_the_vbd() {
        let of = |limits: &Limits, kind, first, segments: &[Segment]| {
            measure(limits, kind, first, &crate::run::runs(segments))
        };
        assert_eq!(of(&LIMITS, Kind::Read, 990, &[segment(0, 7), segment(6, 7)]), Ok(10));
        for (first, bad) in [(991, segment(6, 7)), (0, segment(1, 0)), (0, segment(0, 8)), (u64::MAX, segment(0, 0))] {
            assert_eq!(of(&LIMITS, Kind::Read, first, &[segment(0, 7), bad]), Err(rsp::ERROR));
        }
        let big = Limits { ratio: 8, ..LIMITS };
        assert_eq!(of(&big, Kind::Write, 8, &[segment(4, 7), segment(0, 3)]), Ok(8));
        assert_eq!(of(&big, Kind::Write, 4, &[segment(0, 7)]), Err(rsp::ERROR));
        assert_eq!(of(&big, Kind::Write, 8, &[segment(0, 6)]), Err(rsp::ERROR));
        assert_eq!(of(&Limits { read_only: true, ..LIMITS }, Kind::Write, 0, &[segment(0, 7)]), Err(rsp::ERROR));
        assert_eq!(of(&Limits { segment_ratio: 8, ..LIMITS }, Kind::Read, 0, &[segment(4, 7)]), Err(rsp::ERROR));
    }

    proptest! {
        /// Whatever the words are: no panic, and nothing passes that leaves the vbd.
        #[test]
        fn nothing_leaves_the_vbd(words: [u32; REQUEST_WORDS], operation in 0u8..8, near: bool) {
            let mut words = words;
            words[0] = words[0] & !0xff | u32::from(operation);
            if near {
                (words[4], words[5]) = (words[4] % 1100, 0);
            }
            let Ok(asked) = parse(&words, &LIMITS) else { return Ok(()) };
            let sectors = match asked.data {
                Data::Direct(count) => {
                    let mut segments = Vec::new();
                    direct(&words, count, &mut segments);
                    measure(&LIMITS, asked.kind, asked.first, &segments)
                }
                Data::None(sectors) => Ok(sectors),
                Data::Indirect(_, count) => {
                    prop_assert!(count <= LIMITS.indirect);
                    return Ok(());
                }
            };
            if let Ok(sectors) = sectors {
                prop_assert!(asked.first.checked_add(sectors).unwrap() <= LIMITS.sectors);
            }
        }
    }
}
