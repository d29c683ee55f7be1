//! Progress of long work: a bar on a terminal, a line per step elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Steps of one job.
pub struct Steps {
    name: String,
    bar: Option<ProgressBar>,
}

/// Announces a job.
pub fn steps(name: &str, count: u64) -> Steps {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(count);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_string());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar
    });
    Steps { name: name.to_string(), bar }
}

impl Steps {
    /// Says what is done now.
    pub fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_string()),
            None => eprintln!("{}: {what}", self.name),
        }
    }

    /// Goes on to the next step.
    pub fn next(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        self.say(what);
    }

    /// Goes on without a word where there is no bar.
    pub fn tick(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(what.to_string());
        }
    }

    /// Prints a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// The job is over.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
