//! A unikernel alone in the emulator, without our hypervisor: the comparison figures are taken with. Same processor, same drives.

use super::console::Console;
use super::qemu::{self, Qemu};
use super::{Folder, Lacks, accept, folder};
use crate::drive::Drives;
use crate::manifest::System;
use crate::setup;
use anyhow::{Context, Result, bail};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// The package of the unikernel that drives disks without a hypervisor (`docs/blkcheck.md`).
pub const PACKAGE: &str = "blkbare";
/// The number it gives its first drive.
pub const FIRST_DRIVE: u32 = 51712;

/// A bare machine; it ends when this is dropped.
pub struct Bare {
    qemu: Qemu,
    /// COM1.
    pub console: Console,
    /// Kept for what it holds.
    _folder: Folder,
}

impl Bare {
    /// Starts `kernel` (an ELF with a PVH note) on the machine of `system`, less NICs and, unless asked for, IOMMU; it finds `config` as
    /// its module.
    ///
    /// # Errors
    /// Sockets, files, the emulator.
    pub fn start(system: &System, drives: &Drives, kernel: &Path, config: &str, iommu: bool) -> Result<Self> {
        let folder = folder("bare")?;
        let module = folder.join("config");
        std::fs::write(&module, config).with_context(|| format!("cannot write {}", module.display()))?;
        let path = folder.join(qemu::COM1);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        let lacks = Lacks { iommu: !iommu, nics: true, ..Lacks::default() };
        let args = qemu::bare_arguments(&system.machine, drives, &lacks, setup::kvm(), kernel, &module, &folder);
        let mut qemu = Qemu::start(&args, &folder)?;
        let stream = accept(&listener, &mut qemu)?;
        Ok(Self { qemu, console: Console::start(stream, |_| ())?, _folder: folder })
    }

    /// Waits until it has ended itself.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while self.qemu.ended()?.is_none() {
            if crate::signals::stop() {
                bail!("interrupted");
            }
            if start.elapsed() > patience {
                bail!(
                    "the bare machine did not end within {} s; its console:\n{}",
                    patience.as_secs(),
                    self.console.tail(12)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.console.settle();
        Ok(())
    }

    /// What QEMU said, and the console's end.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{what}\n{}\n{}", self.qemu.complaint(), self.console.tail(12))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.qemu.kill();
    }
}
