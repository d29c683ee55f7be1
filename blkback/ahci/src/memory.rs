//! The memory one drive's port shares with the controller: where command list, received FISes and command tables lie, and how they are
//! written. Nothing here knows what a command means.
//!
//! ```text
//! 0x00000  command list, 32 headers of 32 bytes          (AHCI 4.2.2, 1 KiB aligned)
//! 0x00400  received FISes, 256 bytes                     (4.2.1, 256-byte aligned)
//! 0x00500  command table of the driver's own commands    (4.2.3, 128-byte aligned), with 8 region descriptors
//! 0x00600  their 512 bytes of data
//! 0x00800  command tables of the 32 slots: 128 bytes, then 128 region descriptors of 16
//! ```

use crate::fis::{self, Data, Fis, MAX_REGION};
use crate::{DRIVE_BYTES, MAX_SEGMENTS};
use blkback::disk::{DmaMemory, Segment};

const HEADER: usize = 32;
const FISES: usize = 0x400;
const OWN_TABLE: usize = 0x500;
const OWN_DATA: usize = 0x600;
const TABLES: usize = 0x800;
/// Offset of the region descriptors in a table.
const REGIONS: usize = 0x80;
const REGION: usize = 16;
const TABLE: usize = REGIONS.saturating_add(REGION.saturating_mul(MAX_SEGMENTS as usize));
/// Offset of a TRIM's ranges in its table, behind the one descriptor it needs.
const RANGES: usize = 0x100;
/// Slots.
const SLOTS: usize = 32;
/// Bytes of the driver's own data transfers: a sector's worth of identification or log.
pub const OWN_BYTES: u32 = 512;
/// Region descriptors of the driver's own commands: as many as the largest sector needs.
const OWN_REGIONS: u32 = 8;

/// The last register FIS of the drive, in the received FISes (4.2.1).
const REGISTER: usize = 0x40;
/// Its type.
const REGISTER_D2H: u32 = 0x34;
/// The last Set Device Bits FIS, in the received FISes (4.2.1): status in its third byte, error in its fourth.
const SET_DEVICE_BITS: usize = 0x58;

const _: () = assert!(TABLE.is_multiple_of(128) && TABLES.is_multiple_of(128) && DRIVE_BYTES.is_multiple_of(1024));
const _: () = assert!(OWN_TABLE + REGIONS + OWN_REGIONS as usize * REGION <= OWN_DATA);
const _: () = assert!(TABLES.saturating_add(TABLE.saturating_mul(SLOTS)) <= DRIVE_BYTES);
const _: () = assert!(RANGES.saturating_add(fis::TRIM_RANGES as usize * 8) <= TABLE);

/// Where a drive's memory begins in the driver's.
#[derive(Clone, Copy, Debug)]
pub struct DriveMemory {
    base: usize,
}

impl DriveMemory {
    /// The `n`-th drive's; `None` where the memory has no more.
    #[must_use]
    pub fn nth<D: DmaMemory>(dma: &D, n: usize) -> Option<Self> {
        let base = n.checked_mul(DRIVE_BYTES)?;
        (base.checked_add(DRIVE_BYTES)? <= dma.len_bytes()).then_some(Self { base })
    }

    const fn at(self, offset: usize) -> usize {
        self.base.saturating_add(offset)
    }

    fn device<D: DmaMemory>(self, dma: &D, offset: usize) -> u64 {
        dma.device_addr().wrapping_add(self.at(offset) as u64)
    }

    const fn table(slot: u8) -> usize {
        TABLES.saturating_add(TABLE.saturating_mul(slot as usize))
    }

    /// Device address of the command list.
    pub fn command_list<D: DmaMemory>(self, dma: &D) -> u64 {
        self.device(dma, 0)
    }

    /// Device address of the received FISes.
    pub fn received<D: DmaMemory>(self, dma: &D) -> u64 {
        self.device(dma, FISES)
    }

    fn words<D: DmaMemory>(self, dma: &D, offset: usize, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            dma.write(self.at(offset).saturating_add(i.saturating_mul(4)), *word);
        }
    }

    /// Points slot `slot`'s header at its own table.
    pub fn header<D: DmaMemory>(self, dma: &D, slot: u8, data: Data, prds: u16) {
        let table = self.device(dma, Self::table(slot));
        self.words(dma, HEADER.saturating_mul(slot as usize), &fis::header(data, prds, table));
    }

    /// Points slot `slot`'s header at the table of the driver's own commands, and writes that.
    pub fn own<D: DmaMemory>(self, dma: &D, slot: u8, fis: &Fis, data: Data) {
        let bytes = if matches!(data, Data::In | Data::Out) { OWN_BYTES } else { 0 };
        self.own_of(dma, slot, fis, data, bytes);
    }

    /// The same for a read of a sector, all parts of which go to the same place.
    pub fn discard<D: DmaMemory>(self, dma: &D, slot: u8, fis: &Fis, bytes: u32) {
        self.own_of(dma, slot, fis, Data::In, bytes);
    }

    fn own_of<D: DmaMemory>(self, dma: &D, slot: u8, fis: &Fis, data: Data, bytes: u32) {
        self.words(dma, OWN_TABLE, fis);
        let prds = bytes.div_ceil(OWN_BYTES).min(OWN_REGIONS) as u16;
        let region = fis::region(self.device(dma, OWN_DATA), OWN_BYTES);
        for n in 0..usize::from(prds) {
            let at = OWN_TABLE.saturating_add(REGIONS).saturating_add(REGION.saturating_mul(n));
            self.words(dma, at, &region);
        }
        let table = self.device(dma, OWN_TABLE);
        self.words(dma, HEADER.saturating_mul(slot as usize), &fis::header(data, prds, table));
    }

    /// What the driver's own command brought.
    pub fn own_data<D: DmaMemory>(self, dma: &D) -> [u32; 128] {
        core::array::from_fn(|i| dma.read(self.at(OWN_DATA).saturating_add(i.saturating_mul(4))))
    }

    /// Bytes that the controller says slot `slot` has moved; not for queued commands (4.2.2).
    pub fn moved<D: DmaMemory>(self, dma: &D, slot: u8) -> u32 {
        dma.load_acquire(self.at(HEADER.saturating_mul(slot as usize).saturating_add(4)))
    }

    /// Writes slot `slot`'s command.
    pub fn command<D: DmaMemory>(self, dma: &D, slot: u8, fis: &Fis) {
        self.words(dma, Self::table(slot), fis);
    }

    fn write_region<D: DmaMemory>(self, dma: &D, slot: u8, n: u16, segment: Segment) {
        let at = Self::table(slot).saturating_add(REGIONS).saturating_add(REGION.saturating_mul(usize::from(n)));
        self.words(dma, at, &fis::region(segment.addr, segment.len));
    }

    /// Writes slot `slot`'s regions, neighbours joined; says how many there are. `segments` are checked.
    pub fn regions<D: DmaMemory>(self, dma: &D, slot: u8, segments: &[Segment]) -> u16 {
        let mut count = 0u16;
        let mut open: Option<Segment> = None;
        for segment in segments {
            if let Some(o) = &mut open
                && o.addr.wrapping_add(u64::from(o.len)) == segment.addr
                && o.len.saturating_add(segment.len) <= MAX_REGION
            {
                o.len = o.len.saturating_add(segment.len);
                continue;
            }
            if let Some(o) = open.replace(*segment) {
                self.write_region(dma, slot, count, o);
                count = count.saturating_add(1);
            }
        }
        if let Some(o) = open {
            self.write_region(dma, slot, count, o);
            count = count.saturating_add(1);
        }
        count
    }

    /// Writes the ranges of a TRIM behind slot `slot`'s table, and the region that holds them.
    pub fn trim<D: DmaMemory>(self, dma: &D, slot: u8, lba: u64, sectors: u32) {
        let at = Self::table(slot).saturating_add(RANGES);
        for n in 0..fis::TRIM_RANGES {
            let range = fis::trim_range(lba, sectors, n);
            let words = [range as u32, (range >> 32) as u32];
            self.words(dma, at.saturating_add((n as usize).saturating_mul(8)), &words);
        }
        self.write_region(dma, slot, 0, Segment { addr: self.device(dma, at), len: OWN_BYTES });
    }

    /// Status and error of the last Set Device Bits FIS.
    pub fn device_bits<D: DmaMemory>(self, dma: &D) -> (u8, u8) {
        let [_, _, status, error] = dma.load_acquire(self.at(FISES.saturating_add(SET_DEVICE_BITS))).to_le_bytes();
        (status, error)
    }

    /// Whether queued commands were said to be done since this was last asked: the FIS' second word has a bit for each (*Serial ATA* 3.2,
    /// 10.5.7). A hint that costs no access to the device, nothing more.
    pub fn take_hint<D: DmaMemory>(self, dma: &D) -> bool {
        let at = self.at(FISES.saturating_add(SET_DEVICE_BITS).saturating_add(4));
        let hint = dma.load_acquire(at) != 0;
        if hint {
            // Before the registers are read: what is done after that leaves the next hint.
            dma.write(at, 0);
        }
        hint
    }

    /// Forgets it.
    pub fn clear_device_bits<D: DmaMemory>(self, dma: &D) {
        dma.write(self.at(FISES.saturating_add(SET_DEVICE_BITS)), 0);
    }

    /// Whether the drive has sent a register FIS since [`DriveMemory::clear_register_fis`].
    pub fn register_fis<D: DmaMemory>(self, dma: &D) -> bool {
        dma.load_acquire(self.at(FISES.saturating_add(REGISTER))) & 0xff == REGISTER_D2H
    }

    /// Forgets it.
    pub fn clear_register_fis<D: DmaMemory>(self, dma: &D) {
        dma.write(self.at(FISES.saturating_add(REGISTER)), 0);
    }
}
