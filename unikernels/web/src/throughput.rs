//! Bytes per interval over the last half minute: the picture on the status page. A gap in it is an outage.

use alloc::collections::VecDeque;

/// Length of one interval in milliseconds.
pub const INTERVAL_MS: u64 = 100;
/// Intervals kept.
pub const KEPT: usize = 300;

/// Bytes sent and received in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Sent by this guest.
    pub tx_bytes: u64,
    /// Received by this guest.
    pub rx_bytes: u64,
}

/// The last [`KEPT`] complete intervals.
#[derive(Debug, Default)]
pub struct Throughput {
    samples: VecDeque<Sample>,
    current: Sample,
    /// Number of the interval `current` counts.
    interval: u64,
}

impl Throughput {
    /// Adds bytes moved at `now_ms`.
    pub fn add(&mut self, now_ms: u64, tx_bytes: u64, rx_bytes: u64) {
        self.advance(now_ms);
        self.current.tx_bytes = self.current.tx_bytes.saturating_add(tx_bytes);
        self.current.rx_bytes = self.current.rx_bytes.saturating_add(rx_bytes);
    }

    /// Completes the intervals that have ended by `now_ms`; those without traffic are zero.
    pub fn advance(&mut self, now_ms: u64) {
        let now = now_ms / INTERVAL_MS;
        let passed = now.saturating_sub(self.interval);
        for _ in 0..passed.min(KEPT as u64) {
            if self.samples.len() == KEPT {
                self.samples.pop_front();
            }
            self.samples.push_back(core::mem::take(&mut self.current));
        }
        self.interval = self.interval.max(now);
    }

    /// Complete intervals, oldest first.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_zero_and_old_intervals_leave() {
        let mut t = Throughput::default();
        t.add(50, 10, 0);
        t.add(450, 0, 7);
        t.advance(500);
        let got: Vec<_> = t.samples().map(|s| (s.tx_bytes, s.rx_bytes)).collect();
        assert_eq!(got, [(10, 0), (0, 0), (0, 0), (0, 0), (0, 7)]);
        t.advance(1_000_000);
        assert_eq!(t.samples().count(), KEPT);
        assert!(t.samples().all(|s| *s == Sample::default()));
    }
}
