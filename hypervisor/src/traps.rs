//! Exceptions and interrupts of the hypervisor itself. An exception is a broken invariant: print everything, stop the machine.
//! Interrupts come only where the run loop opens a window, with no lock held, so that their handlers may take locks.

use crate::{apic, cpu, deadlines, irq, panic, percpu, power};
use core::arch::global_asm;
use spin::LazyLock;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

/// What the stubs push, lowest address first.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    /// r15 … r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

global_asm!(include_str!("traps.s"), handler = sym handle);

unsafe extern "C" {
    static trap_stubs: u8;
}

const NMI: u64 = 2;

/// 64-bit interrupt gates (APM 2, 8.2): to the vector's stub, IF cleared, on a stack of its own where the present one may be bad.
static IDT: LazyLock<[u128; 256]> = LazyLock::new(|| {
    // SAFETY: a symbol of the asm above; only its address is used.
    let base = core::ptr::from_ref(unsafe { &trap_stubs }).addr() as u64;
    core::array::from_fn(|vector| {
        let stub = base + vector as u64 * 16;
        let stack = u64::from(cpu::interrupt_stack(vector));
        let low = (stub & 0xffff) | 8 << 16 | stack << 32 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
        u128::from(low) | u128::from(stub >> 32) << 64
    })
});

/// Loads the table on this CPU.
pub fn load() {
    let pointer = DescriptorTablePointer { limit: 4095, base: VirtAddr::from_ptr(&raw const *IDT) };
    // SAFETY: a whole table that lives for ever; the stubs save everything and end with IRETQ, and the TSS has the stacks.
    unsafe { lidt(&pointer) };
}

extern "C" fn handle(frame: &Frame) {
    match frame.vector {
        NMI if panic::in_progress() => power::halt(),
        0..32 => exception(frame),
        vector => {
            match vector as u8 {
                // A spurious interrupt gets no EOI.
                apic::SPURIOUS_VECTOR => return,
                // The run loop looks at its queue and its deadlines after every window.
                apic::TIMER_VECTOR => deadlines::fired(percpu::this()),
                apic::KICK_VECTOR => {}
                device => irq::handle(device),
            }
            apic::eoi();
        }
    }
}

fn exception(f: &Frame) -> ! {
    let cr2 = x86_64::registers::control::Cr2::read_raw();
    panic!(
        "exception {} error {:#x} on CPU {} at {:#x}, cr2 {cr2:#x}, rsp {:#x}, rflags {:#x}, cs {:#x} ss {:#x}, r15..rax {:#x?}",
        f.vector,
        f.error,
        percpu::try_id(),
        f.rip,
        f.rsp,
        f.rflags,
        f.cs,
        f.ss,
        f.registers
    );
}
