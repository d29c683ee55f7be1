//! A Debian root file system for a guest's disk (`content = "debian"`), made without root's rights and without any tool of
//! the host but apt and dpkg.
//!
//! An ordinary user can neither give files to root nor run packages' scripts in a root file system, and a container may not let
//! root do it; on a machine of its own anybody can. So the host only fetches the packages (apt chooses them as it would for an empty
//! system) and strings their files together in one tar archive, with dpkg's database in which they are unpacked ([`super::dpkg`]); the
//! kernel and initramfs of xtask's guests, alone in the emulator, make the file system, unpack the archive and let dpkg configure
//! (`root.sh`), as debootstrap's second stage does.
//! The image is kept; each run has a copy.

use super::dpkg::Database;
use super::packages;
use crate::drive::Drives;
use crate::machine::bare_linux::BareLinux;
use crate::manifest::disk::{Cache, Disk};
use crate::manifest::{Bdf, System};
use crate::units::Size;
use crate::{once, paths, progress, setup};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What apt is asked for; the rest follows.
const PACKAGES: [&str; 9] =
    ["?essential", "apt", "e2fsprogs", "ifupdown", "iproute2", "login", "sysvinit-core", "udhcpc", "usr-is-merged"];
/// Its second stage.
const SCRIPT: &str = include_str!("root.sh");
/// Folders that are links to those of the same name in `/usr`, before any package comes.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Bytes of the image, most of them holes.
pub const SIZE: Size = Size(2_097_152 << 9);
/// Longest waits: for the prompt, for one of the steps.
const BOOT: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(1200);

/// The machine it is made on. The disks are added.
const MACHINE: &str = r#"
[machine]
memory = "640MiB"
cpus = 2
[[domain]]
name = "control"
image = "control"
role = "control"
memory = "4MiB"
[[domain]]
name = "root"
role = "guest"
memory = "512MiB"
vcpus = 2
linux = { kernel = "debian", initrd = "debian" }
command-line = "console=hvc0 hostname=root quiet"
"#;
/// Where they hang.
const DISKS: Bdf = Bdf(4 << 3);
/// The steps there, and what people are told meanwhile.
const STEPS: [(&str, &str); 4] = [
    // Linux looks at its drives side by side: which is sda is chance, so they are told from each other by their size, in sectors.
    (
        "making a file system",
        "cd /sys/block; for d in sd*; do if [ $(cat $d/size) = 2097152 ]; then ln -s $d /dev/image; else ln -s $d /dev/archive; fi; done; mkfs.ext4 -q -F /dev/image && mount /dev/image /mnt",
    ),
    ("unpacking", "tar -xf /dev/archive -C /mnt"),
    (
        "configuring (takes a minute)",
        "mount -o bind /dev /mnt/dev && mount -t proc proc /mnt/proc && chroot /mnt /bin/sh /root.sh",
    ),
    ("closing", "umount /mnt/proc /mnt/dev /mnt && e2fsck -fn /dev/image && sync"),
];

/// Makes it, unless it is there; returns the image, which is to be copied.
///
/// # Errors
/// No apt, no network, no QEMU; a package cannot be installed.
pub fn make() -> Result<PathBuf> {
    let folder = paths::output().join("debian");
    let recipe = format!("{PACKAGES:?}{SCRIPT}{MERGED:?}{MACHINE}{STEPS:?}{SIZE}");
    let image = folder.join(format!("root-{:08x}.img", crc32fast::hash(recipe.as_bytes())));
    if image.exists() {
        return Ok(image);
    }
    setup::ensure_all()?;
    once::made(&image, |part| install(part, &folder))?;
    Ok(image)
}

/// Makes the image `part`; all else in a folder of its own below `folder`.
fn install(part: &Path, folder: &Path) -> Result<()> {
    let work = Work(folder.join(".root"));
    let _ = std::fs::remove_dir_all(&work.0);
    std::fs::create_dir_all(&work.0)?;
    let steps = progress::steps("Debian root file system", STEPS.len() as u64 + 3);
    steps.say("fetching packages");
    let debs = packages::closure(&PACKAGES, &work.0)?;
    steps.next("stringing them together");
    let archive = work.0.join("archive");
    string(&debs, &archive).with_context(|| format!("cannot make {}", archive.display()))?;
    File::create(part)?.set_len(SIZE.0).with_context(|| format!("cannot make {}", part.display()))?;
    steps.next("booting a machine that configures them");
    let mut system = System::parse(MACHINE, "of the machine that installs a root file system")?;
    for path in [part, &archive] {
        // Nothing of it is worth keeping before it is whole.
        system.machine.disks.push(Disk { cache: Cache::Unsafe, ..Disk::of_image(DISKS, path.to_path_buf()) });
    }
    let drives = Drives::open(&system)?;
    let guest = system.domains.last().context("the machine has a domain")?;
    let mut machine = BareLinux::start(&system, guest, &drives)?;
    machine.wait_for("prompt", BOOT, |text| text.contains("root# ").then_some(()))?;
    for (what, command) in STEPS {
        steps.next(what);
        let done = machine.run(command, STEP)?;
        let end = done.output.lines().rev().take(15).collect::<Vec<_>>();
        let end = end.into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(done.code == 0, "{what} failed: `{command}` ended with code {}:\n{end}", done.code);
    }
    drop(machine);
    drop(drives);
    steps.done();
    Ok(())
}

/// A folder that goes when the work ends, well or not.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Copies an image, holes as holes.
///
/// # Errors
/// Of `cp`, with its words.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).args([from, to]).output();
    let done = done.context("cannot start cp")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// Writes one archive with the files of all packages, what dpkg knows of them, and the script.
fn string(debs: &[PathBuf], to: &Path) -> Result<()> {
    let mut out = tar::Builder::new(std::io::BufWriter::new(File::create(to)?));
    for name in MERGED {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        out.append_data(&mut header, format!("usr/{name}"), std::io::empty())?;
        out.append_link(&mut self::header(tar::EntryType::Symlink, 0o777, 0), name, format!("usr/{name}"))?;
    }
    let mut database = Database::default();
    for deb in debs {
        out.get_mut().write_all(&database.unpack(deb)?)?;
    }
    let script = ("root.sh".to_string(), SCRIPT.as_bytes().to_vec(), 0o755);
    for (path, content, mode) in database.files().into_iter().chain([script]) {
        let mut header = header(tar::EntryType::Regular, mode, content.len());
        out.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(out.into_inner()?.flush()?)
}

fn header(kind: tar::EntryType, mode: u32, len: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len as u64);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_known_by_its_size() {
        assert!(STEPS[0].1.contains(&format!(" = {} ]", SIZE.0 / 512)));
    }
}
