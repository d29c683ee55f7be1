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

// CLGI closes every physical interrupt, then IF goes to 1: V_INTR_MASKING makes the *host's* IF the mask for physical
// interrupts while the guest runs, so they exit. On the way back IF is 0 again before STGI opens the gate: interrupts wait until
// the run loop opens a window. VMLOAD/VMSAVE move what VMRUN leaves alone (FS, GS, TR, LDTR, SYSCALL and SYSENTER registers).
global_asm!(
    ".text",
    ".global svm_enter",
    "svm_enter:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "push rdx",
    "push rdi",
    "mov rax, rsi",
    "clgi",
    "sti",
    "vmload rax",
    "mov rbx, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rsi, [rdi + 24]",
    "mov rbp, [rdi + 40]; mov r8, [rdi + 48]; mov r9, [rdi + 56]; mov r10, [rdi + 64]; mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]; mov r13, [rdi + 88]; mov r14, [rdi + 96]; mov r15, [rdi + 104]",
    "mov rdi, [rdi + 32]",
    "vmrun rax",
    "vmsave rax",
    "pop rax",
    "mov [rax], rbx; mov [rax + 8], rcx; mov [rax + 16], rdx; mov [rax + 24], rsi; mov [rax + 32], rdi",
    "mov [rax + 40], rbp; mov [rax + 48], r8; mov [rax + 56], r9; mov [rax + 64], r10; mov [rax + 72], r11",
    "mov [rax + 80], r12; mov [rax + 88], r13; mov [rax + 96], r14; mov [rax + 104], r15",
    "pop rax",
    "vmload rax",
    "cli",
    "stgi",
    "cld",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
);

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
