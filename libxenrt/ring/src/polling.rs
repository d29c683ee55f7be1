//! When to look again instead of asking for an event and blocking: only where looking has lately been cheaper.
//!
//! Being woken costs a hypercall, an interrupt and two world switches, often more than what is waited for. So after its last work an
//! end of a ring looks for more for a while before it arms and blocks. How long follows what waiting has brought, as in Linux'
//! `haltpoll` governor: a wait that ended soon lengthens it, a long one shortens it. A wait holds the waking of both ends, which looking
//! saves, so it is soon up to twice the longest look. Who looks in vain again and again has misjudged that and rests. An end with
//! nothing to do soon does not look at all, so an idle domain costs nothing; and who finds that another domain had the CPU in between
//! does not look for some time, because then looking is at the other's cost.

/// How long the first look lasts after a short wait, microseconds.
const SHORTEST_US: u64 = 50;
/// Between two looks another domain had the CPU if more than this has passed, microseconds: a good part of the hypervisor's slice.
const PREEMPTED_US: u64 = 2_000;
/// How long nobody looks after that, microseconds.
const REST_US: u64 = 50_000;
/// What a longest look in vain counts in looks that found something, and how many such in vain bring a rest.
const VAIN: u32 = 4;
const VAIN_MOST: u32 = 16;

/// One end's habit. Times are microseconds of any clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// Longest look; 0 = none at all.
    most_us: u64,
    window_us: u64,
    last_found_us: u64,
    last_look_us: u64,
    rest_until_us: u64,
    vain: u32,
    looking: bool,
    blocked: bool,
}

impl Polling {
    /// Looks for at most `most_us` after work; not at all before a short wait was seen.
    #[must_use]
    pub const fn new(most_us: u64) -> Self {
        Self {
            most_us,
            window_us: 0,
            last_found_us: 0,
            last_look_us: 0,
            rest_until_us: 0,
            vain: 0,
            looking: false,
            blocked: false,
        }
    }

    /// Something was found.
    pub fn found(&mut self, now_us: u64) {
        if core::mem::take(&mut self.blocked) {
            let waited = now_us.saturating_sub(self.last_found_us);
            self.window_us = if waited <= self.most_us.saturating_mul(2) {
                self.window_us.saturating_mul(2).max(SHORTEST_US).min(self.most_us)
            } else {
                Self::shorter(self.window_us)
            };
        }
        if core::mem::take(&mut self.looking) {
            self.vain = self.vain.saturating_sub(1);
        }
        (self.last_found_us, self.last_look_us) = (now_us, now_us);
    }

    /// Nothing was found: true to look again, false to arm and block.
    pub fn look_again(&mut self, now_us: u64) -> bool {
        let away = now_us.saturating_sub(core::mem::replace(&mut self.last_look_us, now_us));
        if !self.blocked && away > PREEMPTED_US {
            self.rest_until_us = now_us.saturating_add(REST_US);
        }
        let may = !self.blocked && now_us >= self.rest_until_us;
        let again = may && now_us.saturating_sub(self.last_found_us) < self.window_us;
        self.blocked = !again;
        if core::mem::replace(&mut self.looking, again) && !again && self.window_us == self.most_us {
            self.vain = self.vain.saturating_add(VAIN);
            if self.vain >= VAIN_MOST {
                self.vain = 0;
                self.rest_until_us = now_us.saturating_add(REST_US);
            }
        }
        again
    }

    /// Half as long; not at all where that would be too short to find anything.
    const fn shorter(window_us: u64) -> u64 {
        let half = window_us / 2;
        if half < SHORTEST_US { 0 } else { half }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that come `wait` after the one before, `count` times; how many of them were found by looking, one look a microsecond.
    fn run(polling: &mut Polling, now: &mut u64, wait: u64, count: u32) -> u32 {
        let mut seen = 0;
        for _ in 0..count {
            polling.found(*now);
            let next = *now + wait;
            while *now < next && polling.look_again(*now) {
                *now += 1;
            }
            seen += u32::from(*now == next);
            *now = next;
        }
        polling.found(*now);
        seen
    }

    #[test]
    fn short_waits_are_looked_through_and_long_ones_blocked_through() {
        let (mut polling, mut now) = (Polling::new(200), 1000);
        assert_eq!(run(&mut polling, &mut now, 150, 3), 0, "from nothing it takes three short waits");
        assert_eq!(run(&mut polling, &mut now, 150, 50), 50);
        assert_eq!(run(&mut polling, &mut now, 5000, 10), 0);
        assert!(!polling.look_again(now), "not after long waits");
        assert!(run(&mut polling, &mut now, 30, 10) >= 8, "and soon again after short ones");
    }

    #[test]
    fn who_is_preempted_rests() {
        let (mut polling, mut now) = (Polling::new(200), 0);
        run(&mut polling, &mut now, 40, 8);
        assert!(polling.look_again(now) && !polling.look_again(now + 5000));
        now += 5000;
        assert_eq!(run(&mut polling, &mut now, 40, 100), 0);
        now += REST_US;
        assert!(run(&mut polling, &mut now, 40, 100) > 90, "and looks again later");
    }

    #[test]
    fn who_looks_in_vain_rests() {
        let (mut polling, mut now) = (Polling::new(200), 0);
        let mut looks = 0;
        for _ in 0..1000 {
            polling.found(now);
            let next = now + 390;
            while now < next && polling.look_again(now) {
                (now, looks) = (now + 1, looks + 1);
            }
            now = next;
        }
        assert!(looks < 390_000 / 20, "{looks} of 390000 µs were spent looking");
    }

    #[test]
    fn none_at_all_where_that_is_chosen() {
        let (mut polling, mut now) = (Polling::new(0), 0);
        assert_eq!(run(&mut polling, &mut now, 1, 20), 0);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_does_no_harm() {
        let mut polling = Polling::new(200);
        for now in [500, 0, 0, 500, u64::MAX, 0] {
            polling.found(now);
            let _ = polling.look_again(now);
        }
    }
}
