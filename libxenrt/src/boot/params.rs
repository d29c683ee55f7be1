//! What the loader tells, in either of its two forms, reduced to what libxenrt needs.
//!
//! Sources: `hermit_entry::boot_info`; Linux `arch/x86/include/uapi/asm/bootparam.h` (offsets in the boot parameters page);
//! `public/arch-x86/hvm/start_info.h`.

use crate::memory::window;
use abi::memory::E820Entry;
use abi::start_info::{self, HvmStartInfo, MemmapEntry, ModlistEntry};
use hermit_entry::boot_info::{BootInfo, PlatformInfo, RawBootInfo};

/// Which loader entered us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Hermit,
    Pvh,
}

/// The result.
#[derive(Debug)]
pub struct Params {
    /// First byte of the RAM that is free, and the first after it: above the image, without the configuration.
    pub free: (u64, u64),
    /// The domain's configuration.
    pub config: &'static str,
}

/// Offsets in Linux' boot parameters page.
mod boot_params {
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const E820_TABLE: u64 = 0x2d0;
    pub const E820_MAX: u64 = 128;
}

/// # Safety
/// I10: `at` is inside what the loader wrote and mapped.
unsafe fn get<T: zerocopy::FromBytes>(at: u64) -> T {
    let p = core::ptr::with_exposed_provenance::<T>(at as usize);
    // SAFETY: the caller's promise.
    unsafe { p.read_unaligned() }
}

/// # Safety
/// I10: as [`get`]; the text stays for the life of the domain.
unsafe fn text(at: u64, len: u64) -> &'static str {
    if len == 0 {
        return "";
    }
    let p = core::ptr::with_exposed_provenance::<u8>(at as usize);
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(p, len as usize) };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// Reads the boot information at `info`.
///
/// # Errors
/// What is missing.
///
/// # Safety
/// I10: `info` is what the loader of kind `source` passed, and all of it is mapped.
pub unsafe fn read(source: Source, info: u64) -> Result<Params, &'static str> {
    match source {
        // SAFETY: the caller's promise.
        Source::Hermit => unsafe { hermit(info) },
        // SAFETY: the caller's promise.
        Source::Pvh => unsafe { pvh(info) },
    }
}

/// Keeps the end of the RAM entry that holds the image.
fn holds_image(addr: u64, size: u64) -> Option<u64> {
    let end = addr.checked_add(size)?;
    (addr <= super::image::start() && super::image::end() <= end).then_some(end)
}

/// The larger part of `[image end, ram_end)` below or above the configuration at `[config, config_end)`.
fn free_part(ram_end: u64, config: u64, config_end: u64) -> (u64, u64) {
    let start = super::image::end();
    let ram_end = ram_end.min(window::START);
    if config_end <= start || config >= ram_end || config == config_end {
        return (start, ram_end);
    }
    let (below, above) = (config.saturating_sub(start), ram_end.saturating_sub(config_end));
    if below >= above { (start, config) } else { (config_end, ram_end) }
}

/// # Safety
/// As [`read`].
unsafe fn hermit(info: u64) -> Result<Params, &'static str> {
    let raw = core::ptr::with_exposed_provenance::<RawBootInfo>(info as usize);
    // SAFETY: the caller's promise; the structure is plain data and aligned by its writer.
    let raw = unsafe { raw.read() };
    let PlatformInfo::LinuxBootParams { boot_params_addr, .. } = BootInfo::from(raw).platform_info else {
        return Err("not Linux boot parameters");
    };
    let base = boot_params_addr.get();
    // SAFETY: I10 – a field of the page.
    let entries = u64::from(unsafe { get::<u8>(base.wrapping_add(boot_params::E820_ENTRIES)) });
    let mut ram_end = None;
    for i in 0..entries.min(boot_params::E820_MAX) {
        let at = base.wrapping_add(boot_params::E820_TABLE).wrapping_add(i.wrapping_mul(size_of::<E820Entry>() as u64));
        // SAFETY: I10 – an entry of the page's table.
        let entry: E820Entry = unsafe { get(at) };
        if entry.kind == start_info::MEMMAP_RAM {
            ram_end = holds_image(entry.addr, entry.size).or(ram_end);
        }
    }
    // SAFETY: I10 – a field of the page.
    let config_at = u64::from(unsafe { get::<u32>(base.wrapping_add(boot_params::RAMDISK_IMAGE)) });
    // SAFETY: I10 – a field of the page.
    let config_len = u64::from(unsafe { get::<u32>(base.wrapping_add(boot_params::RAMDISK_SIZE)) });
    // SAFETY: I10 – the loader's own statement of where the blob is; `first_free` keeps it.
    let config = unsafe { text(config_at, config_len) };
    let ram_end = ram_end.ok_or("no RAM entry holds the image")?;
    Ok(Params { free: free_part(ram_end, config_at, config_at.wrapping_add(config_len)), config })
}

/// # Safety
/// As [`read`].
unsafe fn pvh(info: u64) -> Result<Params, &'static str> {
    // SAFETY: the caller's promise.
    let start: HvmStartInfo = unsafe { get(info) };
    if start.magic != start_info::MAGIC {
        return Err("bad start-info magic");
    }
    let mut ram_end = None;
    if start.version >= 1 {
        for i in 0..u64::from(start.memmap_entries) {
            let at = start.memmap_paddr.wrapping_add(i.wrapping_mul(size_of::<MemmapEntry>() as u64));
            // SAFETY: I10 – an entry of the table.
            let entry: MemmapEntry = unsafe { get(at) };
            if entry.kind == start_info::MEMMAP_RAM {
                ram_end = holds_image(entry.addr, entry.size).or(ram_end);
            }
        }
    }
    let ram_end = ram_end.ok_or("no RAM entry holds the image")?;
    if start.nr_modules == 0 {
        return Ok(Params { free: free_part(ram_end, 0, 0), config: "" });
    }
    // SAFETY: I10 – the first module.
    let module: ModlistEntry = unsafe { get(start.modlist_paddr) };
    let end = module.paddr.checked_add(module.size).filter(|&end| end <= window::START);
    let end = end.ok_or("configuration above 1 GiB")?;
    // SAFETY: I10 – its bytes, below the first GiB that the entry code maps; `free_part` keeps them.
    let config = unsafe { text(module.paddr, module.size) };
    Ok(Params { free: free_part(ram_end, module.paddr, end), config })
}
