//! A panic ends the domain: one line on the console, then `SHUTDOWN_crash`. Nothing is allocated on the way, and a panic inside of
//! the panic skips the line.

use abi::sched;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if !PANICKING.swap(true, Ordering::AcqRel) {
        crate::watchdog::allow_last_words();
        match info.location() {
            Some(at) => crate::println!("panic: {}:{}: {}", at.file(), at.line(), info.message()),
            None => crate::println!("panic: {}", info.message()),
        }
    }
    crate::hypercall::shutdown(sched::SHUTDOWN_CRASH)
}
