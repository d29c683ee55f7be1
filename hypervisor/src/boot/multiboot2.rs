//! Multiboot2 information (specification 2.0, 3.6).

use super::info::{BootInfo, Region, peek};

/// EAX at entry.
pub(super) const MAGIC: u32 = 0x36d7_6289;

const TAG_END: u32 = 0;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_RSDP_V1: u32 = 14;
const TAG_RSDP_V2: u32 = 15;
const MEMORY_AVAILABLE: u32 = 1;

pub(super) fn read(addr: u64) -> Result<BootInfo, &'static str> {
    const SHORT: &str = "Multiboot2 information is truncated";
    let total: u32 = peek(addr).ok_or(SHORT)?;
    let end = addr.saturating_add(u64::from(total));
    let mut info = BootInfo { keep: Some(Region::new(addr, u64::from(total))), ..BootInfo::default() };
    let mut at = addr + 8;
    while at + 8 <= end {
        let [kind, size]: [u32; 2] = peek(at).ok_or(SHORT)?;
        let (body, size) = (at + 8, u64::from(size));
        if size < 8 || at + size > end {
            return Err(SHORT);
        }
        match kind {
            TAG_END => break,
            TAG_MODULE if info.module.is_none() => {
                let [start, end] = peek::<[u32; 2]>(body).ok_or(SHORT)?.map(u64::from);
                info.module = Some(Region { start, end });
            }
            TAG_MEMORY_MAP => {
                let step = u64::from(peek::<u32>(body).ok_or(SHORT)?).max(24);
                let mut entry_at = body + 8;
                while entry_at + step <= at + size {
                    let [addr, len, kind]: [u64; 3] = peek(entry_at).ok_or(SHORT)?;
                    if kind as u32 == MEMORY_AVAILABLE {
                        info.add_ram(addr, len);
                    }
                    entry_at += step;
                }
            }
            // The RSDP itself is in the tag; the newer one wins.
            TAG_RSDP_V1 if info.rsdp.is_none() => info.rsdp = Some(body),
            TAG_RSDP_V2 => info.rsdp = Some(body),
            _ => {}
        }
        at += size.next_multiple_of(8);
    }
    Ok(info)
}
