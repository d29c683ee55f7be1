//! Which part of which drive a vbd is: the node `source`, written by the toolstack, and what comes of it.
//!
//! ```text
//! drive=N                                  all of it
//! drive=N,partition=NUMBER                 a GPT partition, counted from 1
//! drive=N,partition=name:NAME              …by its name, which must be the only one of that name
//! drive=N,partition=guid:GUID              …by its own GUID
//! drive=N,first=S,sectors=S                a range, in sectors of 512 bytes
//! ```

use crate::disk::{DriveId, DriveInfo};
use crate::gpt::{Gpt, PartitionError};
use alloc::string::{String, ToString};
use core::fmt;
use gpt_disk_types::Guid;

/// A run of sectors of a drive, in units of 512 bytes whatever the drive's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub drive: DriveId,
    /// Which drive it was found on ([`identity`]).
    pub identity: u32,
    pub first: u64,
    pub sectors: u64,
}

/// What is meant by `source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub drive: DriveId,
    pub part: Part,
}

/// The part of the drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Number(u32),
    Name(String),
    Guid(Guid),
    Range { first: u64, sectors: u64 },
}

/// Why there is no such part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceError {
    /// The text is not one of the forms above.
    Syntax(String),
    /// The range is empty, or leaves the drive.
    OutOfDrive { first: u64, sectors: u64, drive: u64 },
    /// It does not begin or end with a sector of the drive.
    Misaligned { first: u64, sectors: u64, sector_size: u32 },
    /// The partition.
    Partition(PartitionError),
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(text) => write!(f, "source \"{text}\" is not understood"),
            Self::OutOfDrive { first, sectors, drive } => {
                write!(f, "{sectors} sectors from {first} on are not within the drive's {drive}")
            }
            Self::Misaligned { first, sectors, sector_size } => {
                write!(f, "{sectors} sectors from {first} on do not fit sectors of {sector_size} bytes")
            }
            Self::Partition(error) => error.fmt(f),
        }
    }
}

impl Source {
    /// Reads the node.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        Self::understand(text.trim()).ok_or_else(|| SourceError::Syntax(text.to_string()))
    }

    fn understand(text: &str) -> Option<Self> {
        let (drive, part) = match text.split_once(',') {
            Some((drive, part)) => (drive, Some(part)),
            None => (text, None),
        };
        let drive = DriveId(drive.strip_prefix("drive=")?.parse().ok()?);
        let part = match part {
            None => Part::Whole,
            Some(part) => match part.strip_prefix("partition=") {
                Some(name) => partition(name)?,
                None => {
                    let (first, sectors) = part.split_once(',')?;
                    let first = first.strip_prefix("first=")?.parse().ok()?;
                    Part::Range { first, sectors: sectors.strip_prefix("sectors=")?.parse().ok()? }
                }
            },
        };
        Some(Self { drive, part })
    }

    /// Is the partition table needed?
    pub fn needs_table(&self) -> bool {
        !matches!(self.part, Part::Whole | Part::Range { .. })
    }

    /// Finds the part on the drive.
    pub fn resolve(&self, info: &DriveInfo, table: Option<&Gpt>) -> Result<Extent, SourceError> {
        let ratio = sector_ratio(info);
        let drive = info.sectors.saturating_mul(ratio);
        let (first, sectors) = match &self.part {
            Part::Whole => (0, drive),
            Part::Range { first, sectors } => (*first, *sectors),
            part => {
                let table = table.ok_or(SourceError::Partition(PartitionError::Missing))?;
                let found = table.find(part).map_err(SourceError::Partition)?;
                (found.first.saturating_mul(ratio), found.sectors.saturating_mul(ratio))
            }
        };
        let inside = first.checked_add(sectors).is_some_and(|end| end <= drive);
        if !inside || sectors == 0 {
            return Err(SourceError::OutOfDrive { first, sectors, drive });
        }
        if !first.is_multiple_of(ratio) || !sectors.is_multiple_of(ratio) {
            return Err(SourceError::Misaligned { first, sectors, sector_size: info.sector_size });
        }
        Ok(Extent { drive: self.drive, identity: identity(info), first, sectors })
    }
}

/// Sectors of 512 bytes in one of the drive's; at least 1.
pub(crate) fn sector_ratio(info: &DriveInfo) -> u64 {
    u64::from(info.sector_size / abi::io::blkif::SECTOR_SIZE).max(1)
}

/// Tells a drive from the others that may have its place: of model, serial number and size of a sector.
pub(crate) fn identity(info: &DriveInfo) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&info.model);
    crc.update(&info.serial);
    crc.update(&info.sector_size.to_le_bytes());
    crc.finalize()
}

fn partition(name: &str) -> Option<Part> {
    if let Some(name) = name.strip_prefix("name:") {
        return (!name.is_empty()).then(|| Part::Name(name.to_string()));
    }
    match name.strip_prefix("guid:") {
        Some(guid) => Some(Part::Guid(Guid::try_parse(guid).ok()?)),
        None => name.parse().ok().filter(|&number| number > 0).map(Part::Number),
    }
}

impl Extent {
    /// The node `extent`, which tells a later life of this domain what was resolved.
    pub fn to_text(self) -> String {
        alloc::format!("{},{},{},{:08x}", self.drive.0, self.first, self.sectors, self.identity)
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim().split(',');
        let drive = DriveId(words.next()?.parse().ok()?);
        let (first, sectors) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let extent = Self { drive, first, sectors, identity: u32::from_str_radix(words.next()?, 16).ok()? };
        let sound = extent.sectors > 0 && extent.first.checked_add(extent.sectors).is_some();
        (words.next().is_none() && sound).then_some(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::Partition;

    pub fn info(sector_size: u32, sectors: u64) -> DriveInfo {
        DriveInfo {
            sector_size,
            physical_sector_size: sector_size,
            sectors,
            depth: 32,
            max_segments: 16,
            max_segment: 1 << 22,
            segment_align: 2,
            max_sectors: 65536,
            write_cache: true,
            fua: true,
            max_discard: 65535,
            discard_granularity: 1,
            read_only: false,
            rotational: false,
            model: [b' '; 40],
            serial: [b' '; 20],
        }
    }

    fn source(text: &str) -> Option<Source> {
        Source::parse(text).ok()
    }

    #[test]
    fn every_form_is_read_and_no_other() {
        let of = |part| Some(Source { drive: DriveId(1), part });
        assert_eq!(source("drive=1"), of(Part::Whole));
        assert_eq!(source("drive=1,partition=3"), of(Part::Number(3)));
        assert_eq!(source("drive=1,partition=name:a, b"), of(Part::Name("a, b".into())));
        assert_eq!(source("drive=1,first=2048,sectors=7"), of(Part::Range { first: 2048, sectors: 7 }));
        let guid = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        let parsed = source(&format!("drive=1,partition=guid:{guid}"));
        assert_eq!(parsed, of(Part::Guid(Guid::try_parse(guid).unwrap())));
        for bad in [
            "",
            "1",
            "drive=",
            "drive=256",
            "drive=1,",
            "drive=1,partition=0",
            "drive=1,partition=x",
            "drive=1,partition=name:",
            "drive=1,partition=guid:7",
            "drive=1,first=2",
            "drive=1,first=-1,sectors=2",
            "drive=1,first=1,sectors=2,x",
        ] {
            assert_eq!(source(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn no_part_leaves_its_drive() {
        let range = |first, sectors| Source { drive: DriveId(0), part: Part::Range { first, sectors } };
        let drive = info(512, 100);
        assert_eq!(range(0, 100).resolve(&drive, None).map(|e| e.sectors), Ok(100));
        for (first, sectors) in [(0, 0), (1, 100), (100, 1), (u64::MAX, 2), (2, u64::MAX)] {
            let error = range(first, sectors).resolve(&drive, None);
            assert_eq!(error, Err(SourceError::OutOfDrive { first, sectors, drive: 100 }));
        }
        let big = info(4096, 100);
        assert_eq!(range(8, 792).resolve(&big, None).map(|e| (e.first, e.sectors)), Ok((8, 792)));
        for (first, sectors) in [(4, 8), (8, 4)] {
            let error = range(first, sectors).resolve(&big, None);
            assert_eq!(error, Err(SourceError::Misaligned { first, sectors, sector_size: 4096 }));
        }
    }

    #[test]
    fn partitions_are_counted_in_the_drives_sectors() {
        let table = Gpt::of(vec![Partition { number: 2, first: 10, sectors: 5, ..Partition::default() }]);
        let extent = source("drive=1,partition=2").unwrap().resolve(&info(4096, 100), Some(&table)).unwrap();
        assert_eq!((extent.drive, extent.first, extent.sectors), (DriveId(1), 80, 40));
        assert_eq!(extent.identity, identity(&info(4096, 7)));
        assert_ne!(extent.identity, identity(&DriveInfo { serial: *b"another             ", ..info(4096, 100) }));
        let missing = source("drive=1,partition=1").unwrap().resolve(&info(4096, 100), Some(&table));
        assert_eq!(missing, Err(SourceError::Partition(PartitionError::Missing)));
    }

    #[test]
    fn an_extent_is_read_back() {
        let extent = Extent { drive: DriveId(2), identity: 0xABCD, first: 2048, sectors: 1 << 40 };
        assert_eq!(Extent::parse(&extent.to_text()), Some(extent));
        for bad in ["", "1,2", "1,2,3", "1,2,0,4", "1,2,3,x", "1,2,3,4,5", "1,18446744073709551615,1,0", "x,1,1,0"] {
            assert_eq!(Extent::parse(bad), None, "{bad}");
        }
    }
}
