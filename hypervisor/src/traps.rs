//! Exceptions and interrupts of the hypervisor itself. An exception is a broken invariant: print everything, stop the machine.
//! Interrupts come only where the run loop opens a window, with no lock held, so that their handlers may take locks.

use crate::{apic, cpu, deadlines, irq, panic, percpu, power};
use core::arch::global_asm;
use spin::LazyLock;
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptDescriptorTable;

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

// 256 stubs of 16 bytes. Vectors 8, 10-14, 17, 21, 29, 30 come with an error code; the others push a zero in its place.
global_asm!(
    ".text",
    ".balign 16",
    ".global trap_stubs",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "trap_common:",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {handler}",
    "mov rsp, rbp",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym handle,
);

unsafe extern "C" {
    static trap_stubs: u8;
}

const NMI: u64 = 2;

static IDT: LazyLock<InterruptDescriptorTable> = LazyLock::new(|| {
    let mut idt = InterruptDescriptorTable::new();
    // SAFETY: a symbol of the asm above; only its address is used.
    let base = core::ptr::from_ref(unsafe { &trap_stubs }).addr() as u64;
    let stub = |vector: u8| VirtAddr::new_truncate(base + u64::from(vector) * 16);
    macro_rules! set {
        ($field:expr, $vector:expr) => {
            // SAFETY: the stub saves everything and ends with IRETQ, and knows whether its vector has an error code.
            unsafe { $field.set_handler_addr(stub($vector)) }
        };
    }
    set!(idt.divide_error, 0);
    set!(idt.debug, 1);
    let nmi = set!(idt.non_maskable_interrupt, 2);
    // SAFETY: the TSS of every CPU has this stack.
    unsafe { nmi.set_stack_index(cpu::IST_NMI) };
    set!(idt.breakpoint, 3);
    set!(idt.overflow, 4);
    set!(idt.bound_range_exceeded, 5);
    set!(idt.invalid_opcode, 6);
    set!(idt.device_not_available, 7);
    let double = set!(idt.double_fault, 8);
    // SAFETY: as above.
    unsafe { double.set_stack_index(cpu::IST_DOUBLE_FAULT) };
    set!(idt.invalid_tss, 10);
    set!(idt.segment_not_present, 11);
    set!(idt.stack_segment_fault, 12);
    set!(idt.general_protection_fault, 13);
    set!(idt.page_fault, 14);
    set!(idt.x87_floating_point, 16);
    set!(idt.alignment_check, 17);
    let check = set!(idt.machine_check, 18);
    // SAFETY: as above.
    unsafe { check.set_stack_index(cpu::IST_MACHINE_CHECK) };
    set!(idt.simd_floating_point, 19);
    for vector in 32..=255u8 {
        set!(idt[vector], vector);
    }
    idt
});

/// Loads the table on this CPU.
pub fn load() {
    IDT.load();
}

extern "C" fn handle(frame: &Frame) {
    match frame.vector {
        NMI if panic::in_progress() => power::halt(),
        0..32 => exception(frame),
        vector => {
            let vector = vector as u8;
            match vector {
                // The run loop looks at its queue and its deadlines after every window.
                apic::TIMER_VECTOR => {
                    deadlines::fired(percpu::this());
                    apic::eoi();
                }
                apic::KICK_VECTOR => apic::eoi(),
                // A spurious interrupt gets no EOI.
                apic::SPURIOUS_VECTOR => {}
                _ => {
                    irq::handle(vector);
                    apic::eoi();
                }
            }
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
