//! The transmit ring: frames to descriptors, completions in order.
//!
//! Status is asked for (RS) once per doorbell, on the last descriptor, and every [`REPORT_EVERY`] descriptors inside a long
//! batch: the device works in order, so one write-back tells of all before it. Each write-back costs the device a DMA.
//!
//! Two errata of the family, which its Linux driver has worked around since the first version, are kept away by the same
//! rule: the device may write a segmented frame's last descriptor back before it has read all of its data, so the last
//! bytes of such a frame get a descriptor of their own, and status is reported only there; and so with the next frame that would
//! have a single descriptor and is not segmented.

use crate::desc::{self, Context, Offload};
use crate::ring::Ring;
use alloc::collections::VecDeque;
use netback::nic::{DmaMemory, NicFault, Segment, TxError, TxMeta};

/// Descriptors of the ring.
pub const LEN: u16 = 256;
/// Descriptors a frame may need besides one per segment: a context and the split of the last segment.
pub const EXTRA: u16 = 2;
/// Segments of one frame.
pub const MAX_SEGMENTS: u16 = 64;
/// Bytes of one segment: what one descriptor may move (SDM 317453, 3.3.3).
pub const MAX_SEGMENT: u32 = 16_288;
/// Bytes of a frame to be segmented: 64 KiB of IP and its Ethernet header; the payload must fit 20 bits in any case.
pub const MAX_GSO: u32 = 65_535 + 14;
/// Bytes that a segmented frame's own last descriptor moves.
const TAIL: u32 = 4;
/// Descriptors after which status is asked for inside a batch.
const REPORT_EVERY: u16 = 32;

#[derive(Clone, Copy, Debug)]
struct Frame {
    token: u32,
    descriptors: u16,
}

/// A descriptor with RS: its completion is that of all frames up to `frames`.
#[derive(Clone, Copy, Debug)]
struct Report {
    index: u16,
    word2: u32,
    word3: u32,
    frame: u32,
}

/// State of the transmit ring that the device cannot touch.
#[derive(Debug)]
pub struct TxRing {
    ring: Ring,
    max_frame: u32,
    /// Next descriptor to write.
    next: u16,
    /// Tail as the device knows it.
    told: u16,
    /// Descriptors in use.
    used: u16,
    /// At most one per descriptor, as the next; their memory is taken once, at the start.
    frames: VecDeque<Frame>,
    reports: VecDeque<Report>,
    /// Frames queued, told of, reported as done to the caller, and known to be done; all modular.
    queued: u32,
    told_frames: u32,
    harvested: u32,
    done: u32,
    /// Last descriptor written that is not yet told of and has no RS.
    unreported: Option<(u16, u32, u32)>,
    since_report: u16,
    /// The context that the device holds for checksums (not for segmentation).
    context: Option<Context>,
    /// A segmented frame went before, and no frame of one segment was split since.
    after_segmented: bool,
    /// Frames that the device gave up.
    pub errors: u64,
}

impl TxRing {
    /// An empty ring at `ring`, for frames of at most `max_frame` bytes on the wire.
    #[must_use]
    pub fn new(ring: Ring, max_frame: u32) -> Self {
        let places = usize::from(ring.descriptors());
        Self {
            ring,
            max_frame,
            next: 0,
            told: 0,
            used: 0,
            frames: VecDeque::with_capacity(places),
            reports: VecDeque::with_capacity(places),
            queued: 0,
            told_frames: 0,
            harvested: 0,
            done: 0,
            unreported: None,
            since_report: 0,
            context: None,
            after_segmented: false,
            errors: 0,
        }
    }

    /// Forgets all frames; the device has been reset and both indices are 0.
    pub fn clear(&mut self) {
        *self = Self { errors: self.errors, ..Self::new(self.ring, self.max_frame) };
    }

    /// Descriptors handed to the device or queued for it.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.used
    }

    /// The ring.
    #[must_use]
    pub const fn ring(&self) -> Ring {
        self.ring
    }

    const fn free(&self) -> u16 {
        // One stays empty: head = tail means an empty ring.
        self.ring.descriptors().saturating_sub(1).saturating_sub(self.used)
    }

    /// See `Nic::tx_room`.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.free().saturating_sub(EXTRA).min(MAX_SEGMENTS)
    }

    /// See `Nic::tx`. Nothing has changed after an error.
    pub fn queue<D: DmaMemory>(
        &mut self,
        dma: &D,
        segments: &[Segment],
        meta: &TxMeta,
        token: u32,
    ) -> Result<(), TxError> {
        let (context, offload) = self.plan(segments, meta)?;
        let new_context = context.filter(|c| offload.segment || self.context != Some(*c));
        let (last, body) = segments.split_last().ok_or(TxError::BadSegments(0))?;
        let follows = self.after_segmented && body.is_empty();
        let split = (offload.segment || follows) && last.len > TAIL;
        let need = u16::try_from(segments.len())
            .unwrap_or(u16::MAX)
            .saturating_add(u16::from(split))
            .saturating_add(u16::from(new_context.is_some()));
        if need > self.free() {
            return Err(TxError::Full);
        }
        self.frames.push_back(Frame { token, descriptors: need });
        self.after_segmented = offload.segment || (self.after_segmented && !follows);

        if let Some(c) = new_context {
            self.push(dma, c.words());
            if !offload.segment {
                self.context = Some(c);
            }
        }
        for s in body {
            self.push(dma, desc::data(s.addr, s.len, offload, false));
        }
        let mut tail = *last;
        if split {
            let head = last.len.saturating_sub(TAIL);
            self.push(dma, desc::data(last.addr, head, offload, false));
            tail = Segment { addr: last.addr.saturating_add(u64::from(head)), len: TAIL };
        }
        let words = desc::data(tail.addr, tail.len, offload, true);
        let end = self.push(dma, words);

        self.unreported = Some((end, words[2], words[3]));
        self.queued = self.queued.wrapping_add(1);
        self.since_report = self.since_report.saturating_add(need);
        if self.since_report >= REPORT_EVERY {
            self.report(dma);
        }
        Ok(())
    }

    /// Checks a frame and says how it is to be sent.
    fn plan(&self, segments: &[Segment], meta: &TxMeta) -> Result<(Option<Context>, Offload), TxError> {
        let count = segments.len();
        if count == 0
            || count > usize::from(MAX_SEGMENTS)
            || segments
                .iter()
                .any(|s| s.len == 0 || s.len > MAX_SEGMENT || s.addr.checked_add(u64::from(s.len)).is_none())
        {
            return Err(TxError::BadSegments(count));
        }
        let len = segments.iter().fold(0u32, |sum, s| sum.saturating_add(s.len));
        let limit = if meta.gso.is_some() { MAX_GSO } else { self.max_frame };
        // The device pads short frames, but the Ethernet header must be there.
        if len < 14 || len > limit {
            return Err(TxError::BadLength(len));
        }
        if let Some(sum) = meta.checksum {
            let end = u32::from(sum.start).saturating_add(u32::from(sum.offset)).saturating_add(2);
            if end > len {
                return Err(TxError::BadChecksum(sum));
            }
        }
        match (meta.checksum, meta.gso) {
            (None, None) => Ok((None, Offload::default())),
            (Some(sum), None) => {
                let context = Context::checksum(sum).ok_or(TxError::BadChecksum(sum))?;
                Ok((Some(context), Offload { checksum: true, segment: false }))
            }
            (None, Some(gso)) => Err(TxError::BadGso(gso)),
            (Some(sum), Some(gso)) => {
                let wire = u32::from(gso.header_len).saturating_add(u32::from(gso.mss));
                let context = Context::segmentation(sum, gso, len).filter(|_| wire <= self.max_frame);
                let context = context.ok_or(TxError::BadGso(gso))?;
                Ok((Some(context), Offload { checksum: true, segment: true }))
            }
        }
    }

    fn push<D: DmaMemory>(&mut self, dma: &D, words: desc::Words) -> u16 {
        let index = self.next;
        self.ring.write(dma, index, words);
        self.next = self.ring.step(index, 1);
        self.used = self.used.saturating_add(1);
        index
    }

    /// Sets RS on the last descriptor queued; the device does not own it yet.
    fn report<D: DmaMemory>(&mut self, dma: &D) {
        if let Some((index, word2, word3)) = self.unreported.take() {
            let word2 = word2 | desc::TX_RS;
            let report = Report { index, word2, word3, frame: self.queued };
            self.reports.push_back(report);
            self.ring.write_word(dma, index, 2, word2);
            self.since_report = 0;
        }
    }

    /// The tail to tell the device, if it moved.
    pub fn flush<D: DmaMemory>(&mut self, dma: &D) -> Option<u16> {
        if self.told == self.next {
            return None;
        }
        self.report(dma);
        self.told = self.next;
        self.told_frames = self.queued;
        Some(self.next)
    }

    /// See `Nic::tx_done`.
    pub fn harvest<D: DmaMemory>(&mut self, dma: &D) -> Result<Option<u32>, NicFault> {
        if self.harvested == self.done {
            let Some(report) = self.reports.front().copied() else { return Ok(None) };
            let word3 = self.ring.status(dma, report.index);
            if word3 & desc::TX_DD == 0 {
                return Ok(None);
            }
            let word2 = self.ring.word(dma, report.index, 2);
            let index = report.index;
            if word2 != report.word2 {
                return Err(NicFault::Descriptor { index, found: word2, expected: report.word2 });
            }
            if (word3 ^ report.word3) & !desc::TX_STA_MASK != 0 {
                return Err(NicFault::Descriptor { index, found: word3, expected: report.word3 });
            }
            // A frame that the device was not told of lies behind the tail: it cannot be done.
            if (self.told_frames.wrapping_sub(report.frame) as i32) < 0 {
                return Err(NicFault::Descriptor { index, found: word3, expected: report.word3 });
            }
            if word3 & desc::TX_ERRORS != 0 {
                self.errors = self.errors.saturating_add(1);
            }
            self.reports.pop_front();
            self.done = report.frame;
        }
        let Some(frame) = self.frames.pop_front() else { return Ok(None) };
        self.harvested = self.harvested.wrapping_add(1);
        self.used = self.used.saturating_sub(frame.descriptors);
        Ok(Some(frame.token))
    }
}
