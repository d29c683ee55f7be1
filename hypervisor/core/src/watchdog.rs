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

/// Parts of the fine watchdog's time. Each has to be seen to pass: a machine that is itself held up (a hypervisor below us, an
/// emulator without a CPU) loses one part then and not the domain, which gets to feed it before the others are over.
pub const PARTS: u8 = 4;

/// The fine watchdog of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FineWatchdog {
    /// Armed: ns of a part.
    part_ns: Option<u64>,
    /// Parts that passed since it was fed.
    passed: u8,
    /// ns of busy time left in this part at `busy_since_ns`, or while idle.
    left_ns: u64,
    busy_since_ns: Option<u64>,
}

impl FineWatchdog {
    /// Arms or feeds it; 0 ends it.
    pub fn arm(&mut self, timeout_ms: u64, now_ns: u64) {
        self.part_ns = (timeout_ms != 0).then(|| timeout_ms.saturating_mul(NS_PER_MS).div_ceil(u64::from(PARTS)));
        self.passed = 0;
        self.next_part(now_ns);
    }

    fn next_part(&mut self, now_ns: u64) {
        self.left_ns = self.part_ns.unwrap_or(0);
        self.busy_since_ns = self.busy_since_ns.map(|_| now_ns);
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

    /// When the part that runs is over, in system time; `None` while it is not armed or its vCPU is idle.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.part_ns?;
        Some(self.busy_since_ns?.saturating_add(self.left_ns))
    }

    /// Looks at `now_ns`; true if the last part is over, and so the watchdog missed. The next part begins now, however late this is.
    pub fn expire(&mut self, now_ns: u64) -> bool {
        if self.deadline_ns().is_none_or(|at| at > now_ns) {
            return false;
        }
        self.passed = self.passed.saturating_add(1);
        self.next_part(now_ns);
        self.passed >= PARTS
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
        assert_eq!(w.deadline_ns(), Some(3_000_000));
        w.set_busy(false, 2_000_000);
        assert_eq!(w.deadline_ns(), None);
        w.set_busy(true, 500_000_000);
        w.set_busy(true, 500_000_001);
        assert_eq!(w.deadline_ns(), Some(501_000_000));
        w.arm(8, 500_500_000);
        assert_eq!(w.deadline_ns(), Some(502_500_000));
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
        assert_eq!(w.deadline_ns(), Some(1_000_900));
    }

    #[test]
    fn a_spinning_domain_misses_it_after_its_whole_time() {
        let mut w = FineWatchdog::default();
        w.set_busy(true, 0);
        w.arm(20, 0);
        let mut missed = Vec::new();
        for part in 1..=4u64 {
            assert!(!w.expire(part * 5_000_000 - 1));
            missed.push(w.expire(part * 5_000_000));
        }
        assert_eq!(missed, [false, false, false, true]);
    }

    #[test]
    fn a_machine_held_up_costs_one_part_however_long() {
        let mut w = FineWatchdog::default();
        w.set_busy(true, 0);
        w.arm(20, 0);
        assert!(!w.expire(900_000_000));
        assert_eq!(w.deadline_ns(), Some(905_000_000));
        w.arm(20, 901_000_000);
        for late in 1..=3u64 {
            assert!(!w.expire(901_000_000 + late * 700_000_000));
        }
        assert!(w.expire(901_000_000 + 4 * 700_000_000));
    }
}
