//! What a system consists of: `images/systems/*.toml` (domains of one machine) and `images/*.toml` (how an image is built).
//!
//! [`System`] is the file as written, with unknown keys refused; [`check`] finds contradictions before anything is
//! built or started; [`store`] compiles it into the initial xenstore of the control domain.
pub mod check;
pub mod disk;
pub mod image;
pub mod store;
#[cfg(test)]
pub mod tests;
pub mod vbd;

use crate::paths;
use crate::units::{Size, Span};
use anyhow::{Context, Result, bail};
use disk::Disk;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use vbd::Vbd;

/// One machine and the domains on it, in the order of their numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct System {
    /// The (emulated) machine.
    pub machine: Machine,
    /// Domain 0 first.
    #[serde(rename = "domain")]
    pub domains: Vec<Domain>,
}

/// What QEMU is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// RAM.
    pub memory: Size,
    /// CPUs that run domains.
    pub cpus: u32,
    /// Network interfaces, all on the host's endpoint.
    #[serde(rename = "nic", default)]
    pub nics: Vec<Hardware>,
    /// Drives, in the order of their numbers.
    #[serde(rename = "disk", default)]
    pub disks: Vec<Disk>,
}

/// A PCI function QEMU provides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hardware {
    /// QEMU's name of it.
    pub model: String,
    /// Where it sits.
    pub address: Bdf,
    /// Its own MAC.
    pub mac: Mac,
}

/// What a domain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// xenstore and supervisor; exactly one, the first.
    Control,
    /// Owns devices, is woken first.
    Driver,
    /// Everything else.
    Guest,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Driver => "driver",
            Self::Guest => "guest",
        })
    }
}

/// A domain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Domain {
    /// Unique; people and `ctl` use it.
    pub name: String,
    /// Name of a file in `images/`, without `.toml`; this or [`Domain::linux`].
    pub image: Option<String>,
    /// A Linux kernel in the place of an image.
    pub linux: Option<Linux>,
    /// What it may do.
    pub role: Role,
    /// RAM, with the three special pages.
    pub memory: Size,
    /// Made when the machine starts; else by `ctl create`.
    #[serde(default = "yes")]
    pub start: bool,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// CPUs it may run on, of the machine's `cpus`; empty = all.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// The PCI function it owns.
    pub device: Option<Bdf>,
    /// I/O ports it owns.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// Event ports it may own.
    #[serde(default = "default_ports")]
    pub max_ports: u32,
    /// Grant-table frames it may have.
    #[serde(default = "default_grant_frames")]
    pub max_grant_frames: u32,
    /// Command line.
    #[serde(default)]
    pub command_line: String,
    /// `key=value` lines of its config blob. A control domain with a config gets it in the place of the initial xenstore.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Network interfaces.
    #[serde(rename = "vif", default)]
    pub vifs: Vec<Vif>,
    /// Disks.
    #[serde(rename = "vbd", default)]
    pub vbds: Vec<Vbd>,
    /// What control does when it fails.
    pub policy: Option<Policy>,
    /// Domains that it may ask control to crash.
    #[serde(default)]
    pub may_crash: Vec<String>,
}

/// A Linux guest. Files are named from the workspace's root.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Linux {
    /// A vmlinux or bzImage, or [`DEBIAN`]: the stock kernel of the host's distribution (`debian:PACKAGE`: another of its kernels).
    pub kernel: String,
    /// The initrd, or what xtask makes: [`DEBIAN`] has busybox, iperf3, fio and e2fsprogs.
    pub initrd: Option<String>,
}

/// What xtask fetches itself; `linux::packages` says how.
pub const DEBIAN: &str = "debian";

const fn one() -> u32 {
    1
}
const fn yes() -> bool {
    true
}
const fn default_ports() -> u32 {
    128
}
const fn default_grant_frames() -> u32 {
    4
}

/// I/O ports with their ISA interrupt.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Count.
    pub count: u16,
    /// ISA interrupt, 0 = none.
    #[serde(default)]
    pub irq: u32,
}

/// A virtual network interface.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vif {
    /// Name of the backend's domain.
    pub backend: String,
    /// The guest's MAC.
    pub mac: Mac,
    /// Firewall rules as netback reads them, in order.
    #[serde(default)]
    pub rules: Vec<String>,
}

/// The supervisor's answer to a failure.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// What to do.
    pub on_failure: OnFailure,
    /// Wait before a restart that follows too soon after another one; doubles.
    pub back_off: Span,
    /// Failures within `window` of running time after which control gives up, 1000 at most.
    pub max_restarts: u32,
    /// See `max_restarts`.
    pub window: Span,
}

/// See [`Policy::on_failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Restart in place.
    Restart,
    /// Leave it stopped.
    Stop,
    /// Take its memory; `ctl create` begins it anew. For guests.
    Destroy,
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
        })
    }
}

/// A PCI function, `bus:device.function` in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf(pub u16);

impl FromStr for Bdf {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (bus, rest) = text.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let bus = u16::from_str_radix(bus, 16).ok().filter(|&b| b < 256)?;
            let device = u16::from_str_radix(device, 16).ok().filter(|&d| d < 32)?;
            let function = u16::from_str_radix(function, 16).ok().filter(|&f| f < 8)?;
            Some(Self(bus << 8 | device << 3 | function))
        };
        parse()
            .ok_or_else(|| format!("`{text}` is not a PCI address; write bus:device.function, for example `00:03.0`"))
    }
}
impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 31, self.0 & 7)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|p| u8::from_str_radix(p, 16).ok()).collect();
        let mac: Option<[u8; 6]> = bytes.and_then(|b| b.try_into().ok());
        let mac = mac.ok_or_else(|| format!("`{text}` is not a MAC; write for example `52:54:00:00:00:10`"))?;
        if mac[0] & 1 == 1 {
            return Err(format!("`{text}` is a multicast address; the first byte of a MAC is even"));
        }
        Ok(Self(mac))
    }
}
impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

macro_rules! from_text {
    ($($t:ty),*) => {$(
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(Bdf, Mac);

impl Domain {
    /// What stands in its memory, for messages.
    pub fn source(&self) -> &str {
        let kernel = self.linux.as_ref().map(|linux| linux.kernel.as_str());
        self.image.as_deref().or(kernel).unwrap_or_default()
    }
}

impl System {
    /// Names of the images, some more than once.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().filter_map(|d| d.image.as_deref())
    }

    /// Reads text; `source` names it in errors.
    ///
    /// # Errors
    /// Syntax, unknown or missing keys, and everything [`check`] refuses.
    pub fn parse(text: &str, source: &str) -> Result<Self> {
        let system: Self = toml::from_str(text).with_context(|| format!("system manifest {source}"))?;
        check::system(&system).with_context(|| format!("system manifest {source}"))?;
        Ok(system)
    }

    /// Loads a system by name (`images/systems/NAME.toml`) or by path (with a `/` or ending in `.toml`).
    ///
    /// # Errors
    /// As [`System::parse`]; a missing file lists the systems there are.
    pub fn load(name: &str) -> Result<Self> {
        let folder = paths::images().join("systems");
        let by_path = name.contains('/') || name.ends_with(".toml");
        let path = if by_path { Path::new(name).to_path_buf() } else { folder.join(format!("{name}.toml")) };
        if !path.exists() {
            bail!("no system `{name}` ({} does not exist); there are: {}", path.display(), names(&folder).join(", "));
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut system = Self::parse(&text, &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for image in system.machine.disks.iter_mut().filter_map(|disk| disk.image.as_mut()) {
            *image = folder.join(&*image);
        }
        Ok(system)
    }

    /// The number of a domain.
    pub fn domid(&self, name: &str) -> Option<u16> {
        self.domains.iter().position(|d| d.name == name).and_then(|i| u16::try_from(i).ok())
    }
}

/// Names of the manifests in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_string))
        .collect();
    names.sort();
    names
}
