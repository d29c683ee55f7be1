//! The initramfs of xtask's own guests: busybox, iperf3, fio, e2fsprogs, the modules of Xen's frontends and, for comparison on
//! the bare machine, of the same hardware's drivers.

use super::cpio::Archive;
use super::packages::{self, Kernel};
use crate::{once, paths, progress};
use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use std::io::Write;
use std::path::PathBuf;

/// The first process.
const INIT: &[u8] = include_bytes!("init.sh");
const UDHCPC: &[u8] = include_bytes!("udhcpc.sh");
/// For the interactive shell.
const PROFILE: &[u8] = b"export PATH=/sbin:/usr/sbin:/usr/bin:/bin HOME=/root TERM=linux\ncd\nPS1='\\h# '\n";

/// The list of the bare machine.
const BARE: &str = "bare";
/// What runs on Xenolith, and on the bare machine; file systems for both.
const LISTS: [(&str, &[&str]); 2] = [
    ("xen", &["xen-netfront", "xen-blkfront", "crc32c_generic", "ext4"]),
    (BARE, &["e1000", "ahci", "sd_mod", "crc32c_generic", "ext4"]),
];
/// Programs beside busybox: package and path.
const PROGRAMS: [(&str, &str); 4] =
    [("iperf3", "usr/bin/iperf3"), ("fio", "usr/bin/fio"), ("e2fsprogs", "sbin/mke2fs"), ("e2fsprogs", "sbin/e2fsck")];
/// Other names of theirs.
const NAMES: [(&str, &str); 2] = [("sbin/mkfs.ext4", "mke2fs"), ("sbin/fsck.ext4", "e2fsck")];
/// What they need only for what no guest of ours asks of them, by the beginning of a library's name: fio's engines of storage on
/// networks and of persistent memory, which alone draw in 100 MB; iperf3's authentication and SCTP.
const UNUSED: [&str; 19] = [
    "libcrypto",
    "libssl",
    "libsctp",
    "libgfapi",
    "libnbd",
    "libibverbs",
    "librdmacm",
    "librados",
    "librbd",
    "libpmem",
    "libnfs",
    "libiscsi",
    "libisal",
    "libcurl",
    "libdaxctl",
    "libhdfs",
    "libzbc",
    "libxnvme",
    "libblkio",
];
/// Where programs look for the loader of shared libraries.
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Makes it for a kernel, unless it is there; returns its file.
///
/// # Errors
/// A package cannot be had, or lacks what is expected of it.
pub fn make(kernel: &Kernel) -> Result<PathBuf> {
    // Named by all it is made of, so that it is made once; the packages beside it stay as they are.
    let recipe =
        format!("{INIT:?}{UDHCPC:?}{PROFILE:?}{LISTS:?}{PROGRAMS:?}{NAMES:?}{UNUSED:?}{}", kernel.image.display());
    let name = format!("initramfs-{:08x}.gz", crc32fast::hash(recipe.as_bytes()));
    let path = paths::output().join("debian").join(name);
    once::made(&path, |part| {
        let bytes = compose(kernel)?;
        std::fs::write(part, bytes).with_context(|| format!("cannot write {}", part.display()))
    })?;
    Ok(path)
}

/// Its bytes.
fn compose(kernel: &Kernel) -> Result<Vec<u8>> {
    let steps = progress::steps("initramfs", 3);
    steps.say("programs");
    let mut archive = Archive::default();
    archive.program("init", INIT);
    archive.file("etc/profile", PROFILE);
    archive.program("etc/udhcpc.sh", UDHCPC);
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", b"root:x:0:\n");
    archive.folder("dev");
    archive.program("bin/busybox", &read(&packages::file("busybox-static", "bin/busybox")?)?);
    for (path, bytes) in packages::programs(&PROGRAMS, unused)? {
        archive.program(&path, &bytes);
    }
    for (path, target) in NAMES {
        archive.link(path, target);
    }
    archive.file("etc/mke2fs.conf", &read(&packages::file("e2fsprogs", "etc/mke2fs.conf")?)?);
    archive.link("lib64", LIBRARIES);
    archive.program(&format!("{LIBRARIES}/{LOADER}"), &read(&loader()?)?);
    steps.next("modules");
    let index = kernel.index()?;
    let mut there = std::collections::BTreeSet::new();
    for (list, wanted) in LISTS {
        // A flavour for virtual machines has no drivers of the hardware, and need not be compared with it.
        let wanted: Vec<&str> = wanted.iter().copied().filter(|name| list != BARE || index.has(name)).collect();
        let modules = index.closure(&wanted)?;
        let names: String = modules.iter().map(|m| format!("{}\n", m.name)).collect();
        archive.file(&format!("etc/modules.{list}"), names.as_bytes());
        for module in modules {
            if there.insert(module.name.clone()) {
                archive.file(&format!("lib/modules/{}.ko", module.name), &module.bytes);
            }
        }
    }
    steps.next("compressing");
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    gzip.write_all(&archive.finish())?;
    let bytes = gzip.finish()?;
    steps.done();
    Ok(bytes)
}

fn unused(name: &str) -> bool {
    UNUSED.iter().any(|beginning| name.starts_with(beginning))
}

fn loader() -> Result<PathBuf> {
    let root = packages::unpack("libc6")?;
    [LIBRARIES, "lib/x86_64-linux-gnu", "lib64", "usr/lib64"]
        .iter()
        .map(|folder| root.join(folder).join(LOADER))
        .find_map(|path| path.canonicalize().ok())
        .with_context(|| format!("package libc6 has no {LOADER}"))
}

/// A program of a package that can be run on the host, which need not have it: `loader --library-path libraries file`.
pub struct OnHost {
    /// The loader of shared libraries.
    pub loader: PathBuf,
    /// Their folder.
    pub libraries: PathBuf,
    /// The program.
    pub file: PathBuf,
}

/// Puts a program with its libraries into a folder of its own.
///
/// # Errors
/// A package cannot be had; the folder cannot be written.
pub fn on_host(package: &str, path: &str) -> Result<OnHost> {
    use std::os::unix::fs::PermissionsExt;
    let folder = paths::output().join("debian").join(format!("{package}.host"));
    let name = |path: &str| folder.join(path.rsplit('/').next().unwrap_or(path));
    let program = OnHost { loader: name(LOADER), libraries: folder.clone(), file: name(path) };
    once::made(&folder, |part| {
        std::fs::create_dir(part).with_context(|| format!("cannot create {}", part.display()))?;
        let mut files = packages::programs(&[(package, path)], unused)?;
        files.insert(LOADER.to_string(), read(&loader()?)?);
        for (path, bytes) in files {
            let file = part.join(path.rsplit('/').next().unwrap_or(&path));
            std::fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })?;
    Ok(program)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
