//! The terminal we were started from, without its line editing until the value is dropped: single keys for `run`, everything
//! that is typed for `ctl console`.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fmt::Arguments;
use std::io::{IsTerminal, Write, stdin};
use std::sync::OnceLock;
use std::time::Duration;

/// Ctrl-], which ends an attachment.
pub const DETACH: u8 = 0x1d;

/// The mode we found.
static FOUND: OnceLock<Termios> = OnceLock::new();

/// Brings back the terminal's mode as we found it, for an end at which nothing is dropped.
pub fn restore() {
    if let Some(mode) = FOUND.get() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, mode);
    }
}

/// Prints to the standard output. Whoever read it may be gone (`| head`), which is no reason to fail; false then.
pub fn print(text: Arguments<'_>) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).is_ok()
}

/// The terminal in another mode; the one before comes back when this is dropped.
pub struct Terminal(Termios);

impl Terminal {
    /// Keys one by one, unseen; Ctrl-C still ends us. None where there is no terminal.
    pub fn keys() -> Option<Self> {
        Self::with(|mode| mode.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Every byte as it was typed, Ctrl-C included. None where there is no terminal.
    pub fn raw() -> Option<Self> {
        Self::with(|mode| {
            let output = mode.output_modes;
            mode.make_raw();
            // What others print meanwhile keeps its line ends.
            mode.output_modes = output;
        })
    }

    fn with(change: impl FnOnce(&mut Termios)) -> Option<Self> {
        let before = tcgetattr(stdin()).ok().filter(|_| stdin().is_terminal())?;
        FOUND.get_or_init(|| before.clone());
        let mut mode = before.clone();
        change(&mut mode);
        tcsetattr(stdin(), OptionalActions::Now, &mode).ok()?;
        Some(Self(before))
    }

    /// What was typed within this time (below a second), nothing if nothing was.
    pub fn typed(&self, patience: Duration) -> Vec<u8> {
        let input = stdin();
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        let nap = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        if !matches!(poll(&mut fds, Some(&nap)), Ok(n) if n > 0) {
            return Vec::new();
        }
        let mut bytes = [0; 256];
        let len = rustix::io::read(&input, &mut bytes).unwrap_or(0);
        bytes.get(..len).unwrap_or_default().to_vec()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Splits what was typed at the detach key: what goes to the other end, and whether to detach.
pub fn until_detach(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|&b| b == DETACH) {
        Some(at) => (typed.get(..at).unwrap_or_default(), true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_before_the_detach_key_still_goes_out() {
        assert_eq!(until_detach(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_detach(b"ls\x1drest"), (&b"ls"[..], true));
    }
}
