//! Kernel modules: which depend on which, as they say themselves, and in which order they are to be loaded.
//!
//! `modules.dep` is made by depmod when a kernel is installed, so an unpacked package has none.

use crate::image::elf::{u16_at, u32_at, u64_at};
use crate::image::kernel::payload;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// All modules of a kernel by name, with `_` for `-`.
#[derive(Clone, Debug, Default)]
pub struct Index {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

/// A module as `insmod` takes it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name.
    pub name: String,
    /// Plain ELF.
    pub bytes: Vec<u8>,
}

/// `kernel/drivers/net/xen-netfront.ko.xz` → `xen_netfront`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    Some(file.split_once(".ko")?.0.replace('-', "_"))
}

impl Index {
    /// Looks through a folder of modules.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut index = Self::default();
        let builtin = folder.join("modules.builtin");
        let text = std::fs::read_to_string(&builtin).with_context(|| format!("cannot read {}", builtin.display()))?;
        index.builtin = text.lines().filter_map(name_of).collect();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = path.to_str().and_then(name_of) {
                    index.files.insert(name, path);
                }
            }
        }
        Ok(index)
    }

    /// Whether there is such a module, or it is built in.
    pub fn has(&self, name: &str) -> bool {
        let name = name.replace('-', "_");
        self.builtin.contains(&name) || self.files.contains_key(&name)
    }

    /// Those named, and before each those it depends on; what is built into the kernel is left out.
    ///
    /// # Errors
    /// The kernel has no such module; it cannot be read.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut out: Vec<Module> = Vec::new();
        for name in wanted {
            self.add(&name.replace('-', "_"), &mut out)?;
        }
        Ok(out)
    }

    fn add(&self, name: &str, out: &mut Vec<Module>) -> Result<()> {
        if self.builtin.iter().any(|b| b == name) || out.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { bail!("the kernel has no module {name}") };
        let bytes = std::fs::read(path)
            .map_err(Into::into)
            .and_then(|bytes| payload::unpack(&bytes))
            .with_context(|| format!("module {}", path.display()))?;
        for need in depends(&bytes).with_context(|| format!("module {} is damaged", path.display()))? {
            self.add(&need, out)?;
        }
        out.push(Module { name: name.to_string(), bytes });
        Ok(())
    }
}

/// Names in `depends=` of a module's `.modinfo` section.
fn depends(elf: &[u8]) -> Option<Vec<String>> {
    let info = section(elf, ".modinfo")?;
    let line = info.split(|&b| b == 0).find_map(|line| line.strip_prefix(b"depends="))?;
    let names = std::str::from_utf8(line).ok()?.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

/// A section's bytes by its name.
fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    elf.get(section_range(elf, name)?)
}

/// Where a section's bytes stand in the file, by its name.
pub fn section_range(elf: &[u8], name: &str) -> Option<Range<usize>> {
    let table = usize::try_from(u64_at(elf, 40)?).ok()?;
    let (size, count) = (usize::from(u16_at(elf, 58)?), usize::from(u16_at(elf, 60)?));
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let range = |index: usize| {
        let at = header(index)?;
        let start = usize::try_from(u64_at(elf, at + 24)?).ok()?;
        Some(start..start.checked_add(usize::try_from(u64_at(elf, at + 32)?).ok()?)?)
    };
    let names = elf.get(range(usize::from(u16_at(elf, 62)?))?)?;
    (0..count).find_map(|index| {
        let at = usize::try_from(u32_at(elf, header(index)?)?).ok()?;
        let rest = names.get(at..)?.strip_prefix(name.as_bytes())?;
        rest.starts_with(&[0]).then(|| range(index))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF with a `.modinfo` section.
    fn module(info: &str) -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(64, 0);
        let (names, info_at) = (elf.len(), elf.len() + 20);
        elf.extend(b"\0.shstrtab\0.modinfo\0");
        elf.extend(info.bytes());
        let table = elf.len();
        for (name, at, len) in [(0u32, 0, 0), (1, names, 20), (11, info_at, info.len())] {
            elf.extend(name.to_le_bytes());
            elf.extend([0; 20]);
            elf.extend((at as u64).to_le_bytes());
            elf.extend((len as u64).to_le_bytes());
            elf.extend([0; 24]);
        }
        elf[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        for (at, value) in [(58, 64u16), (60, 3), (62, 1)] {
            elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        elf
    }

    #[test]
    fn modules_come_after_those_they_depend_on() {
        let folder = std::env::temp_dir().join(format!("xenolith-modules-{}", std::process::id()));
        let kernel = folder.join("kernel/net");
        std::fs::create_dir_all(&kernel).unwrap();
        std::fs::write(folder.join("modules.builtin"), "kernel/lib/crc16.ko\n").unwrap();
        for (name, needs) in [("top", "left,right-side"), ("left", "base"), ("right-side", "base,crc16"), ("base", "")]
        {
            let bytes = module(&format!("license=GPL\0depends={needs}\0name={name}\0"));
            std::fs::write(kernel.join(format!("{name}.ko")), bytes).unwrap();
        }
        let index = Index::read(&folder).unwrap();
        let names: Vec<String> =
            index.closure(&["top", "base", "crc16"]).unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["base", "left", "right_side", "top"]);
        assert!(index.closure(&["none"]).unwrap_err().to_string().contains("none"));
        std::fs::write(kernel.join("left.ko"), b"\x7fELF").unwrap();
        assert!(format!("{:#}", index.closure(&["top"]).unwrap_err()).contains("left.ko"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
