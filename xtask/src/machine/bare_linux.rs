//! A Linux guest's kernel and initramfs alone in the emulator, without our hypervisor: the comparison its figures are taken with.
//! Same processor, as many CPUs and as much memory as the guest has, the same NIC and drives, the same peer on the wire, whose DHCP
//! server knows it by the guest's MAC.

use super::qemu::{self, Qemu};
use super::shell::{self, Done};
use super::{Folder, Lacks, accept, folder};
use crate::drive::Drives;
use crate::hostnet::{Guest, Host};
use crate::image::kernel::payload;
use crate::manifest::{Domain, System};
use crate::{linux, setup};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between looks at the console.
const LOOK: Duration = Duration::from_millis(5);

/// A bare machine with Linux; it ends when this is dropped.
pub struct BareLinux {
    qemu: Qemu,
    /// The wire.
    pub host: Host,
    /// The emulator was started.
    pub started: Instant,
    line: UnixStream,
    text: Arc<Mutex<String>>,
    marks: u32,
    /// Kept for what it holds.
    _folder: Folder,
}

impl BareLinux {
    /// Starts what `guest` of `system` would have booted.
    ///
    /// # Errors
    /// It is no Linux guest; sockets, files, the emulator.
    pub fn start(system: &System, guest: &Domain, drives: &Drives) -> Result<Self> {
        let linux = guest.linux.as_ref().with_context(|| format!("domain `{}` is no Linux guest", guest.name))?;
        let folder = folder("bare")?;
        // As the hypervisor gets it: out of its wrapping, which would cost a second of decompression.
        let file = std::fs::read(linux::kernel(&linux.kernel)?).context("the kernel")?;
        let file = if payload::is_bzimage(&file) { payload::extract(&file)? } else { file };
        let kernel = folder.join("vmlinux");
        std::fs::write(&kernel, file).with_context(|| format!("cannot write {}", kernel.display()))?;
        let initrd = linux::initrd(linux.initrd.as_deref().context("it has no initrd")?)?;
        let mut machine = system.machine.clone();
        machine.memory = guest.memory;
        // Under TCG one CPU more is asked for than runs guests.
        machine.cpus = guest.vcpus.saturating_sub(u32::from(!setup::kvm()));
        for (nic, vif) in machine.nics.iter_mut().zip(&guest.vifs) {
            nic.mac = vif.mac;
        }
        let doors: Vec<PathBuf> = (0..machine.nics.len()).map(|i| qemu::net(&folder, i)).collect();
        let host = Host::start(&doors, Guest::of(system).into_iter().map(|guest| (guest, None)).collect())?;
        let path = folder.join(qemu::COM1);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        let lacks = Lacks { iommu: true, ..Lacks::default() };
        let mut args = qemu::bare_arguments(&machine, drives, &lacks, setup::kvm(), &kernel, &initrd, &folder);
        args.extend(["-append".to_string(), guest.command_line.replace("console=hvc0", "console=ttyS0")]);
        let started = Instant::now();
        let mut qemu = Qemu::start(&args, &folder)?;
        let line = accept(&listener, &mut qemu)?;
        let text = Arc::new(Mutex::new(String::new()));
        let (mut reader, filled) = (line.try_clone()?, Arc::clone(&text));
        std::thread::Builder::new().name("bare-linux".into()).spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                let part = String::from_utf8_lossy(chunk.get(..count).unwrap_or_default()).replace('\r', "");
                filled.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
            }
        })?;
        Ok(Self { qemu, host, started, line, text, marks: 0, _folder: folder })
    }

    /// Waits for something in what the console has written.
    ///
    /// # Errors
    /// It has not come in time, or the emulator has ended; with the console's end.
    pub fn wait_for<T>(&mut self, what: &str, patience: Duration, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = found(&self.text.lock().unwrap_or_else(PoisonError::into_inner)) {
                return Ok(value);
            }
            if crate::signals::stop() {
                bail!("interrupted");
            }
            if self.qemu.ended()?.is_some() || start.elapsed() > patience {
                return Err(self.failure(&format!("no {what} on the bare machine within {} s", patience.as_secs())));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a command in the shell on its console, which has to be there.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn run(&mut self, command: &str, patience: Duration) -> Result<Done> {
        shell::check(command)?;
        self.marks += 1;
        let number = self.marks;
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.line.write_all(shell::line(command, number).as_bytes()).context("console of the bare machine")?;
        self.wait_for(&format!("end of `{command}`"), patience, |text| shell::ended(text, number))
    }

    /// Time the emulator's threads have had a CPU so far.
    pub fn cpu(&self) -> Duration {
        self.qemu.cpu()
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        anyhow!("{what}\n{}\nits console's end:\n{end}", self.qemu.complaint())
    }
}

impl Drop for BareLinux {
    fn drop(&mut self) {
        self.qemu.kill();
    }
}
