//! Block rings (`public/io/blkif.h`), protocol `x86_64-abi`. Sectors are 512 bytes here whatever the disk's are, except in the
//! node `sector-size` and where it says so.
//!
//! A ring slot is 112 bytes and holds a request or a response. The three forms of a request share `operation` and `id`, so a slot is
//! read as 28 words once ([`ReadWrite::from_words`] and its siblings), and only then looked at.

use crate::ids::GrantRef;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a slot (a union of 112-byte request and 16-byte response).
pub const SLOT: usize = 112;
/// Words of a request.
pub const REQUEST_WORDS: usize = SLOT / 4;
/// Words of a response.
pub const RESPONSE_WORDS: usize = 4;
/// Bytes of a sector in requests and segments.
pub const SECTOR_SIZE: u32 = 512;
/// Sectors of a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`: of a request without indirect pages.
pub const MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Segments in one indirect page (`SEGS_PER_INDIRECT_FRAME`).
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = crate::PAGE_SIZE / 8;
/// The value of the frontend's node `protocol` for this layout (`XEN_IO_PROTO_ABI_X86_64`).
pub const PROTOCOL: &str = "x86_64-abi";

/// Slots of a ring of `1 << order` pages: 32, 64, 128, 256.
#[must_use]
pub const fn slots(order: u32) -> u32 {
    match 1usize.checked_shl(order) {
        Some(pages) => super::ring::slots(pages, SLOT),
        None => 0,
    }
}

/// `BLKIF_OP_*`.
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Write (or nothing) after all before it is on media, before all after it; needs `feature-barrier`.
    pub const WRITE_BARRIER: u8 = 2;
    /// Everything completed is on media; needs `feature-flush-cache`.
    pub const FLUSH_DISKCACHE: u8 = 3;
    /// The content of sectors is not needed any more; needs `feature-discard`.
    pub const DISCARD: u8 = 5;
    /// A read or write whose segments are in indirect pages; needs `feature-max-indirect-segments`.
    pub const INDIRECT: u8 = 6;
}

/// `BLKIF_RSP_*`: the status of a response.
pub mod rsp {
    /// Done.
    pub const OKAY: i16 = 0;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Not supported.
    pub const EOPNOTSUPP: i16 = -2;
}

/// `VDISK_*` of the backend's node `info`.
pub mod info {
    /// It is a CD-ROM.
    pub const CDROM: u32 = 1;
    /// Its medium can be removed.
    pub const REMOVABLE: u32 = 2;
    /// Writes are refused.
    pub const READONLY: u32 = 4;
}

/// `BLKIF_DISCARD_SECURE`: flag of a [`Discard`], needs `discard-secure`.
pub const DISCARD_SECURE: u8 = 1;

/// `blkif_request_segment`: a part of one granted page, and an entry of an indirect page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Page with the data.
    pub gref: GrantRef,
    /// First sector of the page, inclusive.
    pub first_sect: u8,
    /// Last sector of the page, inclusive; below [`SECTORS_PER_PAGE`].
    pub last_sect: u8,
    /// Zero.
    pub pad: u16,
}
crate::assert_layout!(Segment, 8, first_sect @ 4, last_sect @ 5, pad @ 6);

impl Segment {
    /// From the two words of an entry, as read.
    #[must_use]
    pub const fn from_words([gref, place]: [u32; 2]) -> Self {
        let [first_sect, last_sect, a, b] = place.to_le_bytes();
        Self { gref: GrantRef(gref), first_sect, last_sect, pad: u16::from_le_bytes([a, b]) }
    }
    /// The two words of an entry.
    #[must_use]
    pub const fn to_words(self) -> [u32; 2] {
        let [a, b] = self.pad.to_le_bytes();
        [self.gref.0, u32::from_le_bytes([self.first_sect, self.last_sect, a, b])]
    }
    /// Sectors, unless it is empty or leaves its page.
    #[must_use]
    pub const fn sectors(self) -> Option<u8> {
        if self.first_sect > self.last_sect || self.last_sect >= SECTORS_PER_PAGE {
            return None;
        }
        match self.last_sect.checked_sub(self.first_sect) {
            Some(last) => last.checked_add(1),
            None => None,
        }
    }
}

/// `blkif_request`: [`op::READ`], [`op::WRITE`], [`op::WRITE_BARRIER`] and [`op::FLUSH_DISKCACHE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadWrite {
    /// [`op`].
    pub operation: u8,
    /// Valid entries of `segments`; 0 is allowed for a flush and a barrier.
    pub nr_segments: u8,
    /// The frontend's name of the device; not looked at.
    pub handle: u16,
    /// Zero.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector.
    pub sector_number: u64,
    /// Where the data is.
    pub segments: [Segment; MAX_SEGMENTS_PER_REQUEST],
}
crate::assert_layout!(ReadWrite, 112, nr_segments @ 1, handle @ 2, id @ 8, sector_number @ 16, segments @ 24);

/// `blkif_request_discard`: [`op::DISCARD`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Discard {
    /// [`op::DISCARD`].
    pub operation: u8,
    /// [`DISCARD_SECURE`] or 0.
    pub flag: u8,
    /// The frontend's name of the device; not looked at.
    pub handle: u16,
    /// Zero.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector.
    pub sector_number: u64,
    /// Sectors.
    pub nr_sectors: u64,
    /// Of no meaning.
    pub rest: [u32; 20],
}
crate::assert_layout!(Discard, 112, flag @ 1, handle @ 2, id @ 8, sector_number @ 16, nr_sectors @ 24);

/// `blkif_request_indirect`: [`op::INDIRECT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Indirect {
    /// [`op::INDIRECT`].
    pub operation: u8,
    /// [`op::READ`] or [`op::WRITE`].
    pub indirect_op: u8,
    /// Entries of the indirect pages together.
    pub nr_segments: u16,
    /// Zero.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector.
    pub sector_number: u64,
    /// The frontend's name of the device; not looked at.
    pub handle: u16,
    /// Zero.
    pub pad2: u16,
    /// Pages full of [`Segment`]s, as many as `nr_segments` need.
    pub indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES_PER_REQUEST],
    /// Of no meaning.
    pub rest: [u32; 13],
}
crate::assert_layout!(Indirect, 112, indirect_op @ 1, nr_segments @ 2, id @ 8, sector_number @ 16, handle @ 24, indirect_grefs @ 28);

/// `blkif_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub operation: u8,
    /// Zero.
    pub pad: u8,
    /// [`rsp`].
    pub status: i16,
    /// Zero.
    pub pad2: u32,
}
crate::assert_layout!(Response, 16, operation @ 8, status @ 10);

/// Words of a slot to a structure and back.
macro_rules! words {
    ($name:ident, $words:expr) => {
        impl $name {
            /// From the words of a slot, as read.
            #[must_use]
            pub fn from_words(words: &[u32; $words]) -> Self {
                let mut this = Self::new_zeroed();
                this.as_mut_bytes().copy_from_slice(words.as_bytes());
                this
            }
            /// The words to write into a slot.
            #[must_use]
            pub fn to_words(&self) -> [u32; $words] {
                let mut words = [0; $words];
                words.as_mut_bytes().copy_from_slice(self.as_bytes());
                words
            }
        }
    };
}
words!(ReadWrite, REQUEST_WORDS);
words!(Discard, REQUEST_WORDS);
words!(Indirect, REQUEST_WORDS);
words!(Response, RESPONSE_WORDS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_have_the_slots_linux_counts() {
        assert_eq!([0, 1, 2, 3].map(slots), [32, 64, 128, 256]);
    }

    /// Worked by hand from `blkif.h` as a C compiler for x86-64 lays it out.
    #[test]
    fn words_are_those_of_the_header() {
        let mut rw = ReadWrite { operation: op::WRITE, nr_segments: 1, handle: 0xCA00, id: 7, ..ReadWrite::default() };
        rw.sector_number = 0x1_0000_0002;
        rw.segments[0] = Segment { gref: GrantRef(9), first_sect: 1, last_sect: 6, pad: 0 };
        let words = rw.to_words();
        assert_eq!(words[..8], [0xCA00_0101, 0, 7, 0, 2, 1, 9, 0x0601]);
        assert_eq!(ReadWrite::from_words(&words), rw);

        let discard = Discard { operation: op::DISCARD, id: 1 << 32, nr_sectors: 3, ..Discard::default() };
        assert_eq!(discard.to_words()[..8], [5, 0, 0, 1, 0, 0, 3, 0]);

        let mut indirect =
            Indirect { operation: op::INDIRECT, indirect_op: op::READ, nr_segments: 32, ..Indirect::default() };
        indirect.indirect_grefs[0] = GrantRef(77);
        assert_eq!(indirect.to_words()[..9], [0x0020_0006, 0, 0, 0, 0, 0, 0, 77, 0]);

        let response = Response { id: 5, operation: op::READ, status: rsp::ERROR, ..Response::default() };
        assert_eq!(response.to_words(), [5, 0, 0xFFFF_0000, 0]);
    }

    #[test]
    fn a_segment_stays_in_its_page() {
        let sectors = |first_sect, last_sect| Segment { first_sect, last_sect, ..Segment::default() }.sectors();
        assert_eq!(
            [sectors(0, 7), sectors(3, 3), sectors(4, 3), sectors(0, 8), sectors(255, 255)],
            [Some(8), Some(1), None, None, None]
        );
        let segment = Segment { gref: GrantRef(3), first_sect: 1, last_sect: 2, pad: 0 };
        assert_eq!(Segment::from_words(segment.to_words()), segment);
    }
}
