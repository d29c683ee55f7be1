//! A sector that says who wrote it: 512 bytes with magic, vbd, generation, address, seed, a filler that depends on all of them, and
//! a CRC-32 over the rest. What is read back is one of four things, see [`Seen`].
//!
//! ```text
//!  0  8  magic "XenSctr1"            16  8  sector (of 512 bytes, from the vbd's begin)
//!  8  4  vbd (Linux' number)         24  8  seed of the run
//! 12  4  generation, from 1          32 476 filler        508 4  CRC-32 (IEEE 802.3) of bytes 0..508
//! ```
//! All numbers are little-endian. A generation is the number of the write within its run, so no two writes of a run share it.

use crate::random::mix;

/// Bytes.
pub const SECTOR_SIZE: usize = 512;
/// First bytes of a sector that blkcheck wrote.
pub const MAGIC: [u8; 8] = *b"XenSctr1";
/// Where the filler begins.
const FILLER: usize = 32;
/// Where the checksum is.
const CRC: usize = 508;
/// Added from one word of the filler to the next: odd, so no two words of a sector are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a written sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The vbd.
    pub vbd: u32,
    /// Number of the write in its run, from 1.
    pub generation: u32,
    /// Address, in sectors of 512 bytes from the vbd's begin.
    pub sector: u64,
    /// Seed of the run.
    pub seed: u64,
}

/// What 512 bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A whole sector of blkcheck's.
    Stamped(Stamp),
    /// All bytes are zero: never written, or discarded.
    Zero,
    /// It begins as one of ours, and the checksum is wrong: bytes of several writes, or damaged ones.
    Damaged,
    /// Something else.
    Foreign,
}

fn put<const N: usize>(sector: &mut [u8; SECTOR_SIZE], at: usize, bytes: [u8; N]) {
    if let Some(to) = sector.get_mut(at..at.saturating_add(N)) {
        to.copy_from_slice(&bytes);
    }
}

fn get<const N: usize>(sector: &[u8; SECTOR_SIZE], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(from) = sector.get(at..at.saturating_add(N)) {
        bytes.copy_from_slice(from);
    }
    bytes
}

fn crc(sector: &[u8; SECTOR_SIZE]) -> u32 {
    crc32fast::hash(sector.get(..CRC).unwrap_or_default())
}

impl Stamp {
    /// Writes the sector.
    pub fn write(&self, to: &mut [u8; SECTOR_SIZE]) {
        put(to, 0, MAGIC);
        put(to, 8, self.vbd.to_le_bytes());
        put(to, 12, self.generation.to_le_bytes());
        put(to, 16, self.sector.to_le_bytes());
        put(to, 24, self.seed.to_le_bytes());
        let identity = u64::from(self.vbd) << 32 | u64::from(self.generation);
        let mut word = mix(self.seed ^ mix(self.sector ^ mix(identity)));
        if let Some(filler) = to.get_mut(FILLER..CRC) {
            for bytes in filler.chunks_mut(8) {
                word = word.wrapping_add(STEP);
                for (byte, value) in bytes.iter_mut().zip(word.to_le_bytes()) {
                    *byte = value;
                }
            }
        }
        let sum = crc(to);
        put(to, CRC, sum.to_le_bytes());
    }

    /// Fills a buffer of whole sectors, from `self.sector` on; what is left over stays as it is.
    pub fn fill(mut self, buffer: &mut [u8]) {
        for sector in buffer.as_chunks_mut::<SECTOR_SIZE>().0 {
            self.write(sector);
            self.sector = self.sector.wrapping_add(1);
        }
    }
}

/// Looks at what was read.
#[must_use]
pub fn look(sector: &[u8; SECTOR_SIZE]) -> Seen {
    if get::<8>(sector, 0) != MAGIC {
        return if sector.iter().all(|&b| b == 0) { Seen::Zero } else { Seen::Foreign };
    }
    if crc(sector) != u32::from_le_bytes(get(sector, CRC)) {
        return Seen::Damaged;
    }
    Seen::Stamped(Stamp {
        vbd: u32::from_le_bytes(get(sector, 8)),
        generation: u32::from_le_bytes(get(sector, 12)),
        sector: u64::from_le_bytes(get(sector, 16)),
        seed: u64::from_le_bytes(get(sector, 24)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { vbd: 51712, generation: 7, sector: 1 << 33, seed: 3 };

    #[test]
    fn what_is_written_is_read_and_stands_where_the_format_says() {
        let mut sector = [0; SECTOR_SIZE];
        assert_eq!(look(&sector), Seen::Zero);
        STAMP.write(&mut sector);
        assert_eq!(look(&sector), Seen::Stamped(STAMP));
        assert_eq!(sector[..12], *b"XenSctr1\x00\xca\x00\x00");
        assert_eq!(sector[16..24], (1u64 << 33).to_le_bytes());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut good = [0; SECTOR_SIZE];
        STAMP.write(&mut good);
        for bit in 0..SECTOR_SIZE * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { Seen::Foreign } else { Seen::Damaged };
            assert_eq!(look(&bad), expected, "bit {bit}");
        }
    }

    #[test]
    fn halves_of_two_writes_are_damaged() {
        let (mut a, mut b) = ([0; SECTOR_SIZE], [0; SECTOR_SIZE]);
        STAMP.write(&mut a);
        Stamp { generation: 8, ..STAMP }.write(&mut b);
        a[256..].copy_from_slice(&b[256..]);
        assert_eq!(look(&a), Seen::Damaged);
    }

    #[test]
    fn a_buffer_is_filled_sector_by_sector() {
        let mut buffer = [0; 3 * SECTOR_SIZE];
        STAMP.fill(&mut buffer);
        let last: &[u8; SECTOR_SIZE] = buffer.last_chunk().unwrap();
        assert_eq!(look(last), Seen::Stamped(Stamp { sector: STAMP.sector + 2, ..STAMP }));
    }
}
