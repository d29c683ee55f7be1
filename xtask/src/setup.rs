//! What a run needs of the host: QEMU with the devices we use, and Rust's bare-metal target. What is missing is installed,
//! saying so, where that is possible; where not, the error is the line to type. None of it goes to the standard output, which may be
//! JSON.

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The emulator's name.
pub const QEMU: &str = "qemu-system-x86_64";
/// Oldest version with `-netdev stream`.
const OLDEST: (u32, u32) = (7, 2);
const DEVICES: [&str; 6] = ["amd-iommu", "e1000", "ich9-ahci", "ide-hd", "virtio-blk-pci", "isa-debug-exit"];

/// Makes sure of everything; returns QEMU's version.
///
/// # Errors
/// What is missing and what to type.
pub fn ensure_all() -> Result<String> {
    target()?;
    qemu()
}

/// Makes sure of the freestanding target.
///
/// # Errors
/// rustup is not there, or fails.
pub fn target() -> Result<()> {
    let sysroot = Command::new("rustc")
        .current_dir(paths::root())
        .args(["--print", "sysroot"])
        .output()
        .context("cannot start rustc; install Rust from https://rustup.rs")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    if sysroot.join("lib/rustlib").join(paths::FREESTANDING).exists() {
        return Ok(());
    }
    let line = format!("rustup target add {}", paths::FREESTANDING);
    eprintln!("Rust's target {} is missing; running: {line}", paths::FREESTANDING);
    let done = Command::new("rustup")
        .current_dir(paths::root())
        .args(["target", "add", paths::FREESTANDING])
        .stdout(std::io::stderr())
        .status();
    match done {
        Ok(status) if status.success() => Ok(()),
        _ => bail!("cannot install Rust's target {}; type: {line}", paths::FREESTANDING),
    }
}

fn qemu() -> Result<String> {
    if find(QEMU).is_none() {
        install()?;
    }
    let text = output(&["--version"])?;
    let version = parse_version(&text).with_context(|| format!("`{QEMU} --version` says: {}", text.trim()))?;
    ensure!(
        version >= OLDEST,
        "{QEMU} is version {}.{}, but {}.{} or later is needed (for -netdev stream); install a newer one, for example Debian 12's",
        version.0,
        version.1,
        OLDEST.0,
        OLDEST.1
    );
    let devices = output(&["-device", "help"])?;
    for device in DEVICES {
        ensure!(
            devices.contains(&format!("name \"{device}\"")),
            "{QEMU} has no device {device}; install the full emulator: apt-get install --no-install-recommends qemu-system-x86"
        );
    }
    Ok(text.lines().next().unwrap_or_default().trim_start_matches("QEMU emulator version ").to_string())
}

fn output(args: &[&str]) -> Result<String> {
    let output =
        Command::new(QEMU).args(args).stdin(Stdio::null()).output().with_context(|| format!("cannot start {QEMU}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `QEMU emulator version 7.2.22 (Debian …)` → (7, 2).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let rest = text.split_once("version ")?.1;
    let mut numbers = rest.split(['.', ' ', '(']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Looks a program up in the path.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn install() -> Result<()> {
    const PACKAGE: &str = "apt-get install --no-install-recommends --yes qemu-system-x86";
    let by_hand = || format!("type: sudo sh -c 'apt-get update && {PACKAGE}'");
    if find("apt-get").is_none() {
        bail!("{QEMU} is missing and there is no apt-get; install QEMU 7.2 or later with its x86_64 system emulator");
    }
    let prefix: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else if quiet(&["sudo", "-n", "true"]) {
        &["sudo", "-n"]
    } else {
        bail!("{QEMU} is missing and I may not install it; {}", by_hand());
    };
    for step in ["apt-get update", PACKAGE] {
        let line: Vec<&str> = prefix.iter().copied().chain(step.split(' ')).collect();
        eprintln!("{QEMU} is missing; running: {}", line.join(" "));
        let status = Command::new(line[0])
            .args(&line[1..])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !status.is_ok_and(|s| s.success()) && step == PACKAGE {
            bail!("installing {QEMU} failed; {}", by_hand());
        }
    }
    ensure!(find(QEMU).is_some(), "the package is installed, but there is no {QEMU} in the path");
    Ok(())
}

fn quiet(line: &[&str]) -> bool {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// KVM can run our hypervisor: AMD, nested virtualisation on, and we may use it.
pub fn kvm() -> bool {
    let nested = std::fs::read_to_string("/sys/module/kvm_amd/parameters/nested").unwrap_or_default();
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    usable && matches!(nested.trim(), "1" | "Y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_distributions_print() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert!(parse_version("QEMU emulator version 7.2.0").unwrap() >= OLDEST);
        assert_eq!(parse_version("nothing of the kind"), None);
    }
}
