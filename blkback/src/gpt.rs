//! GUID partition tables (UEFI 2.10, section 5.3): both copies are read, header and array of each checked by their CRCs, the backup
//! taken where the primary is damaged, a disagreement said.
//!
//! [`Reader`] says what to read next and is fed with it, since a drive answers later; [`Gpt`] is what came of it. All of it was written by
//! somebody else (a guest may own the whole drive), so sizes are bounded before anything is read and every entry is checked before
//! it is used. Headers and entries are the types of `gpt_disk_types`.

use crate::source::Part;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use gpt_disk_types::{GptHeader, GptHeaderRevision, GptPartitionEntry, Guid};

/// Bytes of an array that are read at most: 1024 entries of the usual size.
const MAX_ARRAY: u64 = 128 * 1024;
const HEADER_LEN: usize = size_of::<GptHeader>();
const ENTRY_LEN: usize = size_of::<GptPartitionEntry>();
/// Where the header's own CRC stands in it.
const CRC_AT: core::ops::Range<usize> = 16..20;

/// A partition, in sectors of the drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Partition {
    pub number: u32,
    pub first: u64,
    pub sectors: u64,
    pub guid: Guid,
    pub name: String,
}

/// Why a partition cannot be had from a sound table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PartitionError {
    /// There is none of this number, name or GUID.
    Missing,
    /// More than one has it.
    Ambiguous,
    /// It shares sectors with this one.
    Overlap(u32),
    /// Neither copy of the table is sound.
    NoTable(String),
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "no such partition"),
            Self::Ambiguous => write!(f, "several partitions are called so"),
            Self::Overlap(other) => write!(f, "the partition overlaps partition {other}"),
            Self::NoTable(why) => write!(f, "no partition table: {why}"),
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpt {
    partitions: Vec<Partition>,
    /// What people should be told about its copies.
    pub remark: Option<String>,
}

impl Gpt {
    #[cfg(test)]
    pub fn of(partitions: Vec<Partition>) -> Self {
        Self { partitions, remark: None }
    }

    /// The one partition that is meant.
    pub fn find(&self, part: &Part) -> Result<&Partition, PartitionError> {
        let is_meant = |partition: &&Partition| match part {
            Part::Number(number) => partition.number == *number,
            Part::Name(name) => partition.name == *name,
            Part::Guid(guid) => partition.guid == *guid,
            Part::Whole | Part::Range { .. } => false,
        };
        let mut meant = self.partitions.iter().filter(is_meant);
        let found = meant.next().ok_or(PartitionError::Missing)?;
        if meant.next().is_some() {
            return Err(PartitionError::Ambiguous);
        }
        let shares = |other: &&Partition| {
            let end = |p: &Partition| p.first.saturating_add(p.sectors);
            other.number != found.number && other.first < end(found) && found.first < end(other)
        };
        match self.partitions.iter().find(shares) {
            Some(other) => Err(PartitionError::Overlap(other.number)),
            None => Ok(found),
        }
    }
}

/// Why a copy of the table is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// The drive did not read it.
    Unread,
    Signature,
    Revision,
    HeaderSize,
    HeaderCrc,
    /// It says that it stands elsewhere.
    Place(u64),
    /// The array's size or place is impossible or beyond what is read.
    Array,
    ArrayCrc,
    /// This entry ends before it begins or leaves the usable part.
    Entry(u32),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread => write!(f, "cannot be read"),
            Self::Signature => write!(f, "is not there"),
            Self::Revision => write!(f, "has an unknown revision"),
            Self::HeaderSize => write!(f, "has a header of impossible size"),
            Self::HeaderCrc => write!(f, "has a damaged header"),
            Self::Place(lba) => write!(f, "says that it stands at {lba}"),
            Self::Array => write!(f, "has an array of impossible size or place"),
            Self::ArrayCrc => write!(f, "has a damaged array"),
            Self::Entry(number) => write!(f, "has an impossible entry {number}"),
        }
    }
}

/// A sound copy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sound {
    disk: Guid,
    partitions: Vec<Partition>,
}

type Verdict = Result<Sound, Damage>;

enum Stage {
    Header,
    Array(GptHeader),
}

/// Reads both copies, one sector or array at a time.
pub(crate) struct Reader {
    sector_size: u32,
    sectors: u64,
    /// Where the copy being read stands.
    lba: u64,
    stage: Stage,
    /// What was read of the array so far.
    bytes: Vec<u8>,
    alternate: Option<u64>,
    primary: Option<Verdict>,
}

impl Reader {
    /// For a drive of so many sectors of that size.
    pub fn new(sector_size: u32, sectors: u64) -> Self {
        let (stage, bytes) = (Stage::Header, Vec::new());
        Self { sector_size, sectors, lba: 1, stage, bytes, alternate: None, primary: None }
    }

    /// The first sector to read next, and how many.
    pub fn wanted(&self) -> (u64, u32) {
        match &self.stage {
            Stage::Header => (self.lba, 1),
            Stage::Array(header) => {
                let size = u64::from(self.sector_size).max(1);
                let done = (self.bytes.len() as u64).checked_div(size).unwrap_or(0);
                let all = array_len(header).unwrap_or(0).div_ceil(size);
                let first = header.partition_entry_lba.to_u64().saturating_add(done);
                (first, u32::try_from(all.saturating_sub(done)).unwrap_or(u32::MAX))
            }
        }
    }

    /// Takes what was read of it, whole sectors, perhaps fewer than wanted; `None` where the drive failed. The table, once both copies
    /// were looked at.
    pub fn feed(&mut self, read: Option<&[u8]>) -> Option<Result<Gpt, PartitionError>> {
        let verdict = match (read, &self.stage) {
            (None, _) => Err(Damage::Unread),
            (Some(sector), Stage::Header) => match self.check_header(sector) {
                Ok(header) => {
                    self.alternate.get_or_insert(header.alternate_lba.to_u64());
                    self.stage = Stage::Array(header);
                    self.bytes.clear();
                    return None;
                }
                Err(damage) => Err(damage),
            },
            (Some(bytes), Stage::Array(header)) => {
                let header = *header;
                self.bytes.extend_from_slice(bytes);
                let len = array_len(&header).unwrap_or(0) as usize;
                if self.bytes.len() < len && !bytes.is_empty() {
                    return None;
                }
                match self.bytes.get(..len) {
                    Some(array) => check_array(&header, array),
                    None => Err(Damage::Unread),
                }
            }
        };
        self.stage = Stage::Header;
        self.bytes.clear();
        match self.primary.take() {
            None => {
                let last = self.sectors.saturating_sub(1);
                // Where the primary is sound it knows where the backup is; a drive may have grown since.
                let told = self.alternate.filter(|&lba| verdict.is_ok() && lba > 1 && lba <= last);
                self.lba = told.unwrap_or(last);
                self.primary = Some(verdict);
                None
            }
            Some(primary) => Some(decide(primary, verdict)),
        }
    }

    fn check_header(&self, sector: &[u8]) -> Result<GptHeader, Damage> {
        let bytes: &[u8; HEADER_LEN] = sector.first_chunk().ok_or(Damage::Unread)?;
        let header: GptHeader = bytemuck::pod_read_unaligned(bytes);
        if !header.is_signature_valid() {
            return Err(Damage::Signature);
        }
        if header.revision != GptHeaderRevision::VERSION_1_0 {
            return Err(Damage::Revision);
        }
        let len = header.header_size.to_u32() as usize;
        let covered = sector.get(..len).filter(|_| len >= HEADER_LEN).ok_or(Damage::HeaderSize)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(covered.get(..CRC_AT.start).unwrap_or_default());
        crc.update(&[0; 4]);
        crc.update(covered.get(CRC_AT.end..).unwrap_or_default());
        if crc.finalize() != header.header_crc32.0.to_u32() {
            return Err(Damage::HeaderCrc);
        }
        if header.my_lba.to_u64() != self.lba {
            return Err(Damage::Place(header.my_lba.to_u64()));
        }
        let len = array_len(&header).ok_or(Damage::Array)?;
        let sectors = len.div_ceil(u64::from(self.sector_size).max(1));
        let end = header.partition_entry_lba.to_u64().checked_add(sectors);
        let usable = header.last_usable_lba.to_u64() < self.sectors;
        match end {
            Some(end) if end <= self.sectors && usable => Ok(header),
            _ => Err(Damage::Array),
        }
    }
}

/// Bytes of the array, if its shape is one that the specification allows and we read.
fn array_len(header: &GptHeader) -> Option<u64> {
    let (count, size) = (header.number_of_partition_entries.to_u32(), header.size_of_partition_entry.to_u32());
    let allowed = size as usize >= ENTRY_LEN && size.is_power_of_two() && count > 0;
    let len = u64::from(count).checked_mul(u64::from(size))?;
    (allowed && len <= MAX_ARRAY).then_some(len)
}

fn check_array(header: &GptHeader, array: &[u8]) -> Verdict {
    if crc32fast::hash(array) != header.partition_entry_array_crc32.0.to_u32() {
        return Err(Damage::ArrayCrc);
    }
    let usable = header.first_usable_lba.to_u64()..=header.last_usable_lba.to_u64();
    let mut partitions = Vec::new();
    for (number, entry) in (1u32..).zip(array.chunks(header.size_of_partition_entry.to_u32() as usize)) {
        let bytes: &[u8; ENTRY_LEN] = entry.first_chunk().ok_or(Damage::Array)?;
        let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(bytes);
        if !entry.is_used() {
            continue;
        }
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        let len = last.checked_sub(first).and_then(|n| n.checked_add(1));
        let sectors = len.filter(|_| usable.contains(&first) && usable.contains(&last)).ok_or(Damage::Entry(number))?;
        let (guid, name) = (entry.unique_partition_guid, entry.name);
        partitions.push(Partition { number, first, sectors, guid, name: name.chars().collect() });
    }
    Ok(Sound { disk: header.disk_guid, partitions })
}

fn decide(primary: Verdict, backup: Verdict) -> Result<Gpt, PartitionError> {
    let (sound, remark) = match (primary, backup) {
        (Ok(primary), Ok(backup)) if primary == backup => (primary, None),
        (Ok(primary), Ok(_)) => (primary, Some(String::from("the two partition tables differ; using the primary"))),
        (Ok(primary), Err(damage)) => (primary, Some(format!("the backup partition table {damage}"))),
        (Err(damage), Ok(backup)) => (backup, Some(format!("the primary partition table {damage}; using the backup"))),
        (Err(primary), Err(backup)) => {
            return Err(PartitionError::NoTable(format!("the primary {primary}, the backup {backup}")));
        }
    };
    Ok(Gpt { partitions: sound.partitions, remark })
}

#[cfg(test)]
#[path = "gpt/tests.rs"]
mod tests;
