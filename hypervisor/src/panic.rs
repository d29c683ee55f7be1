//! A broken invariant of the hypervisor itself: say so, stop the machine.

use crate::{apic, console, power};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Whether the machine is being stopped.
pub fn in_progress() -> bool {
    PANICKED.load(SeqCst)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    if PANICKED.swap(true, SeqCst) {
        // Told to stop by the CPU that panicked first, or a second fault while reporting the first.
        power::halt();
    }
    apic::stop_others();
    // SAFETY: this CPU never returns from here; a line another CPU is printing may be torn, which is better than silence.
    unsafe { console::break_locks() };
    log::error!("panic: {info}");
    power::off(power::PANIC_CODE)
}
