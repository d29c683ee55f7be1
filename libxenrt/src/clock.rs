//! The PV clock: nanoseconds of system time, the same for every domain, read without a world switch.
//!
//! Source: `public/xen.h`, `struct vcpu_time_info`: ns = system_time + (((tsc - tsc_timestamp) << shift) * mul >> 32), valid
//! where `version` is even and the same before and after.

use crate::shared_info;
use abi::shared::{time_info, vcpu_info};
use core::ops::{Add, AddAssign, Sub};
use core::time::Duration;

/// A point of system time, in ns since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// From ns of system time, as the ABI's structures carry it.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }
    /// ns of system time.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }
    /// µs of system time.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0 / 1000
    }
    /// ms of system time.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
    /// Time since `earlier`; zero where that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}
impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// `((delta << shift) * mul) >> 32`, as the header defines it; a negative shift goes right.
fn scale(delta: u64, mul: u32, shift: i8) -> u64 {
    let by = u32::from(shift.unsigned_abs());
    let delta = if shift < 0 { delta.checked_shr(by) } else { delta.checked_shl(by) }.unwrap_or(0);
    (u128::from(delta).wrapping_mul(u128::from(mul)) >> 32) as u64
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC has no operands and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Now. Zero before the run-time is up (and on the host, where no hypervisor keeps the time).
#[must_use]
pub fn now() -> Instant {
    const TIME: usize = abi::shared::shared_info::VCPU_INFO + vcpu_info::TIME;
    let Some(page) = shared_info::page() else {
        return Instant(0);
    };
    loop {
        let version = page.word(TIME + time_info::VERSION);
        if version & 1 == 0 {
            let stamp = page.pair(TIME + time_info::TSC_TIMESTAMP);
            let system = page.pair(TIME + time_info::SYSTEM_TIME);
            let mul = page.word(TIME + time_info::TSC_TO_SYSTEM_MUL);
            let shift = page.word(TIME + time_info::TSC_SHIFT) as u8 as i8;
            let delta = tsc().saturating_sub(stamp);
            if page.word(TIME + time_info::VERSION) == version {
                return Instant(system.wrapping_add(scale(delta, mul, shift)));
            }
        }
        core::hint::spin_loop();
    }
}

/// Wall-clock time when system time was zero, in s since 1970, as the hypervisor gives it; `None` where it does not.
#[must_use]
pub fn wall_clock_base_secs() -> Option<u64> {
    use abi::shared::shared_info as si;
    let page = shared_info::page()?;
    let secs = u64::from(page.word(si::WC_SEC)) | u64::from(page.word(si::WC_SEC_HI)) << 32;
    (secs != 0).then_some(secs)
}

/// Sleeps until `deadline` with no event to wait for.
pub fn sleep_until(deadline: Instant) {
    while now() < deadline {
        if crate::hypercall::poll(&[], deadline.as_ns()).is_err() {
            core::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_follows_the_header() {
        // 1 GHz: one tick is one ns: mul = 2^31, shift = 1.
        assert_eq!(scale(1_000_000, 1 << 31, 1), 1_000_000);
        // 2 GHz: mul = 2^31, shift = 0.
        assert_eq!(scale(1_000_000, 1 << 31, 0), 500_000);
        // 4 GHz: mul = 2^31, shift = -1.
        assert_eq!(scale(1_000_000, 1 << 31, -1), 250_000);
    }

    #[test]
    fn instants_saturate() {
        let late = Instant::from_ns(u64::MAX);
        assert_eq!(late + Duration::from_secs(1), late);
        assert_eq!(Instant::from_ns(1) - late, Duration::ZERO);
    }
}
