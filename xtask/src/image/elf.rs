//! From a unikernel's ELF file to the bytes that stand in its memory: hermit-entry's loader, behind a check.
//!
//! The loader trusts its input (it indexes and unwraps), so [`check`] first rules out what would make it panic, and
//! names what is wrong; a panic that is left all the same becomes an error too.

use anyhow::{Result, anyhow, bail, ensure};
use hermit_entry::elf::KernelObject;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Where every image is loaded.
pub const LOAD_ADDRESS: u64 = 0x10_0000;

/// To be loaded.
pub const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
/// Notes.
pub const PT_NOTE: u32 = 4;

/// A relocated image.
#[derive(Clone, Debug)]
pub struct Flat {
    /// Memory from [`LOAD_ADDRESS`] on, zeros at its end left out.
    pub bytes: Arc<[u8]>,
    /// Bytes of memory it takes, with BSS.
    pub mem_len: u64,
    /// Address of its first instruction.
    pub entry: u64,
    /// Thread-local storage: start, file size, memory size, alignment; all 0 = none.
    pub tls: [u64; 4],
    /// Bytes of executable segments.
    pub text_len: u64,
}

/// The little-endian number at an offset, if the bytes reach that far.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}
/// See [`u16_at`].
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
/// See [`u16_at`].
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A program header, as far as it matters here (ELF-64 specification, figure 6).
#[derive(Clone, Debug)]
pub struct Program {
    /// [`PT_LOAD`], [`PT_NOTE`], …
    pub kind: u32,
    executable: bool,
    /// Bytes of the file.
    pub file: Range<u64>,
    memory: Range<u64>,
    /// Where it is loaded while paging is off.
    pub physical: Range<u64>,
}

fn programs(elf: &[u8]) -> Option<Vec<Program>> {
    let start = usize::try_from(u64_at(elf, 32)?).ok()?;
    let size = usize::from(u16_at(elf, 54)?);
    let count = usize::from(u16_at(elf, 56)?);
    if size != 56 || !start.is_multiple_of(8) {
        return None;
    }
    (0..count)
        .map(|i| {
            let at = start.checked_add(i.checked_mul(size)?)?;
            let (offset, address, physical) = (u64_at(elf, at + 8)?, u64_at(elf, at + 16)?, u64_at(elf, at + 24)?);
            let (file_len, mem_len) = (u64_at(elf, at + 32)?, u64_at(elf, at + 40)?);
            u64_at(elf, at + 48)?;
            Some(Program {
                kind: u32_at(elf, at)?,
                executable: u32_at(elf, at + 4)? & 1 == 1,
                file: offset..offset.checked_add(file_len)?,
                memory: address..address.checked_add(mem_len)?,
                physical: physical..physical.checked_add(mem_len)?,
            })
        })
        .collect()
}

/// Names of the shared libraries an executable or library needs (DT_NEEDED).
///
/// # Errors
/// It is no such file, or damaged.
pub fn needed(elf: &[u8]) -> Result<Vec<String>> {
    const DT_NEEDED: u64 = 1;
    const DT_STRTAB: u64 = 5;
    let programs = programs_of(elf)?;
    let Some(dynamic) = programs.iter().find(|p| p.kind == PT_DYNAMIC) else { return Ok(Vec::new()) };
    let table = elf.get(dynamic.file.start as usize..dynamic.file.end as usize).unwrap_or_default();
    let entries: Vec<(u64, u64)> =
        table.chunks_exact(16).filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?))).collect();
    let names = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).and_then(|&(_, address)| {
        let holder = programs.iter().find(|p| p.kind == PT_LOAD && p.memory.contains(&address))?;
        elf.get(usize::try_from(holder.file.start.checked_add(address - holder.memory.start)?).ok()?..)
    });
    let name = |offset: u64| {
        let text = names?.get(usize::try_from(offset).ok()?..)?.split(|&b| b == 0).next()?;
        Some(std::str::from_utf8(text).ok()?.to_string())
    };
    let wanted = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED);
    wanted.map(|&(_, offset)| name(offset).ok_or_else(|| anyhow!("its dynamic section is damaged"))).collect()
}

/// The program headers of an executable for our processor.
///
/// # Errors
/// It is something else, or truncated.
pub fn programs_of(elf: &[u8]) -> Result<Vec<Program>> {
    ensure!(elf.len() >= 64, "it has {} bytes, less than an ELF header", elf.len());
    ensure!(elf.starts_with(b"\x7fELF"), "it is no ELF file");
    ensure!(elf.get(4..6) == Some(&[2, 1]), "it is no 64-bit little-endian ELF file");
    ensure!(u16_at(elf, 18) == Some(62), "it is built for another machine than x86-64");
    programs(elf).ok_or_else(|| anyhow!("it is truncated or damaged: program headers outside of it"))
}

fn check(elf: &[u8]) -> Result<Vec<Program>> {
    let programs = programs_of(elf)?;
    ensure!(u16_at(elf, 16) == Some(3), "it is no static PIE (ELF type DYN); build it for x86_64-unknown-none");
    let len = elf.len() as u64;
    let sections = u64_at(elf, 40).zip(u16_at(elf, 60));
    let sections_end = sections.and_then(|(start, count)| start.checked_add(u64::from(count) * 64));
    ensure!(sections_end.is_some_and(|end| end <= len), "it is truncated or damaged: section headers outside of it");
    let mut end = 0;
    for (i, program) in programs.iter().enumerate() {
        ensure!(program.file.end <= len, "it is truncated: segment {i} ends at byte {} of {len}", program.file.end);
        if program.kind == PT_LOAD {
            ensure!(
                program.memory.start >= end && program.memory.end < 1 << 30,
                "segment {i} is out of order or too large"
            );
            ensure!(
                program.file.end - program.file.start <= program.memory.end - program.memory.start,
                "segment {i} is longer in the file than in memory"
            );
            end = program.memory.end;
        }
    }
    let first = programs.iter().find(|p| p.kind == PT_LOAD).ok_or_else(|| anyhow!("it has nothing to load"))?;
    ensure!(first.memory.start == 0, "its first segment is not at address 0");
    ensure!(programs.iter().any(|p| p.kind == PT_DYNAMIC), "it has no dynamic section, so it cannot be relocated");
    ensure!(
        programs.iter().any(|p| p.kind == PT_NOTE),
        "it has no notes; link it with libxenrt, which carries the entry versions"
    );
    Ok(programs)
}

/// Checks, loads and relocates an image.
///
/// # Errors
/// What is wrong with the file.
pub fn flatten(file: &[u8]) -> Result<Flat> {
    let programs = check(file)?;
    // The loader casts the bytes to structures of 8-byte alignment, which a byte vector does not promise.
    let mut words = vec![0u64; file.len().div_ceil(8)];
    let (elf, _) = words.as_mut_bytes().split_at_mut(file.len());
    elf.copy_from_slice(file);
    let loaded = quietly(|| load(elf))?;
    let text_len =
        programs.iter().filter(|p| p.kind == PT_LOAD && p.executable).map(|p| p.memory.end - p.memory.start).sum();
    Ok(Flat { text_len, ..loaded? })
}

fn load(elf: &[u8]) -> Result<Flat> {
    let object = KernelObject::parse(elf).map_err(|error| anyhow!("{error}"))?;
    let mut memory = vec![MaybeUninit::new(0u8); object.mem_size()];
    let loaded = object.load_kernel(&mut memory, LOAD_ADDRESS);
    let mem_len = memory.len() as u64;
    // SAFETY: every byte was initialised with 0 above; the loader only overwrites bytes by initialised ones.
    let mut bytes: Vec<u8> = memory.into_iter().map(|byte| unsafe { byte.assume_init() }).collect();
    let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    let end = LOAD_ADDRESS + mem_len;
    if !(LOAD_ADDRESS..end).contains(&loaded.entry_point) {
        bail!("its entry point {:#x} lies outside of it", loaded.entry_point);
    }
    let tls = loaded.load_info.tls_info.map_or([0; 4], |t| [t.start, t.filesz, t.memsz, t.align]);
    Ok(Flat { bytes: bytes.into(), mem_len, entry: loaded.entry_point, tls, text_len: 0 })
}

/// Runs `work` so that a panic becomes an error with its message, printed nowhere.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T> {
    use std::panic;
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let result = panic::catch_unwind(panic::AssertUnwindSafe(work));
    panic::set_hook(hook);
    result.map_err(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        anyhow!("it is damaged; the loader says: {text}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A static PIE with one segment, a dynamic section with one relative relocation and Hermit's note.
    fn sample() -> Vec<u8> {
        let mut elf = vec![0u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01\xff");
        put(16, &3u16.to_le_bytes());
        put(18, &62u16.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(24, &0x200u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(40, &0u64.to_le_bytes());
        put(52, &64u16.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &3u16.to_le_bytes());
        put(58, &64u16.to_le_bytes());
        let header = |kind: u32, offset: u64, len: u64, mem: u64, align: u64| {
            let mut h = Vec::new();
            h.extend(kind.to_le_bytes());
            h.extend(5u32.to_le_bytes());
            for word in [offset, offset, offset, len, mem, align] {
                h.extend(word.to_le_bytes());
            }
            h
        };
        put(64, &header(PT_LOAD, 0, 0x400, 0x1000, 0x1000));
        put(120, &header(PT_DYNAMIC, 0x300, 0x40, 0x40, 8));
        put(176, &header(PT_NOTE, 0x380, 24, 24, 4));
        // One relocation at 0x240: the qword at 0x208 becomes load address + 0x123.
        put(0x240, &0x208u64.to_le_bytes());
        put(0x248, &8u64.to_le_bytes());
        put(0x250, &0x123u64.to_le_bytes());
        for (i, (tag, value)) in [(7u64, 0x240u64), (8, 24), (9, 24), (0, 0)].into_iter().enumerate() {
            put(0x300 + i * 16, &tag.to_le_bytes());
            put(0x308 + i * 16, &value.to_le_bytes());
        }
        put(0x380, &7u32.to_le_bytes());
        put(0x384, &1u32.to_le_bytes());
        put(0x388, &0x5a00u32.to_le_bytes());
        put(0x38c, b"HERMIT\0\0");
        put(0x394, &[4]);
        elf
    }

    #[test]
    fn an_image_is_loaded_and_relocated() {
        let flat = flatten(&sample()).unwrap();
        assert_eq!(flat.entry, LOAD_ADDRESS + 0x200);
        assert_eq!(flat.mem_len, 0x1000);
        assert_eq!(flat.text_len, 0x1000);
        assert_eq!(u64_at(&flat.bytes, 0x208), Some(LOAD_ADDRESS + 0x123));
        assert_eq!(flat.bytes.len(), 0x395, "zeros at the end are left out");
    }

    #[test]
    fn every_truncation_is_an_error_and_never_a_panic() {
        let elf = sample();
        for len in 0..elf.len() {
            assert!(flatten(&elf[..len]).is_err(), "{len} bytes were taken");
        }
    }

    #[test]
    fn every_damaged_byte_gives_an_answer() {
        let elf = sample();
        let mut refused = 0;
        for at in 0..elf.len() {
            let mut bad = elf.clone();
            bad[at] ^= 0xff;
            refused += usize::from(flatten(&bad).is_err());
        }
        assert!(refused > 60, "only {refused} of the damaged files were refused");
    }

    #[test]
    fn what_is_no_image_is_told() {
        assert!(flatten(b"#!/bin/sh").unwrap_err().to_string().contains("less than an ELF header"));
        assert!(flatten(&[0; 100]).unwrap_err().to_string().contains("no ELF file"));
        let mut other = sample();
        other[18] = 183;
        assert!(flatten(&other).unwrap_err().to_string().contains("x86-64"));
        let mut fixed = sample();
        fixed[16] = 2;
        assert!(flatten(&fixed).unwrap_err().to_string().contains("static PIE"));
        let mut version = sample();
        version[0x394] = 9;
        assert!(flatten(&version).unwrap_err().to_string().contains("entry version"));
    }
}
