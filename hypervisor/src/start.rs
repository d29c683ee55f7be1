//! The order in which the machine is taken over.

use crate::boot::info::{self, BootInfo, LOW_MEMORY, Region};
use crate::percpu::PerCpu;
use crate::{
    acpi, apic, console, cpu, domain, heap, ioapic, iommu, lifecycle, loader, mem, paging, power, run, smp, time,
};
use abi::{PAGE_SIZE, xenolith};
use abi::bundle::{Header, bundle_flags};
use alloc::string::{String, ToString};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use hv_core::Mfn;
use hv_core::frames::Frame;
use zerocopy::FromBytes;

/// Bytes of the hypervisor's heap: its own records, mostly console logs.
const HEAP_LEN: u64 = 4 << 20;

static ASIDS: AtomicU32 = AtomicU32::new(2);

/// Says why the machine cannot be taken over, and ends.
fn refuse(why: &str) -> ! {
    log::error!("cannot start: {why}");
    power::off(1)
}

/// Called by the entry code, on the boot stack, in the boot page tables.
pub extern "C" fn start(magic: u32, addr: u32) -> ! {
    let tsc = time::tsc();
    console::init();
    let info = match info::read(magic, addr) {
        Ok(info) => info,
        Err(why) => refuse(why),
    };
    note_debug_exit(&info);
    take_memory(&info);
    console::start_log();
    paging::init(info.ram_end());
    let boot_cpu = PerCpu::new(0, apic::id());
    cpu::init(boot_cpu);
    boot_cpu.register();
    log::info!("Xenolith {}, {} MiB of memory", env!("CARGO_PKG_VERSION"), mem::frames().ram_count() / 256);
    if let Err(why) = take_over(&info, tsc, boot_cpu) {
        refuse(&why);
    }
    match paging::map_stack(boot_cpu.id) {
        // The boot stack has data below it, this one a hole.
        Ok(stack) => leave_boot_stack(stack, boot_cpu),
        Err(_) => refuse("no memory for the boot CPU's stack"),
    }
}

fn leave_boot_stack(top: u64, cpu: &'static PerCpu) -> ! {
    // SAFETY: `top` is the top of a fresh stack; what is on the old one is not used again, and `cpu_loop` never returns. The
    // push leaves the alignment a call would.
    unsafe {
        core::arch::asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "push rbp",
            "jmp {entry}",
            top = in(reg) top,
            entry = sym cpu_loop,
            in("rdi") cpu,
            options(noreturn)
        )
    }
}

extern "C" fn cpu_loop(cpu: &'static PerCpu) -> ! {
    run::cpu_loop(cpu)
}

fn take_over(info: &BootInfo, tsc: u64, boot_cpu: &'static PerCpu) -> Result<(), String> {
    let asids = hv_svm::cpu::check().map_err(|e| e.to_string())?;
    ASIDS.store(asids, Relaxed);
    boot_cpu.enable_svm(asids);
    let rsdp = info.rsdp.or_else(find_rsdp).ok_or("the firmware has no ACPI tables")?;
    let platform = acpi::init(rsdp).map_err(|e| e.to_string())?;
    if let Some(off) = platform.soft_off {
        power::set_soft_off(off);
    }
    apic::map(platform.lapic_addr).map_err(|_| "no memory for the APIC's page table")?;
    apic::init();
    let tsc_khz = platform.pm_timer.and_then(time::measure_tsc_khz).ok_or("no ACPI PM timer to measure the clock by")?;
    time::init(tsc_khz, tsc);
    time::read_clock();
    apic::calibrate();
    ioapic::init(&platform.ioapics);
    iommu::init(platform)?;
    smp::start(&platform.lapics, start_other);
    log::info!(
        "{} CPUs, TSC {} MHz, APIC timer {} MHz, {asids} ASIDs",
        smp::count(),
        time::tsc_khz() / 1000,
        apic::timer_khz() / 1000
    );
    let bundle = loader::parse(info.module)?;
    loader::load(&bundle)?;
    log::info!("entering {} domains after {} ms", bundle.domains().len(), time::now_ns() / time::MS);
    for domain in domain::all().iter().filter(|d| d.state.load(Relaxed) != xenolith::state::DESTROYED) {
        lifecycle::enter(domain);
    }
    Ok(())
}

/// The entry of every CPU but the first.
extern "C" fn start_other(this: &'static PerCpu) -> ! {
    cpu::init(this);
    apic::init();
    this.enable_svm(ASIDS.load(Relaxed));
    this.register();
    smp::announce();
    run::cpu_loop(this)
}

/// Even a panic before the bundle is checked should end a test machine: the flag is read without trusting anything else.
fn note_debug_exit(info: &BootInfo) {
    let header = info.module.filter(|m| m.end <= 1 << 32).and_then(|m| Header::read_from_prefix(loader::bytes(m)).ok());
    if header.is_some_and(|(h, _)| h.magic == abi::bundle::MAGIC && h.flags & bundle_flags::DEBUG_EXIT != 0) {
        power::use_debug_exit();
    }
}

/// What is not RAM to give away: the image, the module, what the loader left for us.
fn reserved(info: &BootInfo) -> [Region; 4] {
    let none = Region::default();
    [Region { start: 0, end: LOW_MEMORY }, paging::image(), info.module.unwrap_or(none), info.keep.unwrap_or(none)]
}

/// The lowest hole of `len` bytes in RAM below 4 GiB.
fn hole(info: &BootInfo, len: u64) -> Option<u64> {
    let reserved = reserved(info);
    let starts = info.ram.iter().map(|r| r.start).chain(reserved.iter().map(|r| r.end));
    starts
        .map(|start| Region::new(start.next_multiple_of(PAGE_SIZE as u64), len))
        .filter(|r| r.end <= 1 << 32 && info.ram.iter().any(|ram| ram.start <= r.start && r.end <= ram.end))
        .filter(|r| !reserved.iter().any(|taken| taken.overlaps(r)))
        .map(|r| r.start)
        .min()
}

/// Sets up the frame table and the heap.
fn take_memory(info: &BootInfo) {
    let frames = info.ram_end().div_ceil(PAGE_SIZE as u64);
    let table_len = (frames * size_of::<Frame>() as u64).next_multiple_of(PAGE_SIZE as u64);
    let Some(start) = hole(info, table_len + HEAP_LEN) else {
        refuse("too little memory for the hypervisor's own tables");
    };
    let own = Region::new(start, table_len + HEAP_LEN);
    let records = mem::direct(start).cast::<MaybeUninit<Frame>>();
    // SAFETY: a hole in RAM that the boot tables map and nobody else is given (`own` below), long enough for this many records.
    let records = unsafe { core::slice::from_raw_parts_mut(records, frames as usize) };
    for record in &mut *records {
        record.write(Frame::RESERVED);
    }
    // SAFETY: all of them have just been written.
    let records = unsafe { records.assume_init_mut() };
    // SAFETY: the second part of the same hole.
    unsafe { heap::init(mem::direct(start + table_len), HEAP_LEN as usize) };
    mem::init_frames(records);
    let taken = reserved(info);
    let page = PAGE_SIZE as u64;
    for ram in &info.ram {
        let (mut at, end) = (ram.start.next_multiple_of(page), ram.end / page * page);
        while at < end {
            let blocked = taken.iter().chain([&own]).find(|t| t.overlaps(&Region::new(at, page)));
            if let Some(blocked) = blocked {
                at = blocked.end.next_multiple_of(page);
                continue;
            }
            let stop = taken.iter().chain([&own]).map(|t| t.start / page * page).filter(|&s| s > at).min();
            let stop = stop.unwrap_or(end).min(end);
            mem::frames().add_ram(Mfn::containing(at), (stop - at) / page);
            at = stop;
        }
    }
}

/// ACPI 6.5, 5.2.5.1: the first KiB of the EBDA is not searched, no loader of ours needs it.
fn find_rsdp() -> Option<u64> {
    (0xe_0000..0x10_0000u64).step_by(16).find(|&at| info::peek::<[u8; 8]>(at) == Some(*b"RSD PTR "))
}
