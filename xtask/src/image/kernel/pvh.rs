//! What a PVH kernel finds beside itself: start info, command line, memory map, ACPI tables and initrd.
//!
//! ```text
//! 0x0_0000  RAM; Linux starts its further CPUs here
//! 0xa_0000  reserved up to 1 MiB
//! 0xe_0000  start info, module list, memory map
//! 0xe_1000  command line
//! 0xe_2000  ACPI tables
//! 0x10_0000 RAM; the kernel where it is linked for, the initrd at the next 2 MiB boundary behind it
//! top - 3   console, store and survivor page: reserved
//! ```

use super::{Kernel, acpi};
use crate::units::{Size, kib};
use abi::PAGE_SIZE;
use abi::bundle::special;
use abi::start_info::{HvmStartInfo, MAGIC, MEMMAP_RAM, MEMMAP_RESERVED, MemmapEntry, ModlistEntry};
use anyhow::{Result, ensure};
use zerocopy::IntoBytes;

/// First byte of the boot segment.
pub const BASE: u64 = 0xe_0000;
const MODULES: u64 = BASE + 0x100;
const MEMORY_MAP: u64 = BASE + 0x200;
const COMMAND_LINE: u64 = BASE + 0x1000;
const ACPI: u64 = BASE + 0x2000;
const LOW_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0x10_0000;
/// Longest command line: Linux' `COMMAND_LINE_SIZE` on x86, less its NUL.
pub const COMMAND_LINE_MAX: usize = 2047;
/// The initrd's alignment.
const INITRD_ALIGN: u64 = 2 << 20;
/// What Linux needs beside kernel and initrd, packed and unpacked, to come up at all; below it, it panics without a console.
const HEADROOM: u64 = 16 << 20;

/// The boot segment and what goes with it.
#[derive(Clone, Debug)]
pub struct Boot {
    /// From [`BASE`] on.
    pub bytes: Vec<u8>,
    /// Where the initrd goes.
    pub initrd: u64,
}

/// Lays the boot segment of a domain with `memory` bytes, the special pages included. The initrd has `initrd_len` bytes, and `unpacked`
/// once Linux has made files of it.
///
/// # Errors
/// Command line too long; memory too small for kernel and initrd.
pub fn lay(
    kernel: &Kernel,
    (initrd_len, unpacked): (u64, u64),
    command_line: &str,
    memory: u64,
    vcpus: u32,
) -> Result<Boot> {
    ensure!(
        command_line.len() <= COMMAND_LINE_MAX,
        "command line of {} bytes; {COMMAND_LINE_MAX} fit",
        command_line.len()
    );
    let ram = memory.saturating_sub(u64::from(special::CONSOLE) * PAGE_SIZE as u64);
    let initrd = kernel.end.next_multiple_of(INITRD_ALIGN);
    let needed = initrd + initrd_len + unpacked + HEADROOM;
    ensure!(
        needed <= ram,
        "memory = {} is too little: the kernel ends at {}, the initrd has {}, unpacked {}, and Linux needs {} beside them; give it {} or more",
        Size(memory),
        kib(kernel.end),
        kib(initrd_len),
        kib(unpacked),
        Size(HEADROOM),
        Size((needed + memory - ram).next_multiple_of(16 << 20))
    );
    let map = [(0, LOW_END, MEMMAP_RAM), (LOW_END, HIGH_START, MEMMAP_RESERVED), (HIGH_START, ram, MEMMAP_RAM)]
        .into_iter()
        .chain([(ram, memory, MEMMAP_RESERVED)])
        .map(|(addr, end, kind)| MemmapEntry { addr, size: end - addr, kind, reserved: 0 })
        .collect::<Vec<_>>();
    let start_info = HvmStartInfo {
        magic: MAGIC,
        version: 1,
        nr_modules: u32::from(initrd_len != 0),
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..HvmStartInfo::default()
    };
    let mut bytes = vec![0; (ACPI - BASE) as usize];
    let mut put = |address: u64, from: &[u8]| {
        let at = (address - BASE) as usize;
        bytes[at..at + from.len()].copy_from_slice(from);
    };
    put(BASE, start_info.as_bytes());
    put(MODULES, ModlistEntry { paddr: initrd, size: initrd_len, ..ModlistEntry::default() }.as_bytes());
    put(MEMORY_MAP, map.as_bytes());
    put(COMMAND_LINE, command_line.as_bytes());
    bytes.extend(acpi::tables(ACPI, vcpus));
    Ok(Boot { bytes, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    fn kernel() -> Kernel {
        Kernel { start: 0x100_0000, bytes: [1, 2].into(), end: 0x123_4000, entry: 0x100_0000 }
    }
    fn read<T: FromBytes>(boot: &Boot, address: u64) -> T {
        T::read_from_prefix(&boot.bytes[(address - BASE) as usize..]).unwrap().0
    }

    #[test]
    fn start_info_names_command_line_initrd_tables_and_memory() {
        let memory = 128 << 20;
        let boot = lay(&kernel(), (12345, 20000), "console=hvc0", memory, 2).unwrap();
        let info: HvmStartInfo = read(&boot, BASE);
        assert_eq!((info.magic, info.version, info.nr_modules, info.memmap_entries), (MAGIC, 1, 1, 4));
        let module: ModlistEntry = read(&boot, info.modlist_paddr);
        assert_eq!((module.paddr, module.size), (0x140_0000, 12345));
        assert_eq!(boot.initrd, module.paddr);
        assert_eq!(&read::<[u8; 13]>(&boot, info.cmdline_paddr), b"console=hvc0\0");
        assert_eq!(&read::<[u8; 8]>(&boot, info.rsdp_paddr), b"RSD PTR ");
        let map: [MemmapEntry; 4] = read(&boot, info.memmap_paddr);
        let mut end = 0;
        for entry in map {
            assert_eq!(entry.addr, end, "the map has no hole");
            end += entry.size;
        }
        assert_eq!(end, memory);
        assert_eq!(map.map(|e| e.kind), [1, 2, 1, 2]);
        assert_eq!(map[3].size, 3 * 4096);
        assert!(BASE >= map[1].addr && BASE + boot.bytes.len() as u64 <= HIGH_START, "all of it is reserved");
    }

    #[test]
    fn without_initrd_there_is_no_module() {
        let info: HvmStartInfo = read(&lay(&kernel(), (0, 0), "", 128 << 20, 1).unwrap(), BASE);
        assert_eq!(info.nr_modules, 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = lay(&kernel(), (50 << 20, 0), "", 64 << 20, 1).unwrap_err().to_string();
        assert!(error.contains("memory = 64MiB") && error.contains("give it 96MiB"), "{error}");
        // A distribution's, which is packed well.
        let error = lay(&kernel(), (60 << 20, 250 << 20), "", 192 << 20, 1).unwrap_err().to_string();
        assert!(error.contains("unpacked 256000.0 KiB") && error.contains("give it 352MiB"), "{error}");
        lay(&kernel(), (60 << 20, 250 << 20), "", 352 << 20, 1).unwrap();
        let long = "x".repeat(COMMAND_LINE_MAX + 1);
        assert!(lay(&kernel(), (0, 0), &long, 1 << 30, 1).unwrap_err().to_string().contains("command line of 2048"));
    }
}
