//! A broken invariant of the hypervisor itself: say so, stop the machine.

use crate::{console, power};
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    // SAFETY: this CPU never returns from here; a line another CPU is printing may be torn, which is better than silence.
    unsafe { console::break_locks() };
    log::error!("panic: {info}");
    power::off(power::PANIC_CODE)
}
