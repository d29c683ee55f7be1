//! AMD SVM: the VMCB, the permission maps, the world switch, what an exit means.
//!
//! Neighbours: `hypervisor/src` owns the memory of all this and decides what an exit leads to. The crate keeps no state.
//! Source: AMD64 Architecture Programmer's Manual, volume 2 (24593, rev. 3.40), chapter 15 and appendices B and C.
//! Nothing here relies on next-RIP saving, decode assists or virtual GIF: QEMU's emulation has none of the three.
//!
//! Invariants (cited by the `SAFETY` comments of the asm):
//! 1. A [`Vmcb`] handed to [`enter`] is a whole frame of its own, and only the CPU that runs it touches it.
//! 2. `VM_HSAVE_PA` of each CPU points to a frame nobody else uses ([`cpu::enable`]).
//! 3. The host state area given to [`enter`] was filled by [`save_host`] on the same CPU, and the CPU's FS, GS, TR, LDTR and
//!    SYSCALL registers have not changed since.
//! 4. Hypervisor code uses no floating-point or vector register (soft-float target), so the guest's stay live.
#![cfg_attr(not(test), no_std)]

pub mod cpu;
mod enter;
mod exit;
pub mod fpu;
mod maps;
mod vmcb;

pub use enter::{GuestRegs, enter, save_host};
pub use exit::{Exit, Io};
pub use maps::{IOPM_FRAMES, MSRPM_FRAMES, msr_bit, port_bit};
pub use vmcb::{Control, Event, Save, Segment, Vmcb, intercept, v_intr};

/// A word with these bits set.
pub const fn bits(list: &[u32]) -> u32 {
    let (mut value, mut rest) = (0, list);
    while let [bit, tail @ ..] = rest {
        value |= 1 << *bit;
        rest = tail;
    }
    value
}
