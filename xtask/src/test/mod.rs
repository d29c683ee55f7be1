//! `cargo xtask test`: everything that can be checked without a person, ending in one line `N passed, N failed`.
mod host;
mod pattern;
mod scenario;
mod steps;

use crate::{paths, progress, setup};
use anyhow::Result;
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only the tests on the host (units, properties, crash points, models)
    #[arg(long, conflicts_with = "qemu")]
    host: bool,
    /// Only the QEMU scenarios
    #[arg(long)]
    qemu: bool,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    scenario: Option<String>,
    /// List the scenarios and end
    #[arg(long)]
    list: bool,
    /// Show the consoles of the scenarios
    #[arg(long)]
    verbose: bool,
}

/// Passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good.
    pub passed: u64,
    /// Not.
    pub failed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
    fn count(&mut self, good: bool) {
        *(if good { &mut self.passed } else { &mut self.failed }) += 1;
    }
}

/// The command.
///
/// # Errors
/// What keeps it from testing at all; failed tests are counted instead.
pub fn run(args: &Args) -> Result<ExitCode> {
    let scenarios = scenario::all(&paths::root().join("tests/qemu"), args.scenario.as_deref())?;
    if args.list {
        for scenario in &scenarios {
            println!("{:24} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    setup::target()?;
    if !args.qemu && args.scenario.is_none() {
        tally.add(host::run()?);
    }
    if !args.host && !crate::signals::stop() {
        println!("QEMU scenarios with {}", setup::ensure_all()?);
        tally.add(run_scenarios(&scenarios, args.verbose));
    }
    println!("tested for {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    let good = tally.failed == 0 && tally.passed > 0 && !crate::signals::stop();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_scenarios(scenarios: &[scenario::Scenario], verbose: bool) -> Tally {
    let mut tally = Tally::default();
    if let Err(error) = crate::image::prepare(scenarios.iter().map(|s| &s.system)) {
        println!("FAILED build of the images: {error:#}");
        tally.failed += scenarios.len() as u64;
        return tally;
    }
    let bar = progress::steps("scenarios", scenarios.len() as u64);
    for scenario in scenarios {
        if crate::signals::stop() {
            break;
        }
        bar.tick(&scenario.name);
        let start = Instant::now();
        let result = scenario.run(verbose);
        let seconds = start.elapsed().as_secs_f32();
        match &result {
            Ok(()) => bar.line(&format!("ok      {:24} {seconds:5.1} s  {}", scenario.name, scenario.about)),
            Err(error) => bar.line(&format!("FAILED  {:24} {seconds:5.1} s  {error:#}", scenario.name)),
        }
        tally.count(result.is_ok());
    }
    bar.done();
    tally
}
