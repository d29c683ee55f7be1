//! Drives on the host: each `[[machine.disk]]` becomes an open, locked, checked image before anything is started, and those that
//! QEMU shall not serve itself are served by xtask ([`nbd`]): with a volatile cache that loses what no flush covered
//! ([`cache`]), and with commands that are slow or fail by rule ([`rules`]).
//!
//! A drive outlives the machine it hangs on, so that one can be booted again from it, and its image read.
mod cache;
mod gpt;
mod nbd;
mod rules;

pub use nbd::Server;

use crate::manifest::{System, disk, vbd};
use crate::{linux, machine};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sector vbds are counted in, whatever the drive's.
const SECTOR: u64 = 512;

/// A drive.
pub struct Drive {
    /// Its image.
    pub path: PathBuf,
    /// The image, open and locked as long as this lives.
    pub file: Arc<File>,
    /// Bytes.
    pub len: u64,
    /// Where xtask serves it.
    pub server: Option<Server>,
}

/// All drives of a system, in the order of the manifest.
#[derive(Default)]
pub struct Drives {
    drives: Vec<Drive>,
    /// Files of the run: removed at its end.
    folder: Option<machine::Folder>,
}

impl Drives {
    /// Opens or makes every image, locks it, finds the vbds' partitions in it, and begins to serve what xtask serves.
    ///
    /// # Errors
    /// The first image that is missing, in use or unfit, and the first vbd that does not fit its image.
    pub fn open(system: &System) -> Result<Self> {
        let disks = &system.machine.disks;
        let mut this = Self { drives: Vec::new(), folder: None };
        if disks.is_empty() {
            return Ok(this);
        }
        let folder = this.folder.insert(machine::folder("drives")?).to_path_buf();
        for (number, disk) in disks.iter().enumerate() {
            let drive = open(system, disk, number, &folder).with_context(|| disk.label(number))?;
            this.drives.push(drive);
        }
        for (domain, vbd) in system.vbds() {
            this.place(system, vbd).with_context(|| format!("domain `{domain}`: vbd {}", vbd.name.text))?;
        }
        disk::overlaps(system, |vbd, _| this.place(system, vbd).ok())?;
        for (number, disk) in disks.iter().enumerate().filter(|(_, disk)| disk.served()) {
            let Some(drive) = this.drives.get_mut(number) else { continue };
            let socket = folder.join(format!("drive{number}.nbd"));
            drive.server = Some(Server::start(&socket, Arc::clone(&drive.file), drive.len, disk)?);
        }
        Ok(this)
    }

    /// A drive.
    pub fn get(&self, number: usize) -> Option<&Drive> {
        self.drives.get(number)
    }

    /// The part of its drive that a vbd has, in sectors of 512 bytes whatever the drive's are, as in xenstore.
    ///
    /// # Errors
    /// No such partition; a range outside of the drive, or not of whole sectors of it.
    pub fn place(&self, system: &System, vbd: &vbd::Vbd) -> Result<std::ops::Range<u64>> {
        let number = system.disk_of(vbd).context("there is no such drive")?;
        let (Some(disk), Some(drive)) = (system.machine.disks.get(number), self.drives.get(number)) else {
            bail!("there is no such drive");
        };
        let (all, ratio) = (drive.len / SECTOR, u64::from(disk.sector_size) / SECTOR);
        let range = match (&vbd.partition, vbd.range()) {
            (Some(key), _) => {
                let blocks = gpt::find(disk, &drive.file, key).with_context(|| disk.label(number))?;
                blocks.start * ratio..blocks.end * ratio
            }
            (None, Some(range)) if range.end != u64::MAX => range,
            _ => 0..all,
        };
        ensure!(
            range.end <= all,
            "{} has {all} sectors of 512 bytes, but sectors {} to {} are wanted",
            disk.label(number),
            range.start,
            range.end - 1
        );
        ensure!(
            range.start.is_multiple_of(ratio) && range.end.is_multiple_of(ratio),
            "{} has sectors of {} bytes, so `first` and `sectors` of {} have to be multiples of {ratio} (they count 512 bytes)",
            disk.label(number),
            disk.sector_size,
            vbd.name.text
        );
        Ok(range)
    }

    /// What QEMU has to be told of a drive: a node of its block layer.
    pub fn node(&self, number: usize, disk: &disk::Disk) -> serde_json::Value {
        let drive = self.drives.get(number);
        let protocol = match drive.and_then(|d| d.server.as_ref()) {
            Some(server) => serde_json::json!({
                "driver": "nbd", "export": "", "server": { "type": "unix", "path": server.socket() },
            }),
            None => serde_json::json!({
                "driver": "file", "filename": drive.map_or(Path::new(""), |d| &d.path),
                "cache": { "direct": disk.cache == disk::Cache::None, "no-flush": disk.cache == disk::Cache::Unsafe },
                "discard": "unmap",
            }),
        };
        let name = format!("drive{number}");
        let raw =
            serde_json::json!({ "driver": "raw", "read-only": disk.read_only, "discard": "unmap", "file": protocol });
        if disk.blkdebug.is_empty() {
            let mut raw = raw;
            raw["node-name"] = name.into();
            return raw;
        }
        let rules: Vec<_> = disk.blkdebug.iter().map(rules::blkdebug).collect();
        serde_json::json!({ "driver": "blkdebug", "node-name": name, "image": raw, "inject-error": rules, "discard": "unmap" })
    }
}

impl Drop for Drives {
    fn drop(&mut self) {
        for drive in &self.drives {
            if let Some(server) = &drive.server {
                server.stop();
            }
            // Threads of the server may hold the file a little longer.
            let _ = flock(&*drive.file, FlockOperation::Unlock);
        }
    }
}

fn open(system: &System, disk: &disk::Disk, number: usize, folder: &Path) -> Result<Drive> {
    let made = disk.size.map(|size| (folder.join(format!("drive{number}.img")), size.0));
    let (path, file) = match (&made, &disk.image) {
        (None, None) if disk.content == Some(disk::Content::Debian) => {
            let path = folder.join(format!("drive{number}.img"));
            linux::root::copy(&linux::root::make()?, &path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            (path, file)
        }
        (Some((path, len)), _) => {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
            let file = file.with_context(|| format!("cannot create {}", path.display()))?;
            file.set_len(*len).with_context(|| format!("cannot make {} {len} bytes long", path.display()))?;
            (path.clone(), file)
        }
        (None, Some(path)) => (path.clone(), existing(system, disk, number, path)?),
        (None, None) => bail!("it has neither an image nor a size nor a content"),
    };
    raw(&file).with_context(|| path.display().to_string())?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow!("{} is in use by another run (or stands in this system twice); end that one first", path.display())
    })?;
    let len = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
    ensure!(
        len > 0 && len.is_multiple_of(u64::from(disk.sector_size)),
        "{} has {len} bytes, which is not a number of sectors of {} bytes",
        path.display(),
        disk.sector_size
    );
    if !disk.partitions.is_empty() {
        gpt::lay(disk, &file, len)?;
    }
    Ok(Drive { path, file: Arc::new(file), len, server: None })
}

/// Refuses what is another format's file: its bytes are not the disk's.
fn raw(file: &File) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 8];
    let len = file.read_at(&mut magic, 0).context("cannot be read")?;
    let formats: [(&[u8], &str); 5] =
        [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vpc"), (b"QED\0", "qed")];
    if let Some((_, name)) = formats.iter().find(|(start, _)| magic[..len].starts_with(start)) {
        bail!("it is a {name} image, and a raw one is needed: qemu-img convert -O raw FILE FILE.raw");
    }
    Ok(())
}

/// What to do about an image that may not be written.
const fn remedy(disk: &disk::Disk) -> &'static str {
    match disk.model {
        disk::Model::Virtio => "give the disk read-only = true or mend its rights",
        disk::Model::Ahci => {
            "an AHCI drive has to be writable although a guest only reads: mend its rights (chmod u+w) or copy it"
        }
    }
}

/// Opens an image that has to be there, for writing if any vbd may write.
fn existing(system: &System, disk: &disk::Disk, number: usize, path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!(
            "{} does not exist; make it (truncate -s 1G {0}) or give the disk a `size` instead of an `image`",
            path.display()
        ),
        _ => anyhow!("cannot look at {}: {error}", path.display()),
    })?;
    ensure!(kind.is_file(), "{} is no regular file", path.display());
    let file = OpenOptions::new().read(true).write(!disk.read_only).open(path).map_err(|error| {
        let writers: Vec<&str> = system
            .vbds()
            .filter(|(_, v)| v.mode == vbd::Mode::Write && system.disk_of(v) == Some(number))
            .map(|(name, _)| name)
            .collect();
        let for_whom =
            if writers.is_empty() { String::new() } else { format!(", which {} writes", writers.join(", ")) };
        anyhow!("cannot open {}{for_whom}: {error}; {}", path.display(), remedy(disk))
    })?;
    // QEMU opens it again by itself and says so less well.
    if !disk.read_only {
        ensure!(!kind.permissions().readonly(), "{} is not writable; {}", path.display(), remedy(disk));
    }
    Ok(file)
}
