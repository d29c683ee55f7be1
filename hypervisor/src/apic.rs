//! The local APIC through its registers in memory (xAPIC): interprocessor interrupts, the one-shot timer, end of interrupt.
//! QEMU before 9.0 has no x2APIC under TCG, and no TSC deadline. Source: AMD64 APM 2, chapter 16.

use crate::{paging, time};
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use hv_npt::MapError;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

/// The timer's vector. High, so that it is served before devices.
pub const TIMER_VECTOR: u8 = 0xf0;
/// Vector by which one CPU takes another out of its guest or its sleep.
pub const KICK_VECTOR: u8 = 0xf1;
/// Spurious interrupts; the low four bits are ones on every APIC.
pub const SPURIOUS_VECTOR: u8 = 0xff;

const ID: usize = 0x20;
const TPR: usize = 0x80;
const EOI: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const MASKED: u32 = 1 << 16;
const ENABLE: u32 = 1 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const ICR_INIT_ASSERT: u32 = 0x4500;
const ICR_STARTUP: u32 = 0x4600;
/// Delivery mode NMI, to all but this CPU.
const NMI_TO_OTHERS: u32 = 3 << 18 | 1 << 14 | 4 << 8;
const DIVIDE_BY_1: u32 = 0xb;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;

/// An interprocessor interrupt that is not accepted in this time never will be.
const IPI_TIMEOUT_NS: u64 = 10 * time::MS;

static REGISTERS: AtomicUsize = AtomicUsize::new(0);
static TIMER_KHZ: AtomicU64 = AtomicU64::new(0);

fn register(offset: usize) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(REGISTERS.load(Relaxed) + offset)
}
fn read(offset: usize) -> u32 {
    // SAFETY: `init` mapped the registers uncached; a read of those named above has no side effect.
    unsafe { register(offset).read_volatile() }
}
fn write(offset: usize, value: u32) {
    // SAFETY: `init` mapped the registers; this CPU's APIC belongs to this file.
    unsafe { register(offset).write_volatile(value) };
}

/// Silences the two 8259s. While LINT0 still lets them in: an interrupt of theirs that is already on its way is then withdrawn,
/// where masking LINT0 first would leave it pending with no vector.
fn silence_pic() {
    for port in [0x21, 0xa1] {
        // SAFETY: masks every input; nothing of ours is connected there.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Maps the registers, once, and makes the local APICs the only way in for interrupts.
///
/// # Errors
/// [`MapError`].
pub fn map(phys: u64) -> Result<(), MapError> {
    silence_pic();
    let registers = paging::map_mmio(phys, 4096)?;
    REGISTERS.store(registers.expose_provenance(), Relaxed);
    Ok(())
}

/// Switches this CPU's APIC on; everything masked but the timer, which is stopped.
pub fn init() {
    let mut base = Msr::new(APIC_BASE);
    // SAFETY: every 64-bit CPU has this MSR.
    let old = unsafe { base.read() };
    // SAFETY: the APIC stays where it is expected to be, and is switched on.
    unsafe { base.write(old | APIC_BASE_ENABLE) };
    write(SPURIOUS, ENABLE | u32::from(SPURIOUS_VECTOR));
    write(TPR, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MASKED);
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
    write(TIMER_INITIAL, 0);
}

/// This CPU's APIC ID.
pub fn id() -> u32 {
    if REGISTERS.load(Relaxed) == 0 { __cpuid(1).ebx >> 24 } else { read(ID) >> 24 }
}

/// Ends the interrupt in service.
pub fn eoi() {
    write(EOI, 0);
}

/// Sends an interprocessor interrupt; false if the APIC did not take it in time.
fn send(apic_id: u32, command: u32) -> bool {
    write(ICR_HIGH, apic_id << 24);
    write(ICR_LOW, command);
    time::spin_until(IPI_TIMEOUT_NS, || read(ICR_LOW) & DELIVERY_PENDING == 0)
}

/// Takes the CPU with this APIC ID out of its guest or its sleep.
pub fn kick(apic_id: u32) {
    // A CPU that takes no interrupt is stuck in the hypervisor; who waits for it has a deadline of its own.
    let _ = send(apic_id, u32::from(KICK_VECTOR) | 1 << 14);
}
/// Stops all other CPUs by an NMI, on which they halt (see `traps`): the machine is at its end.
pub fn stop_others() {
    if REGISTERS.load(Relaxed) != 0 {
        let _ = send(0, NMI_TO_OTHERS);
    }
}
/// Resets a CPU.
pub fn send_init(apic_id: u32) -> bool {
    send(apic_id, ICR_INIT_ASSERT)
}
/// Starts a reset CPU in real mode at `page` (below 1 MiB).
pub fn send_startup(apic_id: u32, page: u8) -> bool {
    send(apic_id, ICR_STARTUP | u32::from(page))
}

/// Measures the timer against system time.
pub fn calibrate() {
    const MEASURE_NS: u64 = 10 * time::MS;
    write(TIMER_INITIAL, u32::MAX);
    let (first, start) = time::reading(|| read(TIMER_CURRENT));
    time::spin_ns(MEASURE_NS);
    let (last, end) = time::reading(|| read(TIMER_CURRENT));
    write(TIMER_INITIAL, 0);
    let ticks = u64::from(first.saturating_sub(last));
    TIMER_KHZ.store((ticks * time::tsc_khz() / (end - start).max(1)).max(1), Relaxed);
}

/// Frequency of the timer.
pub fn timer_khz() -> u64 {
    TIMER_KHZ.load(Relaxed)
}

/// Interrupts this CPU in `ns`, once; a longer time than the timer can count ends early, which costs one look at the queue.
pub fn arm_timer(ns: u64) {
    let ticks = u128::from(ns) * u128::from(timer_khz()) / u128::from(time::MS);
    write(TIMER_INITIAL, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
}
