//! From the first instruction to the domain's own `main`: entry by either note ([`entry`]), what the loader tells ([`params`]),
//! page tables ([`paging`]), faults ([`traps`]), then memory, clock and console.

mod entry;
mod paging;
mod panic;
mod params;
mod traps;

use crate::{console, hypercall, identity, memory, shared_info};
use abi::{PAGE_SIZE, hvm, sched};
use params::{Params, Source};
use spin::Once;

pub use traps::UPCALL_VECTOR;

static CONFIG: Once<&'static str> = Once::new();

/// The text of the domain's configuration.
pub fn config_text() -> &'static str {
    CONFIG.get().copied().unwrap_or("")
}

unsafe extern "Rust" {
    /// What `libxenrt::main!` defines.
    safe fn libxenrt_domain_main();
}

/// Symbols of the linker script (`images/unikernel.ld`).
mod image {
    unsafe extern "C" {
        static __image_start: u8;
        static __text_start: u8;
        static __data_start: u8;
        static __relro_end: u8;
        static __trap_guard: u8;
        static __trap_stack_top: u8;
        static __stack_guard: u8;
        static __image_end: u8;
    }
    macro_rules! addresses {
        ($($name:ident = $symbol:ident;)*) => {$(
            pub fn $name() -> u64 {
                (&raw const $symbol).addr() as u64
            }
        )*};
    }
    addresses! {
        start = __image_start;
        text = __text_start;
        data = __data_start;
        relro_end = __relro_end;
        trap_guard = __trap_guard;
        trap_stack_top = __trap_stack_top;
        stack_guard = __stack_guard;
        end = __image_end;
    }
}

/// Runs once, on the image's own stack, with the loader's identity mapping.
extern "C" fn start(kind: u32, info: u64) -> ! {
    if !hypercall::install() {
        entry::no_hypervisor();
    }
    let source = if kind == entry::BY_PVH { Source::Pvh } else { Source::Hermit };
    // SAFETY: I10 – the entry code hands on what the loader gave, before anything is overwritten.
    let params = match unsafe { params::read(source, info) } {
        Ok(params) => params,
        Err(why) => panic!("boot parameters: {why}"),
    };
    CONFIG.call_once(|| params.config);
    let end = usable_end(&params);
    let first_free = params.free.0.next_multiple_of(PAGE_SIZE as u64);
    // SAFETY: I10 – `free` is RAM that holds neither the image nor the configuration, and `end` cuts the special pages off.
    let tables_end = unsafe { paging::install(first_free, end) };
    traps::install();
    // Only Xenolith answers this call, and only it promises that RAM is zero.
    let zeroed = identity::self_info().is_ok();
    // SAFETY: I5 – the tables end there, and the special pages begin at `end`.
    unsafe { memory::init(tables_end, end, zeroed) };
    console::install(crate::config::config().get("log"));
    if let Err(e) = shared_info::map() {
        panic!("shared info refused: {e}");
    }
    libxenrt_domain_main();
    hypercall::shutdown(sched::SHUTDOWN_POWEROFF)
}

/// The end of RAM that is ours to use: below the special pages, whoever says where they are.
fn usable_end(params: &Params) -> u64 {
    let survivor = identity::self_info().ok().map(|info| info.survivor_gpa);
    let of = |param| identity::hvm_param(param).ok().and_then(|pfn| pfn.checked_mul(PAGE_SIZE as u64));
    [survivor, of(hvm::PARAM_STORE_PFN), of(hvm::PARAM_CONSOLE_PFN)]
        .into_iter()
        .flatten()
        .filter(|&gpa| gpa >= params.free.0)
        .fold(params.free.1, u64::min)
}
