//! A split virtqueue over [`DmaMemory`] (virtio 1.2, 2.7): heads of requests go out by the available ring, come back by the used ring.
//!
//! It is the driver's own because `virtio_drivers`' takes buffers as slices, and ours have no virtual address that a slice could
//! have; and because what a lying device writes into the used ring makes that one panic (decision 0005). Each slot owns a fixed run of
//! descriptors, so there is no list of free ones that could be confused.

use crate::memory::{AVAILABLE, MAX_QUEUE, USED};
use crate::{MAX_DEPTH, MAX_SEGMENTS};
use alloc::vec;
use alloc::vec::Vec;
use blkback::disk::DmaMemory;

/// Descriptors of a slot where tables of descriptors are possible: enough for what is short.
const DIRECT: u16 = 4;
/// The same where they are not.
const DIRECT_ONLY: u16 = 32;
/// The available ring's word that the device shall not interrupt (2.7.6).
const NO_INTERRUPT: u32 = 1;
/// The used ring's word that the driver need not notify (2.7.8).
const NO_NOTIFY: u32 = 1;

/// How descriptors are shared out to slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Slots.
    pub depth: u8,
    /// Descriptors of each.
    pub per_slot: u16,
    /// Segments of a request.
    pub max_segments: u16,
}

impl Shape {
    /// The best that a queue of up to `most` descriptors allows; `None` where that is none.
    #[must_use]
    pub fn of(most: u32, indirect: bool, seg_max: u32) -> Option<Self> {
        let most = most.min(MAX_QUEUE.into()) as u16;
        // With one place the words of the available ring would not be aligned.
        let size = 1u16.checked_shl(most.checked_ilog2()?).filter(|size| *size >= 2)?;
        let wanted = if indirect { DIRECT } else { DIRECT_ONLY };
        let per_slot = size.min(wanted).max(size.checked_div(MAX_DEPTH.into())?);
        let depth = size.checked_div(per_slot)? as u8;
        let limit = seg_max.clamp(1, MAX_SEGMENTS.into()) as u16;
        let max_segments = if indirect { limit } else { limit.min(per_slot.checked_sub(2)?) };
        (max_segments > 0).then_some(Self { size, depth, per_slot, max_segments })
    }

    /// The first descriptor of a slot, which stands for its request.
    #[must_use]
    pub const fn head(self, slot: u8) -> u16 {
        self.per_slot.saturating_mul(slot as u16)
    }

    /// The slot that a head stands for.
    #[must_use]
    pub fn slot(self, head: u32) -> Option<u8> {
        let head = u16::try_from(head).ok()?;
        let slot = head.checked_div(self.per_slot)?;
        (slot < u16::from(self.depth) && head.checked_rem(self.per_slot)? == 0).then_some(slot as u8)
    }
}

/// A request that the device says is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head it names.
    pub id: u32,
    /// Bytes it says it wrote.
    pub len: u32,
}

/// The driver's side. Indices count for ever, modulo 2^16.
#[derive(Debug)]
pub struct Queue {
    shape: Shape,
    event_idx: bool,
    /// The available ring as it was written, two entries a word: what lies in memory could have been changed.
    ring: Vec<u32>,
    /// Next entry of the available ring, and how far the device knows of them.
    next: u16,
    published: u16,
    /// Next entry of the used ring.
    used: u16,
    interrupts: bool,
}

impl Queue {
    /// An empty queue over cleared rings; interrupts are off.
    #[must_use]
    pub fn new<D: DmaMemory>(dma: &D, shape: Shape, event_idx: bool) -> Self {
        let ring = vec![0; usize::from(shape.size).div_ceil(2)];
        let mut queue = Self { shape, event_idx, ring, next: 0, published: 0, used: 0, interrupts: true };
        queue.interrupts_enable(dma, false);
        queue
    }

    /// How descriptors are shared out.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    const fn index(&self, count: u16) -> usize {
        (count & self.shape.size.wrapping_sub(1)) as usize
    }

    /// Puts a request into the available ring; the device learns of it by [`Queue::publish`]. No more are out than there are slots.
    pub fn push<D: DmaMemory>(&mut self, dma: &D, slot: u8) {
        let at = self.index(self.next);
        let (word, high) = (at >> 1, at & 1 == 1);
        let head = u32::from(self.shape.head(slot));
        if let Some(pair) = self.ring.get_mut(word) {
            *pair = if high { *pair & 0xffff | head << 16 } else { *pair & 0xffff_0000 | head };
            dma.write(AVAILABLE.saturating_add(4).saturating_add(word.saturating_mul(4)), *pair);
        }
        self.next = self.next.wrapping_add(1);
    }

    fn write_index<D: DmaMemory>(&self, dma: &D) {
        let quiet = !self.event_idx && !self.interrupts;
        dma.write(AVAILABLE, u32::from(self.published) << 16 | if quiet { NO_INTERRUPT } else { 0 });
    }

    fn used_end(&self) -> usize {
        USED.saturating_add(4).saturating_add(usize::from(self.shape.size).saturating_mul(8))
    }

    /// Lets the device see what was pushed; true if it wants to be notified of it (2.7.10, 2.7.7.2).
    #[must_use]
    pub fn publish<D: DmaMemory>(&mut self, dma: &D) -> bool {
        let old = self.published;
        if old == self.next {
            return false;
        }
        self.published = self.next;
        self.write_index(dma);
        dma.fence();
        if !self.event_idx {
            return dma.read(USED) & NO_NOTIFY == 0;
        }
        let event = dma.read(self.used_end()) as u16;
        self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(old)
    }

    /// The next request that is over.
    ///
    /// # Errors
    /// The device's index, where it cannot be: more would be over than are out.
    pub fn pop<D: DmaMemory>(&mut self, dma: &D) -> Result<Option<Used>, u32> {
        let index = (dma.load_acquire(USED) >> 16) as u16;
        let ahead = index.wrapping_sub(self.used);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.published.wrapping_sub(self.used) {
            return Err(index.into());
        }
        let at = USED.saturating_add(4).saturating_add(self.index(self.used).saturating_mul(8));
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { id: dma.read(at), len: dma.read(at.saturating_add(4)) }))
    }

    /// Lets the device interrupt at the next request that is over, or not. After enabling look at [`Queue::pop`] once more.
    pub fn interrupts_enable<D: DmaMemory>(&mut self, dma: &D, on: bool) {
        if !on && !self.interrupts {
            return;
        }
        self.interrupts = on;
        if self.event_idx {
            // An index just passed is not passed again before 65,535 more.
            let event = if on { self.used } else { self.used.wrapping_sub(1) };
            let at = AVAILABLE.saturating_add(4).saturating_add(usize::from(self.shape.size).saturating_mul(2));
            dma.write(at, event.into());
        } else {
            self.write_index(dma);
        }
        if on {
            dma.fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out() {
        let shape = |most, indirect, seg_max| {
            Shape::of(most, indirect, seg_max).map(|s| (s.size, s.depth, s.per_slot, s.max_segments))
        };
        assert_eq!(shape(256, true, 254), Some((256, 64, 4, 128)));
        assert_eq!(shape(1024, true, 1022), Some((256, 64, 4, 128)));
        assert_eq!(shape(128, true, 126), Some((128, 32, 4, 126)));
        assert_eq!(shape(100, true, 0), Some((64, 16, 4, 1)));
        assert_eq!(shape(2, true, 9), Some((2, 1, 2, 9)));
        assert_eq!(shape(256, false, 254), Some((256, 8, 32, 30)));
        assert_eq!(shape(8, false, 254), Some((8, 1, 8, 6)));
        for most in [0, 1] {
            assert_eq!(shape(most, true, 254), None);
        }
        assert_eq!(shape(2, false, 254), None);
    }

    #[test]
    fn a_head_is_a_slots_first_descriptor_and_nothing_else() {
        let shape = Shape::of(256, true, 254).unwrap();
        for slot in 0..64 {
            assert_eq!(shape.slot(shape.head(slot).into()), Some(slot));
        }
        for head in [1, 255, 256, 0x1_0000, u32::MAX] {
            assert_eq!(shape.slot(head), None);
        }
    }
}
