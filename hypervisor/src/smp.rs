//! Starting the other CPUs: INIT, two start-up interrupts, a trampoline in low memory from real to long mode.

use crate::percpu::{MAX_CPUS, PerCpu};
use crate::{apic, boot, mem, paging, time};
use core::arch::global_asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Where the trampoline is copied: a page of conventional memory that PC firmware leaves alone once it has loaded us.
const TRAMPOLINE: u64 = 0x8000;
const _: () = assert!(TRAMPOLINE < boot::info::LOW_MEMORY);
/// A CPU that does not come up in so many times this is left out.
const START_TRY_NS: u64 = 100 * time::MS;
const START_TRIES: u32 = 5;

global_asm!(include_str!("trampoline.s"), at = const TRAMPOLINE);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_slots: u8;
    static trampoline_end: u8;
}

static UP: AtomicU32 = AtomicU32::new(1);

/// CPUs running.
pub fn count() -> u32 {
    UP.load(SeqCst)
}

/// CPUs that run guests, as a mask: those of `wanted`, whose bit n is the n-th of them (0 = all). QEMU's emulator keeps its first CPU's
/// guest flags where every FXRSTOR on another CPU writes as well (decision 0004): there the boot CPU runs no guest.
pub fn for_guests(wanted: u32) -> u32 {
    const TCG: u32 = u32::from_le_bytes(*b"TCGT");
    let spared = u32::from(count() > 1 && __cpuid(0x4000_0000).ebx == TCG);
    let all = u32::MAX >> (MAX_CPUS as u32 - count());
    (if wanted == 0 { u32::MAX } else { wanted }) << spared & all
}

/// A started CPU says so.
pub fn announce() {
    UP.fetch_add(1, SeqCst);
}

fn prepare(slots: [u64; 4]) {
    let (start, at, end) = (&raw const trampoline_start, &raw const trampoline_slots, &raw const trampoline_end);
    let to = mem::direct(TRAMPOLINE);
    // SAFETY: low memory is never given to anyone (`boot::info::LOW_MEMORY`), and the code is shorter than a page.
    unsafe { mem::copy_bytes(to, start, end.addr() - start.addr()) };
    let slot = to.wrapping_add(at.addr() - start.addr()).cast::<[u64; 4]>();
    // SAFETY: inside the copy, and aligned to 8 by the asm.
    unsafe { slot.write_volatile(slots) };
}

/// Starts the CPUs with these APIC IDs but for this one; each gets a number and enters `entry`.
pub fn start(apic_ids: &[u32], entry: extern "C" fn(&'static PerCpu) -> !) {
    let own = apic::id();
    if let Err(e) = paging::identity(TRAMPOLINE, true) {
        log::error!("no page table for the trampoline ({e:?}): one CPU only");
        return;
    }
    for &apic_id in apic_ids.iter().filter(|&&id| id != own) {
        let id = count();
        if id as usize >= MAX_CPUS {
            log::warn!("CPU with APIC ID {apic_id} left out: {id} CPUs is the limit");
            break;
        }
        if let Err(why) = start_one(id, apic_id, entry) {
            log::error!("CPU with APIC ID {apic_id} left out: {why}");
        }
    }
    if let Err(e) = paging::identity(TRAMPOLINE, false) {
        log::error!("the trampoline stays mapped: {e:?}");
    }
}

fn start_one(id: u32, apic_id: u32, entry: extern "C" fn(&'static PerCpu) -> !) -> Result<(), &'static str> {
    let stack = paging::map_stack(id).map_err(|_| "no memory for its stack")?;
    let cpu = PerCpu::new(id, apic_id);
    let argument = core::ptr::from_ref(cpu).expose_provenance() as u64;
    prepare([paging::root().addr(), stack, argument, entry as *const () as u64]);
    if !apic::send_init(apic_id) {
        return Err("it takes no INIT");
    }
    time::spin_ns(10 * time::MS);
    // Again where the first is lost (MultiProcessor Specification 1.4, B.4).
    let started = (0..START_TRIES).any(|_| {
        let _ = apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8);
        time::spin_until(START_TRY_NS, || count() != id)
    });
    if started { Ok(()) } else { Err("it does not start") }
}
