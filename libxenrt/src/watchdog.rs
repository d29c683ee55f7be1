//! The fine watchdog: a domain that neither sleeps nor feeds it for its time is stopped and restarted. Feeding is free most of
//! the time; a hypercall is made only when a quarter of the time has gone.
//!
//! A line on the console takes as long as the serial port and the emulator behind it, which is no fault of the domain: while it is
//! written the watchdog is patient ([`while_talking`]).

use crate::clock::{self, Instant};
use crate::hypercall;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

/// The time of the armed watchdog, ms; 0 = none is.
static ARMED_MS: AtomicU64 = AtomicU64::new(0);

/// An armed watchdog.
#[derive(Debug)]
pub struct Watchdog {
    timeout_ms: u64,
    due: Instant,
}

impl Watchdog {
    /// Arms it.
    ///
    /// # Errors
    /// The hypervisor's; ENOSYS on one without it.
    pub fn arm(timeout_ms: u64) -> hypercall::Result<Self> {
        hypercall::watchdog_ms(timeout_ms)?;
        ARMED_MS.store(timeout_ms, Ordering::Relaxed);
        Ok(Self { timeout_ms, due: Self::next(timeout_ms, clock::now()) })
    }

    fn next(timeout_ms: u64, now: Instant) -> Instant {
        now + Duration::from_millis(timeout_ms) / 4
    }

    /// Says the main loop is alive, at time `now`.
    #[inline]
    pub fn feed(&mut self, now: Instant) {
        if now >= self.due {
            // A refusal would mean that the watchdog is gone; the next feeding tries again.
            let _ = hypercall::watchdog_ms(self.timeout_ms);
            self.due = Self::next(self.timeout_ms, now);
        }
    }
}

/// What a line on the console may take; a slow console must not make a hang of a panic, or of good work.
const TALK_MS: u64 = 1000;

/// Called before the last lines on the console.
#[cfg(target_os = "none")]
pub(crate) fn allow_last_words() {
    // They are the last: each line leaves this time to the next one.
    ARMED_MS.store(0, Ordering::Relaxed);
    // A refusal changes nothing: the domain ends anyway.
    let _ = hypercall::watchdog_ms(TALK_MS);
}

/// Runs what writes to the console.
pub(crate) fn while_talking(write: impl FnOnce()) {
    let armed_ms = ARMED_MS.load(Ordering::Relaxed);
    if armed_ms == 0 || armed_ms >= TALK_MS {
        return write();
    }
    // A refusal means that the watchdog is gone.
    let _ = hypercall::watchdog_ms(TALK_MS);
    write();
    let _ = hypercall::watchdog_ms(armed_ms);
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        ARMED_MS.store(0, Ordering::Relaxed);
        let _ = hypercall::watchdog_ms(0);
    }
}
