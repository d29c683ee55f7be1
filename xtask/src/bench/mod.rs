//! `cargo xtask bench`: figures with the machine they were taken on. They are never tests: noise of the host is part of them.
mod blk;
mod boot;
pub mod linux;
mod plot;
mod restart;
pub mod statistics;
mod world_switch;

use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::System;
use crate::{image, setup};
use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What plots of kills of a network driver show.
const OUTAGES: &str = "Longest time without a delivered packet, per kill";

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Print the figures as JSON
    #[arg(long, global = true)]
    json: bool,
    /// System to measure [default: default; with --guest linux: linux]
    #[arg(long, global = true)]
    system: Option<String>,
}

#[derive(Subcommand)]
enum What {
    /// Kill the driver again and again under 1 kHz probes: outage from crash to first delivered packet, by phases
    Restart {
        /// How many kills
        #[arg(long, default_value_t = 140)]
        kills: u32,
        /// Only this way to crash; all seven in turn by default
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(machine::crash::KINDS))]
        how: Option<String>,
        /// With transfers in both directions meanwhile
        #[arg(long)]
        load: bool,
        /// Where the plot goes
        #[arg(long, default_value = "target/xenolith/restart.svg")]
        plot: PathBuf,
    },
    /// From the hypervisor's entry to the first answer of the web guest
    Boot {
        /// How many boots
        #[arg(long, default_value_t = 10)]
        runs: u32,
    },
    /// Images, memory, lines of the hypervisor
    Size,
    /// The network of a stock Linux guest beside the same kernel on the bare machine; what kills cost it. About four minutes
    Net {
        /// The guest
        #[arg(long, value_parser = ["linux"])]
        guest: String,
        /// Boots of each side
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Seconds of a transfer
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// Kills for the outages, all seven ways in turn
        #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..))]
        kills: u32,
        /// Seconds of a transfer with a kill in each
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=600))]
        kill_seconds: u32,
        /// Where the plot of the ratios goes
        #[arg(long, default_value = "target/xenolith/linux-net.svg")]
        plot: PathBuf,
        /// Where the plot of the outages goes
        #[arg(long, default_value = "target/xenolith/linux-outage.svg")]
        outage_plot: PathBuf,
    },
    /// Disks: the driver domain against the same driver in a bare unikernel, stalls on kills, cost of a request, memory
    Blk {
        /// A stock Linux guest beside the same kernel on the bare machine, instead
        #[arg(long, value_parser = ["linux"])]
        guest: Option<String>,
        /// Runs of each workload on each side
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Seconds of a run
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// Kills for the stalls
        #[arg(long, default_value_t = 140)]
        kills: u32,
        /// Only the workloads with this in their name, without stalls and memory
        #[arg(long)]
        only: Option<String>,
        /// Where the plot of the ratios goes [default: target/xenolith/blk.svg; with --guest linux: target/xenolith/linux-blk.svg]
        #[arg(long)]
        plot: Option<PathBuf>,
        /// Where the plot of the stalls goes
        #[arg(long, default_value = "target/xenolith/blk-stall.svg")]
        stall_plot: PathBuf,
    },
    /// Throughput, and world switches and hypercalls per packet, in each direction and idle
    WorldSwitch {
        /// MiB per direction
        #[arg(long, default_value_t = 64)]
        mib: u64,
    },
}

/// What the figures were taken on.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    cpu: String,
    cores: usize,
    kernel: String,
    qemu: String,
    accelerator: &'static str,
    load: String,
}

impl Place {
    /// This machine, now.
    fn here(qemu: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown CPU");
        Self {
            cpu: cpu.trim_start_matches([' ', '\t', ':']).to_string(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            qemu: qemu.to_string(),
            accelerator: if setup::kvm() { "kvm" } else { "tcg" },
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    fn describe(&self) -> String {
        format!(
            "on {} ({} cores, Linux {}), QEMU {}, {}, load average before: {}",
            self.cpu, self.cores, self.kernel, self.qemu, self.accelerator, self.load
        )
    }
}

/// The command.
///
/// # Errors
/// Whatever keeps the machine from running, or a figure from being taken.
pub fn run(args: &Args) -> Result<ExitCode> {
    let linux = matches!(&args.what, What::Net { .. } | What::Blk { guest: Some(_), .. });
    let name = args.system.clone().unwrap_or_else(|| if linux { "linux" } else { "default" }.into());
    let system = System::load(&name)?;
    let qemu = setup::ensure_all()?;
    let place = Place::here(&qemu);
    let built = image::system(&system)?;
    let start = || {
        let options = Options { name: name.clone(), public: true, lacks: Lacks::default(), drives: None };
        Machine::start(&system, &built, &options, machine::reserve(0)?, |_| ())
    };
    let (text, json) = match &args.what {
        What::Restart { kills, how, load, plot } => {
            let figures = restart::measure(start()?, &system, *kills, how.as_deref(), *load)?;
            plot::points(plot, OUTAGES, &figures.outages.points())?;
            (format!("{}plot: {}\n", figures.describe(), plot.display()), serde_json::to_value(figures)?)
        }
        What::Net { rounds, seconds, kills, kill_seconds, plot, outage_plot, .. } => {
            let (rounds, seconds, kills, kill_seconds) = (*rounds, *seconds, *kills, *kill_seconds);
            let effort = linux::net::Effort { rounds, seconds, kills, kill_seconds, seed: 1 };
            let figures = linux::net::measure(&system, effort)?;
            plot::ratios(plot, "Linux guest's network, in percent of bare Linux", &linux::ratios(&figures.pairs))?;
            plot::points(outage_plot, OUTAGES, &figures.outages.points())?;
            let plots = format!("plots: {}, {}\n", plot.display(), outage_plot.display());
            (figures.describe() + &plots, serde_json::to_value(figures)?)
        }
        What::Blk { guest: Some(_), rounds, seconds, plot, .. } => {
            let plot = plot.as_deref().unwrap_or(Path::new("target/xenolith/linux-blk.svg"));
            let effort = linux::blk::Effort { rounds: *rounds, seconds: *seconds };
            let figures = linux::blk::measure(&system, effort)?;
            plot::ratios(plot, "Linux guest's disk, in percent of bare Linux", &linux::ratios(&figures.pairs))?;
            (format!("{}plot: {}\n", figures.describe(), plot.display()), serde_json::to_value(figures)?)
        }
        What::Blk { rounds, seconds, kills, only, plot, stall_plot, .. } => {
            let plot = plot.as_deref().unwrap_or(Path::new("target/xenolith/blk.svg"));
            let effort = blk::Effort { only: only.clone(), rounds: *rounds, seconds: *seconds, kills: *kills };
            let figures = blk::measure(&effort)?;
            let ratios: Vec<plot::Ratio<'_>> = figures.rows.iter().map(|row| (row.name, row.ratio, 0.9)).collect();
            plot::ratios(plot, "Disk through the driver domain, in percent of the same driver alone", &ratios)?;
            let mut plots = format!("plots: {}", plot.display());
            if let Some(life) = &figures.life {
                plot::points(stall_plot, "Longest time without a completed request, per kill", &life.all_stalls_ms)?;
                plots.push_str(&format!(", {}", stall_plot.display()));
            }
            plots.push('\n');
            (figures.describe() + &plots, serde_json::to_value(figures)?)
        }
        What::Boot { runs } => {
            let figures = boot::measure(start, *runs)?;
            (figures.describe(), serde_json::to_value(figures)?)
        }
        What::Size => {
            let lines = crate::lint::count_hypervisor()?;
            let memory = boot::memory(start()?)?;
            let text =
                format!("{}\nhypervisor: {lines} lines of Rust\n\n{}", image::describe(&built.weights), memory.0);
            (text, serde_json::json!({ "images": built.weights, "hypervisor_lines": lines, "memory": memory.1 }))
        }
        What::WorldSwitch { mib } => {
            let figures = world_switch::measure(start()?, mib << 20)?;
            (figures.describe(), serde_json::to_value(figures)?)
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "place": place, "figures": json }))?);
    } else {
        println!("{}\n\n{text}", place.describe());
    }
    Ok(ExitCode::SUCCESS)
}
