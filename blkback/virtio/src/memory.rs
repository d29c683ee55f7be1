//! The memory driver and device share: where rings, requests and tables of descriptors lie, and how they are written. Nothing here
//! knows what a request means.
//!
//! ```text
//! 0x0000  descriptor table, up to 256 of 16 bytes        (virtio 1.2, 2.7.5)
//! 0x1000  available ring                                 (2.7.6)
//! 0x1400  used ring                                      (2.7.8)
//! 0x2000  64 slots of 2176 bytes: a request's header at 0, its status at 16, what the driver sends itself at 32, its table of
//!         descriptors at 64 (2.7.5.3)
//! ```

use crate::queue::Shape;
use crate::regs::{Descriptor, status};
use crate::{AREA_BYTES, MAX_DEPTH, MAX_SEGMENTS};
use blkback::disk::{DmaMemory, Segment};

/// Descriptors.
pub const DESCRIPTORS: usize = 0;
/// Available ring.
pub const AVAILABLE: usize = 0x1000;
/// Used ring.
pub const USED: usize = 0x1400;
/// Most descriptors.
pub const MAX_QUEUE: u16 = 256;
const SLOTS: usize = 0x2000;
const SLOT: usize = 2176;
const STATUS: usize = 16;
const OWN: usize = 32;
const TABLE: usize = 64;
const DESCRIPTOR: usize = 16;

const _: () = assert!(AVAILABLE.saturating_add(6).saturating_add(2 * MAX_QUEUE as usize) <= USED);
const _: () = assert!(USED.saturating_add(6).saturating_add(8 * MAX_QUEUE as usize) <= SLOTS);
const _: () = assert!(TABLE.saturating_add(DESCRIPTOR * (MAX_SEGMENTS as usize).saturating_add(2)) <= SLOT);
const _: () = assert!(SLOTS.saturating_add(SLOT.saturating_mul(MAX_DEPTH as usize)) <= AREA_BYTES);

/// What a request moves besides header and status.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// From the device to these.
    In(&'a [Segment]),
    /// From these to the device.
    Out(&'a [Segment]),
    /// These bytes of the driver's own, to the device.
    Own(u32),
}

const fn slot_at(slot: u8) -> usize {
    SLOTS.saturating_add(SLOT.saturating_mul(slot as usize))
}

fn device<D: DmaMemory>(dma: &D, offset: usize) -> u64 {
    dma.device_addr().wrapping_add(offset as u64)
}

fn words<D: DmaMemory>(dma: &D, at: usize, words: &[u32]) {
    for (n, word) in words.iter().enumerate() {
        dma.write(at.saturating_add(n.saturating_mul(4)), *word);
    }
}

/// The four words of a descriptor (2.7.5).
const fn descriptor(addr: u64, len: u32, flags: Descriptor, next: u16) -> [u32; 4] {
    [addr as u32, (addr >> 32) as u32, len, flags.bits() as u32 | (next as u32) << 16]
}

/// Device addresses of descriptor table, available and used ring.
pub fn areas<D: DmaMemory>(dma: &D) -> (u64, u64, u64) {
    (device(dma, DESCRIPTORS), device(dma, AVAILABLE), device(dma, USED))
}

/// Both rings as before anything was given.
pub fn clear_rings<D: DmaMemory>(dma: &D) {
    (AVAILABLE..SLOTS).step_by(4).for_each(|at| dma.write(at, 0));
}

/// Writes the header of a request: type and first sector of 512 bytes (5.2.6).
pub fn header<D: DmaMemory>(dma: &D, slot: u8, kind: u32, sector: u64) {
    words(dma, slot_at(slot), &[kind, 0, sector as u32, (sector >> 32) as u32]);
}

/// Forgets how the slot's request before ended.
pub fn unwrite_status<D: DmaMemory>(dma: &D, slot: u8) {
    dma.write(slot_at(slot).saturating_add(STATUS), status::UNWRITTEN.into());
}

/// How a request ended.
pub fn read_status<D: DmaMemory>(dma: &D, slot: u8) -> u8 {
    let [status, ..] = dma.read(slot_at(slot).saturating_add(STATUS)).to_le_bytes();
    status
}

/// Writes what the driver sends itself.
pub fn write_own<D: DmaMemory>(dma: &D, slot: u8, own: &[u32]) {
    words(dma, slot_at(slot).saturating_add(OWN), own);
}

/// Writes a request's descriptors: header, data, status. As many as a slot has in the queue's own table make a chain there; more go into
/// the slot's table, behind one that points to it.
pub fn describe<D: DmaMemory>(dma: &D, shape: Shape, slot: u8, data: Data<'_>) {
    let base = slot_at(slot);
    let own;
    let (segments, flags) = match data {
        Data::In(segments) => (segments, Descriptor::WRITE),
        Data::Out(segments) => (segments, Descriptor::empty()),
        Data::Own(len) => {
            own = [Segment { addr: device(dma, base.saturating_add(OWN)), len }];
            (&own[..], Descriptor::empty())
        }
    };
    let count = segments.len().saturating_add(2);
    let head = shape.head(slot);
    let (table, first) = if count <= usize::from(shape.per_slot) {
        (DESCRIPTORS.saturating_add(DESCRIPTOR.saturating_mul(head.into())), head)
    } else {
        (base.saturating_add(TABLE), 0)
    };
    let mut at = table;
    let mut next = first;
    let mut put = |addr: u64, len: u32, flags: Descriptor| {
        next = next.wrapping_add(1);
        let link = if flags.contains(Descriptor::NEXT) { next } else { 0 };
        words(dma, at, &descriptor(addr, len, flags, link));
        at = at.saturating_add(DESCRIPTOR);
    };
    put(device(dma, base), 16, Descriptor::NEXT);
    for segment in segments {
        put(segment.addr, segment.len, flags | Descriptor::NEXT);
    }
    put(device(dma, base.saturating_add(STATUS)), 1, Descriptor::WRITE);
    if table != DESCRIPTORS.saturating_add(DESCRIPTOR.saturating_mul(head.into())) {
        let bytes = (count as u32).saturating_mul(DESCRIPTOR as u32);
        let pointer = descriptor(device(dma, table), bytes, Descriptor::INDIRECT, 0);
        words(dma, DESCRIPTORS.saturating_add(DESCRIPTOR.saturating_mul(head.into())), &pointer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MEMORY, Model, Setup};

    fn words_at(model: &Model, offset: usize, count: usize) -> Vec<u32> {
        (0..count).map(|n| model.read(offset + n * 4)).collect()
    }

    /// Worked out by hand from 2.7.5: address, length, flags (1 next, 2 device writes, 4 table), next.
    #[test]
    fn descriptors_by_hand() {
        let model = Model::new(Setup::default());
        let shape = Shape { size: 256, depth: 64, per_slot: 4, max_segments: 128 };
        let base = MEMORY as u32;
        let segments = [Segment { addr: 0x12_3456_7000, len: 4096 }, Segment { addr: 0x9000, len: 512 }];
        describe(&model, shape, 3, Data::In(&segments));
        let slot = base + 0x2000 + 3 * 2176;
        let chain = [
            [slot, 0, 16, 13 << 16 | 1],
            [0x3456_7000, 0x12, 4096, 14 << 16 | 3],
            [0x9000, 0, 512, 15 << 16 | 3],
            [slot + 16, 0, 1, 2],
        ];
        assert_eq!(words_at(&model, 12 * 16, 16), chain.concat());

        let three = [segments[0], segments[1], Segment { addr: 0xa000, len: 8 }];
        describe(&model, shape, 0, Data::Out(&three));
        assert_eq!(words_at(&model, 0, 4), [base + 0x2040, 0, 5 * 16, 4]);
        let table = [
            [base + 0x2000, 0, 16, 1 << 16 | 1],
            [0x3456_7000, 0x12, 4096, 2 << 16 | 1],
            [0x9000, 0, 512, 3 << 16 | 1],
            [0xa000, 0, 8, 4 << 16 | 1],
            [base + 0x2010, 0, 1, 2],
        ];
        assert_eq!(words_at(&model, 0x2040, 20), table.concat());
        header(&model, 0, 1, 0x1_0000_0002);
        assert_eq!(words_at(&model, 0x2000, 4), [1, 0, 2, 1]);
    }
}
