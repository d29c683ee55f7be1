//! `images/NAME.toml`: the package an image is built from, the features that select its device, and what it drives.

use super::names;
use crate::paths;
use crate::units::Size;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// How one image is built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Image {
    /// Filled in from the file's name.
    #[serde(skip)]
    pub name: String,
    /// Cargo package, a binary for the bare machine.
    pub package: String,
    /// One sentence for people.
    pub about: String,
    /// Cargo features.
    #[serde(default)]
    pub features: Vec<String>,
    /// `vendor:device` of the PCI function it drives, in hexadecimal; the hypervisor refuses another one.
    pub drives: Option<String>,
    /// The size it shall stay below; `build` says when it does not.
    pub aim: Option<Size>,
}

impl Image {
    /// Loads `images/NAME.toml`.
    ///
    /// # Errors
    /// A missing file lists the images there are; syntax, unknown or missing keys.
    pub fn load(name: &str) -> Result<Self> {
        let folder = paths::images();
        let path = folder.join(format!("{name}.toml"));
        if !path.exists() {
            bail!("no image `{name}` ({} does not exist); there are: {}", path.display(), names(&folder).join(", "));
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut image: Self = toml::from_str(&text).with_context(|| format!("image manifest {}", path.display()))?;
        image.device_id().with_context(|| format!("image manifest {}", path.display()))?;
        image.name = name.to_string();
        Ok(image)
    }

    /// [`Image::drives`] as the bundle has it: vendor in the low half; 0 = any.
    ///
    /// # Errors
    /// When it is not `vendor:device`.
    pub fn device_id(&self) -> Result<u32> {
        let Some(text) = &self.drives else { return Ok(0) };
        let parse = || {
            let (vendor, device) = text.split_once(':')?;
            let vendor = u16::from_str_radix(vendor, 16).ok()?;
            let device = u16::from_str_radix(device, 16).ok()?;
            Some(u32::from(device) << 16 | u32::from(vendor))
        };
        parse().with_context(|| format!("drives = `{text}` is not vendor:device, for example `8086:100e`"))
    }
}
