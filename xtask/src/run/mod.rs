//! `cargo xtask run`: sets up, builds, boots, shows; either the demonstration and then the page with keys, or the console of a
//! Linux guest ([`guest`], with what the user wants it to be: [`own`]), or `--headless`, the scripted main job with its report.
mod demo;
mod guest;
mod headless;
mod keys;
mod own;
mod show;

pub use headless::stats;

use crate::drive::Drives;
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::{Role, System};
use crate::{image, setup};
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a system to serve.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// System to boot (a file in images/systems/, without .toml, or a path) [default: demo; with --headless: default]
    system: Option<String>,
    /// Port of the page on 127.0.0.1; 0 = any free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The scripted main job: transfer both ways while crashing the driver 10 times, verify, report, end
    #[arg(long)]
    headless: bool,
    /// Where --headless writes its report (JSON)
    #[arg(long, value_name = "FILE", requires = "headless")]
    report: Option<PathBuf>,
    /// MiB to transfer each way with --headless
    #[arg(long, default_value_t = 64, requires = "headless", value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
    /// Boot and leave it running, without the demonstration or a guest's console
    #[arg(long, conflicts_with = "headless")]
    no_demo: bool,
    /// Do not show the consoles
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    own: own::Own,
}

/// The domain whose crash everything is about: the backend of the first guest on the wire.
///
/// # Errors
/// The system has no guest on the wire.
pub fn driver(system: &System) -> Result<&str> {
    let vif = system.vifs().next().map(|(_, vif)| vif.backend.as_str());
    vif.or_else(|| system.domains.iter().find(|d| d.role == Role::Driver).map(|d| d.name.as_str()))
        .context("this system has no driver domain to crash")
}

/// The command.
///
/// # Errors
/// Whatever keeps the machine from running as it should.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = args.system.as_deref().unwrap_or(if args.headless { "default" } else { "demo" });
    let mut system = System::load(name)?;
    let guest = args.own.guest(&system)?;
    args.own.apply(&mut system)?;
    if args.headless {
        let first = system.vifs().next().map(|(name, _)| name);
        let served = first.is_some_and(|name| system.domains.iter().any(|d| d.name == name && d.linux.is_none()));
        ensure!(
            served,
            "--headless transfers with a web guest, which has to be the first guest on the wire; `{name}` has none there"
        );
    }
    // What is wrong with an image is told before anything is built.
    let drives = Arc::new(Drives::open(&system)?);
    let page = machine::reserve(if args.headless && args.port == 8080 { 0 } else { args.port })?;
    let qemu = setup::ensure_all()?;
    let built = image::system(&system)?;
    let options = Options { name: name.to_string(), public: true, lacks: Lacks::default(), drives: Some(drives) };
    let printer = show::Printer::new(args.quiet || args.headless);
    let mut machine = Machine::start(&system, &built, &options, page, printer.sink())?;
    if args.headless {
        return headless::run(&mut machine, &system, &qemu, args.mib << 20, args.report.as_deref());
    }
    if let Some(name) = guest {
        machine.wait_until_ready(BOOT_PATIENCE)?;
        let page = machine.guests.first().map(|guest| guest.name.as_str());
        let page = page.filter(|page| system.domains.iter().any(|d| d.name == *page && d.linux.is_none()));
        if let Some(port) = page.and(machine.host.port(0)) {
            printer.say(&format!("the page: http://127.0.0.1:{port}/"));
        }
        return keys::until_end(
            &mut machine,
            &system,
            &printer,
            (!args.no_demo).then(|| guest::Guest::new(name, &system)),
        );
    }
    if machine.guests.is_empty() {
        return keys::until_end(&mut machine, &system, &printer, None);
    }
    let (_, served) = machine.wait_until_serving(0, BOOT_PATIENCE)?;
    let port = machine.host.port(0).context("the guest has no page")?;
    let boot = machine.console.first_byte().map(|first| served.duration_since(first));
    printer.say(&format!(
        "the page: http://127.0.0.1:{port}/   (booted in {} ms)",
        boot.map_or_else(|| "?".into(), |b| b.as_millis().to_string())
    ));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let good = args.no_demo || demo::run(&mut machine, &system, &printer)?;
    if terminal || args.no_demo {
        return keys::until_end(&mut machine, &system, &printer, None);
    }
    if !good {
        bail!("the demonstration failed");
    }
    Ok(ExitCode::SUCCESS)
}
