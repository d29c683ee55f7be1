//! Runs cargo for the packages of the workspace, with its own output passed through.

use crate::{paths, setup};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// The cargo that runs us, or the one in the path, with our target folder.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Its settings may name another target folder, or none that means the same in this folder.
    command.current_dir(paths::root()).env("CARGO_TARGET_DIR", paths::target());
    // Variables of the package that cargo runs (us) are not those of the packages it shall build.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds packages for the bare machine, in release; Rust's target for it is installed where it is missing.
///
/// # Errors
/// Of [`setup::target`]; when cargo cannot be started or fails; what is wrong it has printed itself.
pub fn build_freestanding(packages: &[(&str, &[String])]) -> Result<()> {
    setup::target()?;
    // One call per set of features, so that features of one image never reach another.
    let mut groups: Vec<(&[String], Vec<&str>)> = Vec::new();
    for &(package, features) in packages {
        match groups.iter_mut().find(|(f, _)| *f == features) {
            Some((_, names)) => names.push(package),
            None => groups.push((features, vec![package])),
        }
    }
    for (features, names) in groups {
        let mut command = command();
        command.args(["build", "--release", "--target", paths::FREESTANDING]);
        for name in &names {
            command.args(["-p", name]);
        }
        if !features.is_empty() {
            command.args(["--features", &features.join(",")]);
        }
        let status = command.status().context("cannot start cargo; is Rust installed (https://rustup.rs)?")?;
        if !status.success() {
            bail!("building {} failed; cargo's message stands above", names.join(", "));
        }
    }
    Ok(())
}
