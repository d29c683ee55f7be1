//! What each physical CPU has of its own, found through its GS base.

use crate::mem;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use hv_core::Mfn;
use hv_core::sched::RunQueue;
use hv_core::timer::DeadlineQueue;
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
    /// Runnable vCPUs, and the one that runs.
    pub queue: Mutex<RunQueue>,
    /// When the vCPUs that belong here want to be looked at.
    pub deadlines: Mutex<DeadlineQueue>,
    /// Look at the queue again before entering a guest.
    pub reschedule: AtomicBool,
    /// In a guest or halted, or about to be: only an interrupt makes it look at `reschedule`.
    pub away: AtomicBool,
    /// Nothing to run: halted, or about to be.
    pub idle: AtomicBool,
    /// System time at which the local APIC's timer fires; `u64::MAX` = it is stopped.
    pub armed_ns: AtomicU64,
    /// Counts up when the CPU runs out of address space identifiers.
    pub asid_generation: AtomicU64,
    asid_next: AtomicU32,
    asids: AtomicU32,
    host: Once<Mfn>,
}

static CPUS: [Once<&'static PerCpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

impl PerCpu {
    /// The record of a CPU that is to be started.
    pub fn new(id: u32, apic_id: u32) -> &'static Self {
        let cpu = Box::leak(Box::new(Self {
            this: 0,
            id,
            apic_id,
            queue: Mutex::new(RunQueue::new()),
            deadlines: Mutex::new(DeadlineQueue::new()),
            reschedule: AtomicBool::new(false),
            away: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            armed_ns: AtomicU64::new(u64::MAX),
            asid_generation: AtomicU64::new(1),
            asid_next: AtomicU32::new(1),
            asids: AtomicU32::new(2),
            host: Once::new(),
        }));
        cpu.this = core::ptr::from_ref(cpu).expose_provenance();
        cpu
    }
    /// This CPU runs: others may find it.
    pub fn register(&'static self) {
        if let Some(slot) = CPUS.get(self.id as usize) {
            slot.call_once(|| self);
        }
    }

    /// Switches SVM on, on this CPU, which has `asids` address space identifiers.
    ///
    /// # Panics
    /// Without memory for the CPU's two state areas.
    pub fn enable_svm(&self, asids: u32) {
        let (Some(hsave), Some(host)) = (mem::alloc_zeroed(), mem::alloc_zeroed()) else {
            panic!("no memory for the state areas of CPU {}", self.id);
        };
        self.asids.store(asids.max(2), Relaxed);
        // SAFETY: `hv_svm::cpu::check` succeeded at boot, and the frame stays this CPU's for ever.
        unsafe { hv_svm::cpu::enable(hsave.addr()) };
        // SAFETY: SVM is on; the frame stays this CPU's, and its segment bases do not change any more.
        unsafe { hv_svm::save_host(host.addr()) };
        self.host.call_once(|| host);
    }
    /// Physical address of the state VMLOAD brings back.
    ///
    /// # Panics
    /// Before [`Self::enable_svm`].
    pub fn host_area(&self) -> u64 {
        match self.host.get() {
            Some(host) => host.addr(),
            None => panic!("CPU {} has not switched SVM on", self.id),
        }
    }
    /// An identifier no TLB entry of this CPU has, and whether everything has to be flushed for that. Only this CPU calls it.
    pub fn next_asid(&self) -> (u32, bool) {
        let id = self.asid_next.load(Relaxed);
        if id < self.asids.load(Relaxed) {
            self.asid_next.store(id + 1, Relaxed);
            return (id, false);
        }
        self.asid_generation.fetch_add(1, Relaxed);
        self.asid_next.store(2, Relaxed);
        (1, true)
    }
}

/// The CPU this code runs on.
pub fn this() -> &'static PerCpu {
    let addr: usize;
    // SAFETY: GS base points to this CPU's `PerCpu` from before the first call on; its first word is its address.
    unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) addr, options(nostack, preserves_flags, readonly)) };
    // SAFETY: the structure was leaked, and is only shared.
    unsafe { &*core::ptr::with_exposed_provenance(addr) }
}
/// Number of this CPU where even that may not be known: in the panic path.
pub fn try_id() -> u32 {
    if x86_64::registers::model_specific::GsBase::read().is_null() { 0 } else { this().id }
}
/// CPU by number, if it has been started.
pub fn get(id: u32) -> Option<&'static PerCpu> {
    CPUS.get(id as usize)?.get().copied()
}
/// All CPUs that have been started.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    CPUS.iter().filter_map(|c| c.get().copied())
}
