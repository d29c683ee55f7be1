//! A running machine: the emulator, its console, its control line and its wire, together and ended together.
pub mod attach;
pub mod bare;
pub mod bare_linux;
pub mod blkcheck;
mod card;
pub mod console;
pub mod control;
pub mod crash;
pub mod events;
pub mod load;
pub mod monitor;
pub mod protocol;
pub mod qemu;
pub mod shell;
pub mod standing;

use crate::drive::Drives;
use crate::hostnet::{self, Guest, Host};
use crate::image::Built;
use crate::manifest::{Domain, System};
use crate::{paths, setup};
use anyhow::{Context, Result, anyhow, bail};
use card::Card;
pub use card::card;
use console::{Console, Line};
use control::Control;
use monitor::Monitor;
use qemu::Qemu;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest path a socket can have (`sun_path` less its NUL and our longest name).
const SOCKET_PATH_MAX: usize = 107 - 8;

/// How a machine is wanted.
pub struct Options {
    /// Name of the system, for messages.
    pub name: String,
    /// `ctl` finds this machine, unless it finds another one already.
    pub public: bool,
    /// What the machine lacks, for tests of what then is said.
    pub lacks: Lacks,
    /// Drives that are there already; opened and given up with the machine if none.
    pub drives: Option<Arc<Drives>>,
}

/// Hardware left out of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lacks {
    /// CPU features, by QEMU's names.
    #[serde(default)]
    pub features: Vec<String>,
    /// The IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// The NICs.
    #[serde(default)]
    pub nics: bool,
    /// Virtio devices' translation by the IOMMU.
    #[serde(default)]
    pub translation: bool,
}

/// A machine that runs; it ends when this is dropped.
pub struct Machine {
    /// The emulator.
    pub qemu: Qemu,
    /// COM1.
    pub console: Console,
    /// COM2.
    pub control: Control,
    /// QEMU's own.
    pub monitor: Monitor,
    /// The wire.
    pub host: Host,
    /// Guests on the wire, in the order of the wire's numbers.
    pub guests: Vec<Guest>,
    /// The drives.
    pub drives: Arc<Drives>,
    /// The emulator was started.
    pub started: Instant,
    /// Where domains point their devices for the crash kind `dma`, where their configuration says so.
    dma_targets: BTreeMap<String, u64>,
    folder: Folder,
    _bundle: Option<Arc<Folder>>,
    /// That `ctl` finds it.
    card: Option<Card>,
}

/// Reserves the page's port; to be called before anything is started.
///
/// # Errors
/// The port is taken: names it and what to do.
pub fn reserve(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "port {port} of 127.0.0.1 is taken by another program (is another `xtask run` still there?); end it or give another: --port N (0 = any free)"
        ),
        _ => anyhow!("cannot listen on 127.0.0.1:{port}: {error}"),
    })
}

impl Machine {
    /// Starts the built system. `page` is the listener of the first guest's page, `show` sees each console line.
    ///
    /// # Errors
    /// Sockets, threads, the emulator; with what QEMU said where it ended at once.
    pub fn start(
        system: &System,
        built: &Built,
        options: &Options,
        page: TcpListener,
        show: impl FnMut(&Line) + Send + 'static,
    ) -> Result<Self> {
        let drives = match &options.drives {
            Some(drives) => Arc::clone(drives),
            None => Arc::new(Drives::open(system)?),
        };
        let folder = folder("run")?;
        let guests = Guest::of(system);
        let mut pages = vec![page];
        while pages.len() < guests.len() {
            pages.push(reserve(0)?);
        }
        let doors: Vec<PathBuf> = (0..system.machine.nics.len()).map(|i| qemu::net(&folder, i)).collect();
        let host = Host::start(&doors, guests.iter().cloned().zip(pages.into_iter().map(Some)).collect())?;
        let coms: Vec<UnixListener> = [qemu::COM1, qemu::COM2, qemu::MONITOR]
            .iter()
            .map(|com| {
                let path = folder.join(com);
                let listener =
                    UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .collect::<Result<_>>()?;
        let args = qemu::arguments(
            &system.machine,
            &drives,
            &options.lacks,
            setup::kvm(),
            &built.hypervisor,
            &built.bundle,
            &folder,
        );
        let started = Instant::now();
        let mut qemu = Qemu::start(&args, &folder)?;
        let mut lines = Vec::new();
        for listener in &coms {
            lines.push(accept(listener, &mut qemu)?);
        }
        let lines = <[UnixStream; 3]>::try_from(lines);
        let [com1, com2, monitor] = lines.map_err(|_| anyhow!("two serial lines and a monitor expected"))?;
        let monitor = Monitor::start(monitor, folder.join("frame")).map_err(|error| qemu.failed(&error))?;
        let console = Console::start(com1, show)?;
        let control = Control::start(com2)?;
        let target = |d: &Domain| Some((d.name.clone(), d.config.get(crash::DMA_TARGET_KEY)?.parse().ok()?));
        let dma_targets = system.domains.iter().filter_map(target).collect();
        let mut machine = Self {
            qemu,
            console,
            control,
            monitor,
            host,
            guests,
            drives,
            started,
            dma_targets,
            folder,
            _bundle: built.folder.clone(),
            card: None,
        };
        if options.public {
            machine.publish(options)?;
        }
        Ok(machine)
    }

    /// Makes `ctl` find the machine.
    fn publish(&mut self, options: &Options) -> Result<()> {
        let socket = self.folder.join("ctl");
        self.control
            .serve(UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?)?;
        let card = serde_json::json!({
            "pid": std::process::id(), "qemu": self.qemu.pid(), "system": options.name, "socket": socket,
            "port": self.host.port(0),
        });
        self.card = Card::take(&card::path(), &card)?;
        Ok(())
    }

    /// The emulator ended: how, with the reason as far as it is known.
    ///
    /// # Errors
    /// Of `wait`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.qemu.ended()
    }

    /// The code the system ended the machine with. QEMU's own failure has the same status as code 0, but then the console
    /// is empty or QEMU complained.
    pub fn guest_code(&self, status: ExitStatus) -> Option<u32> {
        let spoke = self.console.first_byte().is_some() && self.qemu.complaint().is_empty();
        qemu::guest_code(status).filter(|_| spoke)
    }

    /// A request on the control line; where it fails, the error has the console's end.
    ///
    /// # Errors
    /// Of the line, or what the control domain answered instead.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        self.control.request(request).map_err(|error| {
            // An emulator that ended takes a moment to be seen as ended.
            std::thread::sleep(Duration::from_millis(100));
            self.failure(&format!("{error:#}"))
        })
    }

    /// An error for a machine that is not as it should be, with the console's end.
    pub fn failure(&mut self, what: &str) -> anyhow::Error {
        let end = match self.qemu.ended() {
            Ok(Some(status)) => format!("; the emulator ended with {status}"),
            _ => String::new(),
        };
        let complaint = self.qemu.complaint();
        let complaint = if complaint.is_empty() { String::new() } else { format!("\nQEMU says:\n{complaint}") };
        let tail = self.console.tail(12);
        let tail =
            if tail.is_empty() { "the console is empty".to_string() } else { format!("the console's end:\n{tail}") };
        anyhow!("{what}{end}{complaint}\n{tail}")
    }

    /// Waits until `done` gives something, the emulator ends, somebody wants us to stop, or the time is up.
    ///
    /// # Errors
    /// `what` did not come, and the state of the machine.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return Ok(value);
            }
            if self.qemu.ended()?.is_some() {
                return Err(self.failure(&format!("no {what}")));
            }
            if crate::signals::stop() {
                bail!("interrupted");
            }
            if start.elapsed() > patience {
                return Err(self.failure(&format!("no {what} within {} s", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for control's `ready`, then for the first answer of guest `guest`'s page. Returns the moments of both.
    ///
    /// # Errors
    /// As [`Machine::wait_for`].
    pub fn wait_until_serving(&mut self, guest: usize, patience: Duration) -> Result<(Instant, Instant)> {
        let ready = self.wait_until_ready(patience)?;
        Ok((ready, self.wait_until_page(guest, patience)?))
    }

    /// Waits for the first answer of a guest's page.
    ///
    /// # Errors
    /// As [`Machine::wait_for`].
    pub fn wait_until_page(&mut self, guest: usize, patience: Duration) -> Result<Instant> {
        let name = self.guests.get(guest).map(|g| g.name.clone()).context("the system has no guest on the wire")?;
        self.wait_for(&format!("address for guest `{name}`"), patience, |m| m.host.up(guest))?;
        let port = self.host.port(guest).context("the guest has no page")?;
        self.wait_for(&format!("page of guest `{name}`"), patience, |_| {
            hostnet::client::get(port, "/status.json").is_ok_and(|(status, _)| status == 200).then(Instant::now)
        })
    }

    /// Waits until the machine has ended.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.qemu.ended()? {
                return Ok(status);
            }
            if crate::signals::stop() {
                bail!("interrupted");
            }
            if start.elapsed() > patience {
                return Err(self.failure(&format!("the machine did not end within {} s", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for control's `ready` and subscribes to its events.
    ///
    /// # Errors
    /// As [`Machine::wait_for`].
    pub fn wait_until_ready(&mut self, patience: Duration) -> Result<Instant> {
        let is_ready = |event: &Value| event["event"] == "ready";
        let (at, _) =
            self.wait_for("word from the control domain", patience, |m| m.control.event(0, Duration::ZERO, is_ready))?;
        self.control.ask("subscribe")?;
        Ok(at)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.qemu.kill();
        // What ended the wire before was told where it mattered; here everything ends.
        let _ = self.host.stop();
    }
}

/// A folder of one run, which goes with it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Itself, locked: it is in use.
    _lock: File,
}

impl std::ops::Deref for Folder {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Its name begins with this in the system's folder for temporary files, where others have theirs.
const OURS: &str = "xenolith-";

/// A folder for the sockets or files of one run: below `target`, or, where that path is too long for a socket, in the system's
/// folder for temporary files. The first one removes those of runs that were killed.
///
/// # Errors
/// It cannot be made.
pub fn folder(kind: &str) -> Result<Folder> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (ours, others) = (paths::output(), std::env::temp_dir());
    if number == 0 {
        prune(&ours, "");
        prune(&others, OURS);
    }
    let name = format!("{kind}-{}-{number}", std::process::id());
    let fits = |path: &Path| path.as_os_str().len() <= SOCKET_PATH_MAX;
    let path = Some(ours.join(&name)).filter(|p| fits(p)).unwrap_or_else(|| others.join(format!("{OURS}{name}")));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let lock = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.try_lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Folder { path, _lock: lock })
}

/// Removes the folders of runs that could not do it themselves. One has ended if neither its process is there nor anybody holds the
/// folder's lock: in a container others see another number of it.
fn prune(all: &Path, prefix: &str) {
    for path in std::fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(prefix));
        let Some(process) = name.and_then(process_of) else { continue };
        let ended = path.is_dir() && !path.is_symlink() && !Path::new("/proc").join(process.to_string()).exists();
        if ended && File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// The process of a folder `KIND-PROCESS-NUMBER`.
fn process_of(name: &str) -> Option<u32> {
    let mut parts = name.rsplitn(3, '-');
    let (number, process, kind) = (parts.next()?, parts.next()?, parts.next()?);
    number.parse::<u32>().ok()?;
    process.parse().ok().filter(|_| !kind.is_empty())
}

/// Waits for a program to connect.
///
/// # Errors
/// It ends, or does not in time.
pub fn accept_child(
    listener: &UnixListener,
    child: &mut std::process::Child,
    patience: Duration,
) -> Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once with {status}");
        }
        if Instant::now() > deadline {
            bail!("it did not connect within {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for QEMU to connect, which it does before it runs the machine.
fn accept(listener: &UnixListener, qemu: &mut Qemu) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error).context("serial line"),
            Err(_) => {}
        }
        if qemu.ended()?.is_some() || Instant::now() > deadline {
            return Err(qemu.failed(&anyhow!("QEMU did not connect to its serial lines and monitor")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_runs_that_were_killed_go_and_no_others() {
        let all = std::env::temp_dir().join(format!("xenolith-prune-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&all);
        // A process that has ended: our child.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (dead, alive) = (child.id(), std::process::id());
        let held = format!("run-{dead}-1");
        let kept =
            [held.clone(), format!("run-{alive}-0"), "debian".into(), format!("run-{dead}"), format!("-{dead}-0")];
        let gone = [format!("run-{dead}-0"), format!("nbd-test-{dead}-12")];
        for name in kept.iter().chain(&gone) {
            std::fs::create_dir_all(all.join(name)).unwrap();
            std::fs::write(all.join(name).join("drive0.img"), "x").unwrap();
        }
        let lock = File::open(all.join(&held)).unwrap();
        lock.lock().unwrap();
        prune(&all, "");
        for (names, there) in [(&kept[..], true), (&gone[..], false)] {
            names.iter().for_each(|name| assert_eq!(all.join(name).exists(), there, "{name}"));
        }
        std::fs::remove_dir_all(&all).unwrap();
    }
}
