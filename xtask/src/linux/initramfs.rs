//! The initramfs of xtask's own guests: busybox, iperf3, the modules of Xen's frontends and, for comparison on the bare
//! machine, of the same hardware's drivers. fio is in a second, larger one: Debian's needs 100 MB of libraries.

use super::cpio::Archive;
use super::packages::{self, Kernel};
use crate::{paths, progress};
use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use std::io::Write;
use std::path::PathBuf;

/// The first process.
const INIT: &[u8] = include_bytes!("init.sh");
const UDHCPC: &[u8] = include_bytes!("udhcpc.sh");
/// For the interactive shell.
const PROFILE: &[u8] = b"export PATH=/bin:/usr/bin HOME=/root TERM=linux\ncd\nPS1='\\h# '\n";

/// What runs on Xenolith, and on the bare machine; file systems for both.
const LISTS: [(&str, &[&str]); 2] = [
    ("xen", &["xen-netfront", "xen-blkfront", "crc32c_generic", "ext4"]),
    ("bare", &["e1000", "ahci", "sd_mod", "crc32c_generic", "ext4"]),
];
/// Programs beside busybox: package and path.
const PROGRAMS: [(&str, &str); 3] =
    [("iperf3", "usr/bin/iperf3"), ("e2fsprogs", "sbin/mke2fs"), ("e2fsprogs", "sbin/e2fsck")];
/// One more, for tests of disks.
const FIO: (&str, &str) = ("fio", "usr/bin/fio");
/// Where programs look for the loader of shared libraries.
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Makes it for a kernel, unless it is there; returns its file.
///
/// # Errors
/// A package cannot be had, or lacks what is expected of it.
pub fn make(kernel: &Kernel, with_fio: bool) -> Result<PathBuf> {
    let steps = progress::steps("initramfs", 4);
    steps.say("programs");
    let mut archive = Archive::default();
    let busybox = packages::unpack("busybox-static")?.join("bin/busybox");
    archive.program("init", INIT);
    archive.file("etc/profile", PROFILE);
    archive.program("etc/udhcpc.sh", UDHCPC);
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", b"root:x:0:\n");
    archive.folder("dev");
    archive.program("bin/busybox", &read(&busybox)?);
    let programs: Vec<_> = PROGRAMS.into_iter().chain(with_fio.then_some(FIO)).collect();
    for (path, file) in packages::programs(&programs)? {
        archive.program(&path, &read(&file)?);
    }
    archive.link("lib64", LIBRARIES);
    let loader = packages::unpack("libc6")?;
    let loader = [LIBRARIES, "lib/x86_64-linux-gnu", "lib64", "usr/lib64"]
        .iter()
        .map(|folder| loader.join(folder).join(LOADER))
        .find_map(|path| path.canonicalize().ok())
        .with_context(|| format!("package libc6 has no {LOADER}"))?;
    archive.program(&format!("{LIBRARIES}/{LOADER}"), &read(&loader)?);
    steps.next("modules");
    let index = kernel.index()?;
    let mut there = std::collections::BTreeSet::new();
    for (list, wanted) in LISTS {
        let modules = index.closure(wanted)?;
        let names: String = modules.iter().map(|m| format!("{}\n", m.name)).collect();
        archive.file(&format!("etc/modules.{list}"), names.as_bytes());
        for module in modules {
            if there.insert(module.name.clone()) {
                archive.file(&format!("lib/modules/{}.ko", module.name), &module.bytes);
            }
        }
    }
    let plain = archive.finish();
    let path = paths::output().join("debian").join(format!("initramfs-{:08x}.gz", crc32fast::hash(&plain)));
    if !path.exists() {
        steps.next("compressing");
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
        gzip.write_all(&plain)?;
        let packed = gzip.finish()?;
        // Under its name only when it is whole.
        let part = path.with_extension("part");
        std::fs::write(&part, packed).with_context(|| format!("cannot write {}", part.display()))?;
        std::fs::rename(&part, &path)?;
    }
    steps.done();
    Ok(path)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
