//! Frames inside the backend: where their bytes are, what is still to be done to them, and who waits for them.
//!
//! A frame is counted, not copied: a broadcast has one set of buffers and several destinations. When the last one lets
//! go the buffers return to the pool and, if the frame came from a vif, its slots are due for an answer.

use crate::nic::GsoKind;
use crate::pool::{Chunks, Pool};
use crate::{Area, PortId};
use alloc::vec::Vec;

/// A frame's place in [`Frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameId(pub(crate) u16);

/// Segmentation that the sender left to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub kind: GsoKind,
    /// Payload bytes per segment; not 0.
    pub mss: u16,
}

/// What was left to do, or is known, about a frame's checksum and size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    /// The transport checksum field holds only the pseudo-header's sum.
    pub blank: bool,
    /// The checksum was checked, or the data never left the machine.
    pub valid: bool,
    pub cut: Option<Cut>,
}

/// The slots of a vif's TX ring that a frame came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The vif's slot in the backend.
    pub vif: usize,
    /// Which connection of it: a frame may outlive that.
    pub epoch: u32,
    /// First slot.
    pub index: u32,
    /// Slots, extra infos included.
    pub count: u32,
    /// Buffers that were taken for it.
    pub buffers: usize,
}

/// A frame.
pub(crate) struct Frame {
    pub chunks: Chunks,
    pub len: u32,
    pub offload: Offload,
    pub from: PortId,
    pub origin: Option<Origin>,
    /// Its checksum fields have the form that a segmenting NIC wants.
    pub nic_form: bool,
    /// The frame this one is a segment of; held until this one is gone.
    pub parent: Option<FrameId>,
    refs: u16,
    delivered: bool,
}

impl Frame {
    pub fn new(chunks: Chunks, len: u32, offload: Offload, from: PortId) -> Self {
        Self { chunks, len, offload, from, origin: None, nic_form: false, parent: None, refs: 1, delivered: false }
    }

    /// Of a vif, whose slots are answered when the frame is done.
    pub fn with_origin(self, origin: Option<Origin>) -> Self {
        Self { origin, ..self }
    }

    /// A segment of `parent`, which the caller holds for it.
    pub fn part_of(self, parent: FrameId) -> Self {
        Self { parent: Some(parent), ..self }
    }
}

/// An answer that is due: the slots, and whether the frame reached anybody.
pub(crate) type Due = (Origin, bool);

/// All frames on their way through.
pub(crate) struct Frames {
    slots: Vec<Option<Frame>>,
    free: Vec<FrameId>,
    due: Vec<Due>,
}

impl Frames {
    pub fn new(capacity: u16) -> Self {
        Self {
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().map(FrameId).collect(),
            due: Vec::new(),
        }
    }

    /// Frames that can be put.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Keeps a frame, held once by the caller; without room its buffers go back to the pool and `None` is returned.
    pub fn put<A: Area>(&mut self, pool: &mut Pool<A>, frame: Frame) -> Option<FrameId> {
        let place = self.free.pop();
        match place.and_then(|id| Some((id, self.slots.get_mut(usize::from(id.0))?))) {
            Some((id, slot)) => {
                *slot = Some(frame);
                Some(id)
            }
            None => {
                pool.give_all(&frame.chunks);
                None
            }
        }
    }

    pub fn get(&self, id: FrameId) -> Option<&Frame> {
        self.slots.get(usize::from(id.0))?.as_ref()
    }

    pub fn get_mut(&mut self, id: FrameId) -> Option<&mut Frame> {
        self.slots.get_mut(usize::from(id.0))?.as_mut()
    }

    /// The frame behind a token of the NIC.
    pub fn by_token(&self, token: u32) -> Option<FrameId> {
        let id = FrameId(u16::try_from(token).ok()?);
        self.get(id).map(|_| id)
    }

    /// One more holder.
    pub fn hold(&mut self, id: FrameId) {
        if let Some(frame) = self.get_mut(id) {
            frame.refs = frame.refs.saturating_add(1);
        }
    }

    /// A holder is done; `delivered` tells whether it passed the frame on.
    pub fn release<A: Area>(&mut self, pool: &mut Pool<A>, id: FrameId, delivered: bool) {
        let mut next = Some((id, delivered));
        while let Some((id, delivered)) = next.take() {
            let Some(slot) = self.slots.get_mut(usize::from(id.0)) else { return };
            let Some(frame) = slot else { return };
            frame.delivered |= delivered;
            frame.refs = frame.refs.saturating_sub(1);
            if frame.refs > 0 {
                return;
            }
            pool.give_all(&frame.chunks);
            self.due.extend(frame.origin.map(|origin| (origin, frame.delivered)));
            next = frame.parent.map(|parent| (parent, frame.delivered));
            *slot = None;
            self.free.push(id);
        }
    }

    /// Answers that became due since the last call.
    pub fn take_due(&mut self) -> Vec<Due> {
        core::mem::take(&mut self.due)
    }

    /// Gives an emptied list back, to be filled again without allocating.
    pub fn reuse_due(&mut self, mut list: Vec<Due>) {
        list.clear();
        if self.due.is_empty() {
            self.due = list;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::{frame, pool};

    #[test]
    fn the_last_holder_frees_buffers_and_makes_the_answer_due() {
        let mut pool = pool(2, 0);
        let mut frames = Frames::new(2);
        let chunks = frame(&mut pool, b"abc", &[3]);
        let origin = Origin { vif: 1, epoch: 7, index: 9, count: 2, buffers: 1 };
        let whole = Frame::new(chunks, 3, Offload::default(), PortId::UPLINK).with_origin(Some(origin));
        let id = frames.put(&mut pool, whole).unwrap();
        frames.hold(id);
        let part = frame(&mut pool, b"a", &[1]);
        let part = Frame::new(part, 1, Offload::default(), PortId::UPLINK).part_of(id);
        frames.hold(id);
        let part = frames.put(&mut pool, part).unwrap();
        frames.release(&mut pool, id, false);
        frames.release(&mut pool, id, false);
        assert_eq!((frames.take_due(), pool.out()), (vec![], 2), "the segment still holds it");
        frames.release(&mut pool, part, true);
        assert_eq!((frames.take_due(), pool.out(), frames.room()), (vec![(origin, true)], 0, 2));
        frames.release(&mut pool, id, true);
        assert_eq!(frames.take_due(), vec![], "released once too often, answered once");
    }
}
