//! What of a drive a domain gets (`[[domain.vbd]]`): its name for Linux, the part of the drive, and how these are written.

use serde::{Deserialize, Deserializer, de::Error};
use std::fmt;
use std::ops::Range;

/// Block major of Linux's Xen disks; a disk has 16 minors.
const XVD_MAJOR: u32 = 202;

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
    /// The first sector of a range, in units of 512 bytes.
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

/// Whether a text stands in xenstore without harm to its lines and to `key=value,…`.
pub fn plain(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= 36 && !text.contains(|c: char| c.is_control() || matches!(c, ',' | '='))
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
