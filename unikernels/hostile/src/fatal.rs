//! Offences that no answer fits: each ends this domain, and only this domain.

/// A kind and how it is committed.
pub type Fatal = (&'static str, fn());

/// All of them.
pub const ALL: [Fatal; 6] = [
    ("foreign-memory", foreign_memory),
    ("msr", msr),
    ("vmrun", vmrun),
    ("triple-fault", triple_fault),
    ("page-tables", page_tables),
    ("halt", halt),
];

/// Reads memory that nobody gave us: just below 4 GiB, where registers of the machine are.
fn foreign_memory() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that the address is not ours; libxenrt maps it, the hypervisor does not.
    let _ = unsafe { core::ptr::with_exposed_provenance::<u32>(0xFEE0_0030).read_volatile() };
}

/// Writes an MSR that belongs to the machine: VM_HSAVE_PA.
fn msr() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that the register is not ours.
    unsafe {
        core::arch::asm!("wrmsr", in("ecx") 0xC001_0117u32, in("eax") 0x1000, in("edx") 0)
    };
}

/// Tries to be a hypervisor.
fn vmrun() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that the instruction is not for guests.
    unsafe {
        core::arch::asm!("vmrun rax", in("rax") 0x1000)
    };
}

/// Faults with nowhere to go: an interrupt table without entries.
fn triple_fault() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that no exception can be delivered any more.
    unsafe {
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &[0u16; 5])
    };
}

/// Takes the page tables away from under itself.
fn page_tables() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that nothing is mapped any more afterwards.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) 0x70_0000_0000u64)
    };
}

/// Sleeps with interrupts off.
fn halt() {
    #[cfg(target_os = "none")]
    // SAFETY: it is the point of this that nothing wakes it.
    unsafe {
        core::arch::asm!("cli", "hlt")
    };
}
