//! A shell on a guest's console: commands are typed into it as a person would, and what they write is told from all else on the
//! line by marks around it.
//!
//! A mark is written by `printf` from two parts, so that the echo of what was typed never looks like one. Each command runs in a
//! shell of its own (`sh -c`) without input: a syntax error, an `exit` or a program that reads cannot eat the end mark.

use super::Machine;
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

/// Clears a half-typed line.
const CTRL_U: char = '\x15';
/// Longest line a shell is given; busybox' line editor takes 1024 bytes.
const LINE_MAX: usize = 900;
/// How long a shell may take to answer before it is asked again: what is typed while a guest boots may be lost.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Between looks at the console.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of the console in one answer of control.
const CHUNK: u32 = 8192;
/// Output kept of one command.
const OUTPUT_MAX: usize = 1 << 20;

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its output and errors, with `\n` as line ends.
    pub output: String,
    /// Its exit code.
    pub code: u32,
}

/// One guest's shell.
pub struct Shell {
    domain: String,
    /// Bytes of the console seen so far.
    seen: u64,
    /// Marks used so far.
    marks: u32,
    text: String,
}

impl Shell {
    /// The shell of a domain, which may still be booting.
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.to_string(), seen: 0, marks: 0, text: String::new() }
    }

    /// Waits for a prompt, that is until the shell carries out what it is told.
    ///
    /// # Errors
    /// It does not in time; with the console's end.
    pub fn ready(&mut self, machine: &mut Machine, patience: Duration) -> Result<()> {
        self.text.clear();
        let mut asked: Option<Instant> = None;
        let mut first = None;
        self.wait(machine, "shell", patience, |shell, machine| {
            // An answer to any of the questions will do.
            if let Some(first) = first
                && (first..=shell.marks).any(|n| after(&shell.text, &mark("ready", n)).is_some())
            {
                return Ok(Some(()));
            }
            if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                asked = Some(Instant::now());
                let number = shell.next();
                first.get_or_insert(number);
                // A guest that does not read yet, or has no console yet, is asked again.
                let _ = shell.type_in(machine, &format!("{CTRL_U}{}\n", print_mark("ready", number, "")));
            }
            Ok(None)
        })
    }

    /// Runs a command and waits for its end.
    ///
    /// # Errors
    /// No shell, no end in time, output lost.
    pub fn run(&mut self, machine: &mut Machine, command: &str, patience: Duration) -> Result<Done> {
        self.run_alone(machine, command, Duration::ZERO, patience)
    }

    /// The same for a command that takes `alone` at least: until then nobody looks at the console, as each look costs control, and
    /// by it the guest, a good part of a CPU.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_alone(
        &mut self,
        machine: &mut Machine,
        command: &str,
        alone: Duration,
        patience: Duration,
    ) -> Result<Done> {
        check(command)?;
        let until = Instant::now() + patience;
        self.ready(machine, patience)?;
        let number = self.next();
        self.text.clear();
        self.type_in(machine, &line(command, number))?;
        let from = Instant::now();
        machine.wait_for("time", patience, |_| (from.elapsed() >= alone).then_some(()))?;
        let left = until.saturating_duration_since(Instant::now());
        self.wait(machine, &format!("end of `{command}`"), left, |shell, _| Ok(ended(&shell.text, number)))
    }

    fn next(&mut self) -> u32 {
        self.marks += 1;
        self.marks
    }

    fn type_in(&self, machine: &Machine, text: &str) -> Result<()> {
        machine.control.request(&json!({ "cmd": "input", "dom": self.domain, "text": text })).map(|_| ())
    }

    /// Reads the console until `done` finds what it looks for.
    fn wait<T>(
        &mut self,
        machine: &mut Machine,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&mut Self, &Machine) -> Result<Option<T>>,
    ) -> Result<T> {
        let name = self.domain.clone();
        let mut last = Instant::now().checked_sub(LOOK);
        let found = machine.wait_for(&format!("{what} on the console of `{name}`"), patience, |machine| {
            if last.is_some_and(|at| at.elapsed() < LOOK) {
                return None;
            }
            last = Some(Instant::now());
            self.read(machine).and_then(|()| done(self, machine)).transpose()
        });
        match found {
            Ok(result) => result,
            Err(error) => bail!("{error:#}\nconsole of `{name}`:\n{}", tail(&self.text)),
        }
    }

    /// Takes in what is new.
    fn read(&mut self, machine: &Machine) -> Result<()> {
        loop {
            let request = json!({ "cmd": "log", "dom": self.domain, "seq": self.seen, "max": CHUNK });
            let ok = machine.control.request(&request)?;
            let number = |key: &str| ok[key].as_u64().unwrap_or(self.seen);
            let (first, next) = (number("seq"), number("next"));
            ensure!(
                self.seen == 0 || first <= self.seen,
                "{} bytes of the console of `{}` were lost: a command wrote faster than they can be fetched",
                first - self.seen,
                self.domain
            );
            // A console that was made anew begins at nothing again.
            let more = next != first;
            self.seen = next;
            self.text.extend(ok["text"].as_str().unwrap_or_default().chars().filter(|&c| c != '\r'));
            ensure!(self.text.len() <= OUTPUT_MAX, "`{}` wrote more than {OUTPUT_MAX} bytes", self.domain);
            if !more {
                return Ok(());
            }
        }
    }
}

/// Refuses a command that a shell cannot be given.
///
/// # Errors
/// It has several lines, a tab, or is too long.
pub fn check(command: &str) -> Result<()> {
    ensure!(
        !command.contains(['\n', '\t']) && line(command, 0).len() <= LINE_MAX,
        "a command for a guest's shell is one line without tabs of at most {} bytes: {command}",
        LINE_MAX - line("", 0).len()
    );
    Ok(())
}

/// What is typed to run a command between marks of this number.
pub fn line(command: &str, number: u32) -> String {
    let quoted = command.replace('\'', "'\\''");
    let (begin, end) = (print_mark("begin", number, ""), print_mark("end", number, " $?"));
    format!("{begin}; sh -c '{quoted}' </dev/null 2>&1; {end}\n")
}

/// What is written by [`print_mark`].
fn mark(word: &str, number: u32) -> String {
    format!("<{word}-{number}")
}

/// The shell command that writes a mark, and an argument in it, on a line of its own.
fn print_mark(word: &str, number: u32, argument: &str) -> String {
    let place = if argument.is_empty() { "" } else { " %s" };
    format!("printf '\\n<%s-{number}{place}>\\n' {word}{argument}")
}

/// What comes behind a mark.
fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let at = text.find(&format!("\n{mark}"))? + 1 + mark.len();
    text.get(at..)?.strip_prefix(">\n")
}

/// A command's output and code, once both marks of this number are there.
pub fn ended(text: &str, number: u32) -> Option<Done> {
    let output = after(text, &mark("begin", number))?;
    let end = format!("\n{} ", mark("end", number));
    let at = output.find(&end)?;
    let code = output.get(at + end.len()..)?.split_once(">\n")?.0.parse().ok()?;
    Some(Done { output: output.get(..at)?.to_string(), code })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_echo_of_a_command_is_no_mark_and_its_output_ends_where_it_ends() {
        let typed = format!("linux# {}; sh -c 'x'; {}", print_mark("begin", 7, ""), print_mark("end", 7, " $?"));
        assert_eq!(ended(&typed, 7), None);
        let text = format!("{typed}\n\n<begin-7>\na\n[1.2] kernel: b\n\n<end-7 3>\nlinux# ");
        assert_eq!(ended(&text, 7), Some(Done { output: "a\n[1.2] kernel: b\n".into(), code: 3 }));
        assert_eq!(ended(&text, 8), None);
        assert_eq!(ended(&text[..text.len() - 9], 7), None, "the code is not whole");
        let silent = format!("{typed}\n\n<begin-7>\n\n<end-7 0>\n");
        assert_eq!(ended(&silent, 7), Some(Done { output: String::new(), code: 0 }));
    }

    #[test]
    fn a_shell_writes_the_marks_that_are_looked_for() {
        let line = format!("{}; sh -c 'echo a; exit 4'; {}", print_mark("begin", 1, ""), print_mark("end", 1, " $?"));
        let wrote = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
        let text = String::from_utf8(wrote.stdout).unwrap();
        assert_eq!(ended(&text, 1), Some(Done { output: "a\n".into(), code: 4 }));
        assert_eq!(after("x\n<ready-1>\n", &mark("ready", 1)), Some(""));
        assert_eq!(after("x\n<ready-10>\n", &mark("ready", 1)), None);
    }
}
