//! A terminal on a guest's console: what the guest writes is shown, what is typed goes to it, every key of it, until the detach key. The
//! attachment outlives the guest's reboots. `ctl console` and `run` share it.

use super::control::Control;
use crate::terminal::{Terminal, until_detach};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

/// Between looks at the keyboard.
const LOOK: Duration = Duration::from_millis(10);
/// The same where there is no keyboard.
const IDLE: Duration = Duration::from_millis(200);

/// Why an attachment has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The detach key.
    Detached,
    /// The guest has switched itself off.
    PoweredOff,
    /// The machine is gone, or somebody wants us to stop.
    Closed,
}

/// What is shown of a console that is followed from a place on, and what is typed into it.
struct Screen<'a> {
    domain: &'a str,
    /// Bytes of the console shown.
    shown: u64,
    /// Begin of a character of which the rest has not been typed yet.
    half: Vec<u8>,
}

impl Screen<'_> {
    /// What an event has that was not shown yet. Others may follow the same console from another place on.
    fn news<'e>(&mut self, event: &'e Value) -> Option<&'e str> {
        if event["event"] != "console" || event["dom"] != self.domain {
            return None;
        }
        let (first, next) = (event["seq"].as_u64()?, event["next"].as_u64()?);
        let text = event["text"].as_str()?;
        if next <= self.shown {
            return None;
        }
        // Bytes that are no UTF-8 make the text longer than what it stands for; then all of it is shown again.
        let known = usize::try_from(self.shown.saturating_sub(first)).ok()?;
        self.shown = next;
        text.get(known..).filter(|_| text.len() as u64 == next - first).or(Some(text))
    }

    /// Whole characters out of what was typed so far.
    fn typed(&mut self, bytes: &[u8]) -> String {
        self.half.extend(bytes);
        let end = match std::str::from_utf8(&self.half) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.half.len(),
        };
        let rest = self.half.split_off(end);
        let text = String::from_utf8_lossy(&self.half).into_owned();
        self.half = rest;
        text
    }
}

/// What happened to the guest, for whoever looks at its console.
fn told(event: &Value, domain: &str) -> Option<String> {
    if event["dom"] != domain {
        return None;
    }
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_string();
    match event["event"].as_str()? {
        "stopped" => Some(format!("{domain} has stopped ({})", text("cause"))),
        "restarted" => Some(format!("{domain} begins anew")),
        "created" => Some(format!("{domain} was created")),
        "destroyed" => Some(format!("{domain} was destroyed; create it again: cargo xtask ctl create {domain}")),
        "back-off" => Some(format!("{domain} waits {} ms before it begins anew", event["delay_us"].as_u64()? / 1000)),
        "gave-up" => Some(format!("{domain} is not started any more: {}", text("why"))),
        _ => None,
    }
}

/// Whether the guest switched itself off.
pub fn powered_off(event: &Value, domain: &str) -> bool {
    event["event"] == "stopped" && event["dom"] == domain && event["cause"] == "poweroff"
}

/// Follows a domain's console, with a keyboard if `terminal` is one. `shown` are the bytes of it that were shown before; it is
/// brought up to date. With `leave` the attachment ends when the guest switches itself off.
///
/// # Errors
/// There is no such domain.
pub fn attach(
    control: &Control,
    domain: &str,
    terminal: Option<&Terminal>,
    shown: &mut u64,
    leave: bool,
) -> Result<End> {
    let mut seen = control.event_count();
    let following = control.follow_console(domain, *shown)?;
    let mut screen = Screen { domain: following.domain(), shown: *shown, half: Vec::new() };
    let domain = screen.domain;
    let mut refused = false;
    let mut out = std::io::stdout();
    let end = loop {
        if crate::signals::stop() {
            break End::Closed;
        }
        if let Some(terminal) = terminal {
            let typed = terminal.typed(LOOK);
            let (typed, detach) = until_detach(&typed);
            let text = screen.typed(typed);
            if !text.is_empty() {
                let answer = control.request(&json!({ "cmd": "input", "dom": domain, "text": text }));
                match answer {
                    Ok(_) => refused = false,
                    // Said once: it can still be read.
                    Err(error) if !refused => {
                        eprint!("\r\n{error:#}\r\n");
                        refused = true;
                    }
                    Err(_) => {}
                }
            }
            if detach {
                break End::Detached;
            }
        }
        let Some(event) = control.next(&mut seen, if terminal.is_some() { LOOK } else { IDLE }) else {
            if control.closed() {
                break End::Closed;
            }
            continue;
        };
        if let Some(text) = screen.news(&event) {
            // A closed output (a pipe into `head`) ends the attachment.
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                break End::Closed;
            }
        }
        if let Some(what) = told(&event, domain) {
            eprint!("\r\n[{what}]\r\n");
        }
        if leave && powered_off(&event, domain) {
            break End::PoweredOff;
        }
    };
    *shown = screen.shown;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen<'static> {
        Screen { domain: "linux", shown: 0, half: Vec::new() }
    }
    fn event(seq: u64, next: u64, text: &str) -> Value {
        json!({ "event": "console", "dom": "linux", "seq": seq, "next": next, "text": text })
    }

    #[test]
    fn nothing_is_shown_twice_when_another_follows_from_the_begin() {
        let mut screen = screen();
        assert_eq!(screen.news(&event(0, 5, "hello")), Some("hello"));
        assert_eq!(screen.news(&event(0, 5, "hello")), None);
        assert_eq!(screen.news(&event(0, 8, "hello wo")), Some(" wo"));
        assert_eq!(screen.news(&event(100, 103, "new")), Some("new"), "older ones are gone");
        let mut other = event(103, 104, "x");
        other["dom"] = "web".into();
        assert_eq!(screen.news(&other), None);
    }

    #[test]
    fn a_character_that_comes_in_two_halves_is_typed_whole() {
        let mut screen = screen();
        let bytes = "aé\x03".as_bytes();
        assert_eq!(screen.typed(&bytes[..2]), "a");
        assert_eq!(screen.typed(&bytes[2..]), "é\x03");
        assert_eq!(screen.typed(b"\xff"), "\u{fffd}");
    }

    #[test]
    fn what_becomes_of_the_guest_is_told() {
        let off = json!({ "event": "stopped", "dom": "linux", "cause": "poweroff" });
        assert!(powered_off(&off, "linux") && !powered_off(&off, "other"));
        assert_eq!(told(&off, "linux").unwrap(), "linux has stopped (poweroff)");
        assert_eq!(told(&off, "other"), None);
        let waits = json!({ "event": "back-off", "dom": "linux", "delay_us": 200_000, "failures": 5 });
        assert_eq!(told(&waits, "linux").unwrap(), "linux waits 200 ms before it begins anew");
    }
}
