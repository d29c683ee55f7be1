//! The emulator as a process: its command line from a system's `[machine]`, and that it never outlives us.

use super::Lacks;
use crate::drive::Drives;
use crate::manifest::Machine;
use crate::manifest::disk::{Cache, Model};
use crate::setup;
use anyhow::{Context, Result, anyhow};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the sockets are called in a run's folder.
pub const COM1: &str = "com1";
/// The control socket's.
pub const COM2: &str = "com2";

/// The socket of the monitor.
pub const MONITOR: &str = "monitor";

/// The socket of a NIC.
pub fn net(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("net{number}"))
}

/// A path as the value of an option: QEMU ends it at a comma unless that is doubled.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The whole command line. Sockets are those of `folder`, on which somebody listens.
pub fn arguments(
    machine: &Machine,
    drives: &Drives,
    lacks: &Lacks,
    kvm: bool,
    kernel: &Path,
    bundle: &Path,
    folder: &Path,
) -> Vec<String> {
    let mut args = board(machine, drives, lacks, kvm, folder);
    let mut put = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
    for com in [COM1, COM2] {
        serial(com, folder, &mut put);
    }
    put(&["-kernel", &kernel.display().to_string(), "-initrd", &bundle.display().to_string()]);
    let monitor = folder.join(MONITOR);
    put(&["-chardev", &format!("socket,id={MONITOR},path={},server=off", value(&monitor))]);
    put(&["-mon", &format!("chardev={MONITOR},mode=control")]);
    args
}

/// The command line of the same machine with one program and one serial line.
pub fn bare_arguments(
    machine: &Machine,
    drives: &Drives,
    lacks: &Lacks,
    kvm: bool,
    kernel: &Path,
    module: &Path,
    folder: &Path,
) -> Vec<String> {
    let mut args = board(machine, drives, lacks, kvm, folder);
    let mut put = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
    serial(COM1, folder, &mut put);
    put(&["-kernel", &kernel.display().to_string(), "-initrd", &module.display().to_string()]);
    args
}

fn serial(com: &str, folder: &Path, put: &mut impl FnMut(&[&str])) {
    put(&["-chardev", &format!("socket,id={com},path={},server=off", value(&folder.join(com)))]);
    put(&["-serial", &format!("chardev:{com}")]);
}

/// Processors, memory and devices.
fn board(machine: &Machine, drives: &Drives, lacks: &Lacks, kvm: bool, folder: &Path) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
    let minus: String = lacks.features.iter().map(|feature| format!(",-{feature}")).collect();
    if kvm {
        // The IOMMU remaps interrupts only where the I/O APIC is emulated.
        put(&["-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", &format!("host,+svm,+npt{minus}")]);
    } else {
        put(&["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", &format!("EPYC,+svm,+npt{minus}")]);
    }
    // The emulator's first CPU runs no guest (`hypervisor/src/smp.rs`).
    let cpus = machine.cpus + u32::from(!kvm);
    put(&["-smp", &cpus.to_string(), "-m", &format!("{}M", machine.memory.0 >> 20)]);
    put(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if !lacks.iommu {
        // `pt=off`: QEMU 10.0 would otherwise pass all DMA untranslated.
        put(&["-device", "amd-iommu,intremap=on,pt=off", "-trace", FAULT]);
    }
    put(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    for (i, nic) in machine.nics.iter().enumerate().filter(|_| !lacks.nics) {
        let path = net(folder, i);
        put(&["-netdev", &format!("stream,id=n{i},server=off,addr.type=unix,addr.path={}", value(&path))]);
        let address = nic.address.0 >> 3 & 31;
        put(&["-device", &format!("{},netdev=n{i},addr={address:#x},mac={}", nic.model, nic.mac)]);
    }
    disks(machine, drives, !lacks.translation, &mut put);
    args
}

/// The drives, each with its block node, on controllers made when their first drive comes.
fn disks(machine: &Machine, drives: &Drives, translated: bool, put: &mut impl FnMut(&[&str])) {
    for (number, disk) in machine.disks.iter().enumerate() {
        put(&["-blockdev", &drives.node(number, disk).to_string()]);
        let slot = disk.address.0 >> 3 & 31;
        let cached = if disk.cache == Cache::Writethrough { "off" } else { "on" };
        let common = format!(
            "drive=drive{number},logical_block_size={},physical_block_size={},write-cache={cached},rerror=report,werror=report",
            disk.sector_size,
            disk.physical()
        );
        let serial = disk.serial.as_ref().map_or_else(String::new, |serial| format!(",serial={serial}"));
        match disk.model {
            Model::Ahci => {
                let port = machine.disks.iter().take(number).filter(|d| d.address == disk.address).count();
                if port == 0 {
                    put(&["-device", &format!("ich9-ahci,id=ahci{slot},addr={slot:#x}")]);
                }
                put(&["-device", &format!("ide-hd,bus=ahci{slot}.{port},{common}{serial}")]);
            }
            // Without `iommu_platform` its DMA would pass the IOMMU by.
            Model::Virtio => {
                let platform = if translated { ",iommu_platform=on" } else { "" };
                put(&[
                    "-device",
                    &format!("virtio-blk-pci,addr={slot:#x},disable-legacy=on{platform},{common}{serial}"),
                ]);
            }
        }
    }
}

/// What QEMU traces of a DMA its IOMMU refused. Its event log, as Debian builds it, stays empty, so that the hypervisor cannot
/// know the address; this is the emulator's own word for it.
const FAULT: &str = "amdvi_page_fault";

/// Makes a command's process one that never outlives us. To be started from a thread that lives as long as it shall: the kernel ends
/// it with that thread.
pub fn die_with_us(command: &mut Command) {
    // Its own group: a Ctrl-C at the terminal reaches us, and we end it in order.
    command.process_group(0);
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made, which are async-signal-safe; nothing is allocated
    // and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the order was given.
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
}

/// How long an emulator whose sockets are closed may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// A running emulator; it is killed when this is dropped, and by the kernel should we die.
pub struct Qemu {
    child: Child,
    /// The command line, for those who want to repeat it.
    pub line: String,
    /// What it wrote to its standard error.
    stderr: PathBuf,
}

impl Qemu {
    /// Starts it. To be called from a thread that lives as long as the emulator shall: the kernel ends it with that thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(args: &[String], folder: &Path) -> Result<Self> {
        let stderr = folder.join("qemu.log");
        let log = std::fs::File::create(&stderr).with_context(|| format!("cannot write {}", stderr.display()))?;
        let mut command = Command::new(setup::QEMU);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_us(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {}", setup::QEMU))?;
        Ok(Self { child, line: format!("{} {}", setup::QEMU, args.join(" ")), stderr })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time its threads have had a CPU so far.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst); a thread that has just ended has none.
        let on_cpu = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.filter_map(on_cpu).sum())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Of `wait`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error of the start, with how QEMU ended and what it said: whatever of it fails first, a socket is closed because QEMU ends.
    pub fn failed(&mut self, error: &anyhow::Error) -> anyhow::Error {
        let deadline = Instant::now() + ENDING;
        let end = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break format!("QEMU ended with {status}"),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => break "QEMU runs still".to_string(),
            }
        };
        let complaint = self.complaint();
        let said = if complaint.is_empty() { "it said nothing" } else { &complaint };
        anyhow!("{error:#}; {end}:\n{said}\nit was started as: {}", self.line)
    }

    /// What QEMU itself complained about; its warnings of CPU features that TCG lacks are no complaint.
    pub fn complaint(&self) -> String {
        let text = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        text.lines()
            .filter(|line| {
                !line.trim().is_empty() && !line.contains("warning: TCG doesn't support") && !line.contains(FAULT)
            })
            .take(8)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Addresses of the DMA its IOMMU refused so far, in order.
    pub fn refused(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        let faults = text.lines().filter(|line| line.contains(FAULT));
        faults
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("0x")))
            .map(str::to_string)
            .collect()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The code a guest gave to `isa-debug-exit`, which QEMU makes `code << 1 | 1` of.
pub fn guest_code(status: ExitStatus) -> Option<u32> {
    let code = u32::try_from(status.code()?).ok()?;
    (code & 1 == 1).then_some(code >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{System, tests::SYSTEM};

    #[test]
    fn a_start_that_failed_is_told_with_the_emulators_own_words() {
        let stderr = std::env::temp_dir().join(format!("xenolith-qemu-{}.log", std::process::id()));
        let log = std::fs::File::create(&stderr).unwrap();
        let words = "sleep 0.1; echo 'qemu: error reading initrd' >&2; exit 1";
        let child = Command::new("sh").args(["-c", words]).stderr(log).spawn().unwrap();
        let mut qemu = Qemu { child, line: "qemu -initrd gone".into(), stderr: stderr.clone() };
        let text = qemu.failed(&anyhow!("connection reset")).to_string();
        std::fs::remove_file(stderr).unwrap();
        for part in ["connection reset; ", "exit status: 1", "error reading initrd", "started as: qemu -initrd gone"] {
            assert!(text.contains(part), "`{part}` is missing in {text}");
        }
    }

    #[test]
    fn the_command_line_names_every_device_and_socket() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let arguments = |lacks: &Lacks| {
            arguments(
                &system.machine,
                &Drives::default(),
                lacks,
                false,
                Path::new("/k"),
                Path::new("/b"),
                Path::new("/run"),
            )
            .join(" ")
        };
        let line = arguments(&Lacks::default());
        let bare = arguments(&Lacks { features: vec!["npt".into()], iommu: true, ..Lacks::default() });
        assert!(bare.contains(",+npt,-npt ") && !bare.contains("amd-iommu"), "{bare}");
        for part in [
            "-machine q35 -accel tcg,thread=multi -cpu EPYC,+svm,+npt -smp 3 -m 64M",
            "-device amd-iommu,intremap=on,pt=off -trace amdvi_page_fault",
            "-netdev stream,id=n0,server=off,addr.type=unix,addr.path=/run/net0",
            "-device e1000,netdev=n0,addr=0x3,mac=52:54:00:00:00:01",
            "-chardev socket,id=com2,path=/run/com2,server=off -serial chardev:com2",
            "-kernel /k -initrd /b",
            "-chardev socket,id=monitor,path=/run/monitor,server=off -mon chardev=monitor,mode=control",
        ] {
            assert!(line.contains(part), "`{part}` is missing in {line}");
        }
    }

    #[test]
    fn a_comma_in_a_path_is_part_of_it() {
        let system = System::parse(SYSTEM, "test").unwrap();
        let (drives, lacks) = (Drives::default(), Lacks::default());
        let [k, b, folder] = ["/k", "/b", "/a,b"].map(Path::new);
        let line = arguments(&system.machine, &drives, &lacks, false, k, b, folder).join(" ");
        for part in
            ["path=/a,,b/com1,server", "path=/a,,b/com2,server", "path=/a,,b/monitor,server", "addr.path=/a,,b/net0"]
        {
            assert!(line.contains(part), "`{part}` is missing in {line}");
        }
    }

    #[test]
    fn drives_hang_on_their_controllers_and_served_ones_on_our_socket() {
        let text = "[machine]\nmemory = '64MiB'\ncpus = 1\n\
            disk = [{ model = 'ahci', address = '00:04.0', size = '1MiB', serial = 'S1', blkdebug = [{ on = 'read', sector = 9 }] },\n\
                    { model = 'ahci', address = '00:04.0', size = '1MiB', physical-sector-size = 4096, volatile = true },\n\
                    { model = 'virtio', address = '00:05.0', size = '1MiB', sector-size = 4096, cache = 'writethrough' }]\n\
            [[domain]]\nname = 'c'\nimage = 'control'\nrole = 'control'\nmemory = '4MiB'";
        let system = System::parse(text, "test").unwrap();
        let drives = Drives::open(&system).unwrap();
        let line = arguments(
            &system.machine,
            &drives,
            &Lacks::default(),
            false,
            Path::new("/k"),
            Path::new("/b"),
            Path::new("/r"),
        )
        .join(" ");
        for part in [
            "-device ich9-ahci,id=ahci4,addr=0x4 -device ide-hd,bus=ahci4.0,drive=drive0,logical_block_size=512,physical_block_size=512,write-cache=on",
            ",serial=S1",
            "\"driver\":\"blkdebug\"",
            "\"sector\":9",
            "-device ide-hd,bus=ahci4.1,drive=drive1,logical_block_size=512,physical_block_size=4096",
            "drive1.nbd\",\"type\":\"unix\"",
            "-device virtio-blk-pci,addr=0x5,disable-legacy=on,iommu_platform=on,drive=drive2,logical_block_size=4096,physical_block_size=4096,write-cache=off",
        ] {
            assert!(line.contains(part), "`{part}` is missing in {line}");
        }
        assert_eq!(line.matches("ich9-ahci").count(), 1, "{line}");
    }

    #[test]
    fn the_guests_exit_code_is_told_from_qemus_own() {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(guest_code(ExitStatus::from_raw(1 << 8)), Some(0));
        assert_eq!(guest_code(ExitStatus::from_raw(15 << 8)), Some(7));
        assert_eq!(guest_code(ExitStatus::from_raw(0)), None, "QEMU's own success");
        assert_eq!(guest_code(ExitStatus::from_raw(9)), None, "killed");
    }
}
