//! Builds, boots, drives, tests and measures Xenolith; `cargo xtask help` lists what it can do.
//!
//! One command is one file or folder here and ends in one `run` function; they meet in [`manifest`] (what a system
//! consists of) and [`image`] (how it becomes bytes). All that touches the host's state, beyond `target/`, is in [`setup`].
/// As the standard library's, which panics where nobody reads any more ([`terminal::print`]).
macro_rules! print {
    ($($arg:tt)*) => {{
        $crate::terminal::print(format_args!($($arg)*));
    }};
}

/// As [`print`], with a line's end.
macro_rules! println {
    () => { print!("\n") };
    ($($arg:tt)*) => { print!("{}\n", format_args!($($arg)*)) };
}

mod bench;
mod campaign;
mod cargo;
mod ctl;
mod drive;
mod hostnet;
mod image;
mod lint;
mod linux;
mod machine;
mod manifest;
mod once;
mod paths;
mod progress;
mod run;
mod setup;
mod signals;
mod table;
mod terminal;
mod test;
mod units;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, drive, test and measure Xenolith", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build images and the system's bundle, and print their sizes
    Build(image::Args),
    /// Boot a system, show that it survives its driver's crash, and leave its page running
    Run(run::Args),
    /// Ask and steer the machine that runs (of several, the one started first): list, stats, log, console, restart, crash, history, …
    Ctl(ctl::Args),
    /// Run all tests: host tests, properties, crash points, models, QEMU scenarios
    Test(test::Args),
    /// Take figures: restart, boot, size, world-switch, net, blk
    Bench(bench::Args),
    /// Kill a driver domain hundreds of times at random points under load
    Campaign(campaign::Args),
    /// Check sizes, rooms of unsafe code and directions of dependencies
    Lint(lint::Args),
}

fn main() -> std::process::ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            signals::code().unwrap_or(std::process::ExitCode::FAILURE)
        }
    }
}

fn dispatch(command: Command) -> Result<std::process::ExitCode> {
    signals::install()?;
    match command {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Campaign(args) => campaign::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Ctl(args) => ctl::run(&args),
        Command::Build(args) => image::run(&args).map(|()| std::process::ExitCode::SUCCESS),
    }
}
