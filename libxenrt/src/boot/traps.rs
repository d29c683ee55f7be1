//! Descriptor tables and exceptions. No exception is expected: each prints the registers and ends the domain, the double fault
//! (a stack that ran into its guard page) on a stack of its own. The one interrupt is the event upcall.

use super::image;
use crate::console;
use abi::sched;
use core::arch::global_asm;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::Cr2;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// The vector events arrive at.
pub const UPCALL_VECTOR: u8 = 0x40;
/// Exceptions are vectors below this.
const EXCEPTIONS: usize = 32;
/// The stack-table slot of the trap stack, counted from 0 as `x86_64` does.
const TRAP_STACK: u16 = 0;

/// What the stubs push, lowest address first.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    /// R15, R14, R13, R12, R11, R10, R9, R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const NAMES: [&str; 15] =
    ["r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"];

global_asm!(
    ".pushsection .text.traps, \"ax\", @progbits",
    // Vectors for which the processor pushes an error code (AMD64 manual volume 2, section 8.2).
    ".irp v, 8,10,11,12,13,14,17,21,29,30",
    "trap_\\v:",
    "pushq $\\v",
    "jmp trap_common",
    ".endr",
    ".irp v, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31",
    "trap_\\v:",
    "pushq $0",
    "pushq $\\v",
    "jmp trap_common",
    ".endr",
    "trap_common:",
    "cld",
    ".irp r, rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
    "pushq %\\r",
    ".endr",
    "movq %rsp, %rdi",
    "andq $-16, %rsp",
    "call {trap}",
    "ud2",
    "upcall_entry:",
    "cld",
    ".irp r, rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11,rbp",
    "pushq %\\r",
    ".endr",
    "movq %rsp, %rbp",
    "andq $-16, %rsp",
    "call {upcall}",
    "movq %rbp, %rsp",
    ".irp r, rbp,r11,r10,r9,r8,rdi,rsi,rdx,rcx,rax",
    "popq %\\r",
    ".endr",
    "iretq",
    ".popsection",
    ".pushsection .data.rel.ro.traps, \"aw\", @progbits",
    ".balign 8",
    ".global libxenrt_trap_stubs",
    "libxenrt_trap_stubs:",
    ".irp v, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".quad trap_\\v",
    ".endr",
    ".quad upcall_entry",
    ".popsection",
    trap = sym trap,
    upcall = sym upcall,
    options(att_syntax),
);

unsafe extern "C" {
    safe static libxenrt_trap_stubs: [u64; EXCEPTIONS + 1];
}

extern "C" fn upcall() {
    crate::event::serve();
}

extern "C" fn trap(frame: &Frame) -> ! {
    crate::watchdog::allow_last_words();
    let start = image::start();
    let name = match frame.vector {
        0 => "divide error",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 if near_guard(frame.rsp) => "stack overflow",
        8 => "double fault",
        13 => "general protection",
        14 => "page fault",
        _ => "exception",
    };
    for part in [0usize..8, 8..15] {
        let mut line = console::Line::new();
        for (name, value) in NAMES.iter().zip(&frame.registers).skip(part.start).take(part.len()) {
            // A line cuts, it never fails.
            let _ = core::fmt::Write::write_fmt(&mut line, format_args!("{name}={value:x} "));
        }
        line.send();
    }
    // Last, because the hypervisor quotes a crashed domain's last line.
    crate::println!(
        "fault: {name} (vector {}, error {:x}) at image+{:x}, address {:x}, rsp {:x}",
        frame.vector,
        frame.error,
        frame.rip.wrapping_sub(start),
        Cr2::read_raw(),
        frame.rsp,
    );
    crate::hypercall::shutdown(sched::SHUTDOWN_CRASH)
}

fn near_guard(rsp: u64) -> bool {
    rsp.abs_diff(image::stack_guard()) <= 2 * abi::PAGE_SIZE as u64
}

struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    idt: InterruptDescriptorTable,
}

static TSS: Once<TaskStateSegment> = Once::new();
static GDT: Once<GlobalDescriptorTable> = Once::new();
static IDT: Once<InterruptDescriptorTable> = Once::new();

/// Loads GDT, TSS and IDT.
pub fn install() {
    let Tables { gdt, tss, idt } = Tables::build();
    let tss = TSS.call_once(|| tss);
    let gdt = GDT.call_once(|| {
        let mut gdt = gdt;
        gdt.append(Descriptor::tss_segment(tss));
        gdt
    });
    gdt.load();
    let code = x86_64::structures::gdt::SegmentSelector::new(1, x86_64::PrivilegeLevel::Ring0);
    let data = x86_64::structures::gdt::SegmentSelector::new(2, x86_64::PrivilegeLevel::Ring0);
    let task = x86_64::structures::gdt::SegmentSelector::new(3, x86_64::PrivilegeLevel::Ring0);
    // SAFETY: I10 – entry 1 of the table just loaded is a 64-bit code segment.
    unsafe { CS::set_reg(code) };
    // SAFETY: I10 – entry 2 is a data segment.
    unsafe { SS::set_reg(data) };
    // SAFETY: I10 – as above.
    unsafe { DS::set_reg(data) };
    // SAFETY: I10 – as above.
    unsafe { ES::set_reg(data) };
    // SAFETY: I10 – entry 3 is the TSS, which is static.
    unsafe { load_tss(task) };
    let idt = IDT.call_once(|| {
        let mut idt = idt;
        fill(&mut idt);
        idt
    });
    idt.load();
}

impl Tables {
    fn build() -> Self {
        let mut gdt = GlobalDescriptorTable::new();
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table[usize::from(TRAP_STACK)] = VirtAddr::new_truncate(image::trap_stack_top());
        Self { gdt, tss, idt: InterruptDescriptorTable::new() }
    }
}

/// Sets every gate; must run after CS is ours, because a gate keeps the code segment.
fn fill(idt: &mut InterruptDescriptorTable) {
    let stub = |vector: usize| VirtAddr::new_truncate(libxenrt_trap_stubs.get(vector).copied().unwrap_or(0));
    macro_rules! gates {
        ($($vector:literal $name:ident;)*) => {$(
            // SAFETY: I10 – the stub expects exactly what the processor pushes for this vector.
            unsafe { idt.$name.set_handler_addr(stub($vector)) };
        )*};
    }
    gates! {
        0 divide_error; 1 debug; 3 breakpoint; 4 overflow; 5 bound_range_exceeded; 6 invalid_opcode;
        7 device_not_available; 10 invalid_tss; 11 segment_not_present; 12 stack_segment_fault;
        13 general_protection_fault; 14 page_fault; 16 x87_floating_point; 17 alignment_check;
        19 simd_floating_point; 20 virtualization; 21 cp_protection_exception;
    }
    macro_rules! own_stack {
        ($($vector:literal $name:ident;)*) => {$(
            // SAFETY: I10 – as above.
            let options = unsafe { idt.$name.set_handler_addr(stub($vector)) };
            // SAFETY: I10 – the slot holds the trap stack, used by nothing that returns.
            unsafe { options.set_stack_index(TRAP_STACK) };
        )*};
    }
    own_stack! { 2 non_maskable_interrupt; 8 double_fault; 18 machine_check; }
    // SAFETY: I10 – the upcall stub saves what it uses and returns with IRET.
    unsafe { idt[UPCALL_VECTOR].set_handler_addr(stub(EXCEPTIONS)) };
}
