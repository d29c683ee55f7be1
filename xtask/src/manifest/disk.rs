//! Drives of the machine (`[[machine.disk]]`) and what of them a domain gets (`[[domain.vbd]]`), with the contradictions that can
//! be found without opening an image; `crate::drive` finds the others when it opens them.

use super::{Bdf, Role, System};
use crate::units::{Size, Span};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Deserializer, de::Error};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Ports of an ich9-ahci.
const AHCI_PORTS: usize = 6;
/// Where q35 has its own controller.
const ICH9_AHCI: Bdf = Bdf(0x1f << 3 | 2);
/// Block major of Linux's Xen disks; a disk has 16 minors.
const XVD_MAJOR: u32 = 202;

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
    /// … or the size of a sparse file of the run.
    pub size: Option<Size>,
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

/// A virtual block device of a domain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vbd {
    /// Name of the backend's domain.
    pub backend: String,
    /// Linux's name for it: `xvda` to `xvdp`, or a partition of one, `xvda1`.
    pub name: Name,
    /// Which drive of the backend's device, by their order in the manifest.
    #[serde(default)]
    pub drive: u8,
    /// The partition of its GPT.
    pub partition: Option<Key>,
    /// The first sector of a range.
    pub first: Option<u64>,
    /// The sectors of a range.
    pub sectors: Option<u64>,
    /// May it write?
    #[serde(default)]
    pub mode: Mode,
}

/// See [`Vbd::mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Mode {
    /// It may.
    #[default]
    #[serde(rename = "rw")]
    Write,
    /// It may not.
    #[serde(rename = "r")]
    Read,
}

/// Which partition of a GPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// From 1.
    Number(u32),
    /// The unique GUID.
    Guid(Guid),
    /// The name.
    Name(String),
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u32),
            Text(String),
        }
        match Raw::deserialize(from).map_err(|_| D::Error::custom("a partition is a number, a name or a GUID"))? {
            Raw::Number(0) => Err(D::Error::custom("partitions are counted from 1")),
            Raw::Number(number) => Ok(Self::Number(number)),
            Raw::Text(text) => match text.parse() {
                Ok(guid) => Ok(Self::Guid(guid)),
                Err(_) if plain(&text) => Ok(Self::Name(text)),
                Err(_) => Err(D::Error::custom(format!("`{text}` is no name of a partition"))),
            },
        }
    }
}

/// As the backend reads it in `source` (`docs/architecture.md`).
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Guid(guid) => write!(f, "guid:{guid}"),
            Self::Name(name) => write!(f, "name:{name}"),
        }
    }
}

/// A GUID as people write it: `8-4-4-4-12` hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub u128);

impl std::str::FromStr for Guid {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        let value = u128::from_str_radix(&digits, 16).ok().filter(|_| lengths == [8, 4, 4, 4, 12]);
        value.map(Self).ok_or_else(|| format!("`{text}` is not a GUID"))
    }
}
impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// A name Linux gives a Xen disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As written.
    pub text: String,
    /// Linux's number of it: 51712 for xvda, 16 more for each next disk, 1 more for each partition.
    pub device: u32,
}

impl std::str::FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let rest = text.strip_prefix("xvd")?;
            let letter = rest.bytes().next().filter(|l| (b'a'..=b'p').contains(l))?;
            let partition = match rest.get(1..)? {
                "" => 0,
                digits if digits.starts_with(['0', '+']) => return None,
                digits => digits.parse::<u32>().ok().filter(|p| (1..16).contains(p))?,
            };
            Some(XVD_MAJOR << 8 | u32::from(letter - b'a') << 4 | partition)
        };
        let device = parse().ok_or_else(|| format!("`{text}` is no name of a vbd; write xvda to xvdp"))?;
        Ok(Self { text: text.to_string(), device })
    }
}

macro_rules! from_text {
    ($($t:ty),*) => {$(
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
from_text!(Guid, Name);

/// What stands in xenstore without harm to its lines and to `key=value,…`.
fn plain(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= 36 && !text.contains(|c: char| c.is_control() || matches!(c, ',' | '='))
}

impl Disk {
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

impl Vbd {
    /// The `source` node of its backend's directory.
    pub fn source(&self) -> String {
        match (&self.partition, self.first, self.sectors) {
            (Some(key), ..) => format!("drive={},partition={key}", self.drive),
            (None, Some(first), Some(sectors)) => format!("drive={},first={first},sectors={sectors}", self.drive),
            _ => format!("drive={}", self.drive),
        }
    }

    /// The sectors it names itself; a partition's stand in its image.
    pub fn range(&self) -> Option<Range<u64>> {
        match (&self.partition, self.first, self.sectors) {
            (Some(_), ..) => None,
            (None, Some(first), Some(sectors)) => Some(first..first.saturating_add(sectors)),
            _ => Some(0..u64::MAX),
        }
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
    match (&disk.image, disk.size) {
        (Some(_), Some(_)) => bail!("{label} has both `image` and `size`; an image has its own size"),
        (None, None) => bail!("{label} at {} has neither `image` nor `size`", disk.address),
        (Some(_), None) => ensure!(
            disk.partitions.is_empty() && disk.damage.is_none(),
            "{label}: partitions are laid over a `size`d disk only, an image keeps its own"
        ),
        (None, Some(size)) => self::size(disk, &label, size)?,
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
