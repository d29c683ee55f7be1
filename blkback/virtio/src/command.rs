//! From the backend's commands to requests of the device (virtio 1.2, 5.2.6).

use crate::memory::{self, Data};
use crate::queue::Shape;
use crate::regs::{SECTOR, request};
use crate::slots::{Kind, Slot};
use blkback::disk::{Command, DmaMemory, DriveInfo, Op, SubmitError};

/// Checks a command against the drive.
///
/// # Errors
/// What is wrong with it.
pub fn check(info: &DriveInfo, command: &Command<'_>) -> Result<(), SubmitError> {
    let (sector, sectors) = (command.sector, command.sectors);
    let range = SubmitError::BadRange { sector, sectors };
    let most = match command.op {
        Op::Write { .. } | Op::Discard if info.read_only => return Err(SubmitError::Unsupported),
        Op::Discard if info.max_discard == 0 => return Err(SubmitError::Unsupported),
        Op::Read | Op::Write { .. } => info.max_sectors,
        Op::Discard => info.max_discard,
        Op::Flush if sector != 0 || sectors != 0 => return Err(range),
        Op::Flush => 0,
    };
    let inside = sector.checked_add(u64::from(sectors)).is_some_and(|end| end <= info.sectors);
    if !inside || sectors > most || (sectors == 0 && command.op != Op::Flush) {
        return Err(range);
    }
    let bad = SubmitError::BadSegments(command.segments.len());
    if matches!(command.op, Op::Flush | Op::Discard) {
        return if command.segments.is_empty() { Ok(()) } else { Err(bad) };
    }
    let mut bytes = 0u64;
    for s in command.segments {
        if s.len == 0 || s.len > info.max_segment || s.addr.checked_add(u64::from(s.len)).is_none() {
            return Err(bad);
        }
        bytes = bytes.saturating_add(u64::from(s.len));
    }
    let expected = u64::from(sectors).saturating_mul(u64::from(info.sector_size));
    if command.segments.len() > usize::from(info.max_segments) || bytes != expected {
        return Err(bad);
    }
    Ok(())
}

/// Writes a checked command into a slot; says what the slot holds then.
pub fn write<D: DmaMemory>(
    dma: &D,
    shape: Shape,
    info: &DriveInfo,
    slot: u8,
    command: &Command<'_>,
    token: u32,
) -> Slot {
    let ratio = info.sector_size.checked_div(SECTOR).unwrap_or(1);
    let sector = command.sector.saturating_mul(ratio.into());
    let bytes = command.sectors.saturating_mul(info.sector_size);
    let (kind, data, bytes) = match command.op {
        Op::Read => {
            memory::header(dma, slot, request::IN, sector);
            (Kind::Read, Data::In(command.segments), bytes)
        }
        Op::Write { fua } => {
            memory::header(dma, slot, request::OUT, sector);
            (Kind::Write { then_flush: fua && info.write_cache }, Data::Out(command.segments), bytes)
        }
        Op::Flush => {
            memory::header(dma, slot, request::FLUSH, 0);
            (Kind::Flush, Data::Out(&[]), 0)
        }
        Op::Discard => {
            memory::header(dma, slot, request::DISCARD, 0);
            // One range: first sector, sectors, flags.
            let sectors = command.sectors.saturating_mul(ratio);
            memory::write_own(dma, slot, &[sector as u32, (sector >> 32) as u32, sectors, 0]);
            (Kind::Discard, Data::Own(16), 0)
        }
    };
    memory::describe(dma, shape, slot, data);
    let writable = if kind == Kind::Read { bytes.saturating_add(1) } else { 1 };
    Slot { token, kind, bytes, writable, since: 0, late: 0, result: Ok(()) }
}

/// Makes a flush of the write in a slot.
pub fn write_flush<D: DmaMemory>(dma: &D, shape: Shape, slot: u8) {
    memory::header(dma, slot, request::FLUSH, 0);
    memory::describe(dma, shape, slot, Data::Out(&[]));
}
