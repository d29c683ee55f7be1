//! What each physical CPU has of its own, found through its GS base.

use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::sync::atomic::AtomicBool;
use spin::{Mutex, Once};

/// Most physical CPUs: the width of `bundle::Domain::cpu_mask`.
pub const MAX_CPUS: usize = 32;

/// One physical CPU.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    /// Address of this structure, at GS:0.
    this: usize,
    /// Number, from 0.
    pub id: u32,
    /// Its local APIC's.
    pub apic_id: u32,
    /// The vCPU it runs.
    pub current: Mutex<Option<Arc<Vcpu>>>,
    /// Look at the run queue again before entering a guest.
    pub reschedule: AtomicBool,
    /// Halted, waiting for an interrupt.
    pub idle: AtomicBool,
}

static CPUS: [Once<&'static PerCpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

impl PerCpu {
    /// Makes a CPU known.
    pub fn new(id: u32, apic_id: u32) -> &'static Self {
        let cpu = alloc::boxed::Box::leak(alloc::boxed::Box::new(Self {
            this: 0,
            id,
            apic_id,
            current: Mutex::new(None),
            reschedule: AtomicBool::new(false),
            idle: AtomicBool::new(false),
        }));
        cpu.this = core::ptr::from_ref(cpu).expose_provenance();
        let cpu: &'static Self = cpu;
        if let Some(slot) = CPUS.get(id as usize) {
            slot.call_once(|| cpu);
        }
        cpu
    }
}

/// The CPU this code runs on.
#[must_use]
pub fn this() -> &'static PerCpu {
    let addr: usize;
    // SAFETY: GS base points to this CPU's `PerCpu` from before the first call on; its first word is its address.
    unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) addr, options(nostack, preserves_flags, readonly)) };
    // SAFETY: the structure was leaked, and is only shared.
    unsafe { &*core::ptr::with_exposed_provenance(addr) }
}
/// CPU by number, if it has been started.
#[must_use]
pub fn get(id: u32) -> Option<&'static PerCpu> {
    CPUS.get(id as usize)?.get().copied()
}
/// All CPUs that have been started.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    CPUS.iter().filter_map(|c| c.get().copied())
}
