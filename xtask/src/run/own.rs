//! `run`'s options for a guest of one's own: another kernel, initrd, command line, disks, memory, vCPUs in the place of what the
//! system's manifest says of its Linux guest. They change the manifest before it is checked, so that every mistake is told by the same
//! words as one in a file.

use crate::manifest::disk::{Disk, Model};
use crate::manifest::vbd::{Mode, Vbd};
use crate::manifest::{Bdf, Domain, Role, System, check};
use crate::units::Size;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The driver domain that is added where a system has none for disks.
const BACKEND: &str = "blkback-ahci";
/// A kernel, unpacked.
const KERNEL_ROOM: u64 = 128 << 20;
/// Drives of one controller, and disks that have a name.
const DISKS_MAX: usize = 6;

/// The options.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "A Linux guest of your own (docs/linux-guests.md)")]
pub struct Own {
    /// Its kernel: a vmlinux or bzImage with CONFIG_PVH=y; or debian:PACKAGE, for example debian:linux-image-cloud-amd64, with an
    /// initramfs of its modules
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initrd, or `none`
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words at the end of its command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// A raw image as its disk xvda; the next one is xvdb, … In the place of the system's disks for it; `:ro` makes it read-only
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    disks: Vec<Image>,
    /// Its memory, for example 512MiB; the machine gets more where it has to
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Its virtual CPUs, 1 to 4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4))]
    vcpus: Option<u32>,
    /// Which guest, where the system has several; one with `start = false` is started
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
}

/// `FILE` or `FILE:ro`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Image {
    path: PathBuf,
    read_only: bool,
}

impl FromStr for Image {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (text, false),
        };
        if path.is_empty() {
            return Err("a disk is FILE or FILE:ro".into());
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// Where a file named on the command line is.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

impl Own {
    /// Whether anything but the guest's name was given.
    pub fn changes(&self) -> bool {
        self.kernel.is_some()
            || self.initrd.is_some()
            || self.append.is_some()
            || !self.disks.is_empty()
            || self.memory.is_some()
            || self.vcpus.is_some()
    }

    /// The guest whose console is shown, and which the options are about; none where the system has no Linux guest and none is
    /// asked for.
    ///
    /// # Errors
    /// There is no such guest; there are several, and options do not say which.
    pub fn guest(&self, system: &System) -> Result<Option<String>> {
        let all: Vec<&Domain> = system.domains.iter().filter(|d| d.linux.is_some()).collect();
        let names = || all.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(name) = &self.guest {
            ensure!(
                all.iter().any(|d| d.name == *name),
                "--guest {name}: this system has no such Linux guest; it has: {}",
                if all.is_empty() { "none".to_string() } else { names() }
            );
            return Ok(Some(name.clone()));
        }
        match all.as_slice() {
            [] if self.changes() => {
                bail!(
                    "this system has no Linux guest that --kernel, --disk … could be about; try: cargo xtask run linux"
                )
            }
            [] => Ok(None),
            [one] => Ok(Some(one.name.clone())),
            _ if self.changes() => bail!("this system has several Linux guests ({}); say which: --guest NAME", names()),
            several => Ok(several.iter().find(|d| d.start).map(|d| d.name.clone())),
        }
    }

    /// Changes a system by the options.
    ///
    /// # Errors
    /// What does not fit, by the checks of manifests.
    pub fn apply(&self, system: &mut System) -> Result<()> {
        let Some(name) = self.guest(system)? else { return Ok(()) };
        if !self.changes() && self.guest.is_none() {
            return Ok(());
        }
        if !self.disks.is_empty() {
            self.hang_disks(system, &name)?;
        }
        let before = system.machine.memory;
        let guest = system.domains.iter_mut().find(|d| d.name == name).context("the guest is there")?;
        guest.start = true;
        let linux = guest.linux.as_mut().context("the guest is Linux")?;
        if let Some(kernel) = &self.kernel {
            match kernel.to_str().filter(|name| name.starts_with("debian:")) {
                Some(package) => {
                    linux.kernel = package.to_string();
                    linux.initrd = Some(package.to_string());
                }
                None => linux.kernel = absolute(kernel)?.display().to_string(),
            }
        }
        match &self.initrd {
            Some(none) if none == Path::new("none") => linux.initrd = None,
            Some(file) => linux.initrd = Some(absolute(file)?.display().to_string()),
            None => {}
        }
        if let Some(append) = &self.append {
            guest.command_line = format!("{} {append}", guest.command_line).trim().to_string();
        }
        guest.vcpus = self.vcpus.unwrap_or(guest.vcpus);
        // The machine is the emulator's and as large as is asked for: it gets what the guest gets more, and room for the files, which
        // stand in it besides. What is wrong with a file is told when it is read.
        let memory = self.memory.unwrap_or(guest.memory);
        let len = |file: &PathBuf| std::fs::metadata(file).map_or(0, |data| data.len());
        let more = memory.0.saturating_sub(guest.memory.0)
            + self.kernel.as_ref().map_or(0, |_| KERNEL_ROOM)
            + self.initrd.as_ref().map_or(0, len);
        guest.memory = memory;
        system.machine.memory = Size(before.0.saturating_add(more).next_multiple_of(1 << 20));
        check::system(system).context("with the options given")?;
        host_has(system.machine.memory, before, available())
    }

    /// Gives the guest the images as its disks, in the place of those it had.
    fn hang_disks(&self, system: &mut System, name: &str) -> Result<()> {
        ensure!(self.disks.len() <= DISKS_MAX, "{} disks; {DISKS_MAX} fit on one controller", self.disks.len());
        let guest = system.domains.iter_mut().find(|d| d.name == name).context("the guest is there")?;
        let old = std::mem::take(&mut guest.vbds);
        take_off(system, &old);
        let (backend, address) = backend(system)?;
        for (letter, image) in ('a'..).zip(&self.disks) {
            let drive = system.machine.disks.iter().filter(|disk| disk.address == address).count();
            let path = absolute(&image.path)?;
            system.machine.disks.push(Disk::of_image(address, path));
            let vbd = Vbd {
                backend: backend.clone(),
                name: format!("xvd{letter}").parse().map_err(|e: String| anyhow!(e))?,
                drive: u8::try_from(drive)?,
                partition: None,
                first: None,
                sectors: None,
                mode: if image.read_only { Mode::Read } else { Mode::Write },
            };
            let guest = system.domains.iter_mut().find(|d| d.name == name).context("the guest is there")?;
            guest.vbds.push(vbd);
        }
        Ok(())
    }
}

/// Removes the drives that only these vbds used; the others of their controllers move up.
fn take_off(system: &mut System, vbds: &[Vbd]) {
    let device = |system: &System, backend: &str| system.domains.iter().find(|d| d.name == backend)?.device;
    let mut gone: Vec<(Bdf, u8)> =
        vbds.iter().filter_map(|vbd| Some((device(system, &vbd.backend)?, vbd.drive))).collect();
    gone.sort_unstable();
    gone.dedup();
    gone.retain(|&(address, drive)| {
        !system.vbds().any(|(_, vbd)| vbd.drive == drive && device(system, &vbd.backend) == Some(address))
    });
    for (address, drive) in gone.into_iter().rev() {
        let places = system.machine.disks.iter().enumerate().filter(|(_, disk)| disk.address == address);
        let Some(place) = places.map(|(place, _)| place).nth(usize::from(drive)) else { continue };
        system.machine.disks.remove(place);
        let behind: Vec<String> =
            system.domains.iter().filter(|d| d.device == Some(address)).map(|d| d.name.clone()).collect();
        for vbd in system.domains.iter_mut().flat_map(|d| d.vbds.iter_mut()) {
            if vbd.drive > drive && behind.contains(&vbd.backend) {
                vbd.drive -= 1;
            }
        }
    }
}

/// A driver domain with an AHCI controller; it is added if there is none.
fn backend(system: &mut System) -> Result<(String, Bdf)> {
    let is_ahci = |system: &System, address| {
        let mut disks = system.machine.disks.iter().filter(|disk| disk.address == address).peekable();
        disks.peek().is_some() && disks.all(|disk| disk.model == Model::Ahci)
    };
    let found = system.domains.iter().find_map(|domain| {
        let address = domain.device.filter(|_| domain.role == Role::Driver)?;
        // Its own drives may all have been taken off a moment ago.
        let ours = is_ahci(system, address) || domain.image.as_deref() == Some(BACKEND);
        ours.then(|| (domain.name.clone(), address))
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let taken = |address| {
        system.machine.nics.iter().any(|nic| nic.address == address)
            || system.machine.disks.iter().any(|disk| disk.address == address)
    };
    let address = (4..25).map(|slot| Bdf(slot << 3)).find(|&address| !taken(address));
    let address = address.context("the machine has no free place for a disk controller")?;
    let text = format!(
        "name = \"{BACKEND}\"\nimage = \"{BACKEND}\"\nrole = \"driver\"\nmemory = \"4MiB\"\ndevice = \"{address}\"\n\
         config = {{ watchdog-ms = \"100\" }}\n[policy]\non-failure = \"restart\"\nback-off = \"50ms\"\n\
         max-restarts = 1000\nwindow = \"60s\"\n"
    );
    system.domains.push(toml::from_str(&text)?);
    system.machine.memory = Size(system.machine.memory.0 + (4 << 20));
    Ok((BACKEND.to_string(), address))
}

/// Memory that processes of this host may still get, if it says so.
fn available() -> Option<Size> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: u64| Size(kib << 10))
}

/// A machine that was made larger has to fit into the host.
fn host_has(machine: Size, before: Size, available: Option<Size>) -> Result<()> {
    if let Some(available) = available.filter(|_| machine > before) {
        ensure!(
            machine <= available,
            "with that --memory the machine has {} MiB, but this host has only {} MiB left; give the guest less",
            machine.0 >> 20,
            available.0 >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
