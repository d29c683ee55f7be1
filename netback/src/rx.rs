//! From frames to slots of an RX ring: how many requests a frame takes, which copies fill them, and what is answered.
//!
//! A chunk of a frame goes into one page where that leaves the frame few enough pages: each copy has its price, whatever its length.
//! Else the frame is packed densely. With segmentation left to the guest the second slot is an extra info. All slots
//! of a frame are completed together, so the ring publishes whole frames only.

use crate::Area;
use crate::frames::{Cut, Offload};
use crate::nic::GsoKind;
use crate::pool::{Chunk, Piece, Pool, pieces};
use crate::tx::VifFault;
use abi::grant::{CopyPtr, GNTCOPY_DEST_GREF, GrantCopy};
use abi::io::netif::{extra, rsp, rxf};
use abi::{DomId, PAGE_SIZE};
use alloc::vec::Vec;
use ring::{RxBackRing, SharedMem};

/// Pages of a frame up to which chunks stay whole: Linux takes 17 (`MAX_SKB_FRAGS`), as a dense frame of 64 KiB needs.
const MAX_PAGES: u32 = 17;

/// Bytes that a frame's first slot has at least: Linux takes the Ethernet header from it, whose absence it takes for a bug of its own.
const HEADER: usize = 14;

/// Pages that the chunks of a frame take if each stays whole; a chunk has at most a page.
fn whole_pages(chunks: &[Chunk]) -> u32 {
    let mut room: usize = 0;
    chunks.iter().fold(0, |pages: u32, chunk| match room.checked_sub(usize::from(chunk.len)) {
        Some(left) => {
            room = left;
            pages
        }
        None => {
            room = PAGE_SIZE.saturating_sub(usize::from(chunk.len));
            pages.saturating_add(1)
        }
    })
}

/// Bytes of the frame that go into the page that begins with byte `at`, `dense` or by whole chunks.
fn page_bytes(chunks: &[Chunk], at: usize, dense: bool) -> usize {
    let fits = |sum: usize, len: usize| Some(sum.saturating_add(len)).filter(|&sum| sum <= PAGE_SIZE);
    let mut runs = pieces(chunks, at, usize::MAX).map(|piece| piece.len);
    if dense {
        return runs.fold(0, usize::saturating_add).min(PAGE_SIZE);
    }
    let mut sum: usize = 0;
    while let Some(more) = runs.next().and_then(|len| fits(sum, len)) {
        sum = more;
    }
    sum
}

/// Whether a frame is packed densely.
fn is_dense(chunks: &[Chunk]) -> bool {
    let total = chunks.iter().fold(0, |sum: usize, chunk| sum.saturating_add(chunk.len.into()));
    whole_pages(chunks) > MAX_PAGES || page_bytes(chunks, 0, false) < total.min(HEADER)
}

/// Requests that a frame of `len` bytes takes, `cut` if the guest is to segment it.
pub(crate) fn slots(chunks: &[Chunk], len: u32, cut: Option<Cut>) -> u32 {
    let dense = len.div_ceil(PAGE_SIZE as u32);
    let data = if is_dense(chunks) { dense } else { whole_pages(chunks) };
    data.max(1).saturating_add(u32::from(cut.is_some()))
}

/// An answer to be given when its copies are made.
pub(crate) struct Answer {
    pub vif: usize,
    pub index: u32,
    id: u16,
    flags: u16,
    len: u16,
    /// Its operations in the batch.
    first: usize,
    count: usize,
    /// The words of an extra info instead.
    extra: Option<[u32; 2]>,
}

impl Answer {
    /// The response, given the batch after its copies were made.
    pub fn words(&self, operations: &[GrantCopy]) -> [u32; 2] {
        if let Some(words) = self.extra {
            return words;
        }
        let mut mine = operations.iter().skip(self.first).take(self.count);
        let good = mine.all(|operation| operation.status == abi::grant::status::OKAY);
        let status = if good { self.len } else { rsp::ERROR as u16 };
        [u32::from(self.id), u32::from(self.flags) | u32::from(status) << 16]
    }
}

/// Operations and answers of one turn, for all vifs.
#[derive(Default)]
pub(crate) struct Batch {
    pub operations: Vec<GrantCopy>,
    pub answers: Vec<Answer>,
}

fn flags_of(offload: Offload) -> u16 {
    match offload {
        Offload { blank: true, .. } => rxf::CSUM_BLANK | rxf::DATA_VALIDATED,
        Offload { valid: true, .. } => rxf::DATA_VALIDATED,
        _ => 0,
    }
}

fn extra_words(cut: Cut) -> [u32; 2] {
    let kind = match cut.kind {
        GsoKind::TcpV4 => extra::GSO_TCPV4,
        GsoKind::TcpV6 => extra::GSO_TCPV6,
    };
    let [low, high] = cut.mss.to_le_bytes();
    [u32::from_le_bytes([extra::GSO, 0, low, high]), u32::from(kind)]
}

/// Where a frame goes.
pub(crate) struct Target {
    /// Slot of the vif in the backend.
    pub vif: usize,
    pub frontend: DomId,
}

impl Batch {
    pub fn clear(&mut self) {
        self.operations.clear();
        self.answers.clear();
    }

    /// Takes the requests for a frame out of `ring` and adds its copies and answers. The caller has seen that
    /// [`slots`] requests are pending; should they be gone, the ring is faulty.
    ///
    /// # Errors
    /// [`VifFault`]; what was added is completed or dropped with the ring.
    pub fn add<M: SharedMem, A: Area>(
        &mut self,
        ring: &mut RxBackRing<M>,
        pool: &Pool<A>,
        target: &Target,
        chunks: &[Chunk],
        len: u32,
        offload: Offload,
    ) -> Result<(), VifFault> {
        let mut at: usize = 0;
        let total = len as usize;
        let dense = is_dense(chunks);
        loop {
            let (index, id, gref) = request(ring)?;
            let here = page_bytes(chunks, at, dense);
            let first = self.operations.len();
            let mut to: usize = 0;
            for piece in pieces(chunks, at, here) {
                self.operations.push(operation(pool, piece, target.frontend, gref, to));
                to = to.saturating_add(piece.len);
            }
            let head = at == 0;
            at = at.saturating_add(here);
            let more = if at < total { rxf::MORE_DATA } else { 0 };
            let info = if head && offload.cut.is_some() { rxf::EXTRA_INFO } else { 0 };
            let flags = more | info | if head { flags_of(offload) } else { 0 };
            let count = self.operations.len().saturating_sub(first);
            self.answers.push(Answer {
                vif: target.vif,
                index,
                id,
                flags,
                len: here as u16,
                first,
                count,
                extra: None,
            });
            if let Some(cut) = offload.cut.filter(|_| head) {
                let (index, id, _) = request(ring)?;
                let extra = Some(extra_words(cut));
                self.answers.push(Answer { vif: target.vif, index, id, flags: 0, len: 0, first, count: 0, extra });
            }
            if at >= total || here == 0 {
                return Ok(());
            }
        }
    }
}

fn request<M: SharedMem>(ring: &mut RxBackRing<M>) -> Result<(u32, u16, u32), VifFault> {
    let (index, [id, gref]) = ring.take()?.ok_or(VifFault::Truncated { slots: 0 })?;
    Ok((index, id as u16, gref))
}

fn operation<A: Area>(pool: &Pool<A>, piece: Piece, frontend: DomId, gref: u32, to: usize) -> GrantCopy {
    GrantCopy {
        source: pool.copy_ptr(piece.buf, piece.offset),
        dest: CopyPtr { u: u64::from(gref), domid: frontend, offset: to as u16, pad: 0 },
        len: piece.len as u16,
        flags: GNTCOPY_DEST_GREF,
        status: abi::grant::status::GENERAL_ERROR,
        pad: 0,
    }
}
