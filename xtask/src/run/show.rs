//! Console lines for people: the domain's name in front, each with its colour where the output is a terminal.

use crate::machine::console::{HYPERVISOR, Line};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// ANSI colours that can be read on dark and on light ground.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// The terminal is a guest's: no other lines in between. `ctl log` has them.
static HELD: AtomicBool = AtomicBool::new(false);

/// Prints lines.
#[derive(Clone, Copy)]
pub struct Printer {
    quiet: bool,
    colour: bool,
}

impl Printer {
    /// For this process' output.
    pub fn new(quiet: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { quiet, colour }
    }

    /// What a console calls with each line.
    pub fn sink(self) -> impl FnMut(&Line) + Send + 'static {
        let colours: Mutex<BTreeMap<String, u8>> = Mutex::default();
        move |line| {
            if self.quiet || HELD.load(Relaxed) {
                return;
            }
            let mut colours = colours.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let next = COLOURS[colours.len() % COLOURS.len()];
            let colour = *colours.entry(line.domain.clone()).or_insert(next);
            let bold = if line.domain == HYPERVISOR { "1;" } else { "" };
            let name = format!("{:>14}", line.domain);
            let text = if self.colour { line.text.clone() } else { plain(&line.text) };
            self.print(&if self.colour {
                format!("\x1b[{bold}{colour}m{name}\x1b[0m │ {text}")
            } else {
                format!("{name} | {text}")
            });
        }
    }

    /// Leaves the terminal to a guest, or takes it back.
    pub fn hold(self, on: bool) {
        HELD.store(on, Relaxed);
    }

    /// Says something of our own.
    pub fn say(self, text: &str) {
        self.print(&if self.colour {
            format!("\x1b[1m{:>14} ► {text}\x1b[0m", "xtask")
        } else {
            format!("{:>14} > {text}", "xtask")
        });
    }

    fn print(self, text: &str) {
        // A closed output (a pipe into `head`) is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// A line without the escape sequences a domain may have written.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // Skips to the sequence's final letter.
            let _ = chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn escape_sequences_are_left_out_of_plain_lines() {
        assert_eq!(super::plain("\x1b[1;31mred\x1b[0m text"), "red text");
    }
}
