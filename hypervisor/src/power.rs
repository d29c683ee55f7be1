//! The end of the machine.

use crate::console;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use hv_core::acpi::SoftOff;
use spin::Once;
use x86_64::instructions::port::Port;

/// QEMU's `isa-debug-exit`.
const DEBUG_EXIT: u16 = 0xf4;
/// Exit code of a panic, for test harnesses.
pub const PANIC_CODE: u32 = 0x7f;
/// `SLP_EN` of `PM1_CNT`.
const SLP_EN: u16 = 1 << 13;

static HAS_DEBUG_EXIT: AtomicBool = AtomicBool::new(false);
static SOFT_OFF: Once<SoftOff> = Once::new();

/// The bundle says that `isa-debug-exit` is there.
pub fn use_debug_exit() {
    HAS_DEBUG_EXIT.store(true, Relaxed);
}
/// What the firmware says on ACPI S5.
pub fn set_soft_off(off: SoftOff) {
    SOFT_OFF.call_once(|| off);
}

/// Ends the machine, as well as it can be ended; QEMU's exit status is then `code << 1 | 1`, or 0 without the debug device.
pub fn off(code: u32) -> ! {
    console::drain();
    if HAS_DEBUG_EXIT.load(Relaxed) {
        // SAFETY: the device is there (bundle), and ends the machine.
        unsafe { Port::new(DEBUG_EXIT).write(code) };
    }
    if let Some(off) = SOFT_OFF.get() {
        for (port, kind) in [Some(off.pm1a), off.pm1b].into_iter().flatten() {
            // SAFETY: the FADT names the port; this switches the machine off.
            unsafe { Port::new(port).write(u16::from(kind) << 10 | SLP_EN) };
        }
    }
    halt()
}

/// This CPU does nothing any more.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
