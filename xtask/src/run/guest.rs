//! `run` with a Linux guest: the terminal is its console until the detach key.

use super::show::Printer;
use crate::machine::Machine;
use crate::machine::attach::{End, attach, powered_off};
use crate::manifest::{Role, System};
use crate::terminal::Terminal;
use anyhow::Result;

/// The guest the terminal belongs to.
pub struct Guest {
    /// Its domain.
    pub name: String,
    /// Bytes of its console shown so far.
    shown: u64,
    /// There is no other guest that would go on without it.
    pub alone: bool,
}

impl Guest {
    /// A guest that begins to boot.
    pub fn new(name: String, system: &System) -> Self {
        let alone = system.domains.iter().all(|d| d.role != Role::Guest || d.name == name);
        Self { name, shown: 0, alone }
    }

    /// It switched itself off, and did not begin anew since.
    pub fn is_off(&self, machine: &Machine) -> bool {
        let off = machine.control.last_of(|event| {
            let ends = powered_off(event, &self.name);
            let begins = event["dom"] == *self.name && (event["event"] == "created" || event["event"] == "restarted");
            (ends || begins).then_some(ends)
        });
        off == Some(true)
    }

    /// Shows its console; with a keyboard until the detach key.
    ///
    /// # Errors
    /// Of the attachment.
    pub fn attach(&mut self, machine: &Machine, printer: &Printer, keyboard: bool) -> Result<End> {
        let terminal = if keyboard { Terminal::raw() } else { None };
        printer.say(&match &terminal {
            Some(_) => format!(
                "console of {}: all keys go to it, Ctrl-C as well; Ctrl-] leaves it{}",
                self.name,
                if self.alone { "; poweroff in the guest ends the run" } else { "" }
            ),
            None => format!("console of {}", self.name),
        });
        printer.hold(true);
        let end = attach(&machine.control, &self.name, terminal.as_ref(), &mut self.shown, true);
        drop(terminal);
        printer.hold(false);
        println!();
        end
    }
}
