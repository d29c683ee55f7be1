//! PVH start info (`public/arch-x86/hvm/start_info.h`).

use super::info::{BootInfo, Region, peek};
use abi::start_info::{HvmStartInfo, MAGIC, MEMMAP_RAM, MemmapEntry, ModlistEntry};

pub(super) fn read(addr: u64) -> Result<BootInfo, &'static str> {
    let start: HvmStartInfo = peek(addr).ok_or("PVH start info out of reach")?;
    if start.magic != MAGIC {
        return Err("entered without a PVH start info");
    }
    let mut info = BootInfo { rsdp: (start.rsdp_paddr != 0).then_some(start.rsdp_paddr), ..BootInfo::default() };
    if start.version >= 1 {
        for i in 0..u64::from(start.memmap_entries.min(256)) {
            let at = start.memmap_paddr.saturating_add(i * size_of::<MemmapEntry>() as u64);
            let entry: MemmapEntry = peek(at).ok_or("PVH memory map out of reach")?;
            if entry.kind == MEMMAP_RAM {
                info.add_ram(entry.addr, entry.size);
            }
        }
    }
    if start.nr_modules > 0 {
        let module: ModlistEntry = peek(start.modlist_paddr).ok_or("PVH module list out of reach")?;
        info.module = Some(Region::new(module.paddr, module.size));
    }
    Ok(info)
}
