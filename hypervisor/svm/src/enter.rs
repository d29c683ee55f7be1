//! The world switch.

use core::arch::global_asm;

/// General registers the VMCB does not hold, in the order the asm uses.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GuestRegs {
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
}
abi::assert_layout!(GuestRegs, 112, rbp @ 40, r8 @ 48, r15 @ 104);

global_asm!(include_str!("enter.s"));

unsafe extern "C" {
    fn svm_enter(regs: *mut GuestRegs, vmcb: u64, host: u64);
}

/// Runs the guest until its next exit.
///
/// # Safety
/// `vmcb` is the physical address of a VMCB (invariant 1 of the crate) whose control area keeps the guest inside of what it may
/// reach; `host` is this CPU's host state area (invariant 3); SVM is enabled (invariant 2); interrupts are off.
pub unsafe fn enter(regs: &mut GuestRegs, vmcb: u64, host: u64) {
    // SAFETY: by this function's contract; the asm keeps what the C ABI wants kept.
    unsafe { svm_enter(regs, vmcb, host) };
}

/// Fills this CPU's host state area.
///
/// # Safety
/// `host` is the physical address of a frame that is this CPU's alone; SVM is enabled.
pub unsafe fn save_host(host: u64) {
    // SAFETY: by this function's contract.
    unsafe { core::arch::asm!("vmsave rax", in("rax") host, options(nostack, preserves_flags)) };
}
