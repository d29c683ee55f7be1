//! Frames go out: into the guests' pages by one batch of grant copies, to the NIC by its descriptors, and empty buffers
//! back to the NIC. What a destination cannot do for itself is done here.

use super::Backend;
use crate::frames::{Frame, FrameId, Offload};
use crate::headers::Headers;
use crate::nic::{Caps, Gso, GsoKind, Nic, TxError, TxMeta};
use crate::offload::{Head, Segmenter, fill_checksum, linearize, set_gso_form};
use crate::rx::{Target, slots};
use crate::tx::VifFault;
use crate::vif::{Connection, Waiting};
use crate::{Area, Fabric, Platform};
use alloc::vec::Vec;
use ring::SharedMem;

/// Bytes after which the NIC is told of frames though more are in line: it may begin, and a device that does its work while the
/// doorbell is written (an emulated one) keeps the domain no longer than that.
const DOORBELL_BYTES: u32 = 128 << 10;

/// Segments that one piece of a frame may become in the NIC. Few buffers must not make many frames on the wire, and more in one
/// descriptor overrun the transmit FIFO of the 8254x (Linux: `mss << 2` in `e1000_tx_map`).
const SEGMENTS_PER_PIECE: u32 = 4;

/// How the next frame in line for a vif gets in.
enum Entry {
    /// As it is, in this many slots.
    Whole(u32),
    /// In segments, each in one slot.
    Cut(Segmenter, u32),
    /// Not at all.
    Never,
}

impl<P: Platform, N: Nic, A: Area, F: Fabric, S: SharedMem> Backend<P, N, A, F, S> {
    /// Delivers frames that wait for vifs into the requests these have posted.
    pub(super) fn deliver(&mut self, now_us: u64) -> bool {
        let mut done = core::mem::take(&mut self.done);
        for slot in 0..self.vifs.slots() {
            if let Err(fault) = self.deliver_to(slot, now_us, &mut done) {
                self.faults.push((slot, fault));
            }
        }
        let any = !done.is_empty();
        self.copy(true);
        self.platform.crash_point();
        let batch = core::mem::take(&mut self.batch);
        for answer in &batch.answers {
            let Some(connection) = self.connection(answer.vif) else { continue };
            if let Err(fault) = connection.rx.complete(answer.index, answer.words(&batch.operations)) {
                self.faults.push((answer.vif, fault.into()));
            }
        }
        self.batch = batch;
        self.batch.clear();
        for (id, delivered) in done.drain(..) {
            self.frames.release(&mut self.pool, id, delivered);
        }
        self.done = done;
        any
    }

    fn deliver_to(&mut self, slot: usize, now_us: u64, done: &mut Vec<(FrameId, bool)>) -> Result<(), VifFault> {
        loop {
            let Some(vif) = self.vifs.get_mut(slot) else { return Ok(()) };
            let target = Target { vif: slot, frontend: vif.place.frontend };
            let Some(connection) = &mut vif.connection else { return Ok(()) };
            let Some(&Waiting { id, until_us, shared, .. }) = connection.waiting.front() else { return Ok(()) };
            let Some(frame) = self.frames.get(id) else {
                connection.dequeue();
                continue;
            };
            let pending = connection.rx.pending()?;
            let mut entry = Self::entry(&self.pool, connection, frame);
            let need = match &entry {
                Entry::Whole(need) | Entry::Cut(_, need) => *need,
                Entry::Never => 0,
            };
            if need > pending {
                if need <= 256 && !shared && now_us < until_us {
                    return Ok(());
                }
                entry = Entry::Never;
            }
            connection.dequeue();
            if matches!(entry, Entry::Never) {
                vif.stats.rx_dropped = vif.stats.rx_dropped.saturating_add(1);
                done.push((id, false));
                continue;
            }
            vif.stats.rx_packets = vif.stats.rx_packets.saturating_add(1);
            vif.stats.rx_bytes = vif.stats.rx_bytes.saturating_add(u64::from(frame.len));
            done.push((id, true));
            self.add(&target, id, entry, done)?;
        }
    }

    /// How a frame gets into a vif.
    fn entry(pool: &crate::pool::Pool<A>, connection: &Connection<P::Page>, frame: &Frame) -> Entry {
        if connection.takes_whole(frame.offload) {
            let need = slots(&frame.chunks, frame.len, frame.offload.cut);
            return if need > 1 && !connection.features.sg { Entry::Never } else { Entry::Whole(need) };
        }
        let head = Head::of(pool, &frame.chunks);
        match frame.offload.cut.and_then(|cut| Segmenter::new(&head, cut)) {
            Some(cutter) => {
                let need = cutter.left(frame.len) as u32;
                Entry::Cut(cutter, need)
            }
            None => Entry::Never,
        }
    }

    /// Adds the copies of a frame, or of its segments, to the batch.
    fn add(
        &mut self,
        target: &Target,
        id: FrameId,
        entry: Entry,
        done: &mut Vec<(FrameId, bool)>,
    ) -> Result<(), VifFault> {
        let Some(frame) = self.frames.get_mut(id) else { return Ok(()) };
        let Some(vif) = self.vifs.get_mut(target.vif) else { return Ok(()) };
        let Some(connection) = &mut vif.connection else { return Ok(()) };
        match entry {
            Entry::Never => Ok(()),
            Entry::Whole(_) => {
                if core::mem::take(&mut frame.nic_form) {
                    let head = Head::of(&self.pool, &frame.chunks);
                    if let Some(headers) = &head.headers {
                        set_gso_form(&mut self.pool, &frame.chunks, &head, headers, frame.len, None);
                    }
                }
                self.batch.add(&mut connection.rx, &self.pool, target, &frame.chunks, frame.len, frame.offload)
            }
            Entry::Cut(mut cutter, _) => {
                let head = Head::of(&self.pool, &frame.chunks);
                let blank = connection.takes_blank(cutter.headers().v6);
                let (chunks, len, from) = (frame.chunks.clone(), frame.len, frame.from);
                while let Some((segment, size)) = cutter.next(&mut self.pool, &head, &chunks, len) {
                    if !blank {
                        fill_checksum(&mut self.pool, &segment, cutter.headers());
                    }
                    let offload = Offload { blank, valid: true, cut: None };
                    // Kept as a frame of its own until the batch is copied.
                    let Some(part) = self.frames.put(&mut self.pool, Frame::new(segment, size, offload, from)) else {
                        break;
                    };
                    done.push((part, true));
                    if let Some(part) = self.frames.get(part) {
                        self.batch.add(&mut connection.rx, &self.pool, target, &part.chunks, size, offload)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Gives frames to the NIC as far as it has room.
    pub(super) fn send(&mut self) -> bool {
        let caps = self.nic.caps();
        let mut any = false;
        let mut untold: u32 = 0;
        while let Some(&id) = self.to_nic.front() {
            if untold >= DOORBELL_BYTES {
                self.nic.tx_flush();
                self.platform.crash_point();
                untold = 0;
            }
            let Some(meta) = self.prepare(id, &caps) else {
                any = true; // dropped, or replaced by its segments
                continue;
            };
            let Some(frame) = self.frames.get(id) else { break };
            if self.nic.tx_room() < frame.chunks.len() {
                break;
            }
            let segments = self.pool.segments(&frame.chunks);
            untold = untold.saturating_add(frame.len);
            match self.nic.tx(&segments, &meta, u32::from(id.0)) {
                Ok(()) => self.in_nic.push_back(id),
                Err(TxError::Full | TxError::Faulty) => break,
                Err(error) => {
                    log::debug!("frame from {:?} refused by the NIC: {error:?}", frame.from);
                    self.frames.release(&mut self.pool, id, false);
                }
            }
            self.to_nic.pop_front();
            any = true;
        }
        if any {
            self.nic.tx_flush();
        }
        any
    }

    /// Makes the first frame in line ready for the NIC. `None`: it is no longer the first in line.
    fn prepare(&mut self, id: FrameId, caps: &Caps) -> Option<TxMeta> {
        let ready = self.try_prepare(id, caps);
        if ready.is_none() && self.to_nic.front() == Some(&id) {
            self.to_nic.pop_front();
            self.frames.release(&mut self.pool, id, false);
        }
        ready
    }

    fn try_prepare(&mut self, id: FrameId, caps: &Caps) -> Option<TxMeta> {
        let frame = self.frames.get_mut(id)?;
        let Some(cut) = frame.offload.cut else {
            if frame.len > caps.max_frame {
                return None;
            }
            if frame.chunks.len() > usize::from(caps.max_segments) {
                let single = linearize(&mut self.pool, &frame.chunks, frame.len)?;
                self.pool.give_all(&frame.chunks);
                frame.chunks = single;
            }
            if !frame.offload.blank {
                return Some(TxMeta::default());
            }
            let headers = Head::of(&self.pool, &frame.chunks).headers?;
            return Some(TxMeta { checksum: Some(headers.checksum()), gso: None });
        };
        let head = Head::of(&self.pool, &frame.chunks);
        let headers = head.headers?;
        let whole = frame.len <= caps.max_gso
            && frame.chunks.len() <= usize::from(caps.max_segments)
            && headers.payload <= usize::from(caps.max_gso_header)
            && frame.chunks.iter().all(|c| u32::from(c.len) <= SEGMENTS_PER_PIECE.saturating_mul(cut.mss.into()))
            && match cut.kind {
                GsoKind::TcpV4 => caps.tso_v4,
                GsoKind::TcpV6 => caps.tso_v6,
            };
        if !whole {
            let cutter = Segmenter::new(&head, cut)?;
            self.cut_for_nic(id, cutter, &head, caps);
            return None;
        }
        if !core::mem::replace(&mut frame.nic_form, true) {
            let with_len = Some(caps.gso_pseudo_with_len);
            set_gso_form(&mut self.pool, &frame.chunks, &head, &headers, frame.len, with_len);
        }
        let gso = Gso { kind: cut.kind, mss: cut.mss, header_len: headers.payload as u16 };
        Some(TxMeta { checksum: Some(headers.checksum()), gso: Some(gso) })
    }

    /// Replaces the first frame in line by its segments, each holding it until it is sent. What there is no buffer for is
    /// dropped; TCP sends it again.
    fn cut_for_nic(&mut self, id: FrameId, mut cutter: Segmenter, head: &Head, caps: &Caps) {
        let Some(frame) = self.frames.get(id) else { return };
        let (chunks, len, from) = (frame.chunks.clone(), frame.len, frame.from);
        let hardware = |headers: &Headers| if headers.v6 { caps.tx_checksum_v6 } else { caps.tx_checksum_v4 };
        self.to_nic.pop_front();
        let mut parts: Vec<FrameId> = Vec::new();
        while let Some((segment, size)) = cutter.next(&mut self.pool, head, &chunks, len) {
            let blank = hardware(cutter.headers());
            if !blank {
                fill_checksum(&mut self.pool, &segment, cutter.headers());
            }
            let offload = Offload { blank, valid: true, cut: None };
            let part = Frame::new(segment, size, offload, from).part_of(id);
            let Some(part) = self.frames.put(&mut self.pool, part) else { break };
            self.frames.hold(id);
            parts.push(part);
        }
        for part in parts.into_iter().rev() {
            self.to_nic.push_front(part);
        }
        self.frames.release(&mut self.pool, id, false);
    }

    /// Keeps the NIC supplied with empty buffers. Not one by one: each doorbell costs a trip to the device.
    pub(super) fn post(&mut self) {
        let missing = self.config.rx_buffers.saturating_sub(self.posted_count);
        if missing < self.config.rx_batch.min(self.config.rx_buffers) {
            return;
        }
        let mut any = false;
        while self.posted_count < self.config.rx_buffers && self.nic.rx_room() > 0 {
            let Some(buf) = self.pool.take_for_nic() else { break };
            if self.nic.rx_post(self.pool.addr(buf), u32::from(buf.0)).is_err() {
                self.pool.give(buf);
                break;
            }
            if let Some(posted) = self.posted.get_mut(usize::from(buf.0)) {
                *posted = true;
            }
            self.posted_count = self.posted_count.saturating_add(1);
            any = true;
        }
        if any {
            self.nic.rx_flush();
        }
    }
}
