//! What a drive says of itself (IDENTIFY DEVICE, ACS-3 7.12.7), checked.
//!
//! Everything here comes from the device. What the driver cannot serve is refused with its reason; what is merely odd is
//! taken in its safe meaning: a cache that may be there is there, a feature that is not validly claimed is not.

use core::fmt;

/// The 256 words.
pub type Words = [u16; 256];

/// What the driver needs to know of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Sectors.
    pub sectors: u64,
    /// Bytes of a logical sector: 512 or 4096.
    pub sector_size: u32,
    /// Bytes of a physical sector, a multiple of it.
    pub physical_sector_size: u32,
    /// Queued commands it takes, 0 = no queuing.
    pub queue_depth: u8,
    /// There is a volatile write cache, and it is on.
    pub write_cache: bool,
    /// FLUSH CACHE EXT rather than FLUSH CACHE.
    pub flush_ext: bool,
    /// WRITE DMA FUA EXT, and the FUA bit of queued writes.
    pub fua: bool,
    /// DATA SET MANAGEMENT with TRIM.
    pub trim: bool,
    /// Logs can be read (general purpose logging): the queued error log as well.
    pub logs: bool,
    /// It spins.
    pub rotational: bool,
    /// Model.
    pub model: [u8; 40],
    /// Serial number.
    pub serial: [u8; 20],
}

/// Why a device is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It sent less than it should, or the checksum is wrong.
    Garbled,
    /// No ATA device.
    NotAta,
    /// No DMA, or no 48-bit addresses.
    TooOld,
    /// Sectors of so many bytes, physical ones of so many.
    SectorSize(u32, u32),
    /// So many sectors.
    Sectors(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbled => write!(f, "its identification is garbled"),
            Self::NotAta => write!(f, "it is no ATA disk"),
            Self::TooOld => write!(f, "it has no DMA with 48-bit addresses"),
            Self::SectorSize(logical, physical) => write!(f, "its sectors have {logical} bytes ({physical} physical)"),
            Self::Sectors(n) => write!(f, "it has {n} sectors"),
        }
    }
}

/// Largest physical sector that is believed.
const MAX_PHYSICAL: u32 = 1 << 20;

fn bit(word: u16, bit: u32) -> bool {
    word >> bit & 1 != 0
}

/// Words 83, 84, 87, 106 and their like: valid where bits 15:14 are 01.
const fn valid(word: u16) -> bool {
    word >> 14 == 1
}

/// ASCII in words with the first character in the high byte; anything else becomes a space.
fn text<const N: usize>(words: &Words, from: usize) -> [u8; N] {
    let mut out = [b' '; N];
    let bytes = words.iter().skip(from).flat_map(|w| w.to_be_bytes());
    for (to, byte) in out.iter_mut().zip(bytes) {
        if byte.is_ascii_graphic() {
            *to = byte;
        }
    }
    out
}

impl Identity {
    /// Reads and checks.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn parse(words: &Words) -> Result<Self, Refusal> {
        let word = |i: usize| words.get(i).copied().unwrap_or(0);
        let number = |from: usize, count: usize| {
            words.iter().skip(from).take(count).rev().fold(0u64, |sum, w| sum << 16 | u64::from(*w))
        };
        // 255: an integrity word where its low byte is A5h.
        let sum = words.iter().flat_map(|w| w.to_le_bytes()).fold(0u8, u8::wrapping_add);
        if word(255) & 0xff == 0xa5 && sum != 0 {
            return Err(Refusal::Garbled);
        }
        if bit(word(0), 15) {
            return Err(Refusal::NotAta);
        }
        // 49: DMA and LBA; 83: 48-bit addresses.
        if !bit(word(49), 8) || !bit(word(49), 9) || !valid(word(83)) || !bit(word(83), 10) {
            return Err(Refusal::TooOld);
        }
        let (sector_size, physical_sector_size) = sector_sizes(words)?;
        // 69 bit 3: the number is in words 230 to 233 rather than 100 to 103.
        let sectors = if bit(word(69), 3) { number(230, 4) } else { number(100, 4) };
        if sectors == 0 || sectors > 1 << 48 {
            return Err(Refusal::Sectors(sectors));
        }
        // 76 is 0 or FFFFh where it is not a SATA device.
        let sata = word(76) != 0 && word(76) != u16::MAX;
        let queue_depth = if sata && bit(word(76), 8) { (word(75) & 0x1f).saturating_add(1) as u8 } else { 0 };
        let supported = valid(word(83));
        let enabled = valid(word(87));
        Ok(Self {
            sectors,
            sector_size,
            physical_sector_size,
            queue_depth,
            // On, or supported and not said to be off.
            write_cache: if enabled { bit(word(85), 5) } else { !supported || bit(word(82), 5) },
            flush_ext: bit(word(83), 13),
            fua: valid(word(84)) && bit(word(84), 6),
            trim: bit(word(169), 0),
            logs: valid(word(84)) && bit(word(84), 5),
            rotational: word(217) != 1,
            model: text(words, 27),
            serial: text(words, 10),
        })
    }

    /// Whether this is the same drive.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        (self.model, self.serial, self.sectors, self.sector_size)
            == (other.model, other.serial, other.sectors, other.sector_size)
    }
}

/// Word 106: bit 12 = words 117 and 118 hold the words of a logical sector; bit 13 = a physical one has 2^(3:0) of them.
fn sector_sizes(words: &Words) -> Result<(u32, u32), Refusal> {
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    let sizes = word(106);
    let mut logical = 512;
    let mut shift = 0;
    if valid(sizes) {
        if bit(sizes, 12) {
            logical = (u32::from(word(118)) << 16 | u32::from(word(117))).saturating_mul(2);
        }
        if bit(sizes, 13) {
            shift = u32::from(sizes & 0xf);
        }
    }
    let physical = logical.checked_shl(shift).unwrap_or(u32::MAX);
    if !matches!(logical, 512 | 4096) || physical > MAX_PHYSICAL {
        return Err(Refusal::SectorSize(logical, physical));
    }
    Ok((logical, physical))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words as QEMU's ide-hd gives them for a disk of 1 GiB.
    fn qemu() -> Words {
        let mut w = [0u16; 256];
        w[0] = 0x0040;
        for (i, pair) in b"QM00001 ".chunks(2).enumerate() {
            w[10 + i] = u16::from_be_bytes([pair[0], pair[1]]);
        }
        for (i, pair) in b"QEMU HARDDISK   ".chunks(2).enumerate() {
            w[27 + i] = u16::from_be_bytes([pair[0], pair[1]]);
        }
        w[49] = 1 << 11 | 1 << 9 | 1 << 8;
        (w[75], w[76]) = (31, 1 << 8);
        (w[82], w[83], w[84]) = (0x4021, 0x7400, 0x4000);
        (w[85], w[86], w[87]) = (0x4021, 0x3400, 0x4000);
        (w[100], w[101]) = (0, 0x20);
        (w[106], w[169]) = (0x6000, 1);
        w
    }

    #[test]
    fn qemus_disk() {
        let id = Identity::parse(&qemu()).unwrap();
        assert_eq!((id.sectors, id.sector_size, id.physical_sector_size), (0x20_0000, 512, 512));
        assert_eq!((id.queue_depth, id.write_cache, id.flush_ext), (32, true, true));
        assert_eq!((id.fua, id.trim, id.logs, id.rotational), (false, true, false, true));
        assert_eq!((&id.model[..14], &id.serial[..8]), (&b"QEMU HARDDISK "[..], &b"QM00001 "[..]));
    }

    #[test]
    fn a_4096_byte_ssd_without_a_cache() {
        let mut w = qemu();
        (w[106], w[117], w[118]) = (0x7002, 2048, 0);
        (w[85], w[84], w[217]) = (0x4001, 0x4060, 1);
        (w[75], w[76]) = (0x1f, 0);
        let id = Identity::parse(&w).unwrap();
        assert_eq!((id.sector_size, id.physical_sector_size), (4096, 16384));
        assert_eq!((id.write_cache, id.fua, id.logs, id.rotational, id.queue_depth), (false, true, true, false, 0));
    }

    #[test]
    fn what_is_not_validly_claimed_is_taken_in_its_safe_meaning() {
        let mut w = qemu();
        // 87 and 84 not valid: the cache may be on, FUA and logs may not be there; 106 not valid: 512.
        (w[87], w[85], w[84], w[106]) = (0, 0, 0x0060, 0xffff);
        (w[75], w[76]) = (31, 0xffff);
        let id = Identity::parse(&w).unwrap();
        assert_eq!((id.write_cache, id.fua, id.logs, id.sector_size, id.queue_depth), (true, false, false, 512, 0));
    }

    #[test]
    fn refusals() {
        let refused = |change: fn(&mut Words)| {
            let mut w = qemu();
            change(&mut w);
            Identity::parse(&w).unwrap_err()
        };
        assert_eq!(refused(|w| w[255] = 0x00a5), Refusal::Garbled);
        assert_eq!(refused(|w| w[0] = 0x8000), Refusal::NotAta);
        assert_eq!(refused(|w| w[49] = 1 << 9), Refusal::TooOld);
        assert_eq!(refused(|w| w[49] = 1 << 8), Refusal::TooOld);
        assert_eq!(refused(|w| w[83] = 0x7000), Refusal::TooOld);
        assert_eq!(refused(|w| w[83] = 0xf400), Refusal::TooOld);
        assert_eq!(refused(|w| w[101] = 0), Refusal::Sectors(0));
        assert_eq!(refused(|w| w[103] = 0x100), Refusal::Sectors(0x100_0000_0020_0000));
        assert_eq!(refused(|w| (w[106], w[117]) = (0x5000, 260)), Refusal::SectorSize(520, 520));
        assert_eq!(refused(|w| w[106] = 0x600f), Refusal::SectorSize(512, 1 << 24));
        assert_eq!(
            refused(|w| (w[106], w[117], w[118]) = (0x5000, 0, 0xffff)),
            Refusal::SectorSize(u32::MAX, u32::MAX)
        );
    }

    #[test]
    fn an_integrity_word_that_adds_up_is_accepted_and_the_extended_number_counts() {
        let mut w = qemu();
        w[69] = 8;
        (w[230], w[232]) = (7, 1);
        w[255] = 0x00a5;
        let sum = w.iter().flat_map(|w| w.to_le_bytes()).fold(0u8, u8::wrapping_add);
        w[255] |= u16::from(0u8.wrapping_sub(sum)) << 8;
        assert_eq!(Identity::parse(&w).unwrap().sectors, 0x1_0000_0007);
    }

    #[test]
    fn text_that_is_no_ascii_is_blanked_and_another_drive_is_not_the_same() {
        let mut w = qemu();
        w[27] = 0x1b00;
        let id = Identity::parse(&w).unwrap();
        assert_eq!(&id.model[..6], b"  MU H");
        assert!(!id.same(&Identity::parse(&qemu()).unwrap()) && id.same(&id));
    }
}
