//! While a machine runs: single keys where there is a terminal, and waiting for the end everywhere.

use super::guest::Guest;
use super::show::Printer;
use crate::machine::Machine;
use crate::machine::attach::End;
use crate::machine::crash::KINDS;
use crate::manifest::System;
use crate::signals;
use crate::terminal::Terminal;
use anyhow::Result;
use serde_json::json;
use std::process::ExitCode;

const HELP: &str = "keys: c = crash the driver, r = restart it, s = domains, q = quit";
const CONSOLE: &str = ", a = the guest's console";

/// Shows the machine until it ends or somebody ends it; the code is the guest's if it gave one. With a guest, it also ends when
/// that switches itself off, and begins on its console.
///
/// # Errors
/// Of the emulator.
pub fn until_end(
    machine: &mut Machine,
    system: &System,
    printer: &Printer,
    mut guest: Option<Guest>,
) -> Result<ExitCode> {
    let raw = Terminal::keys();
    let help = format!("{HELP}{}", if guest.is_some() { CONSOLE } else { "" });
    let mut attached = guest.is_some();
    if raw.is_some() && !attached {
        printer.say(&help);
    }
    let mut choosing = false;
    loop {
        if let Some(code) = signals::code() {
            return Ok(code);
        }
        if let Some(status) = machine.ended()? {
            machine.console.settle();
            let code = machine.guest_code(status);
            printer.say(&match code {
                Some(code) => format!("the machine ended with code {code}"),
                None => format!("the emulator ended with {status}: {}", machine.qemu.complaint()),
            });
            return Ok(ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1)));
        }
        if let Some(guest) = &mut guest {
            if guest.alone && guest.is_off(machine) {
                printer.say(&format!("{} has switched itself off; that ends this run", guest.name));
                return Ok(ExitCode::SUCCESS);
            }
            if std::mem::take(&mut attached) {
                match guest.attach(machine, printer, raw.is_some())? {
                    End::Closed => continue,
                    End::PoweredOff if guest.alone => continue,
                    End::PoweredOff => printer.say(&format!(
                        "{0} has switched itself off; begin it anew: cargo xtask ctl create {0}",
                        guest.name
                    )),
                    End::Detached => {}
                }
                printer.say(&help);
            }
        }
        let Some(raw) = &raw else {
            std::thread::sleep(std::time::Duration::from_millis(50));
            continue;
        };
        let Some(&key) = raw.typed(std::time::Duration::from_millis(100)).first() else { continue };
        let driver = super::driver(system).ok();
        match (choosing, key, driver) {
            (true, b'1'..=b'7', Some(driver)) => {
                choosing = false;
                let how = KINDS[usize::from(key - b'1')];
                order(machine, printer, &json!({ "cmd": "crash", "dom": driver, "how": how }));
            }
            (true, ..) => {
                choosing = false;
                printer.say("nothing crashed");
            }
            (_, b'c', Some(_)) => {
                choosing = true;
                let menu: Vec<String> = KINDS.iter().zip(1..).map(|(kind, n)| format!("{n} = {kind}")).collect();
                printer.say(&format!("crash by: {}", menu.join(", ")));
            }
            (_, b'r', Some(driver)) => order(machine, printer, &json!({ "cmd": "restart", "dom": driver })),
            (_, b's', _) => match crate::ctl::domains(&machine.control) {
                Ok(table) => table.lines().for_each(|line| printer.say(line)),
                Err(error) => printer.say(&format!("{error:#}")),
            },
            (_, b'a', _) if guest.is_some() => attached = true,
            (_, b'q' | 4, _) => return Ok(ExitCode::SUCCESS),
            _ => printer.say(&help),
        }
    }
}

fn order(machine: &Machine, printer: &Printer, request: &serde_json::Value) {
    match machine.control.request(request) {
        Ok(reply) => printer.say(&format!("{} {}: {reply}", request["cmd"], request["dom"]).replace('"', "")),
        Err(error) => printer.say(&format!("{error:#}")),
    }
}
