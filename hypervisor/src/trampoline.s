# Where the other CPUs wake up, in real mode: to long mode, onto their stack, into their entry. Copied to a page of low memory,
# so everything is addressed from there. At the end: what `smp::prepare` fills in (CR3, stack, argument, entry).
.section .rodata
.balign 16
.global trampoline_start, trampoline_end, trampoline_slots
trampoline_start:
.code16
    cli
    cld
    xor ax, ax
    mov ds, ax
    lgdt [tr_gdtr]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
.byte 0x66, 0xea; .long {at} + (trampoline_32 - trampoline_start); .short 8
.code32
trampoline_32:
    mov eax, 24; mov ds, eax; mov es, eax; mov ss, eax; xor eax, eax; mov fs, eax; mov gs, eax
    mov eax, cr4; or eax, 0x620; mov cr4, eax
    mov eax, [tr_slots]; mov cr3, eax
    mov ecx, 0xc0000080; rdmsr; or eax, 0x900; wrmsr
    mov eax, 0x80010023; mov cr0, eax
.byte 0xea; .long {at} + (trampoline_64 - trampoline_start); .short 16
.code64
trampoline_64:
    mov rsp, [tr_slots + 8]
    mov rdi, [tr_slots + 16]
    mov rax, [tr_slots + 24]
    xor ebp, ebp
    push rbp
    jmp rax
.balign 8
trampoline_gdt: .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
trampoline_gdtr: .short 31; .long {at} + (trampoline_gdt - trampoline_start)
.balign 8
trampoline_slots: .quad 0, 0, 0, 0
trampoline_end:
.set tr_gdtr, trampoline_gdtr - trampoline_start + {at}
.set tr_slots, trampoline_slots - trampoline_start + {at}
.text
