//! The first instructions. Two loaders, two notes (`images/unikernel.ld` lays the second):
//! - Hermit's entry version: `_start` in long mode with RDI = `&RawBootInfo`, image relocated (xtask's loader);
//! - Xen's PHYS32_ENTRY: `pvh_start32` in 32-bit protected mode without paging, EBX = `&hvm_start_info`, image at 1 MiB and not
//!   relocated (`public/arch-x86/hvm/start_info.h`). It makes an identity map of the first GiB and relocates itself.

use core::arch::global_asm;

hermit_entry::define_entry_version!();

/// `kind` of [`super::start`] when entered by Hermit's note.
const BY_HERMIT: u32 = 0;
/// `kind` of [`super::start`] when entered by Xen's note.
pub const BY_PVH: u32 = 1;

global_asm!(
    ".pushsection .text._start, \"ax\", @progbits",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov rsi, rdi",
    "mov edi, {by_hermit}",
    "lea rsp, [rip + __stack_top]",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    "",
    ".global pvh_start64",
    "pvh_start64:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    // R_X86_64_RELATIVE entries only: {{offset, 8, addend}}.
    "lea r8, [rip + __image_start]",
    "lea rax, [rip + __rela_start]",
    "lea rcx, [rip + __rela_end]",
    "2:",
    "cmp rax, rcx",
    "jae 3f",
    "mov rdx, [rax + 16]",
    "add rdx, r8",
    "mov r9, [rax]",
    "mov [r8 + r9], rdx",
    "add rax, 24",
    "jmp 2b",
    "3:",
    "mov edi, {by_pvh}",
    "mov esi, ebx",
    "lea rsp, [rip + __stack_top]",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".popsection",
    by_hermit = const BY_HERMIT,
    by_pvh = const BY_PVH,
    start = sym super::start,
);

global_asm!(
    ".pushsection .text.pvh, \"ax\", @progbits",
    ".global pvh_start32",
    ".global pvh_gdt",
    ".global pvh_gdtr",
    ".code32",
    "pvh_start32:",
    "cld",
    "cli",
    // 512 entries of 2 MiB: present, writable, large.
    "movl $pvh_pd_paddr, %edi",
    "movl $0x83, %eax",
    "movl $512, %ecx",
    "2:",
    "movl %eax, (%edi)",
    "movl $0, 4(%edi)",
    "addl $0x200000, %eax",
    "addl $8, %edi",
    "decl %ecx",
    "jnz 2b",
    "movl $pvh_pd_paddr + 3, pvh_pdpt_paddr",
    "movl $pvh_pdpt_paddr + 3, pvh_pml4_paddr",
    // CR4.PAE, CR3, EFER.LME, CR0.PG: the order of AMD64 manual volume 2, section 14.6.
    "movl %cr4, %eax",
    "orl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $pvh_pml4_paddr, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "lgdt pvh_gdtr_paddr",
    "movl %cr0, %eax",
    "orl $0x80000001, %eax",
    "movl %eax, %cr0",
    "ljmp $8, $pvh_start64_paddr",
    ".balign 8",
    "pvh_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    ".quad 0x00cf93000000ffff",
    "pvh_gdtr:",
    ".word 23",
    ".long pvh_gdt_paddr",
    ".code64",
    ".popsection",
    ".pushsection .bss.pvh_tables, \"aw\", @nobits",
    ".global pvh_pml4",
    ".global pvh_pdpt",
    ".global pvh_pd",
    ".balign 4096",
    "pvh_pml4: .skip 4096",
    "pvh_pdpt: .skip 4096",
    "pvh_pd: .skip 4096",
    ".popsection",
    options(att_syntax),
);

/// There is no Xen ABI under us, so no console either: say so on COM1, which every PC has, and halt.
pub fn no_hypervisor() -> ! {
    /// Transmit register of COM1 (16550).
    const COM1: u16 = 0x3f8;
    for byte in *b"libxenrt: no Xen signature in CPUID leaf 0x40000000: not a Xen domain, halted\r\n" {
        // SAFETY: I10 – no hypervisor, no other owner of the port; a lost byte harms nobody.
        unsafe { x86_64::instructions::port::PortWriteOnly::new(COM1).write(byte) };
    }
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
