//! System time: nanoseconds since the hypervisor started, from the TSC, the same on every CPU and in every PV clock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static TSC_BASE: AtomicU64 = AtomicU64::new(0);
static MUL: AtomicU32 = AtomicU32::new(0);
static SHIFT: AtomicU32 = AtomicU32::new(0);

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
}

/// The time-stamp counter.
#[must_use]
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
    TSC_KHZ.store(tsc_khz, Relaxed);
    TSC_BASE.store(base, Relaxed);
    SHIFT.store(shift as i32 as u32, Relaxed);
    MUL.store(((1_000_000_000u64 << 32) / hz) as u32, Relaxed);
}

/// The scale set by [`init`].
#[must_use]
pub fn scale() -> Scale {
    Scale { base: TSC_BASE.load(Relaxed), mul: MUL.load(Relaxed), shift: SHIFT.load(Relaxed) as i32 as i8 }
}
/// Frequency of the TSC.
#[must_use]
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Relaxed)
}

/// System time, ns.
#[must_use]
pub fn now_ns() -> u64 {
    let scale = scale();
    let ticks = u128::from(tsc().saturating_sub(scale.base));
    let shifted = if scale.shift >= 0 { ticks << scale.shift } else { ticks >> -scale.shift };
    ((shifted * u128::from(scale.mul)) >> 32) as u64
}

/// Waits, for `ns`, with the CPU busy: for the few microseconds hardware asks for.
pub fn spin_ns(ns: u64) {
    let end = now_ns().saturating_add(ns);
    while now_ns() < end {
        core::hint::spin_loop();
    }
}
