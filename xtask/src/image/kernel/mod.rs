//! A Linux kernel as a domain's image: an ELF `vmlinux` or a bzImage, loaded here as QEMU's or Xen's loader would, so that
//! the hypervisor only copies.
//!
//! [`payload`] finds the ELF in a bzImage, this file loads it, [`initrd`] is looked through, [`pvh`] lays what PVH wants beside
//! them, [`acpi`] the tables.
mod acpi;
pub mod initrd;
pub mod payload;
pub mod pvh;

use super::elf::{self, PT_LOAD, PT_NOTE, Program, u32_at};
use abi::start_info::ELFNOTE_PHYS32_ENTRY;
use anyhow::{Context, Result, anyhow, ensure};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Largest address a kernel may be linked for.
const MAX_ADDRESS: u64 = 1 << 30;

/// A kernel in memory.
#[derive(Clone)]
pub struct Kernel {
    /// Where its first byte stands, page-aligned.
    pub start: u64,
    /// Memory from [`Kernel::start`] on, zeros at its end left out.
    pub bytes: Arc<[u8]>,
    /// First address behind it, BSS and early heap included.
    pub end: u64,
    /// Address of its 32-bit PVH entry.
    pub entry: u32,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel {:#x}..{:#x}, entry {:#x}", self.start, self.end, self.entry)
    }
}

/// Reads and loads a kernel.
///
/// # Errors
/// What is wrong with the file, with its name.
pub fn load(path: &Path) -> Result<Kernel> {
    let file = std::fs::read(path).with_context(|| format!("cannot read the kernel {}", path.display()))?;
    parse(&file).with_context(|| format!("kernel {}", path.display()))
}

/// Loads a kernel from the bytes of its file.
///
/// # Errors
/// What is wrong with it.
pub fn parse(file: &[u8]) -> Result<Kernel> {
    if payload::is_bzimage(file) {
        return flatten(&payload::extract(file)?).context("the kernel in it");
    }
    ensure!(file.starts_with(b"\x7fELF"), "it is neither an ELF file nor a bzImage");
    flatten(file)
}

fn flatten(elf: &[u8]) -> Result<Kernel> {
    let programs = elf::programs_of(elf)?;
    let entry = pvh_entry(elf, &programs)?;
    let loads: Vec<&Program> = programs.iter().filter(|p| p.kind == PT_LOAD && !p.physical.is_empty()).collect();
    let start = loads.iter().map(|p| p.physical.start).min().ok_or_else(|| anyhow!("it has nothing to load"))?;
    let end = loads.iter().map(|p| p.physical.end).max().unwrap_or(start);
    ensure!(
        start >= 0x10_0000 && end <= MAX_ADDRESS,
        "it wants to stand at {start:#x} to {end:#x}; 1 MiB to 1 GiB are possible"
    );
    ensure!(
        (start..end).contains(&u64::from(entry)),
        "its PVH entry {entry:#x} lies outside of it ({start:#x} to {end:#x})"
    );
    let start = start & !0xfff;
    let mut memory = vec![0; (end - start) as usize];
    for (i, program) in loads.iter().enumerate() {
        let bytes = elf.get(program.file.start as usize..program.file.end as usize);
        let bytes = bytes.ok_or_else(|| {
            anyhow!("it is truncated: segment {i} ends at byte {} of {}", program.file.end, elf.len())
        })?;
        let at = (program.physical.start - start) as usize;
        let place = memory.get_mut(at..at + bytes.len());
        place.ok_or_else(|| anyhow!("segment {i} is longer in the file than in memory"))?.copy_from_slice(bytes);
    }
    let used = memory.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    memory.truncate(used);
    Ok(Kernel { start, bytes: memory.into(), end, entry })
}

/// The address in Xen's note, which says that the kernel has a PVH entry.
fn pvh_entry(elf: &[u8], programs: &[Program]) -> Result<u32> {
    for note in programs.iter().filter(|p| p.kind == PT_NOTE) {
        let bytes = elf.get(note.file.start as usize..note.file.end as usize);
        let mut rest = bytes.ok_or_else(|| anyhow!("it is truncated: its notes end at byte {}", note.file.end))?;
        // A note: lengths of name and descriptor, type, then both, each padded to four bytes (ELF specification, figure 2-3).
        while let (Some(name_len), Some(len), Some(kind)) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8)) {
            let name_end = 12usize.saturating_add(name_len as usize);
            let at = name_end.next_multiple_of(4);
            let end = at.saturating_add(len as usize);
            if kind == ELFNOTE_PHYS32_ENTRY && rest.get(12..name_end) == Some(b"Xen\0") {
                return u32_at(rest, at).ok_or_else(|| anyhow!("its PHYS32_ENTRY note is truncated"));
            }
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Err(anyhow!(
        "it is no PVH kernel: it has no Xen note PHYS32_ENTRY; build it with CONFIG_PVH=y (Debian's kernels have it)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two segments linked high and loaded at 16 MiB, the second with a BSS, and Xen's note.
    fn vmlinux() -> Vec<u8> {
        let mut elf = vec![0u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &2u16.to_le_bytes());
        put(18, &62u16.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &3u16.to_le_bytes());
        let header = |kind: u32, file: u64, physical: u64, len: u64, mem: u64| {
            let words = [file, 0xffff_ffff_8000_0000 + physical, physical, len, mem, 0x1000];
            let words = words.iter().flat_map(|w| w.to_le_bytes());
            kind.to_le_bytes().into_iter().chain(5u32.to_le_bytes()).chain(words).collect::<Vec<u8>>()
        };
        put(64, &header(PT_LOAD, 0x200, 0x100_0000, 0x20, 0x1000));
        put(120, &header(PT_LOAD, 0x240, 0x100_2000, 0x10, 0x3000));
        put(176, &header(PT_NOTE, 0x300, 0x100_0000, 0x28, 0x28));
        put(0x200, &[0x11; 0x20]);
        put(0x240, &[0x22; 0x10]);
        // A note of somebody else first, with an odd name.
        for (at, word) in [(0x300, 2u32), (0x304, 1), (0x308, 18), (0x314, 4), (0x318, 4), (0x31c, 18)] {
            put(at, &word.to_le_bytes());
        }
        put(0x30c, b"X\0\0\0\xff\0\0\0");
        put(0x320, b"Xen\0");
        put(0x324, &0x100_0010u32.to_le_bytes());
        elf
    }

    #[test]
    fn segments_stand_at_their_physical_addresses() {
        let kernel = parse(&vmlinux()).unwrap();
        assert_eq!((kernel.start, kernel.end, kernel.entry), (0x100_0000, 0x100_5000, 0x100_0010));
        assert_eq!(kernel.bytes.len(), 0x2010, "zeros at the end are left out");
        assert_eq!((kernel.bytes[0x1f], kernel.bytes[0x20], kernel.bytes[0x2000]), (0x11, 0, 0x22));
    }

    #[test]
    fn a_bzimage_is_the_same_kernel() {
        let (plain, packed) = (parse(&vmlinux()).unwrap(), parse(&payload::tests::bzimage(&vmlinux())).unwrap());
        assert_eq!(
            (plain.start, plain.end, plain.entry, plain.bytes),
            (packed.start, packed.end, packed.entry, packed.bytes)
        );
    }

    #[test]
    fn what_is_no_pvh_kernel_is_told() {
        let refusal = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut elf = vmlinux();
            change(&mut elf);
            format!("{:#}", parse(&elf).unwrap_err())
        };
        assert!(refusal(&|elf| elf[0x31c] = 1).contains("PHYS32_ENTRY"));
        assert!(refusal(&|elf| elf[0x327] = 0).contains("lies outside"));
        assert!(refusal(&|elf| elf[18] = 183).contains("x86-64"));
        assert!(refusal(&|elf| elf.truncate(0x244)).contains("truncated"));
        assert!(refusal(&|elf| elf[0] = b'#').contains("neither an ELF file nor a bzImage"));
        let error = format!("{:#}", load(Path::new("/nonexistent/vmlinuz")).unwrap_err());
        assert!(error.contains("/nonexistent/vmlinuz"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_the_kernel_in_a_bzimage_is_told_too() {
        let mut elf = vmlinux();
        elf[0x31c] = 1;
        let error = format!("{:#}", parse(&payload::tests::bzimage(&elf)).unwrap_err());
        assert!(error.contains("the kernel in it") && error.contains("CONFIG_PVH=y"), "{error}");
        let error = format!("{:#}", parse(&payload::tests::bzimage(b"BZh91AY&SY")).unwrap_err());
        assert!(error.contains("bzip2") && error.contains("gzip, xz, zstd and lz4"), "{error}");
        for random in [&b""[..], b"x", &[0x55; 4096], b"#!/bin/sh\nexit\n"] {
            let error = parse(random).unwrap_err().to_string();
            assert!(error.contains("neither an ELF file nor a bzImage"), "{error}");
        }
    }

    #[test]
    fn no_damage_makes_a_panic() {
        let elf = vmlinux();
        for len in 0..elf.len() {
            let _ = parse(&elf[..len]);
        }
        for at in 0..elf.len() {
            let mut bad = elf.clone();
            bad[at] ^= 0xff;
            let _ = parse(&bad);
        }
    }
}
