//! Debian's packages as an ordinary user: `apt-get download` and `dpkg-deb -x` into `target/xenolith/debian`, nothing is
//! installed. What is there is used again without the network; to have newer ones, delete that folder.
//!
//! apt uses the host's own package lists. Where these are missing or too old, it gets lists of its own below that folder,
//! which needs no root; these are fetched anew when something cannot be had by them.

use super::lean::lean;
use super::modules;
use crate::image::elf;
use crate::{once, paths, setup};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The package that depends on the stock kernel of a release.
pub const KERNEL: &str = "linux-image-amd64";

/// Where all of it is.
fn folder() -> PathBuf {
    paths::output().join("debian")
}

/// A stock kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Its modules' folder.
    pub modules: PathBuf,
}

impl Kernel {
    /// Fetches a kernel of the host's release, by its own package or by one that depends on it ([`KERNEL`], for the stock one).
    ///
    /// # Errors
    /// No apt, no network, no such package.
    pub fn fetch(wanted: &str) -> Result<Self> {
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        ensure!(!wanted.is_empty() && wanted.chars().all(sound), "`{wanted}` is no name of a Debian package");
        let known = folder().join(if wanted == KERNEL { "kernel".into() } else { format!("kernel-{wanted}") });
        let package = match std::fs::read_to_string(&known) {
            Ok(name) => name,
            Err(_) => {
                let all = depends(wanted).with_context(|| format!("cannot fetch a Debian kernel ({OWN_KERNEL})"))?;
                let found = all.into_iter().find(|name| name.starts_with("linux-image-"));
                let found = found.unwrap_or_else(|| wanted.to_string());
                once::write(&known, found.as_bytes())?;
                found
            }
        };
        let root = unpack(&package)?;
        let version = package.trim_start_matches("linux-image-");
        let image = root.join("boot").join(format!("vmlinuz-{version}"));
        ensure!(image.exists(), "package {package} has no {}", image.display());
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .into_iter()
            .map(|folder| folder.join(version))
            .find(|folder| folder.exists())
            .with_context(|| format!("package {package} has no modules of version {version}"))?;
        Ok(Self { image, modules })
    }

    /// Its modules.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn index(&self) -> Result<modules::Index> {
        modules::Index::read(&self.modules)
    }
}

/// Programs with all shared libraries they need, each by its path in the guest, less those that `unused` names.
///
/// # Errors
/// A package cannot be had, or none has a library.
pub fn programs(wanted: &[(&str, &str)], unused: fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut libraries = Libraries { found: BTreeMap::new(), unused };
    for (package, path) in wanted {
        let bytes = libraries.collect(&[package], &file(package, path)?)?;
        files.insert((*path).to_string(), bytes);
    }
    for (name, bytes) in libraries.found {
        files.insert(format!("usr/lib/x86_64-linux-gnu/{name}"), bytes);
    }
    Ok(files)
}

/// A file of a package, by its path; newer releases have `/usr` before those of `/bin`, `/sbin` and `/lib`.
///
/// # Errors
/// The package cannot be had, or lacks it.
pub fn file(package: &str, path: &str) -> Result<PathBuf> {
    let root = unpack(package)?;
    let found = [root.join(path), root.join("usr").join(path)].into_iter().find_map(|path| path.canonicalize().ok());
    found.with_context(|| format!("package {package} has no {path}"))
}

/// Shared libraries and the packages they come from.
struct Libraries {
    found: BTreeMap<String, Vec<u8>>,
    unused: fn(&str) -> bool,
}

impl Libraries {
    /// Finds what `file` needs, and what that needs; returns the file without need of what is unused. Its package comes last of
    /// those that led to it, whose dependencies it may rely on.
    fn collect(&mut self, packages: &[&str], file: &Path) -> Result<Vec<u8>> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let bytes = lean(bytes, self.unused).with_context(|| format!("{} is damaged", file.display()))?;
        let needed = elf::needed(&bytes).with_context(|| format!("{}", file.display()))?;
        for name in needed {
            if self.found.contains_key(&name) {
                continue;
            }
            let (owner, path) =
                packages.iter().rev().find_map(|package| find_library(package, &name).transpose()).with_context(
                    || format!("no package that {} depend on has the library {name}", packages.join(", ")),
                )??;
            // A library is a link to its versioned file; the guest gets one file by the name it is asked for.
            let path = path.canonicalize().with_context(|| format!("{}", path.display()))?;
            // Known before it is whole, should libraries need each other.
            self.found.insert(name.clone(), Vec::new());
            let bytes = self.collect(&[packages, &[&owner]].concat(), &path)?;
            self.found.insert(name, bytes);
        }
        Ok(bytes)
    }
}

/// The package among those that `package` depends on (or itself) that has a library.
fn find_library(package: &str, name: &str) -> Result<Option<(String, PathBuf)>> {
    let mut candidates = vec![package.to_string()];
    let mut others = depends(package)?;
    // libssl3 has libcrypto.so.3, but most are named after what they hold; those first spares large downloads.
    let stem = name.split(".so").next().unwrap_or(name).trim_start_matches("lib");
    others.sort_by_key(|other| (!other.trim_start_matches("lib").starts_with(stem), !other.contains(stem)));
    candidates.extend(others);
    for candidate in candidates {
        let root = unpack(&candidate)?;
        if let Some(path) = find_file(&root, name) {
            return Ok(Some((candidate, path)));
        }
    }
    Ok(None)
}

/// A file of this name anywhere below a folder; private libraries have folders of their own.
fn find_file(root: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == name) && path.exists() {
                return Some(path);
            }
        }
    }
    None
}

/// Packages a package depends on.
fn depends(package: &str) -> Result<Vec<String>> {
    let text = apt("apt-cache", &["depends", package], None)?;
    let names = text.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("Depends: ").or_else(|| line.trim().strip_prefix("PreDepends: "))?;
        (!name.starts_with('<')).then(|| name.split(':').next().unwrap_or(name).to_string())
    });
    Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
}

/// Fetches what apt would install into an empty system for these (names, or apt's patterns) into a folder; returns the files.
///
/// # Errors
/// No apt, no network, no such package.
pub fn closure(packages: &[&str], into: &Path) -> Result<Vec<PathBuf>> {
    let archives = into.join("archives");
    std::fs::create_dir_all(archives.join("partial"))
        .with_context(|| format!("cannot create {}", archives.display()))?;
    let empty = into.join("status");
    std::fs::write(&empty, "")?;
    let options = [
        format!("Dir::State::status={}", empty.display()),
        format!("Dir::Cache::archives={}", archives.display()),
        "Dir::Cache::pkgcache=".to_string(),
        "Dir::Cache::srcpkgcache=".to_string(),
        "Debug::NoLocking=1".to_string(),
    ];
    let mut args: Vec<&str> = options.iter().flat_map(|option| ["-o", option.as_str()]).collect();
    args.extend(["--quiet=2", "--yes", "--no-install-recommends", "--download-only", "install"]);
    args.extend(packages);
    apt("apt-get", &args, Some(into))?;
    let mut debs: Vec<PathBuf> = std::fs::read_dir(&archives)?.flatten().map(|entry| entry.path()).collect();
    debs.retain(|path| path.extension().is_some_and(|e| e == "deb"));
    debs.sort();
    ensure!(!debs.is_empty(), "apt-get left no package in {}", archives.display());
    Ok(debs)
}

/// The folder a package is unpacked in; it is fetched if it is not there.
pub fn unpack(package: &str) -> Result<PathBuf> {
    let root = folder().join(package);
    once::made(&root, |part| {
        eprintln!("fetching Debian's package {package}");
        std::fs::create_dir(part).with_context(|| format!("cannot create {}", part.display()))?;
        apt("apt-get", &["--quiet=2", "download", package], Some(part))?;
        let mut files = std::fs::read_dir(part)?.flatten().map(|entry| entry.path());
        let deb = files.find(|path| path.extension().is_some_and(|e| e == "deb"));
        let deb = deb.with_context(|| format!("apt-get download {package} left no file in {}", part.display()))?;
        let done = Command::new("dpkg-deb").arg("-x").args([&deb, part]).stdin(Stdio::null()).output();
        let done = done.context("cannot start dpkg-deb")?;
        ensure!(done.status.success(), "dpkg-deb cannot unpack {}: {}", deb.display(), said(&done.stderr));
        std::fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))
    })?;
    Ok(root)
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().filter(|l| !l.starts_with("W:")).collect::<Vec<_>>().join("; ")
}

/// Runs an apt program for the packages of the host's release.
fn apt(program: &str, args: &[&str], at: Option<&Path>) -> Result<String> {
    ensure!(
        setup::find(program).is_some() && setup::find("dpkg-deb").is_some(),
        "there is no {program} here: fetching packages needs Debian 12 or 13; {OWN_KERNEL}"
    );
    Apt { lists: folder().join("apt-lists"), options: Vec::new() }.run(program, args, at)
}

/// What to do where there is no Debian.
const OWN_KERNEL: &str = "elsewhere name your own kernel: --kernel FILE --initrd FILE";

/// apt as an ordinary user.
struct Apt {
    /// Lists of our own, if the host's are of no use.
    lists: PathBuf,
    /// Further options.
    options: Vec<String>,
}

impl Apt {
    /// Runs a program, with the host's lists if there are none of our own; where that fails, with new ones of our own.
    fn run(&self, program: &str, args: &[&str], at: Option<&Path>) -> Result<String> {
        let options =
            if self.lists.exists() { Self::own(&self.lists) } else { vec!["APT::Sandbox::User=root".to_string()] };
        let (good, mut done) = self.start(program, &options, args, at)?;
        if !good {
            let call = format!("{program} {}", args.join(" "));
            let first = said(&done.stderr);
            eprintln!("{call} says: {first}; fetching package lists of our own");
            once::renewed(&self.lists, |part| self.update(part)).with_context(|| format!("{call} failed: {first}"))?;
            let good;
            (good, done) = self.start(program, &Self::own(&self.lists), args, at)?;
            ensure!(good, "{call} failed with new package lists (in {}): {}", self.lists.display(), said(&done.stderr));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Fetches lists into a new folder.
    fn update(&self, lists: &Path) -> Result<()> {
        for folder in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(lists.join(folder)).context("apt's folders")?;
        }
        // By itself it succeeds without a mirror that answers.
        let mut options = Self::own(lists);
        options.push("APT::Update::Error-Mode=any".to_string());
        let (_, done) = self.start("apt-get", &options, &["--quiet=2", "update"], None)?;
        ensure!(done.status.success(), "apt-get update failed: {}; is there a network?", said(&done.stderr));
        Ok(())
    }

    /// Options for lists of our own.
    fn own(lists: &Path) -> Vec<String> {
        vec![
            format!("Dir::State={}", lists.display()),
            "Dir::State::status=/var/lib/dpkg/status".to_string(),
            format!("Dir::Cache={}", lists.display()),
            "Debug::NoLocking=1".to_string(),
            // apt would change to a user that cannot write where we may.
            format!("APT::Sandbox::User={}", if rustix::process::geteuid().is_root() { "root" } else { "" }),
        ]
    }

    /// Runs a program; whether it did what it should.
    fn start(&self, program: &str, options: &[String], args: &[&str], at: Option<&Path>) -> Result<(bool, Output)> {
        let mut command = Command::new(program);
        let options = options.iter().chain(&self.options);
        command.args(options.flat_map(|option| ["-o", option])).args(args).env("LC_ALL", "C").stdin(Stdio::null());
        if let Some(at) = at {
            command.current_dir(at);
        }
        let done = command.output().with_context(|| format!("cannot start {program}"))?;
        Ok((done.status.success() && !done.stdout.is_empty() | at.is_some(), done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_that_does_not_answer_leaves_no_lists_behind_and_takes_none_away() {
        if setup::find("apt-cache").is_none() {
            return;
        }
        let folder = std::env::temp_dir().join(format!("xenolith-apt-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let sources = folder.join("sources.list");
        // Nobody listens on the port.
        std::fs::write(&sources, "deb [trusted=yes] http://127.0.0.1:1/debian bookworm main\n").unwrap();
        let apt = Apt {
            lists: folder.join("lists"),
            options: vec![
                format!("Dir::Etc::sourcelist={}", sources.display()),
                "Dir::Etc::sourceparts=/dev/null".to_string(),
                "Acquire::Retries=0".to_string(),
                "Acquire::http::Proxy=DIRECT".to_string(),
            ],
        };
        let fails = || format!("{:#}", apt.run("apt-cache", &["depends", "no-such-package"], None).unwrap_err());
        let error = fails();
        assert!(error.contains("no-such-package") && error.contains("is there a network?"), "{error}");
        assert!(!apt.lists.exists(), "the next run is to try again");
        // Lists that are there are too old for what is wanted, and stay for what they are good for.
        std::fs::create_dir(&apt.lists).unwrap();
        std::fs::write(apt.lists.join("kept"), "").unwrap();
        assert!(fails().contains("is there a network?"));
        assert!(apt.lists.join("kept").exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
