//! What the driver writes for the controller and the drive to read, as words: command FISes, command headers, region descriptors,
//! and the drive's error log as it comes back.
//!
//! Sources: AHCI 1.3.1 section 4.2; *Serial ATA* 3.2 section 10.5.5 (register host to device) and 13.6 (queued commands, log 10h);
//! ACS-3 chapter 7. Each is tested against values worked by hand.

use crate::regs::AtaStatus;

/// Words of a register FIS.
pub const FIS_WORDS: u32 = 5;
/// A register host-to-device FIS.
pub type Fis = [u32; FIS_WORDS as usize];

const REGISTER_H2D: u32 = 0x27;
/// FIS bit C: the command register is written (otherwise the control register).
const COMMAND: u32 = 0x80 << 8;
/// Device register: LBA addressing.
const LBA: u8 = 1 << 6;
/// Device register of queued writes: force unit access (SATA 13.6.4.2).
const FUA: u8 = 1 << 7;
/// Control register: software reset.
const SRST: u32 = 1 << 2;

const IDENTIFY_DEVICE: u8 = 0xec;
const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const WRITE_DMA_FUA_EXT: u8 = 0x3d;
const READ_FPDMA_QUEUED: u8 = 0x60;
const WRITE_FPDMA_QUEUED: u8 = 0x61;
const FLUSH_CACHE: u8 = 0xe7;
const FLUSH_CACHE_EXT: u8 = 0xea;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const READ_LOG_EXT: u8 = 0x2f;
/// DATA SET MANAGEMENT's feature: TRIM.
const TRIM: u16 = 1;
/// READ LOG EXT's page of a failed queued command.
const NCQ_ERROR_LOG: u64 = 0x10;

const fn command(command: u8, features: u16, lba: u64, count: u16, device: u8) -> Fis {
    [
        REGISTER_H2D | COMMAND | (command as u32) << 16 | (features as u32 & 0xff) << 24,
        lba as u32 & 0xff_ffff | (device as u32) << 24,
        (lba >> 24) as u32 & 0xff_ffff | (features as u32 >> 8) << 24,
        count as u32,
        0,
    ]
}

/// READ FPDMA QUEUED: the count is in the features, the tag in the count.
#[must_use]
pub const fn read_queued(lba: u64, sectors: u16, tag: u8) -> Fis {
    command(READ_FPDMA_QUEUED, sectors, lba, (tag as u16) << 3, LBA)
}

/// WRITE FPDMA QUEUED.
#[must_use]
pub const fn write_queued(lba: u64, sectors: u16, tag: u8, fua: bool) -> Fis {
    command(WRITE_FPDMA_QUEUED, sectors, lba, (tag as u16) << 3, if fua { LBA | FUA } else { LBA })
}

/// READ DMA EXT.
#[must_use]
pub const fn read(lba: u64, sectors: u16) -> Fis {
    command(READ_DMA_EXT, 0, lba, sectors, LBA)
}

/// WRITE DMA EXT, or WRITE DMA FUA EXT.
#[must_use]
pub const fn write(lba: u64, sectors: u16, fua: bool) -> Fis {
    command(if fua { WRITE_DMA_FUA_EXT } else { WRITE_DMA_EXT }, 0, lba, sectors, LBA)
}

/// FLUSH CACHE EXT, or FLUSH CACHE where that is all there is.
#[must_use]
pub const fn flush(ext: bool) -> Fis {
    command(if ext { FLUSH_CACHE_EXT } else { FLUSH_CACHE }, 0, 0, 0, LBA)
}

/// DATA SET MANAGEMENT, TRIM, with one block of ranges.
#[must_use]
pub const fn trim() -> Fis {
    command(DATA_SET_MANAGEMENT, TRIM, 0, 1, LBA)
}

/// IDENTIFY DEVICE.
#[must_use]
pub const fn identify() -> Fis {
    command(IDENTIFY_DEVICE, 0, 0, 0, 0)
}

/// READ LOG EXT of the queued error log, one block.
#[must_use]
pub const fn read_error_log() -> Fis {
    command(READ_LOG_EXT, 0, NCQ_ERROR_LOG, 1, LBA)
}

/// A write of the control register: software reset asserted or not. Without it a FIS that does nothing.
#[must_use]
pub const fn control(reset: bool) -> Fis {
    [REGISTER_H2D, 0, 0, if reset { SRST << 24 } else { 0 }, 0]
}

/// Which way a command moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// From the drive, or none.
    In,
    /// To the drive.
    Out,
    /// None; a control FIS that resets the drive: the controller leaves no BSY behind (header bits R and C).
    Reset,
    /// None; a control FIS without effect (header bit C).
    Control,
}

/// A command header (4.2.2); the count of bytes moved is 0.
#[must_use]
pub const fn header(data: Data, prds: u16, table: u64) -> [u32; 4] {
    let flags = match data {
        Data::In => 0,
        Data::Out => 1 << 6,
        Data::Reset => 1 << 8 | 1 << 10,
        Data::Control => 1 << 10,
    };
    [FIS_WORDS | flags | (prds as u32) << 16, 0, table as u32, (table >> 32) as u32]
}

/// Bytes that one region descriptor may cover.
pub const MAX_REGION: u32 = 4 << 20;

/// A physical region descriptor (4.2.3.3) of 2 to [`MAX_REGION`] bytes; both even.
#[must_use]
pub const fn region(addr: u64, len: u32) -> [u32; 4] {
    [addr as u32, (addr >> 32) as u32, 0, len.wrapping_sub(1) & 0x3f_ffff]
}

/// Ranges in one block of a TRIM.
pub const TRIM_RANGES: u32 = 64;
/// Sectors of one range.
pub const TRIM_SECTORS: u32 = 0xffff;

/// The `n`-th range of a TRIM of `sectors` sectors from `lba` on (ACS-3 7.5.3): LBA in bits 47:0, count above; 0 = none.
#[must_use]
pub const fn trim_range(lba: u64, sectors: u32, n: u32) -> u64 {
    let before = n.saturating_mul(TRIM_SECTORS);
    let left = sectors.saturating_sub(before);
    if left == 0 {
        return 0;
    }
    let count = if left > TRIM_SECTORS { TRIM_SECTORS } else { left };
    lba.saturating_add(before as u64) & 0xffff_ffff_ffff | (count as u64) << 48
}

/// What the drive says of the queued command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// Its tag.
    pub tag: u8,
    /// Status.
    pub status: u8,
    /// Error register.
    pub error: u8,
}

/// Reads the queued error log (SATA 13.7.4): NQ and the tag, status and error in the first word, a checksum over all.
/// `None` where the checksum is wrong, no queued command is named, or no error told.
#[must_use]
pub fn queued_error(log: &[u32; 128]) -> Option<QueuedError> {
    let sum = log.iter().flat_map(|w| w.to_le_bytes()).fold(0u8, u8::wrapping_add);
    let [named, _, status, error] = log.first()?.to_le_bytes();
    let failed = AtaStatus::from_bits_retain(status).intersects(AtaStatus::ERR | AtaStatus::DF);
    (sum == 0 && named & 0x80 == 0 && failed).then_some(QueuedError { tag: named & 0x1f, status, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(fis: Fis) -> Vec<u8> {
        fis.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn queued_commands_by_hand() {
        // 0x1234 sectors from 0x665544332211, tag 9.
        let fis = bytes(read_queued(0x6655_4433_2211, 0x1234, 9));
        assert_eq!(
            fis,
            [0x27, 0x80, 0x60, 0x34, 0x11, 0x22, 0x33, 0x40, 0x44, 0x55, 0x66, 0x12, 0x48, 0, 0, 0, 0, 0, 0, 0]
        );
        let fis = bytes(write_queued(1, 8, 31, false));
        assert_eq!(fis, [0x27, 0x80, 0x61, 8, 1, 0, 0, 0x40, 0, 0, 0, 0, 0xf8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(write_queued(1, 8, 31, true))[7], 0xc0);
    }

    #[test]
    fn commands_that_are_not_queued_by_hand() {
        let fis = bytes(read(0x6655_4433_2211, 0x1234));
        assert_eq!(
            fis,
            [0x27, 0x80, 0x25, 0, 0x11, 0x22, 0x33, 0x40, 0x44, 0x55, 0x66, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes(write(0, 1, false))[2], 0x35);
        assert_eq!(bytes(write(0, 1, true))[2], 0x3d);
        assert_eq!(bytes(flush(true))[..8], [0x27, 0x80, 0xea, 0, 0, 0, 0, 0x40]);
        assert_eq!(bytes(flush(false))[2], 0xe7);
        assert_eq!(bytes(trim())[..16], [0x27, 0x80, 0x06, 1, 0, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(identify())[..8], [0x27, 0x80, 0xec, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(read_error_log())[..16], [0x27, 0x80, 0x2f, 0, 0x10, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(control(true)), [0x27, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        assert_eq!(bytes(control(false))[1..], [0; 19]);
    }

    #[test]
    fn headers_and_regions_by_hand() {
        assert_eq!(header(Data::In, 3, 0x1_2345_6780), [0x0003_0005, 0, 0x2345_6780, 1]);
        assert_eq!(header(Data::Out, 128, 0), [0x0080_0045, 0, 0, 0]);
        assert_eq!(header(Data::Reset, 0, 0)[0], 0x0505);
        assert_eq!(header(Data::Control, 0, 0)[0], 0x0405);
        assert_eq!(region(0x2_0000_1000, 512), [0x1000, 2, 0, 511]);
        assert_eq!(region(0, MAX_REGION), [0, 0, 0, 0x3f_ffff]);
    }

    #[test]
    fn ranges_of_a_trim() {
        assert_eq!(trim_range(0x1234, 8, 0), 0x0008_0000_0000_1234);
        assert_eq!(trim_range(0x1234, 8, 1), 0);
        let all = TRIM_RANGES * TRIM_SECTORS;
        assert_eq!(trim_range(1, all, 63), 0xffff_0000_003e_ffc2);
        assert_eq!(trim_range(1, all, 64), 0);
        assert_eq!(trim_range(0, 0x1_0000, 1), 0x0001_0000_0000_ffff);
    }

    #[test]
    fn an_error_log_must_add_up_and_name_a_queued_command() {
        let mut log = [0u32; 128];
        log[0] = 0x4041_0007; // UNC, DRDY | ERR, tag 7
        log[127] = u32::from(0u8.wrapping_sub(0x40 + 0x41 + 7)) << 24;
        assert_eq!(queued_error(&log), Some(QueuedError { tag: 7, status: 0x41, error: 0x40 }));
        let mut wrong = log;
        wrong[5] = 1;
        assert_eq!(queued_error(&wrong), None, "checksum");
        let mut other = log;
        other[0] |= 0x80;
        other[127] = other[127].wrapping_sub(0x80 << 24);
        assert_eq!(queued_error(&other), None, "not queued");
        assert_eq!(queued_error(&[0; 128]), None, "no error");
    }
}
