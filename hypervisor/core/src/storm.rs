//! Interrupt storms: a device (or its driver) that interrupts without end is throttled first and stopped when that has not
//! helped, so that it costs its owner and not the machine.

/// Length of a window in ns.
pub const WINDOW_NS: u64 = 50_000_000;
/// Interrupts served per window: 100,000 a second, several times what a moderated NIC needs.
pub const LIMIT: u32 = 5_000;
/// How long a throttled line stays masked, ns.
pub const PAUSE_NS: u64 = 10_000_000;
/// Throttled windows in a row after which the owner is stopped.
pub const STRIKES: u32 = 20;

/// What to do with an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Serve,
    /// Pass it on, then keep the line masked until this time.
    Throttle {
        /// System time, ns.
        until_ns: u64,
    },
    /// Stop the owner.
    Stop,
}

/// The count of one line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Storm {
    window_ns: u64,
    count: u32,
    strikes: u32,
}

impl Storm {
    /// Counts an interrupt at `now_ns`.
    pub fn count(&mut self, now_ns: u64) -> Verdict {
        if now_ns.saturating_sub(self.window_ns) >= WINDOW_NS {
            if self.count < LIMIT {
                self.strikes = 0;
            }
            self.window_ns = now_ns;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count < LIMIT {
            return Verdict::Serve;
        }
        if self.count > LIMIT {
            // Within the same window after a pause: still too many.
            return Verdict::Throttle { until_ns: now_ns.saturating_add(PAUSE_NS) };
        }
        self.strikes = self.strikes.saturating_add(1);
        if self.strikes >= STRIKES {
            return Verdict::Stop;
        }
        Verdict::Throttle { until_ns: now_ns.saturating_add(PAUSE_NS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interrupts every `gap_ns`, pauses kept; the verdicts other than Serve, in order.
    fn run(gap_ns: u64, times: u32) -> (u32, Option<u32>) {
        let (mut storm, mut now, mut throttled) = (Storm::default(), 1u64 << 40, 0);
        for n in 0..times {
            match storm.count(now) {
                Verdict::Serve => now += gap_ns,
                Verdict::Throttle { until_ns } => {
                    throttled += 1;
                    now = until_ns;
                }
                Verdict::Stop => return (throttled, Some(n)),
            }
        }
        (throttled, None)
    }

    #[test]
    fn a_busy_nic_is_served() {
        assert_eq!(run(20_000, 100_000), (0, None), "50,000 a second");
    }
    #[test]
    fn a_storm_is_throttled_then_stopped() {
        let (throttled, stopped) = run(1_000, 1_000_000);
        assert!(throttled >= STRIKES - 1);
        assert!(stopped.is_some_and(|n| n <= LIMIT * STRIKES + 100), "{stopped:?}");
    }
    #[test]
    fn a_burst_is_forgiven() {
        let mut storm = Storm::default();
        let mut now = 1u64 << 40;
        for _ in 0..10 * STRIKES {
            for _ in 0..LIMIT {
                assert_ne!(storm.count(now), Verdict::Stop);
            }
            now += 2 * WINDOW_NS;
            assert_eq!(storm.count(now), Verdict::Serve);
            now += 2 * WINDOW_NS;
        }
    }
}
