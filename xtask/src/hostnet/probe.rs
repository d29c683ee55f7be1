//! Probes: an echo request to each guest at a fixed pace, and when each came back. An outage is the longest time in which
//! nothing was delivered; at 1 kHz it is known to a millisecond.

use std::time::{Duration, Instant};

/// Identifier of our echo requests ("XL").
pub const IDENT: u16 = 0x584c;

/// What came back, in the order of its arrival.
#[derive(Clone, Debug, Default)]
pub struct Log {
    sent: u64,
    delivered: Vec<Instant>,
    answered: Vec<bool>,
}

impl Log {
    /// Notes that a probe was sent; returns its data.
    pub fn send(&mut self) -> [u8; 8] {
        let number = self.sent;
        self.sent += 1;
        self.answered.push(false);
        number.to_be_bytes()
    }

    /// Notes an answer; a second one to the same probe counts for nothing.
    pub fn receive(&mut self, data: &[u8], now: Instant) {
        let number = data.try_into().map(u64::from_be_bytes).ok().and_then(|n| usize::try_from(n).ok());
        if let Some(answered) = number.and_then(|n| self.answered.get_mut(n)).filter(|a| !**a) {
            *answered = true;
            self.delivered.push(now);
        }
    }

    /// Probes sent and answered.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.delivered.len() as u64)
    }

    /// The first delivery at or after an instant.
    pub fn first_after(&self, from: Instant) -> Option<Instant> {
        let at = self.delivered.partition_point(|&d| d < from);
        self.delivered.get(at).copied()
    }

    /// The longest time without a delivery that overlaps `from..to`: between two deliveries next to each other, the
    /// earlier at or before `to`, the later after `from`. None before two were delivered.
    ///
    /// A span that ends before it begins is its end alone: who is ordered to die may have died of something else just before.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Option<Duration> {
        let start = self.delivered.partition_point(|&d| d <= from.min(to)).saturating_sub(1);
        self.delivered
            .get(start..)?
            .windows(2)
            .take_while(|pair| pair[0] <= to)
            .filter_map(|pair| pair[1].checked_duration_since(pair[0]))
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(at_ms: &[u64]) -> (Log, Instant) {
        let zero = Instant::now();
        let mut log = Log::default();
        for &ms in at_ms {
            let data = log.send();
            log.receive(&data, zero + Duration::from_millis(ms));
        }
        (log, zero)
    }

    #[test]
    fn the_gap_is_the_longest_that_overlaps_the_span() {
        let (log, zero) = log(&[0, 1, 2, 9, 10, 11, 40, 41]);
        let ms = |n| zero + Duration::from_millis(n);
        let gap = |from, to| log.longest_gap(ms(from), ms(to)).map(|d| d.as_millis());
        assert_eq!(gap(2, 10), Some(7));
        assert_eq!(gap(3, 4), Some(7), "the span lies inside the gap");
        assert_eq!(gap(0, 41), Some(29));
        assert_eq!(gap(9, 10), Some(1));
        assert_eq!(gap(41, 60), None, "nothing came after");
        assert_eq!(gap(40, 4), Some(7), "it ends before it begins");
        assert_eq!(log.first_after(ms(12)), Some(ms(40)));
    }

    #[test]
    fn answers_are_counted_once_and_strangers_never() {
        let (mut log, zero) = log(&[0, 1]);
        log.receive(&0u64.to_be_bytes(), zero + Duration::from_millis(5));
        log.receive(&99u64.to_be_bytes(), zero);
        log.receive(b"abc", zero);
        assert_eq!(log.counts(), (2, 2));
    }
}
