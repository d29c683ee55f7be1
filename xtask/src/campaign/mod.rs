//! `cargo xtask campaign`: driver domains are killed at random points, in random ways, under load, until it is clear that nothing is
//! lost and nothing leaks; and the power is cut. The same seed gives the same orders.
pub mod blk;
pub mod linux;
pub mod lives;
mod memory;
mod net;
mod nodes;
pub mod power;

use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::System;
use crate::{image, setup};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `campaign`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Seed of ways, points and workloads
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// System
    #[arg(long, global = true)]
    system: Option<String>,
    /// Where the report goes (JSON)
    #[arg(long, global = true, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the console goes, line by line with seconds since the start: to see what happened around a kill
    #[arg(long, global = true, value_name = "FILE")]
    console: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Kill the network driver domain
    Net {
        /// How many times
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..))]
        kills: u32,
    },
    /// Kill the disk driver domain while blkcheck checks every sector, then check the image on the host
    Blk {
        /// How many times
        #[arg(long, default_value_t = 1000)]
        kills: u32,
        /// Minutes over which they are spread at least
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
    },
    /// Kill the network and the disk driver domain at once, while both carry load
    Both {
        /// How many times
        #[arg(long, default_value_t = 100)]
        kills: u32,
        /// Minutes over which they are spread at least
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
    },
    /// Kill both driver domains of a stock Linux guest while it works: iperf3, a checked download, fio, a tree of files
    Linux {
        /// Minutes of fio; a transfer has a tenth of it
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// Files of the tree (Linux's own has 80,000); drives that are files of the run grow with it
        #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        files: u32,
        /// Only these parts
        #[arg(long, value_delimiter = ',', default_values = ["net", "http", "fio", "tree"])]
        parts: Vec<linux::Part>,
    },
    /// Create and destroy a Linux guest with four virtual CPUs, every other time while it boots; no frame may be lost
    Lives {
        /// How many lives
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(4..))]
        lives: u32,
    },
    /// Cut the power of a drive with a volatile cache, and look whether all is there that a flush covered
    Power {
        /// How many times
        #[arg(long, default_value_t = 50)]
        cuts: u32,
    },
}

/// The command.
///
/// # Errors
/// Whatever keeps the machine from running at all; what was not survived is a failure in the report.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = args.system.as_deref().unwrap_or(match args.what {
        What::Net { .. } => "default",
        What::Blk { .. } => "disk",
        What::Both { .. } => "both",
        What::Power { .. } => "power",
        What::Linux { .. } | What::Lives { .. } => "linux",
    });
    let mut system = System::load(name)?;
    setup::ensure_all()?;
    match &args.what {
        What::Net { kills } => {
            let mut machine = boot(&system, name, args)?;
            finish(args, &net::run(&mut machine, &system, *kills, args.seed)?)
        }
        What::Blk { kills, minutes } | What::Both { kills, minutes } => {
            let plan = blk::Plan {
                kills: *kills,
                seed: args.seed,
                seconds: minutes * 60.0,
                network: matches!(args.what, What::Both { .. }),
                progress: true,
            };
            blk::configure(&mut system, args.seed);
            let machine = boot(&system, name, args)?;
            finish(args, &blk::run(machine, &system, &plan)?)
        }
        What::Linux { minutes, files, parts } => {
            let plan = linux::Plan { minutes: *minutes, files: *files, seed: args.seed, parts: parts.clone() };
            linux::configure(&mut system, &plan);
            let mut machine = boot(&system, name, args)?;
            finish(args, &linux::run(&mut machine, &system, &plan)?)
        }
        What::Lives { lives } => {
            lives::configure(&mut system)?;
            let mut machine = boot(&system, name, args)?;
            finish(args, &lives::run(&mut machine, &system, *lives, args.seed, true)?)
        }
        What::Power { cuts } => {
            power::configure(&mut system);
            image::prepare(std::iter::once(&system))?;
            finish(args, &power::run(&system, name, *cuts, args.seed, true)?)
        }
    }
}

fn boot(system: &System, name: &str, args: &Args) -> Result<Machine> {
    let built = image::system(system)?;
    let options = Options { name: name.to_string(), public: true, lacks: Lacks::default(), drives: None };
    let mut keep = match &args.console {
        Some(file) => Some(File::create(file).with_context(|| format!("cannot write {}", file.display()))?),
        None => None,
    };
    let start = Instant::now();
    Machine::start(system, &built, &options, machine::reserve(0)?, move |line| {
        // A full disk must not end a campaign: the console goes on without the file.
        let at = start.elapsed().as_secs_f64();
        keep.take_if(|file| writeln!(file, "{at:10.4} {}", line.full()).is_err());
    })
}

/// A campaign's result.
trait Outcome: Serialize {
    /// For people.
    fn describe(&self) -> String;
    /// What was not as it has to be.
    fn failures(&self) -> &[String];
}

fn finish(args: &Args, report: &impl Outcome) -> Result<ExitCode> {
    if let Some(file) = &args.report {
        write(file, report)?;
    }
    print!("{}", report.describe());
    for failure in report.failures() {
        println!("FAILED: {failure}");
    }
    Ok(if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(file: &Path, report: &impl Serialize) -> Result<()> {
    std::fs::write(file, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}
