//! The fine watchdog: a domain that neither sleeps nor feeds it for its time is stopped and restarted. Feeding is free most of
//! the time; a hypercall is made only when a quarter of the time has gone.

use crate::clock::{self, Instant};
use crate::hypercall;
use core::time::Duration;

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

/// What a dying domain gets to say why; a slow console must not make a hang of a panic.
#[cfg(target_os = "none")]
const LAST_WORDS_MS: u64 = 1000;

/// Called before the last line on the console.
#[cfg(target_os = "none")]
pub(crate) fn allow_last_words() {
    // A refusal changes nothing: the domain ends anyway.
    let _ = hypercall::watchdog_ms(LAST_WORDS_MS);
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = hypercall::watchdog_ms(0);
    }
}
