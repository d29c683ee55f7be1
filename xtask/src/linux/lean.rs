//! Takes libraries away from a program that needs them only for what it is not asked to do: fio's engines for storage on a
//! network alone draw in 100 MB.
//!
//! The loader refuses a program whose libraries or symbols are missing. So their names go from the list of what is needed and
//! from the table of versions, and symbols that are to be found elsewhere become weak: one that is found works as before, one
//! that is not is null, and only who calls it would notice (System V ABI, "Dynamic Linking"; `gABI` figures of `.dynamic`,
//! `.dynsym`; LSB, "Symbol Versioning").

use super::modules::section_range;
use crate::image::elf::{u16_at, u32_at, u64_at};

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;
/// Bindings of a symbol, the upper half of its `st_info`.
const STB_GLOBAL: u8 = 1;
const STB_WEAK: u8 = 2;
/// The version of a symbol that has none.
const VER_NDX_GLOBAL: u16 = 1;

/// Takes away the libraries that `unused` tells by name. None if the file is damaged; one without such libraries is left as it is.
pub fn lean(mut elf: Vec<u8>, unused: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let Some(dynamic) = section_range(&elf, ".dynamic") else { return Some(elf) };
    let strings = section_range(&elf, ".dynstr")?;
    let text = elf.get(strings)?.to_vec();
    let is_unused = |offset: u64| {
        let name = text.get(usize::try_from(offset).ok()?..)?.split(|&b| b == 0).next()?;
        Some(unused(std::str::from_utf8(name).ok()?))
    };
    let mut entries = Vec::new();
    for at in dynamic.clone().step_by(16) {
        entries.push((u64_at(&elf, at)?, u64_at(&elf, at + 8)?));
    }
    let all = entries.len();
    let mut failed = false;
    entries.retain(|&(tag, value)| {
        tag != DT_NEEDED || !is_unused(value).unwrap_or_else(|| !std::mem::replace(&mut failed, true))
    });
    if failed {
        return None;
    }
    if entries.len() == all {
        return Some(elf);
    }
    if let Some(versions) = section_range(&elf, ".gnu.version_r") {
        let kept = drop_versions(&mut elf, versions.start, |name| is_unused(u64::from(name)))?;
        for entry in &mut entries {
            match entry.0 {
                DT_VERNEED => entry.1 += kept.skipped,
                DT_VERNEEDNUM => entry.1 = kept.count,
                _ => {}
            }
        }
    }
    entries.resize(all, (DT_NULL, 0));
    for (at, (tag, value)) in dynamic.step_by(16).zip(entries) {
        put(&mut elf, at, &tag.to_le_bytes())?;
        put(&mut elf, at + 8, &value.to_le_bytes())?;
    }
    for at in section_range(&elf, ".dynsym")?.step_by(24) {
        let info = *elf.get(at + 4)?;
        if u16_at(&elf, at + 6)? == 0 && info >> 4 == STB_GLOBAL {
            put(&mut elf, at + 4, &[STB_WEAK << 4 | info & 15])?;
        }
    }
    Some(elf)
}

/// What is left of the table of versions.
struct Kept {
    /// Libraries.
    count: u64,
    /// Bytes before the first.
    skipped: u64,
}

/// Unlinks libraries from the table of versions that stands at `start`, and takes the version from the symbols that had one of
/// theirs: the loader would look it up behind the end of its table.
fn drop_versions(elf: &mut [u8], start: usize, unused: impl Fn(u32) -> Option<bool>) -> Option<Kept> {
    let (mut at, mut kept, mut gone) = (start, Vec::new(), Vec::new());
    loop {
        let next = u32_at(elf, at + 12)? as usize;
        if unused(u32_at(elf, at + 4)?)? {
            let mut version = at + u32_at(elf, at + 8)? as usize;
            for _ in 0..u16_at(elf, at + 2)? {
                gone.push(u16_at(elf, version + 6)?);
                version += u32_at(elf, version + 12)? as usize;
            }
        } else {
            kept.push(at);
        }
        if next == 0 {
            break;
        }
        at = at.checked_add(next)?;
    }
    for (i, &at) in kept.iter().enumerate() {
        let next = kept.get(i + 1).map_or(0, |next| next - at);
        put(elf, at + 12, &u32::try_from(next).ok()?.to_le_bytes())?;
    }
    for at in section_range(elf, ".gnu.version")?.step_by(2) {
        if gone.contains(&(u16_at(elf, at)? & 0x7fff)) {
            put(elf, at, &VER_NDX_GLOBAL.to_le_bytes())?;
        }
    }
    let skipped = kept.first().map_or(0, |first| first - start);
    Some(Kept { count: kept.len() as u64, skipped: skipped as u64 })
}

fn put(elf: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    elf.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::elf;
    use std::process::Command;

    /// The host's own programs: one with a library of versions besides the C library's.
    #[test]
    fn a_program_runs_without_a_library_it_does_not_use() {
        let path = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let all = elf::needed(&bytes).unwrap();
        assert!(all.iter().any(|name| name.starts_with("libgcc_s")), "{all:?}");
        assert_eq!(lean(bytes.clone(), |_| false).unwrap(), bytes, "nothing to do changes nothing");
        // Our own test program calls libgcc_s only to unwind.
        let less = lean(bytes, |name| name.starts_with("libgcc_s")).unwrap();
        let rest = elf::needed(&less).unwrap();
        assert_eq!(rest.len() + 1, all.len(), "{rest:?}");
        let [written, place] = ["written", "program"]
            .map(|name| std::env::temp_dir().join(format!("xenolith-lean-{}-{name}", std::process::id())));
        std::fs::copy(&path, &written).unwrap();
        std::fs::write(&written, less).unwrap();
        // By another process: what another test starts meanwhile may still hold our file open for writing ("text file busy").
        assert!(Command::new("cp").args([&written, &place]).status().unwrap().success());
        let done = Command::new(&place).args(["--list", "--exact", "no such test"]).output().unwrap();
        [written, place].iter().for_each(|file| std::fs::remove_file(file).unwrap());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    #[test]
    fn a_damaged_program_is_told() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut damaged = bytes;
        let strings = section_range(&damaged, ".dynstr").unwrap();
        let dynamic = section_range(&damaged, ".dynamic").unwrap();
        let far = (strings.len() as u64 + 1).to_le_bytes();
        for at in dynamic.step_by(16) {
            if u64_at(&damaged, at) == Some(DT_NEEDED) {
                put(&mut damaged, at + 8, &far).unwrap();
            }
        }
        assert!(lean(damaged, |_| true).is_none());
    }
}
