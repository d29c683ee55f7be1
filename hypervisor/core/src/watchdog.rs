//! Watchdogs of a domain: Xen's, in seconds of system time, and ours, in milliseconds of time in which the vCPU could run.
//!
//! The fine one does not run while its vCPU is blocked: an idle driver domain costs nothing and cannot miss it, a spinning
//! one is caught within its period. See `docs/decisions/0001-interfaces-first.md`.

use abi::Errno;

/// Watchdogs of a domain (`NR_DOMAIN_WATCHDOG_TIMERS`).
pub const SLOTS: usize = 2;
const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// `SCHEDOP_watchdog`: deadlines in system time, by id less one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watchdogs {
    deadlines_ns: [Option<u64>; SLOTS],
}

impl Watchdogs {
    /// `SCHEDOP_watchdog(id, timeout)`: the hypercall's result (a new one's id, else 0).
    ///
    /// # Errors
    /// `EINVAL`: no watchdog of this number, or a new one without a time; `ENOSPC`: all in use. Nothing changed then.
    pub fn set(&mut self, id: u32, timeout_s: u32, now_ns: u64) -> Result<u32, Errno> {
        let deadline = now_ns.saturating_add(u64::from(timeout_s).saturating_mul(NS_PER_S));
        let Some(index) = id.checked_sub(1) else {
            if timeout_s == 0 {
                return Err(Errno::EINVAL);
            }
            let free = (1u32..).zip(&mut self.deadlines_ns).find(|(_, slot)| slot.is_none());
            let (new_id, slot) = free.ok_or(Errno::ENOSPC)?;
            *slot = Some(deadline);
            return Ok(new_id);
        };
        let slot = self.deadlines_ns.get_mut(index as usize).filter(|slot| slot.is_some()).ok_or(Errno::EINVAL)?;
        *slot = (timeout_s != 0).then_some(deadline);
        Ok(0)
    }

    /// The next deadline.
    pub fn next_ns(&self) -> Option<u64> {
        self.deadlines_ns.iter().flatten().min().copied()
    }
}

/// The fine watchdog's time in ticks. Of the first half only the end is looked at, as hardly a domain that is well gets that far; then each
/// tick is.
const TICKS: u32 = 20;
/// What a tick counts that was seen to end in time: the CPU was there, and with it the vCPU. A look that comes a tick late or more tells
/// that the CPU was not (a hypervisor below us, an emulator whose thread waits for a CPU), so the domain had less of a chance to feed than
/// the clock says. It counts half, however late it is: a domain that is well feeds before it was held up forty times, and on a machine that
/// is always late a hang ends as well.
const IN_TIME: u32 = 2;
const LATE: u32 = 1;

/// The fine watchdog of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FineWatchdog {
    /// Armed: ns of a tick.
    tick_ns: Option<u64>,
    /// What was counted since it was fed.
    count: u32,
    /// Ticks that the span lasts whose end is looked at next.
    span: u32,
    /// ns of busy time left of it at `busy_since_ns`, or while idle.
    left_ns: u64,
    busy_since_ns: Option<u64>,
}

impl FineWatchdog {
    /// Arms or feeds it; 0 ends it.
    pub fn arm(&mut self, timeout_ms: u64, now_ns: u64) {
        self.tick_ns = (timeout_ms != 0).then(|| timeout_ms.saturating_mul(NS_PER_MS).div_ceil(TICKS.into()));
        self.count = 0;
        self.begin(TICKS / 2, now_ns);
    }

    fn begin(&mut self, span: u32, from_ns: u64) {
        self.span = span;
        self.left_ns = self.tick_ns.unwrap_or(0).saturating_mul(span.into());
        self.busy_since_ns = self.busy_since_ns.map(|_| from_ns);
    }

    /// The vCPU became busy (runnable or running) or idle (blocked, polling, paused).
    pub fn set_busy(&mut self, busy: bool, now_ns: u64) {
        if busy == self.busy_since_ns.is_some() {
            return;
        }
        if let Some(since) = self.busy_since_ns {
            self.left_ns = self.left_ns.saturating_sub(now_ns.saturating_sub(since));
        }
        self.busy_since_ns = busy.then_some(now_ns);
    }

    /// When the next look is due, in system time; `None` while it is not armed or its vCPU is idle.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.tick_ns?;
        Some(self.busy_since_ns?.saturating_add(self.left_ns))
    }

    /// Looks at `now_ns`; true if its time is over, and so the watchdog missed.
    pub fn expire(&mut self, now_ns: u64) -> bool {
        let due = self.deadline_ns().zip(self.tick_ns).filter(|&(at, _)| at <= now_ns);
        let Some((at, tick)) = due else { return false };
        let in_time = now_ns.saturating_sub(at) < tick;
        self.count = self.count.saturating_add(if in_time { self.span.saturating_mul(IN_TIME) } else { LATE });
        // The next tick begins where this one ended, or after a hold-up now.
        self.begin(1, if in_time { at } else { now_ns });
        self.count >= TICKS.saturating_mul(IN_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xens_watchdogs_are_numbered_fed_and_ended() {
        let mut w = Watchdogs::default();
        assert_eq!(w.set(0, 0, 0), Err(Errno::EINVAL));
        assert_eq!(w.set(1, 5, 0), Err(Errno::EINVAL));
        assert_eq!(w.set(0, 5, 0), Ok(1));
        assert_eq!(w.set(0, 3, 0), Ok(2));
        assert_eq!(w.set(0, 3, 0), Err(Errno::ENOSPC));
        assert_eq!(w.set(3, 3, 0), Err(Errno::EINVAL));
        assert_eq!(w.next_ns(), Some(3 * NS_PER_S));
        assert_eq!(w.set(2, 9, NS_PER_S), Ok(0));
        assert_eq!(w.next_ns(), Some(5 * NS_PER_S));
        assert_eq!(w.set(1, 0, 0), Ok(0));
        assert_eq!(w.next_ns(), Some(10 * NS_PER_S));
        assert_eq!(w.set(2, u32::MAX, u64::MAX), Ok(0));
        assert_eq!(w.next_ns(), Some(u64::MAX));
    }

    #[test]
    fn the_fine_one_counts_busy_time_only() {
        let mut w = FineWatchdog::default();
        w.set_busy(true, 0);
        w.arm(8, 1_000_000);
        assert_eq!(w.deadline_ns(), Some(5_000_000));
        w.set_busy(false, 2_000_000);
        assert_eq!(w.deadline_ns(), None);
        w.set_busy(true, 500_000_000);
        w.set_busy(true, 500_000_001);
        assert_eq!(w.deadline_ns(), Some(503_000_000));
        w.arm(8, 500_500_000);
        assert_eq!(w.deadline_ns(), Some(504_500_000));
        w.arm(0, 502_000_000);
        assert_eq!(w.deadline_ns(), None);
        assert!(!w.expire(u64::MAX));
    }

    #[test]
    fn arming_while_idle_starts_with_the_next_busy_time() {
        let mut w = FineWatchdog::default();
        w.arm(4, 100);
        assert_eq!(w.deadline_ns(), None);
        w.set_busy(true, 900);
        assert_eq!(w.deadline_ns(), Some(2_000_900));
    }

    /// A domain that never feeds from 0 on, on a CPU where `look` says when a look that is due at some time really comes: when it is
    /// found to hang.
    fn hang(mut look: impl FnMut(u64) -> u64) -> u64 {
        let mut w = FineWatchdog::default();
        w.set_busy(true, 0);
        w.arm(20, 0);
        loop {
            let now = look(w.deadline_ns().unwrap());
            if w.expire(now) {
                return now;
            }
        }
    }

    #[test]
    fn a_spinning_domain_misses_it_after_its_whole_time() {
        assert_eq!(hang(|at| at), 20 * NS_PER_MS);
        assert_eq!(hang(|at| at + 300_000), 20 * NS_PER_MS + 300_000, "delays of the timer do not add up");
        let mut w = FineWatchdog::default();
        w.set_busy(true, 0);
        w.arm(20, 0);
        assert!(!w.expire(10 * NS_PER_MS - 1), "nothing is due");
    }

    #[test]
    fn a_cpu_that_is_taken_away_gives_the_domain_that_time_again() {
        // The host runs the CPU for 4 ms of each 12.
        let (on, period) = (4 * NS_PER_MS, 12 * NS_PER_MS);
        let found = hang(|at| if at % period < on { at } else { at.next_multiple_of(period) });
        let ran = found / period * on + (found % period).min(on);
        assert!(ran >= 15 * NS_PER_MS && found < 80 * NS_PER_MS, "after {found} ns, of which it ran {ran}");
    }

    #[test]
    fn one_hold_up_counts_for_nothing_however_long_and_a_machine_always_late_still_ends_a_hang() {
        let mut once = Some(900 * NS_PER_MS);
        assert_eq!(hang(|at| at + once.take().unwrap_or(0)), 930 * NS_PER_MS);
        assert_eq!(hang(|at| at + NS_PER_MS), (10 + 1 + 39 * 2) * NS_PER_MS);
    }
}
