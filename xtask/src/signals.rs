//! SIGINT, SIGTERM and SIGHUP end what we do in order: loops ask [`stop`], and what they own is dropped.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Takes the signals over. A second one of the same kind ends the process at once; the kernel then ends the emulator.
///
/// # Errors
/// Of the kernel.
pub fn install() -> Result<()> {
    let flag = Arc::clone(STOP.get_or_init(Arc::default));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag)).context("signal handler")?;
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("signal handler")?;
    }
    Ok(())
}

/// Somebody wants us to end.
pub fn stop() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
