//! The boot segment of a unikernel: what stands in its memory below the image when its first instruction runs.
//!
//! ```text
//! 0x0_1000  PML4, PDPT, four page directories: identity map of 4 GiB by 2 MiB pages
//! 0x0_7000  page table of the first 2 MiB, which leaves out page 0 and the page below the boot stack
//! 0x0_8000  Hermit's RawBootInfo, then the command line
//! 0x0_9000  Linux-style boot_params ("zero page"): E820, command line, ramdisk = config blob
//! 0x0_a000  HvmStartInfo, one module = config blob, memory map
//! 0x0_b000  config blob
//! 0xe_f000  not mapped: an overflow of the boot stack faults
//! 0xf_0000  boot stack, 64 KiB
//! ```
//!
//! The bytes are made by hand and not by a cast of hermit-entry's `RawBootInfo`, because that holds a host pointer; a
//! test compares the layout with theirs.

use super::elf::Flat;
use abi::start_info::{HvmStartInfo, MAGIC, MEMMAP_RAM, MemmapEntry, ModlistEntry};
use anyhow::{Result, ensure};
use zerocopy::IntoBytes;

/// First byte of the segment.
pub const BASE: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORIES: u64 = 0x3000;
const FIRST_TABLE: u64 = 0x7000;
const BOOT_INFO: u64 = 0x8000;
const COMMAND_LINE: u64 = 0x8100;
const BOOT_PARAMS: u64 = 0x9000;
const START_INFO: u64 = 0xa000;
const MODULES: u64 = 0xa100;
const MEMORY_MAP: u64 = 0xa200;
const CONFIG: u64 = 0xb000;
const STACK_GUARD: u64 = 0xe_f000;
/// RSP at the entry: as after a call, so that RSP + 8 is 16-byte aligned.
pub const STACK_POINTER: u64 = super::elf::LOAD_ADDRESS - 8;

/// Longest config blob.
pub const CONFIG_MAX: u64 = STACK_GUARD - CONFIG;
/// Longest command line.
pub const COMMAND_LINE_MAX: u64 = BOOT_PARAMS - COMMAND_LINE - 1;

/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, large.
const LARGE: u64 = 0x83;

/// Offsets in `RawBootInfo`.
mod raw {
    pub const PHYS_START: u64 = 0;
    pub const PHYS_END: u64 = 8;
    pub const IMAGE_START: u64 = 32;
    pub const IMAGE_END: u64 = 40;
    pub const TLS: u64 = 48;
    pub const PLATFORM_TAG: u64 = 80;
    pub const COMMAND_LINE: u64 = 88;
    pub const COMMAND_LINE_LEN: u64 = 96;
    pub const BOOT_PARAMS: u64 = 104;
    /// `RawPlatformInfo::LinuxBootParams`.
    pub const LINUX_BOOT_PARAMS: u64 = 2;
}
/// Offsets in Linux' `boot_params` (`arch/x86/include/uapi/asm/bootparam.h`; documented in `x86/zero-page`).
mod params {
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const BOOT_FLAG: u64 = 0x1fe;
    pub const HEADER: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const LOADER: u64 = 0x210;
    pub const RAMDISK: u64 = 0x218;
    pub const RAMDISK_LEN: u64 = 0x21c;
    pub const COMMAND_LINE: u64 = 0x228;
    pub const COMMAND_LINE_LEN: u64 = 0x238;
    pub const E820: u64 = 0x2d0;
}

/// The segment and the registers that go with it.
#[derive(Clone, Debug)]
pub struct Boot {
    /// From [`BASE`] on.
    pub bytes: Vec<u8>,
    /// Page-table root.
    pub cr3: u64,
    /// Address of `RawBootInfo`.
    pub boot_info: u64,
}

struct Memory(Vec<u8>);

impl Memory {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let start = (address - BASE) as usize;
        let end = start + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[start..end].copy_from_slice(bytes);
    }
    fn word(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }
    fn half(&mut self, address: u64, value: u32) {
        self.put(address, &value.to_le_bytes());
    }
}

/// Lays the segment for a domain with `memory` bytes of RAM (without the special pages).
///
/// # Errors
/// Command line or config too long.
pub fn lay(flat: &Flat, memory: u64, command_line: &str, config: &[u8]) -> Result<Boot> {
    let (line_len, config_len) = (command_line.len() as u64, config.len() as u64);
    ensure!(line_len <= COMMAND_LINE_MAX, "command line of {line_len} bytes; {COMMAND_LINE_MAX} fit");
    ensure!(config_len <= CONFIG_MAX, "config of {config_len} bytes; {CONFIG_MAX} fit");
    let mut m = Memory(Vec::new());
    page_tables(&mut m);

    m.word(BOOT_INFO + raw::PHYS_START, 0);
    m.word(BOOT_INFO + raw::PHYS_END, memory);
    m.word(BOOT_INFO + raw::IMAGE_START, super::elf::LOAD_ADDRESS);
    m.word(BOOT_INFO + raw::IMAGE_END, super::elf::LOAD_ADDRESS + flat.mem_len);
    for (i, word) in (0u64..).zip(flat.tls) {
        m.word(BOOT_INFO + raw::TLS + i * 8, word);
    }
    m.word(BOOT_INFO + raw::PLATFORM_TAG, raw::LINUX_BOOT_PARAMS);
    m.word(BOOT_INFO + raw::COMMAND_LINE, COMMAND_LINE);
    m.word(BOOT_INFO + raw::COMMAND_LINE_LEN, line_len);
    m.word(BOOT_INFO + raw::BOOT_PARAMS, BOOT_PARAMS);
    m.put(COMMAND_LINE, command_line.as_bytes());

    // The E820 has RAM only; the null page is RAM too, it is just not mapped.
    m.put(BOOT_PARAMS + params::E820_ENTRIES, &[1]);
    m.put(BOOT_PARAMS + params::BOOT_FLAG, &0xaa55u16.to_le_bytes());
    m.put(BOOT_PARAMS + params::HEADER, b"HdrS");
    m.put(BOOT_PARAMS + params::VERSION, &0x020fu16.to_le_bytes());
    m.put(BOOT_PARAMS + params::LOADER, &[0xff]);
    m.half(BOOT_PARAMS + params::RAMDISK, CONFIG as u32);
    m.half(BOOT_PARAMS + params::RAMDISK_LEN, config_len as u32);
    m.half(BOOT_PARAMS + params::COMMAND_LINE, COMMAND_LINE as u32);
    m.half(BOOT_PARAMS + params::COMMAND_LINE_LEN, line_len as u32);
    m.word(BOOT_PARAMS + params::E820, 0);
    m.word(BOOT_PARAMS + params::E820 + 8, memory);
    m.half(BOOT_PARAMS + params::E820 + 16, MEMMAP_RAM);

    let start_info = HvmStartInfo {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: 1,
        ..HvmStartInfo::default()
    };
    m.put(START_INFO, start_info.as_bytes());
    m.put(MODULES, ModlistEntry { paddr: CONFIG, size: config_len, ..ModlistEntry::default() }.as_bytes());
    m.put(MEMORY_MAP, MemmapEntry { addr: 0, size: memory, kind: MEMMAP_RAM, reserved: 0 }.as_bytes());
    m.put(CONFIG, config);
    Ok(Boot { bytes: m.0, cr3: BASE, boot_info: BOOT_INFO })
}

fn page_tables(m: &mut Memory) {
    m.word(BASE, PDPT | TABLE);
    for gib in 0..4 {
        let directory = DIRECTORIES + gib * 0x1000;
        m.word(PDPT + gib * 8, directory | TABLE);
        for large in 0..512 {
            m.word(directory + large * 8, gib << 30 | large << 21 | LARGE);
        }
    }
    m.word(DIRECTORIES, FIRST_TABLE | TABLE);
    for page in (0..512u64).filter(|page| ![0, STACK_GUARD >> 12].contains(page)) {
        m.word(FIRST_TABLE + page * 8, page << 12 | TABLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hermit_entry::boot_info::{BootInfo, HardwareInfo, LoadInfo, PlatformInfo, RawBootInfo, TlsInfo};
    use std::num::NonZeroU64;

    fn flat() -> Flat {
        Flat { bytes: [1].into(), mem_len: 0x5000, entry: 0x10_0000, tls: [1, 2, 3, 4], text_len: 0 }
    }

    fn word(boot: &Boot, address: u64) -> u64 {
        let at = (address - BASE) as usize;
        u64::from_le_bytes(boot.bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_boot_information_has_the_layout_of_hermit_entry() {
        let line = "a=b";
        let theirs = RawBootInfo::from(BootInfo {
            hardware_info: HardwareInfo { phys_addr_range: 0..0x40_0000, serial_port_base: None, device_tree: None },
            load_info: LoadInfo {
                kernel_image_addr_range: 0x10_0000..0x10_5000,
                tls_info: Some(TlsInfo { start: 1, filesz: 2, memsz: 3, align: 4 }),
            },
            platform_info: PlatformInfo::LinuxBootParams {
                command_line: Some(line),
                boot_params_addr: NonZeroU64::new(BOOT_PARAMS).unwrap(),
            },
        });
        let boot = lay(&flat(), 0x40_0000, line, b"").unwrap();
        assert_eq!(size_of::<RawBootInfo>(), 128);
        let base = std::ptr::from_ref(&theirs).cast::<u64>();
        // The words without padding; the command line's address is the host's in theirs and is compared apart.
        for at in [0, 8, 24, 32, 40, 48, 56, 64, 72, 96, 104] {
            // SAFETY: `at` is a multiple of 8 inside the 128 bytes of the structure, on an initialised field.
            let value = unsafe { base.wrapping_byte_add(at).read() };
            assert_eq!(word(&boot, BOOT_INFO + at as u64), value, "at offset {at}");
        }
        // SAFETY: the discriminant is a 32-bit word at this offset.
        let tag = unsafe { base.wrapping_byte_add(raw::PLATFORM_TAG as usize).cast::<u32>().read() };
        assert_eq!(u64::from(tag), raw::LINUX_BOOT_PARAMS);
        // SAFETY: the pointer of the command line, an initialised field.
        let pointer = unsafe { base.wrapping_byte_add(raw::COMMAND_LINE as usize).read() };
        assert_eq!(pointer, line.as_ptr() as u64);
        assert_eq!(word(&boot, BOOT_INFO + raw::COMMAND_LINE), COMMAND_LINE);
    }

    /// Walks the tables as the CPU does.
    fn translate(boot: &Boot, address: u64) -> Option<u64> {
        let mut table = boot.cr3;
        for shift in [39, 30, 21, 12] {
            let entry = word(boot, table + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            if shift == 12 || entry & 0x80 != 0 {
                let mask = (1u64 << shift) - 1;
                return Some((entry & !mask & !0xfff) | address & mask);
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn four_gib_are_mapped_to_themselves_but_the_null_page_and_the_stack_guard() {
        let boot = lay(&flat(), 0x40_0000, "", b"").unwrap();
        for address in [0x1000, 0xf_fff8, 0x10_0000, 0x20_0123, 0x4000_0000, 0xfeb8_0010, 0xffff_ffff] {
            assert_eq!(translate(&boot, address), Some(address), "{address:#x}");
        }
        for address in [0, 0xfff, STACK_GUARD, STACK_GUARD + 0xfff, 1 << 32] {
            assert_eq!(translate(&boot, address), None, "{address:#x}");
        }
        assert_eq!((STACK_POINTER + 8) % 16, 0);
    }

    #[test]
    fn the_config_blob_is_named_by_both_kinds_of_boot_information() {
        let boot = lay(&flat(), 0x40_0000, "", b"key=value\n").unwrap();
        let at = (CONFIG - BASE) as usize;
        assert_eq!(&boot.bytes[at..], b"key=value\n");
        assert_eq!(word(&boot, BOOT_PARAMS + params::RAMDISK), CONFIG | 10 << 32);
        assert_eq!((word(&boot, MODULES), word(&boot, MODULES + 8)), (CONFIG, 10));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "x".repeat(COMMAND_LINE_MAX as usize + 1);
        assert!(lay(&flat(), 0, &long, b"").unwrap_err().to_string().contains("command line"));
        let big = vec![0; CONFIG_MAX as usize + 1];
        assert!(lay(&flat(), 0, "", &big).unwrap_err().to_string().contains("config"));
    }
}
