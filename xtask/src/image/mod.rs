//! `cargo xtask build`: images and the bundle of a system, with their sizes.
//!
//! [`elf`] flattens what cargo has built, [`boot`] lays what a domain finds below its image, [`bundle`] packs it all.
mod boot;
mod bundle;
pub mod elf;
pub mod kernel;

use crate::machine::{self, Folder};
use crate::manifest::{self, System, check, image::Image};
use crate::units::kib;
use crate::{cargo, linux, once, paths, table};
use anyhow::{Context, Result};
use bundle::Parts;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `build`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Images to build (files in images/, without .toml); none = those of the system and its bundle
    images: Vec<String>,
    /// The system whose bundle is written
    #[arg(long, default_value = "default")]
    system: String,
    /// Build every image there is, without a bundle
    #[arg(long, conflicts_with_all = ["images", "system"])]
    all: bool,
    /// Print the sizes as JSON
    #[arg(long)]
    json: bool,
}

/// What one image weighs.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Weight {
    /// Name.
    pub image: String,
    /// Bytes of executable segments.
    pub text: u64,
    /// Bytes in the bundle.
    pub total: u64,
    /// Bytes of memory it takes, with BSS.
    pub memory: u64,
    /// `total` compressed by gzip.
    pub gzip: u64,
    /// What `total` shall stay below.
    pub aim: Option<u64>,
    /// What it is.
    pub about: String,
}

/// A system that can boot.
#[derive(Clone, Debug)]
pub struct Built {
    /// ELF for `-kernel`.
    pub hypervisor: PathBuf,
    /// File for `-initrd`.
    pub bundle: PathBuf,
    /// Sizes of its images.
    pub weights: Vec<Weight>,
    /// The folder of the bundle, if it goes with the run.
    pub folder: Option<Arc<Folder>>,
}

/// The command.
///
/// # Errors
/// Whatever is wrong with manifests or images; cargo's failure.
pub fn run(args: &Args) -> Result<()> {
    let weights = if args.all || !args.images.is_empty() {
        let names = if args.all { manifest::names(&paths::images()) } else { args.images.clone() };
        let images = load_all(names.iter().map(String::as_str))?;
        build_packages(&images, false)?;
        flatten_all(images)?.values().map(|(image, flat)| weigh(image, flat)).collect::<Result<_>>()?
    } else {
        let system = System::load(&args.system)?;
        prepare(std::iter::once(&system))?;
        let stem = Path::new(&args.system).file_stem().map_or("system".into(), |s| s.to_string_lossy());
        let built = pack_as(&system, paths::output().join(format!("{stem}.bundle")))?;
        if !args.json {
            println!("hypervisor  {}", built.hypervisor.display());
            println!("bundle      {}\n", built.bundle.display());
        }
        built.weights
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&weights)?);
    } else {
        print!("{}", describe(&weights));
    }
    Ok(())
}

/// The table of sizes.
pub fn describe(weights: &[Weight]) -> String {
    let rows: Vec<Vec<String>> = weights
        .iter()
        .map(|w| {
            let verdict = match w.aim {
                Some(aim) if w.total > aim => format!("above its aim of {}", kib(aim)),
                Some(aim) => format!("≤ {}", kib(aim)),
                None => String::new(),
            };
            vec![w.image.clone(), kib(w.text), kib(w.total), kib(w.memory), kib(w.gzip), verdict, w.about.clone()]
        })
        .collect();
    table::format(&["image", "text", "total", "memory", "gzip", "aim", "what it is"], &rows)
}

/// Builds every image of several systems at once, so that each boots without a wait for cargo.
///
/// # Errors
/// As [`system`].
pub fn prepare<'a>(systems: impl Iterator<Item = &'a System>) -> Result<()> {
    let systems: Vec<&System> = systems.collect();
    let images = load_all(systems.iter().flat_map(|s| s.images()))?;
    build_packages(&images, true)
}

/// Builds the hypervisor and all images of a system, and packs them.
///
/// # Errors
/// Whatever is wrong with the manifest or an image; cargo's failure.
pub fn system(system: &System) -> Result<Built> {
    prepare(std::iter::once(system))?;
    pack(system)
}

/// Packs what [`prepare`] has built, into a folder of its own: of several runs of one system each may have another kernel, command line
/// or drive, and an emulator reads its bundle when it comes to it.
///
/// # Errors
/// As [`system`].
pub fn pack(system: &System) -> Result<Built> {
    let folder = machine::folder("bundle")?;
    let built = pack_as(system, folder.join("system.bundle"))?;
    Ok(Built { folder: Some(Arc::new(folder)), ..built })
}

fn pack_as(system: &System, bundle: PathBuf) -> Result<Built> {
    let mut parts = Parts { images: flatten_all(load_all(system.images())?)?, ..Parts::default() };
    for (domain, linux) in system.domains.iter().filter_map(|d| Some((d, d.linux.as_ref()?))) {
        let guest = || format!("domain `{}`", domain.name);
        if !parts.kernels.contains_key(&linux.kernel) {
            let kernel = kernel::load(&linux::kernel(&linux.kernel)?).with_context(guest)?;
            parts.kernels.insert(linux.kernel.clone(), kernel);
        }
        if let Some(name) = linux.initrd.as_ref().filter(|name| !parts.initrds.contains_key(*name)) {
            let initrd = kernel::initrd::load(&linux::initrd(name)?).with_context(guest)?;
            parts.initrds.insert(name.clone(), initrd);
        }
    }
    let bytes = bundle::compose(system, &parts)?;
    check::bundle(system, bytes.len() as u64)?;
    once::write(&bundle, &bytes)?;
    let weights = parts.images.values().map(|(image, flat)| weigh(image, flat)).collect::<Result<_>>()?;
    Ok(Built { hypervisor: paths::executable("hypervisor"), bundle, weights, folder: None })
}

fn load_all<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<Image>> {
    let names: BTreeSet<&str> = names.collect();
    names.into_iter().map(Image::load).collect()
}

fn build_packages(images: &[Image], with_hypervisor: bool) -> Result<()> {
    let mut packages: Vec<(&str, &[String])> =
        images.iter().map(|image| (image.package.as_str(), image.features.as_slice())).collect();
    if with_hypervisor {
        packages.push(("hypervisor", &[]));
    }
    cargo::build_freestanding(&packages)
}

fn flatten_all(images: Vec<Image>) -> Result<BTreeMap<String, (Image, elf::Flat)>> {
    images
        .into_iter()
        .map(|image| {
            let path = paths::executable(&image.package);
            let file = std::fs::read(&path).with_context(|| {
                format!("image `{}`: package `{}` built no {}", image.name, image.package, path.display())
            })?;
            let flat = elf::flatten(&file).with_context(|| format!("image `{}` ({})", image.name, path.display()))?;
            Ok((image.name.clone(), (image, flat)))
        })
        .collect()
}

fn weigh(image: &Image, flat: &elf::Flat) -> Result<Weight> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&flat.bytes)?;
    Ok(Weight {
        image: image.name.clone(),
        text: flat.text_len,
        total: flat.bytes.len() as u64,
        memory: flat.mem_len,
        gzip: gzip.finish()?.len() as u64,
        aim: image.aim.map(|aim| aim.0),
        about: image.about.clone(),
    })
}
