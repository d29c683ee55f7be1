use super::*;
use crate::source::Part;
use gpt_disk_types::{Crc32, GptHeaderSignature, GptPartitionType, LbaLe, U32Le};
use proptest::prelude::*;

const SECTORS: u64 = 200;

fn guid(n: u8) -> Guid {
    Guid::from_bytes([n; 16])
}

fn entry(first: u64, last: u64, n: u8, name: &str) -> GptPartitionEntry {
    let mut entry = GptPartitionEntry {
        partition_type_guid: GptPartitionType(guid(0xAA)),
        unique_partition_guid: guid(n),
        starting_lba: LbaLe::from_u64(first),
        ending_lba: LbaLe::from_u64(last),
        ..GptPartitionEntry::default()
    };
    let mut label = entry.name;
    for (i, c) in name.chars().enumerate() {
        label.set_char(i, c).unwrap();
    }
    entry.name = label;
    entry
}

/// A drive with both copies, the array of 16 entries behind or before its header.
fn drive(sector_size: usize, entries: &[GptPartitionEntry]) -> Vec<u8> {
    let mut bytes = vec![0; sector_size * SECTORS as usize];
    let mut array = vec![0u8; 16 * ENTRY_LEN];
    for (place, entry) in array.chunks_mut(ENTRY_LEN).zip(entries) {
        place.copy_from_slice(bytemuck::bytes_of(entry));
    }
    let sectors = array.len().div_ceil(sector_size) as u64;
    let places = [(1, SECTORS - 1, 2), (SECTORS - 1, 1, SECTORS - 1 - sectors)];
    for (own, other, at) in places {
        let mut header = GptHeader {
            signature: GptHeaderSignature::EFI_COMPATIBLE_PARTITION_TABLE_HEADER,
            revision: GptHeaderRevision::VERSION_1_0,
            my_lba: LbaLe::from_u64(own),
            alternate_lba: LbaLe::from_u64(other),
            first_usable_lba: LbaLe::from_u64(10),
            last_usable_lba: LbaLe::from_u64(SECTORS - 10),
            disk_guid: guid(1),
            partition_entry_lba: LbaLe::from_u64(at),
            number_of_partition_entries: U32Le::from_u32(16),
            partition_entry_array_crc32: Crc32(U32Le::from_u32(crc32fast::hash(&array))),
            ..GptHeader::default()
        };
        header.update_header_crc32();
        bytes[own as usize * sector_size..][..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
        bytes[at as usize * sector_size..][..array.len()].copy_from_slice(&array);
    }
    bytes
}

/// Reads the table, at most `most` sectors at a time.
fn read(drive: &[u8], sector_size: usize, most: u32) -> Result<Gpt, PartitionError> {
    let mut reader = Reader::new(sector_size as u32, (drive.len() / sector_size) as u64);
    for _ in 0..2000 {
        let (first, count) = reader.wanted();
        let start = first as usize * sector_size;
        let read = drive.get(start..start + count.min(most) as usize * sector_size);
        if let Some(result) = reader.feed(read) {
            return result;
        }
    }
    panic!("no end of reading");
}

fn two() -> [GptPartitionEntry; 2] {
    [entry(10, 19, 7, "root"), entry(30, 30, 8, "swap")]
}

#[test]
fn partitions_are_found_by_number_name_and_guid() {
    for (sector_size, most) in [(512, 1), (512, 64), (4096, 1)] {
        let gpt = read(&drive(sector_size, &two()), sector_size, most).unwrap();
        assert_eq!(gpt.remark, None);
        let root = Partition { number: 1, first: 10, sectors: 10, guid: guid(7), name: "root".into() };
        assert_eq!(gpt.find(&Part::Number(1)), Ok(&root));
        assert_eq!(gpt.find(&Part::Name("root".into())), Ok(&root));
        assert_eq!(gpt.find(&Part::Guid(guid(7))), Ok(&root));
        assert_eq!(gpt.find(&Part::Number(2)).map(|p| (p.first, p.sectors)), Ok((30, 1)));
        assert_eq!(gpt.find(&Part::Number(3)), Err(PartitionError::Missing));
    }
}

#[test]
fn what_is_not_one_partition_is_not_given() {
    let gpt =
        read(&drive(512, &[entry(10, 19, 7, "a"), entry(20, 29, 7, "a"), entry(29, 40, 9, "b")]), 512, 8).unwrap();
    assert_eq!(gpt.find(&Part::Name("a".into())), Err(PartitionError::Ambiguous));
    assert_eq!(gpt.find(&Part::Guid(guid(7))), Err(PartitionError::Ambiguous));
    assert_eq!(gpt.find(&Part::Number(2)), Err(PartitionError::Overlap(3)));
    assert_eq!(gpt.find(&Part::Number(3)), Err(PartitionError::Overlap(2)));
    assert!(gpt.find(&Part::Number(1)).is_ok());
}

#[test]
fn the_backup_serves_where_the_primary_is_damaged() {
    let sound = drive(512, &two());
    for (at, what) in [(512, "is not there"), (512 + 60, "damaged header"), (1024 + 40, "damaged array")] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        let gpt = read(&bytes, 512, 8).unwrap();
        assert!(gpt.remark.as_ref().unwrap().contains(what), "{:?}", gpt.remark);
        assert!(gpt.find(&Part::Number(2)).is_ok());
        // And no table where the backup is damaged as well.
        let end = bytes.len() - 512;
        bytes[end] ^= 1;
        assert!(matches!(read(&bytes, 512, 8), Err(PartitionError::NoTable(_))));
    }
    let mut bytes = sound;
    let end = bytes.len() - 512;
    bytes[end + 30] ^= 1;
    let gpt = read(&bytes, 512, 8).unwrap();
    assert!(gpt.remark.unwrap().contains("the backup partition table has a damaged header"));
}

#[test]
fn a_disagreement_is_said_and_the_primary_taken() {
    let mut bytes = drive(512, &two());
    let other = drive(512, &[entry(50, 59, 7, "root")]);
    let start = 512 * (SECTORS as usize - 10);
    bytes[start..].copy_from_slice(&other[start..]);
    let gpt = read(&bytes, 512, 8).unwrap();
    assert!(gpt.remark.as_ref().unwrap().contains("differ"));
    assert_eq!(gpt.find(&Part::Number(1)).unwrap().first, 10);
}

#[test]
fn impossible_entries_and_arrays_are_no_table() {
    for bad in [entry(20, 19, 7, "x"), entry(9, 12, 7, "x"), entry(100, SECTORS, 7, "x"), entry(0, u64::MAX, 7, "x")] {
        let result = read(&drive(512, &[bad]), 512, 8);
        assert!(matches!(&result, Err(PartitionError::NoTable(why)) if why.contains("entry 1")), "{result:?}");
    }
    for (at, value) in [(80, 0u32), (80, u32::MAX), (84, 64), (84, 100), (84, 1 << 31), (72, 199), (48, 300)] {
        let mut bytes = drive(512, &two());
        for header in [512, bytes.len() - 512] {
            bytes[header + at..][..4].copy_from_slice(&value.to_le_bytes());
            bytes[header + 16..][..4].fill(0);
            let crc = crc32fast::hash(&bytes[header..][..HEADER_LEN]);
            bytes[header + 16..][..4].copy_from_slice(&crc.to_le_bytes());
        }
        assert!(matches!(read(&bytes, 512, 8), Err(PartitionError::NoTable(_))), "{at} {value}");
    }
}

#[test]
fn an_empty_drive_has_no_table() {
    let result = read(&vec![0; 512 * 200], 512, 8);
    assert_eq!(result, Err(PartitionError::NoTable("the primary is not there, the backup is not there".into())));
    let mut reader = Reader::new(512, 0);
    assert_eq!((reader.feed(None), reader.wanted()), (None, (0, 1)));
    assert!(matches!(reader.feed(None), Some(Err(PartitionError::NoTable(_)))));
}

proptest! {
    /// Whatever stands there: no panic, an end, and no partition outside of the drive.
    #[test]
    fn any_damage_is_survived(at in 512usize..4096, byte: u8, fix: bool) {
        let mut bytes = drive(512, &two());
        bytes[at] = byte;
        if fix {
            bytes[512 + 16..][..4].fill(0);
            let crc = crc32fast::hash(&bytes[512..][..HEADER_LEN]);
            bytes[512 + 16..][..4].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(gpt) = read(&bytes, 512, 3) {
            for partition in &gpt.partitions {
                prop_assert!(partition.first + partition.sectors <= SECTORS);
            }
        }
    }
}
