//! System time: nanoseconds since the hypervisor started, from the TSC, the same on every CPU and in every PV clock.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::Once;
use x86_64::instructions::port::Port;

static SCALE: Once<Scale> = Once::new();

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// How TSC ticks become nanoseconds, as `vcpu_time_info` has it: `ns = ((ticks << shift) * mul) >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// TSC at system time 0.
    pub base: u64,
    /// Fraction of 2^32.
    pub mul: u32,
    /// Left shift; negative = right.
    pub shift: i8,
    /// Ticks in a millisecond.
    pub khz: u64,
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every CPU with SVM has RDTSC, and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Starts system time: it is 0 at TSC `base`, and the TSC runs at `tsc_khz`.
pub fn init(tsc_khz: u64, base: u64) {
    let (mut hz, mut shift) = (tsc_khz.max(1) * 1000, 0i8);
    // Bring the frequency to (1, 2] GHz, so that the multiplier keeps 31 significant bits.
    while hz > 2_000_000_000 {
        hz /= 2;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz *= 2;
        shift += 1;
    }
    let mul = ((1_000_000_000u64 << 32) / hz) as u32;
    SCALE.call_once(|| Scale { base, mul, shift, khz: tsc_khz });
}

/// Frequency of the PM timer.
const PM_HZ: u64 = 3_579_545;
/// Its ticks in the 20 ms that are measured.
const PM_TICKS: u32 = 71_591;
/// Readings of which the quickest counts: a virtual CPU may be held up between its two halves.
const TRIES: u32 = 8;
/// TSC ticks after which a timer that does not move is given up.
const GIVE_UP: u64 = 10_000_000_000;


/// A reading of another clock and the TSC in the middle of it: the quickest of some.
pub fn reading<T>(mut read: impl FnMut() -> T) -> (T, u64) {
    let mut once = || {
        let before = tsc();
        let value = read();
        let took = tsc() - before;
        (took, value, before + took / 2)
    };
    let mut best = once();
    for _ in 1..TRIES {
        let next = once();
        if next.0 < best.0 {
            best = next;
        }
    }
    (best.1, best.2)
}

/// Frequency of the TSC in kHz, measured against the ACPI PM timer; `None` if that stands still.
pub fn measure_tsc_khz(pm_timer: u16) -> Option<u64> {
    let mut port: Port<u32> = Port::new(pm_timer);
    // SAFETY: the FADT says that the timer is there; reading it has no effect.
    let mut read = || unsafe { port.read() } & 0x00ff_ffff;
    let (first, start) = reading(&mut read);
    while read().wrapping_sub(first) & 0x00ff_ffff < PM_TICKS {
        if tsc() - start > GIVE_UP {
            return None;
        }
    }
    let (last, end) = reading(&mut read);
    let ticks = u64::from(last.wrapping_sub(first) & 0x00ff_ffff).max(1);
    Some((end - start) * PM_HZ / ticks / 1000)
}

/// The scale set by [`init`]; time stands at 0 before.
pub fn scale() -> Scale {
    SCALE.get().copied().unwrap_or(Scale { base: 0, mul: 0, shift: 0, khz: 0 })
}
/// Frequency of the TSC.
pub fn tsc_khz() -> u64 {
    scale().khz
}

/// System time, ns.
pub fn now_ns() -> u64 {
    let scale = scale();
    let ticks = u128::from(tsc().saturating_sub(scale.base));
    let shifted = if scale.shift >= 0 { ticks << scale.shift } else { ticks >> -scale.shift };
    ((shifted * u128::from(scale.mul)) >> 32) as u64
}

/// Waits, for `ns`, with the CPU busy: for the few microseconds hardware asks for.
pub fn spin_ns(ns: u64) {
    let _ = spin_until(ns, || false);
}

/// Waits, with the CPU busy, until something is so, for `ns` at most. Whether it is.
#[must_use]
pub fn spin_until(ns: u64, mut is_so: impl FnMut() -> bool) -> bool {
    let end = now_ns().saturating_add(ns);
    while !is_so() {
        if now_ns() >= end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Seconds since 1970 at system time 0.
static BOOT_UNIX: AtomicU64 = AtomicU64::new(0);

fn cmos(register: u8) -> u8 {
    // SAFETY: selects a register of the clock, NMIs enabled; only the boot CPU does so, once.
    unsafe { Port::new(0x70).write(register) };
    // SAFETY: reading any register but C has no effect.
    unsafe { Port::new(0x71).read() }
}

/// Takes the time of day from the CMOS clock: the first of two equal readings, neither of them during an update.
pub fn read_clock() {
    let read = || (cmos(0xa) & 0x80 == 0).then(|| [0, 2, 4, 7, 8, 9].map(cmos));
    let Some(time) = (0..10_000).find_map(|_| read().filter(|&time| read() == Some(time))) else { return };
    BOOT_UNIX.store(hv_core::rtc::unix_seconds(time, cmos(0xb)).saturating_sub(now_ns() / (1000 * MS)), Relaxed);
}

/// The time of day at system time 0, or zero where the machine has no clock: `wc_sec`, `wc_nsec`, `wc_sec_hi` of the shared page.
pub fn boot_clock() -> [u32; 3] {
    let unix = BOOT_UNIX.load(Relaxed);
    [unix as u32, 0, (unix >> 32) as u32]
}
