//! SIGINT, SIGTERM and SIGHUP end what we do in order: loops ask [`stop`], and what they own is dropped.

use crate::terminal;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first that came; 0 = none did.
static CAME: AtomicI32 = AtomicI32::new(0);

/// Takes the signals over, in a thread of their own. A second one ends the process at once, with the terminal as it was before; the
/// kernel then ends the emulator, and the next run removes this one's folders.
///
/// # Errors
/// Of the kernel.
pub fn install() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signal handler")?;
    let wait = move || {
        for signal in signals.forever() {
            if CAME.swap(signal, Ordering::Relaxed) != 0 {
                terminal::restore();
                std::process::exit(code_of(signal).into());
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("signal thread")?;
    Ok(())
}

/// Somebody wants us to end.
pub fn stop() -> bool {
    CAME.load(Ordering::Relaxed) != 0
}

/// The code to end with, if somebody wants us to end: as a shell has it of a program that a signal ended.
pub fn code() -> Option<ExitCode> {
    stop().then(|| code_of(CAME.load(Ordering::Relaxed)).into())
}

fn code_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
