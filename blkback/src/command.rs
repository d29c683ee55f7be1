//! From segments to commands: pages that lie in a row become one segment, and what is more than a drive takes at once becomes several
//! commands, each of whole sectors.

use crate::disk::{DriveInfo, Segment};
use alloc::vec::Vec;

/// Appends a run of bytes, joined to the last one where it continues it; true if so.
pub(crate) fn append(data: &mut Vec<Segment>, addr: u64, len: u32) -> bool {
    if let Some(last) = data.last_mut()
        && last.addr.checked_add(u64::from(last.len)) == Some(addr)
        && let Some(joined) = last.len.checked_add(len)
    {
        last.len = joined;
        return true;
    }
    data.push(Segment { addr, len });
    false
}

/// Fills `command` with the next command's segments from byte `given` of the data on; its bytes, 0 if there can be none.
pub(crate) fn cut(info: &DriveInfo, data: &[Segment], given: u64, command: &mut Vec<Segment>) -> u32 {
    command.clear();
    let size = info.sector_size.max(1);
    let most = info.max_sectors.saturating_mul(size);
    let align = info.segment_align.max(1);
    let piece_most = info.max_segment.saturating_sub(info.max_segment.checked_rem(align).unwrap_or(0));
    let mut skip = given;
    let mut total: u32 = 0;
    'fill: for segment in data {
        if skip >= u64::from(segment.len) {
            skip = skip.saturating_sub(u64::from(segment.len));
            continue;
        }
        let mut addr = segment.addr.saturating_add(skip);
        let mut left = segment.len.saturating_sub(skip as u32);
        skip = 0;
        while left > 0 {
            let len = left.min(piece_most).min(most.saturating_sub(total));
            if len == 0 || command.len() >= usize::from(info.max_segments) {
                break 'fill;
            }
            command.push(Segment { addr, len });
            addr = addr.saturating_add(u64::from(len));
            left = left.saturating_sub(len);
            total = total.saturating_add(len);
        }
    }
    let mut excess = total.checked_rem(size).unwrap_or(0);
    total = total.saturating_sub(excess);
    while excess > 0 {
        let Some(last) = command.last_mut() else { break };
        if last.len > excess {
            last.len = last.len.saturating_sub(excess);
            break;
        }
        excess = excess.saturating_sub(last.len);
        command.pop();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(sector_size: u32, max_segments: u16, max_segment: u32, max_sectors: u32) -> DriveInfo {
        DriveInfo {
            sector_size,
            physical_sector_size: sector_size,
            sectors: 1 << 20,
            depth: 1,
            max_segments,
            max_segment,
            segment_align: 2,
            max_sectors,
            write_cache: false,
            fua: false,
            max_discard: 0,
            discard_granularity: 0,
            read_only: false,
            rotational: false,
            model: [0; 40],
            serial: [0; 20],
        }
    }

    #[test]
    fn pages_in_a_row_are_joined() {
        let mut data = Vec::new();
        assert!(!append(&mut data, 0x1000, 0x1000));
        assert!(append(&mut data, 0x2000, 0x200));
        assert!(!append(&mut data, 0x3000, 0x1000));
        assert_eq!(data, [Segment { addr: 0x1000, len: 0x1200 }, Segment { addr: 0x3000, len: 0x1000 }]);
    }

    #[test]
    fn a_sector_that_needs_more_segments_than_there_are_is_refused() {
        let data = [Segment { addr: 0, len: 512 }, Segment { addr: 4096, len: 3584 }];
        assert_eq!(cut(&info(4096, 1, 1 << 20, 64), &data, 0, &mut Vec::new()), 0);
        assert_eq!(cut(&info(4096, 2, 1 << 20, 64), &data, 0, &mut Vec::new()), 4096);
    }

    proptest! {
        /// The commands together are the data, byte by byte, each within the drive's limits.
        #[test]
        fn all_commands_together_are_the_data(
            lens in proptest::collection::vec(1u32..9, 1..30),
            big: bool, max_segments in 8u16..12, pieces in 1u32..20, max_sectors in 1u32..40,
        ) {
            let info = info(if big { 4096 } else { 512 }, max_segments, pieces * 512, max_sectors);
            let mut data: Vec<Segment> =
                lens.iter().enumerate().map(|(n, len)| Segment { addr: n as u64 * 8192, len: len * 512 }).collect();
            let total: u64 = data.iter().map(|s| u64::from(s.len)).sum();
            let size = u64::from(info.sector_size);
            if !total.is_multiple_of(size) {
                data.push(Segment { addr: 1 << 30, len: (size - total % size) as u32 });
            }
            let total: u64 = data.iter().map(|s| u64::from(s.len)).sum();
            let bytes = |segments: &[Segment]| -> Vec<u64> {
                segments.iter().flat_map(|s| (s.addr..s.addr + u64::from(s.len)).step_by(512)).collect()
            };
            let (mut given, mut seen, mut command) = (0, Vec::new(), Vec::new());
            while given < total {
                let len = cut(&info, &data, given, &mut command);
                if len == 0 {
                    prop_assert!(big && pieces < 8, "a 4 KiB sector in pieces of less");
                    return Ok(());
                }
                prop_assert!(command.len() <= max_segments.into() && len.is_multiple_of(info.sector_size));
                prop_assert!(len / info.sector_size <= max_sectors);
                prop_assert!(command.iter().all(|s| s.len <= info.max_segment && s.len > 0));
                prop_assert_eq!(command.iter().map(|s| s.len).sum::<u32>(), len);
                seen.extend(bytes(&command));
                given += u64::from(len);
            }
            prop_assert_eq!(seen, bytes(&data));
        }
    }
}
