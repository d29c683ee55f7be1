//! Writes a cpio archive in the "newc" form, which Linux unpacks as its first root file system
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`). The same files give the same bytes.

/// Kinds in a record's mode.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    records: u32,
    folders: std::collections::BTreeSet<String>,
}

impl Archive {
    fn record(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.records += 1;
        let links = if mode & !0o777 == FOLDER { 2 } else { 1 };
        let numbers = [self.records, mode, 0, 0, links, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(numbers.iter().flat_map(|n| format!("{n:08X}").into_bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A folder, and those above it.
    pub fn folder(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        if self.folders.insert(path.to_string()) {
            self.record(path, FOLDER | 0o755, b"");
        }
    }

    fn above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
    }

    /// A file that may be executed.
    pub fn program(&mut self, path: &str, data: &[u8]) {
        self.above(path);
        self.record(path, FILE | 0o755, data);
    }

    /// A file.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        self.above(path);
        self.record(path, FILE | 0o644, data);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        self.record(path, LINK | 0o777, target.as_bytes());
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.program("bin/init", b"#!x");
        archive.link("bin/sh", "init");
        let bytes = archive.finish();
        crate::image::kernel::initrd::check(&bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).replace('\0', ".");
        // Magic, inode, mode, user, group, links, time, length, device (2), its device (2), length of the name, checksum.
        assert_eq!(&text[..6 + 8 + 8], "07070100000001000041ED");
        let init = text.find("bin/init").unwrap() - 110;
        assert_eq!(&text[init + 6..init + 22], "00000002000081ED");
        assert_eq!(&text[init + 54..init + 62], "00000003", "length");
        assert_eq!(&text[init + 110..init + 110 + 14], "bin/init..#!x.");
        assert!(text.contains("bin/sh....init"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
