//! What can wait while a domain waits for us: lines for the console and the socket, which cost a system call of the emulator for
//! each byte, and status nodes. Done one by one, whenever no domain wants a turn of the store; but not put off for ever.

use super::Control;
use alloc::collections::VecDeque;
use alloc::string::String;
use core::time::Duration;
use libxenrt::{Instant, clock, log};

/// How long nothing is told after a restart: the new instance and those who wait for it need the machine.
const QUIET: Duration = Duration::from_millis(10);
/// Rounds for which it is put off at most.
const PUT_OFF_MAX: u32 = 10;
/// Lines kept; beyond, the oldest is written at once.
const LINES_MAX: usize = 64;

/// One thing to be told.
enum Line {
    Console(String),
    Socket(String),
}

/// What waits.
#[derive(Default)]
pub struct Later {
    lines: VecDeque<Line>,
    put_off: u32,
    quiet_until: Option<Instant>,
}

impl Control {
    /// Writes a line to the console when there is time.
    pub fn note(&mut self, line: String) {
        self.add_line(Line::Console(line));
    }

    /// Sends a line to the socket when there is time.
    pub fn send_later(&mut self, line: String) {
        self.add_line(Line::Socket(line));
    }

    /// A domain was entered again at `entered`.
    pub fn keep_quiet(&mut self, entered: Instant) {
        self.later.quiet_until = Some(entered + QUIET);
    }

    /// Until when nothing is to be told, if so now.
    pub fn quiet_until(&self) -> Option<Instant> {
        self.later.quiet_until.filter(|&until| clock::now() < until)
    }

    fn add_line(&mut self, line: Line) {
        if self.later.lines.len() >= LINES_MAX {
            self.write_line();
        }
        self.later.lines.push_back(line);
    }

    fn write_line(&mut self) -> bool {
        match self.later.lines.pop_front() {
            Some(Line::Console(line)) => log::warn!("{line}"),
            Some(Line::Socket(line)) => {
                if let Some(socket) = &mut self.socket {
                    socket.send(&line);
                }
            }
            None => return false,
        }
        true
    }

    /// Whether domains come first in this round.
    pub fn puts_off(&mut self) -> bool {
        if self.later.put_off < PUT_OFF_MAX && self.links.iter().any(|l| l.wants_turn(&self.store)) {
            self.later.put_off += 1;
            return true;
        }
        self.later.put_off = 0;
        false
    }

    /// Does one thing that was put off; answers whether there is more.
    pub fn do_later(&mut self) -> bool {
        if self.write_line() {
            return true;
        }
        self.publish()
    }
}
