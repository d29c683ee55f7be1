//! Frames come in: from the NIC's buffers, and from vifs by one batch of grant copies. Each is classified once and put in
//! line for its destinations.

use super::{Backend, Incoming};
use crate::frames::{Cut, Frame, FrameId, Offload, Origin};
use crate::gro::{Segment, destination};
use crate::nic::{GsoKind, MacAddr, Nic};
use crate::offload::{Head, fill_checksum};
use crate::pool::{Chunk, Chunks, SMALL};
use crate::tx::{TxPacket, Verdict, next_packet};
use crate::vif::{Vif, Waiting};
use crate::{Area, Fabric, Platform, PortId, PortSet};
use abi::DomId;
use abi::grant::{CopyPtr, GNTCOPY_SOURCE_GREF, GrantCopy, status};
use abi::io::netif::rsp;
use ring::SharedMem;

impl<P: Platform, N: Nic, A: Area, F: Fabric, S: SharedMem> Backend<P, N, A, F, S> {
    /// Lets go of frames that the NIC has sent.
    pub(super) fn reap_nic(&mut self) -> bool {
        let mut any = false;
        while let Some(token) = self.nic.tx_done() {
            any = true;
            // Frames complete in order; whatever the device says, only what it was given is let go, once.
            let Some(id) = self.in_nic.pop_front() else { break };
            if self.frames.by_token(token) != Some(id) {
                log::warn!("NIC: completed token {token}, expected {}", id.0);
            }
            self.frames.release(&mut self.pool, id, true);
        }
        any
    }

    /// Takes frames from the NIC.
    pub(super) fn receive(&mut self, now_us: u64) -> bool {
        let mut left = self.config.budget;
        let before = left;
        while left > 0 {
            let Some(frame) = self.nic.rx_poll() else { break };
            left = left.saturating_sub(1);
            let Some(buf) = self.pool.by_token(frame.token) else { continue };
            match self.posted.get_mut(usize::from(buf.0)) {
                Some(posted) if *posted => *posted = false,
                _ => continue, // not given to the NIC
            }
            self.posted_count = self.posted_count.saturating_sub(1);
            let mut chunks = self.partial.take().unwrap_or_default();
            let len = u16::try_from(frame.len).ok().filter(|&len| usize::from(len) <= SMALL);
            let kept = len.is_some_and(|len| chunks.push(Chunk::of(buf, len)).is_ok());
            if !kept {
                self.pool.give(buf);
            }
            if !frame.end && kept {
                self.partial = Some(chunks);
            } else if frame.error || !kept {
                self.pool.give_all(&chunks);
                self.stats.rx_dropped = self.stats.rx_dropped.saturating_add(1);
            } else {
                self.arrived(chunks, frame.checksum_ok, now_us);
            }
        }
        while let Some((chunks, offload)) = self.gro.drain(&mut self.pool) {
            self.enter(chunks, offload, PortId::UPLINK, None, now_us);
        }
        left < before
    }

    /// A whole frame came from the NIC: joined with others of its flow, or in line after them.
    fn arrived(&mut self, chunks: Chunks, checksum_ok: bool, now_us: u64) {
        let single = match chunks.as_slice() {
            [chunk] => Some(*chunk),
            _ => None,
        };
        let head = Head::of(&self.pool, &chunks);
        let segment = single.and_then(|chunk| Some((Segment::of(&head, u32::from(chunk.len))?, chunk)));
        let wanted = segment.filter(|(segment, _)| self.takes_joined(&destination(&head), segment.kind()));
        let good = wanted.filter(|(segment, chunk)| checksum_ok || segment.verify(&self.pool, &head, *chunk));
        let earlier = match good {
            Some((segment, chunk)) => self.gro.add(&mut self.pool, &head, segment, chunk),
            None => self.gro.take(&mut self.pool, &head),
        };
        if let Some((chunks, offload)) = earlier {
            self.enter(chunks, offload, PortId::UPLINK, None, now_us);
        }
        if good.is_none() {
            let offload = Offload { blank: false, valid: checksum_ok, cut: None };
            self.enter(chunks, offload, PortId::UPLINK, None, now_us);
        }
    }

    /// Does a frame of this kind reach a vif that takes it uncut?
    fn takes_joined(&self, to: &MacAddr, kind: GsoKind) -> bool {
        let mut vifs = self.vifs.iter().filter(|vif| vif.mac.as_ref() == Some(to));
        let connection = vifs.next().and_then(|vif| vif.connection.as_ref());
        let cut = Some(Cut { kind, mss: 1 });
        connection.is_some_and(|connection| connection.takes_whole(Offload { blank: true, valid: true, cut }))
    }

    /// Takes packets from the vifs: parses their slots, copies the data of all of them in one call, puts them in line.
    pub(super) fn take_packets(&mut self, now_us: u64) -> bool {
        let count = self.vifs.slots();
        self.first = self.first.saturating_add(1).checked_rem(count).unwrap_or(0);
        let first = self.first;
        for slot in (first..count).chain(0..first) {
            self.parse_vif(slot);
        }
        if self.incoming.is_empty() {
            return false;
        }
        self.copy(false);
        let mut incoming = core::mem::take(&mut self.incoming);
        let copies = core::mem::take(&mut self.copies);
        for packet in incoming.drain(..) {
            self.copied(packet, &copies, now_us);
        }
        (self.incoming, self.copies) = (incoming, copies);
        self.copies.clear();
        true
    }

    /// Buffers that frames from one vif may hold, and as many frames that wait for it: an equal share of what the NIC does not have.
    fn share(&self) -> usize {
        let connected = self.vifs.iter().filter(|vif| vif.connection.is_some()).count();
        let for_packets = self.pool.len().saturating_sub(self.config.rx_buffers);
        for_packets.checked_div(connected.saturating_mul(2)).unwrap_or(0)
    }

    fn parse_vif(&mut self, slot: usize) {
        let share = self.share();
        for _ in 0..self.config.budget {
            let Some(vif) = self.vifs.get_mut(slot) else { return };
            let frontend = vif.place.frontend;
            let Some(connection) = &mut vif.connection else { return };
            let parsed = match connection.stalled.take() {
                Some(packet) => Ok(Some(packet)),
                None => next_packet(&mut connection.tx, &mut connection.notes),
            };
            let answered = match parsed {
                Ok(None) => return,
                Ok(Some(packet)) => match packet.verdict {
                    Verdict::Forward => {
                        let fits = connection.held.saturating_add(packet.frags.len()) <= share.max(packet.frags.len());
                        if fits && self.begin(slot, frontend, &packet) {
                            continue;
                        }
                        if let Some(connection) = self.connection(slot) {
                            connection.stalled = Some(packet);
                        }
                        return;
                    }
                    Verdict::Refuse => {
                        vif.stats.tx_errors = vif.stats.tx_errors.saturating_add(1);
                        connection.answer(packet.index, packet.count, rsp::ERROR)
                    }
                    Verdict::Group(mac, wanted) => {
                        let status = if connection.group(mac, wanted) { rsp::OKAY } else { rsp::ERROR };
                        connection.answer(packet.index, packet.count, status)
                    }
                },
                Err(fault) => Err(fault),
            };
            if let Err(fault) = answered {
                self.faults.push((slot, fault));
                return;
            }
        }
    }

    /// Takes buffers for a packet and adds its copies to the batch; false if there is no room.
    fn begin(&mut self, slot: usize, frontend: DomId, packet: &TxPacket) -> bool {
        if self.frames.room() <= self.incoming.len() {
            return false;
        }
        let mut chunks = Chunks::new();
        for frag in &packet.frags {
            let chunk = self.pool.take(usize::from(frag.len)).map(|buf| Chunk::of(buf, frag.len));
            if chunk.is_none_or(|chunk| chunks.push(chunk).is_err()) {
                self.pool.give_all(&chunks);
                return false;
            }
        }
        let first = self.copies.len();
        for (frag, chunk) in packet.frags.iter().zip(&chunks) {
            self.copies.push(GrantCopy {
                source: CopyPtr { u: u64::from(frag.gref.0), domid: frontend, offset: frag.offset, pad: 0 },
                dest: self.pool.copy_ptr(chunk.buf, 0),
                len: frag.len,
                flags: GNTCOPY_SOURCE_GREF,
                status: status::GENERAL_ERROR,
                pad: 0,
            });
        }
        let Some(connection) = self.connection(slot) else { return false };
        connection.held = connection.held.saturating_add(chunks.len());
        let epoch = connection.epoch;
        let (len, offload, index, count) = (packet.len, packet.offload, packet.index, packet.count);
        let origin = Origin { vif: slot, epoch, index, count, buffers: chunks.len() };
        self.incoming.push(Incoming { origin, len, offload, chunks, first });
        true
    }

    /// A packet's copies are made: into the switch with it, or an error to its sender.
    fn copied(&mut self, incoming: Incoming, copies: &[GrantCopy], now_us: u64) {
        let Incoming { origin, len, offload, chunks, first } = incoming;
        let slot = origin.vif;
        let mut mine = copies.iter().skip(first).take(chunks.len());
        let good = mine.all(|operation| operation.status == status::OKAY);
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        if good {
            vif.stats.tx_packets = vif.stats.tx_packets.saturating_add(1);
            vif.stats.tx_bytes = vif.stats.tx_bytes.saturating_add(u64::from(len));
            self.enter(chunks, offload, Vif::<P::Page>::port(slot), Some(origin), now_us);
            return;
        }
        vif.stats.tx_errors = vif.stats.tx_errors.saturating_add(1);
        self.pool.give_all(&chunks);
        if let Some(Err(fault)) = vif.connection.as_mut().map(|c| c.answer_frame(&origin, rsp::ERROR)) {
            self.faults.push((slot, fault));
        }
    }

    /// A frame is in our buffers: asks the switch and puts it in line for each destination.
    fn enter(&mut self, chunks: Chunks, mut offload: Offload, from: PortId, origin: Option<Origin>, now_us: u64) {
        let head = Head::of(&self.pool, &chunks);
        let len: u32 = chunks.iter().map(|chunk| u32::from(chunk.len)).fold(0, u32::saturating_add);
        let seen = head.as_slice().get(..head.len.min(F::HEAD)).unwrap_or(&[]);
        let mut to = self.fabric.forward(from, seen, len, now_us);
        if offload.blank && head.headers.is_none() {
            to = PortSet::EMPTY; // nobody could complete it
        }
        // Segmentation that needs none: what remains to be done is the checksum.
        if let (Some(cut), Some(headers)) = (offload.cut, head.headers) {
            let payload = (len as usize).saturating_sub(headers.payload);
            if payload <= usize::from(cut.mss) {
                offload.cut = None;
            } else if !headers.fits_gso(cut.kind) {
                to = PortSet::EMPTY;
            }
        }
        if let (true, None, Some(headers)) = (offload.blank, offload.cut, &head.headers)
            && !self.all_take_blank(to, headers.v6)
        {
            fill_checksum(&mut self.pool, &chunks, headers);
            offload.blank = false;
        }
        let frame = Frame::new(chunks, len, offload, from).with_origin(origin);
        let Some(id) = self.frames.put(&mut self.pool, frame) else {
            self.stats.rx_dropped = self.stats.rx_dropped.saturating_add(1);
            return;
        };
        let destination = head.bytes.first_chunk().copied().unwrap_or([0; 6]);
        self.line_up(id, to, destination, now_us);
        if to.is_empty() && from == PortId::UPLINK {
            self.stats.rx_dropped = self.stats.rx_dropped.saturating_add(1);
        }
    }

    /// Can every port of `to` complete a checksum itself?
    fn all_take_blank(&self, to: PortSet, v6: bool) -> bool {
        let caps = self.nic.caps();
        to.iter().all(|port| match port.vif_slot() {
            None => {
                if v6 {
                    caps.tx_checksum_v6
                } else {
                    caps.tx_checksum_v4
                }
            }
            Some(slot) => {
                let vif = self.vifs.get(slot);
                vif.and_then(|vif| vif.connection.as_ref()).is_none_or(|connection| connection.takes_blank(v6))
            }
        })
    }

    /// Puts a frame, held once by the caller, in line at each port of `to`; the caller's hold ends.
    fn line_up(&mut self, id: FrameId, to: PortSet, destination: MacAddr, now_us: u64) {
        let shared = to.len() > 1;
        let share = self.share();
        let buffers = self.frames.get(id).map_or(0, |frame| frame.chunks.len());
        for port in to.iter() {
            let taken = match port.vif_slot() {
                None => {
                    self.to_nic.push_back(id);
                    true
                }
                Some(slot) => {
                    let until_us = now_us.saturating_add(self.config.patience_us);
                    let Some(vif) = self.vifs.get_mut(slot) else { continue };
                    let Some(connection) = &mut vif.connection else { continue };
                    if !connection.wants(&destination) {
                        continue;
                    }
                    let taken = connection.enqueue(Waiting { id, buffers, until_us, shared }, share);
                    if !taken {
                        vif.stats.rx_dropped = vif.stats.rx_dropped.saturating_add(1);
                    }
                    taken
                }
            };
            if taken {
                self.frames.hold(id);
            }
        }
        self.frames.release(&mut self.pool, id, false);
    }
}
