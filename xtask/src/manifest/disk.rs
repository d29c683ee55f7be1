//! Drives of the machine (`[[machine.disk]]`), and the contradictions of them and of vbds that can be found without opening an image;
//! `crate::drive` finds the others when it opens them.

use super::vbd::{Guid, Mode, Vbd, plain};
use super::{Bdf, Role, System};
use crate::units::{Size, Span};
use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use std::ops::Range;
use std::path::PathBuf;

/// Ports of an ich9-ahci.
const AHCI_PORTS: usize = 6;
/// Where q35 has its own controller.
const ICH9_AHCI: Bdf = Bdf(0x1f << 3 | 2);

/// A drive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// What it hangs on.
    pub model: Model,
    /// The PCI function: an AHCI controller for all drives that name it, or a virtio-blk of its own.
    pub address: Bdf,
    /// The raw image, relative to the manifest's folder …
    pub image: Option<PathBuf>,
    /// … or the size of a sparse file of the run …
    pub size: Option<Size>,
    /// … or what a file of the run has in it at first.
    pub content: Option<Content>,
    /// Bytes of a logical sector.
    #[serde(default = "sector_512")]
    pub sector_size: u32,
    /// Bytes of a physical sector, `sector_size` if absent.
    pub physical_sector_size: Option<u32>,
    /// QEMU's cache mode.
    #[serde(default)]
    pub cache: Cache,
    /// The drive refuses writes.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number, up to 20 characters.
    pub serial: Option<String>,
    /// A GPT laid over a `size`d file.
    #[serde(default, rename = "partition")]
    pub partitions: Vec<Partition>,
    /// A copy of that GPT is overwritten afterwards.
    pub damage: Option<Damage>,
    /// The drive is served by xtask, which keeps what no flush covered in memory and loses (some of) it at a power cut.
    #[serde(default)]
    pub volatile: bool,
    /// Commands that xtask, serving the drive, delays or fails.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// Commands that QEMU fails (its blkdebug).
    #[serde(default)]
    pub blkdebug: Vec<Inject>,
}

const fn sector_512() -> u32 {
    512
}

/// See [`Disk::content`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// A root file system of Debian's packages; `linux::root` makes it.
    Debian,
}

/// See [`Disk::model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// ich9-ahci with ide-hd.
    Ahci,
    /// virtio-blk-pci behind the IOMMU.
    Virtio,
}

/// QEMU's cache modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// The drive has a write cache, the host's page cache below it.
    #[default]
    Writeback,
    /// The drive has a write cache; the host's page cache is passed by.
    None,
    /// The drive has no write cache.
    Writethrough,
    /// Flushes do nothing; for figures.
    Unsafe,
}

/// A partition of a GPT that xtask lays.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Size,
    /// Its GUID; derived from the number if absent, so that it is the same every time.
    pub guid: Option<Guid>,
}

/// See [`Disk::damage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// Header and entries at the start.
    PrimaryGpt,
    /// Header and entries at the end.
    BackupGpt,
}

/// A kind of command a drive gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard.
    Discard,
}

/// A rule of a served drive: commands of this kind that touch these sectors are delayed, and then fail or not.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fault {
    /// Which commands.
    pub on: Deed,
    /// First sector that matters, in units of `sector-size`.
    #[serde(default)]
    pub first: u64,
    /// Sectors that matter; all if absent.
    pub sectors: Option<u64>,
    /// Passes this many first.
    #[serde(default)]
    pub after: u64,
    /// Then applies to this many; to all if absent.
    pub times: Option<u64>,
    /// Time until the drive answers.
    #[serde(default)]
    pub delay: Span,
    /// It answers with an error, and the deed is not done.
    #[serde(default)]
    pub error: bool,
}

/// A rule of QEMU's blkdebug.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Inject {
    /// Which commands.
    pub on: Deed,
    /// The sector (of 512 bytes) they touch; any if absent.
    pub sector: Option<u64>,
    /// Only the first such command fails.
    #[serde(default)]
    pub once: bool,
}

impl Disk {
    /// An image of the user's as an AHCI drive.
    pub fn of_image(address: Bdf, image: PathBuf) -> Self {
        Self {
            model: Model::Ahci,
            address,
            image: Some(image),
            size: None,
            content: None,
            sector_size: sector_512(),
            physical_sector_size: None,
            cache: Cache::default(),
            read_only: false,
            serial: None,
            partitions: Vec::new(),
            damage: None,
            volatile: false,
            faults: Vec::new(),
            blkdebug: Vec::new(),
        }
    }

    /// What people call it.
    pub fn label(&self, number: usize) -> String {
        match &self.image {
            Some(image) => format!("disk {number} ({})", image.display()),
            None => format!("disk {number}"),
        }
    }

    /// Bytes of a physical sector.
    pub fn physical(&self) -> u32 {
        self.physical_sector_size.unwrap_or(self.sector_size)
    }

    /// xtask has to serve it.
    pub fn served(&self) -> bool {
        self.volatile || !self.faults.is_empty()
    }
}

impl System {
    /// Every vbd with its domain's name.
    pub fn vbds(&self) -> impl Iterator<Item = (&str, &Vbd)> {
        self.domains.iter().flat_map(|d| d.vbds.iter().map(move |v| (d.name.as_str(), v)))
    }

    /// Numbers of the disks of a domain's device, in the order of its drives.
    pub fn drives_of(&self, domain: &str) -> Vec<usize> {
        let device = self.domains.iter().find(|d| d.name == domain).and_then(|d| d.device);
        let disks = self.machine.disks.iter().enumerate();
        disks.filter(|(_, disk)| Some(disk.address) == device).map(|(number, _)| number).collect()
    }

    /// The number of the disk a vbd is on.
    pub fn disk_of(&self, vbd: &Vbd) -> Option<usize> {
        self.drives_of(&vbd.backend).get(usize::from(vbd.drive)).copied()
    }
}

/// Checks disks and vbds.
///
/// # Errors
/// The first contradiction found.
pub fn check(system: &System) -> Result<()> {
    for (number, disk) in system.machine.disks.iter().enumerate() {
        self::disk(disk, number)?;
    }
    addresses(system)?;
    for domain in &system.domains {
        ensure!(
            domain.role != Role::Control || domain.vbds.is_empty(),
            "domain `{}`: the control domain serves xenstore and has no `vbd`",
            domain.name
        );
        for (at, vbd) in domain.vbds.iter().enumerate() {
            self::vbd(system, &domain.name, vbd)?;
            if let Some(twin) = domain.vbds.get(..at).unwrap_or_default().iter().find(|v| v.name == vbd.name) {
                bail!("domain `{}`: two vbds are named {}; rename one", domain.name, twin.name.text);
            }
        }
    }
    overlaps(system, |vbd, _| vbd.range())
}

fn disk(disk: &Disk, number: usize) -> Result<()> {
    let label = disk.label(number);
    match (&disk.image, disk.size, disk.content) {
        (Some(_), Some(_), _) => bail!("{label} has both `image` and `size`; an image has its own size"),
        (Some(_), _, Some(_)) => bail!("{label} has both `image` and `content`; an image has its own content"),
        (_, Some(_), Some(_)) => bail!("{label} has both `size` and `content`; that content has a size of its own"),
        (None, None, None) => bail!("{label} at {} has neither `image` nor `size` nor `content`", disk.address),
        (None, Some(size), None) => self::size(disk, &label, size)?,
        _ => ensure!(
            disk.partitions.is_empty() && disk.damage.is_none(),
            "{label}: partitions are laid over a `size`d disk only, an image keeps its own"
        ),
    }
    for (what, bytes) in [("sector-size", disk.sector_size), ("physical-sector-size", disk.physical())] {
        ensure!(matches!(bytes, 512 | 4096), "{label}: {what} = {bytes}; 512 and 4096 are possible");
    }
    ensure!(disk.sector_size <= disk.physical(), "{label}: a physical sector is no smaller than a logical one");
    ensure!(
        disk.model != Model::Ahci || disk.sector_size == 512,
        "{label}: QEMU's AHCI drives have sector-size = 512; physical-sector-size may be 4096, or take model = \"virtio\""
    );
    ensure!(
        disk.model != Model::Ahci || !disk.read_only,
        "{label}: QEMU's AHCI drives cannot be read-only; give the vbds on it mode = \"r\", or take model = \"virtio\""
    );
    if let Some(serial) = &disk.serial {
        let sound = serial.len() <= 20 && serial.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(
            sound && !serial.is_empty(),
            "{label}: serial `{serial}`: 1 to 20 letters, digits and `-` are possible"
        );
    }
    for fault in &disk.faults {
        ensure!(
            fault.error || !fault.delay.0.is_zero(),
            "{label}: a fault with neither `delay` nor `error` does nothing"
        );
    }
    Ok(())
}

/// Checks the size of a file that xtask makes, and the partitions on it.
fn size(disk: &Disk, label: &str, size: Size) -> Result<()> {
    ensure!(
        size.0 > 0 && size.0.is_multiple_of(u64::from(disk.physical().max(1))),
        "{label}: size = {size} is not a number of sectors of {} bytes",
        disk.physical()
    );
    ensure!(disk.damage.is_none() || !disk.partitions.is_empty(), "{label}: there is no GPT that `damage` could hit");
    for (at, partition) in disk.partitions.iter().enumerate() {
        let name = &partition.name;
        ensure!(plain(name), "{label}: `{name}` is no name of a partition");
        ensure!(
            !disk.partitions.get(..at).unwrap_or_default().iter().any(|p| p.name == *name),
            "{label}: two partitions are named `{name}`"
        );
    }
    Ok(())
}

/// What sits at one PCI address.
fn addresses(system: &System) -> Result<()> {
    let disks = &system.machine.disks;
    for (number, disk) in disks.iter().enumerate() {
        let (label, address) = (disk.label(number), disk.address);
        ensure!(address != ICH9_AHCI, "{label} sits at {address}, where the machine has its own controller; move it");
        ensure!(address.0 >> 8 == 0 && address.0 & 7 == 0, "{label} at {address}: QEMU puts it on 00:DD.0");
        ensure!(
            !system.machine.nics.iter().any(|nic| nic.address == address),
            "{label} and a [[machine.nic]] sit at {address}; move one"
        );
        let others: Vec<&Disk> = disks.iter().filter(|d| d.address == address).collect();
        ensure!(
            others.iter().all(|d| d.model == disk.model),
            "{label} at {address} has another model than a disk there; move one"
        );
        ensure!(
            disk.model == Model::Ahci || others.len() == 1,
            "two virtio disks sit at {address}; each needs an address of its own"
        );
        ensure!(
            others.len() <= AHCI_PORTS,
            "{} disks sit at {address}; a controller has {AHCI_PORTS} ports",
            others.len()
        );
    }
    Ok(())
}

fn vbd(system: &System, domain: &str, vbd: &Vbd) -> Result<()> {
    let name = &vbd.name.text;
    let Some(backend) = system.domains.iter().find(|d| d.name == vbd.backend) else {
        bail!(
            "domain `{domain}`: vbd {name} has backend = \"{}\", which is no domain of this system; disk drivers are: {}",
            vbd.backend,
            disk_drivers(system)
        );
    };
    let drives = system.drives_of(&backend.name);
    ensure!(
        backend.role == Role::Driver && !drives.is_empty(),
        "domain `{domain}`: vbd {name} has backend = \"{}\", which drives no disk; disk drivers are: {}",
        vbd.backend,
        disk_drivers(system)
    );
    ensure!(
        usize::from(vbd.drive) < drives.len(),
        "domain `{domain}`: vbd {name} has drive = {}, but the device of `{}` has {} (from 0)",
        vbd.drive,
        vbd.backend,
        drives.len()
    );
    ensure!(
        vbd.partition.is_none() || (vbd.first.is_none() && vbd.sectors.is_none()),
        "domain `{domain}`: vbd {name} names both a partition and a range (first, sectors); take one away"
    );
    ensure!(
        vbd.first.is_some() == vbd.sectors.is_some(),
        "domain `{domain}`: vbd {name}: a range needs both `first` and `sectors`"
    );
    if let (Some(first), Some(sectors)) = (vbd.first, vbd.sectors) {
        ensure!(
            sectors > 0 && first.checked_add(sectors).is_some(),
            "domain `{domain}`: vbd {name}: {sectors} sectors from {first} are no range"
        );
    }
    let disk = system.disk_of(vbd).and_then(|number| Some((number, system.machine.disks.get(number)?)));
    if let Some((number, disk)) = disk {
        ensure!(
            !disk.read_only || vbd.mode == Mode::Read,
            "domain `{domain}`: vbd {name} is on {}, which is read-only; give it mode = \"r\"",
            disk.label(number)
        );
    }
    Ok(())
}

fn disk_drivers(system: &System) -> String {
    let names: Vec<&str> =
        system.domains.iter().map(|d| d.name.as_str()).filter(|name| !system.drives_of(name).is_empty()).collect();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

/// Refuses two vbds that may both write a sector; `range` says which sectors a vbd has, as far as they are known.
///
/// # Errors
/// The first such pair.
pub fn overlaps(system: &System, range: impl Fn(&Vbd, usize) -> Option<Range<u64>>) -> Result<()> {
    let mut seen: Vec<(usize, Range<u64>, &str, &Vbd)> = Vec::new();
    for (domain, vbd) in system.vbds().filter(|(_, vbd)| vbd.mode == Mode::Write) {
        let Some(number) = system.disk_of(vbd) else { continue };
        let Some(sectors) = range(vbd, number) else { continue };
        let hit = seen.iter().find(|(n, s, ..)| *n == number && s.start < sectors.end && sectors.start < s.end);
        if let Some((.., other, twin)) = hit {
            bail!(
                "vbd {} of `{domain}` and vbd {} of `{other}` may both write the same sectors of {}; give one mode = \"r\" or another place",
                vbd.name.text,
                twin.name.text,
                system.machine.disks.get(number).map_or_else(String::new, |disk| disk.label(number))
            );
        }
        seen.push((number, sectors, domain, vbd));
    }
    Ok(())
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
