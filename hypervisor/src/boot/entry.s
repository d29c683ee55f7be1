# Multiboot2 header (specification 2.0, 3.1): i386, entry address tag, end tag.
.section .boot.multiboot2, "a"
.balign 8
mb2_header:
.long 0xe85250d6, 0, mb2_header_end - mb2_header, -(0xe85250d6 + (mb2_header_end - mb2_header))
.short 3, 0; .long 12, mb2_start, 0
.short 0, 0; .long 8
mb2_header_end:
.text

# XEN_ELFNOTE_PHYS32_ENTRY.
.section .note.xen, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_start
.text

# Both entries, and the first page tables.
.section .boot.text, "ax"
.code32
.global mb2_start
mb2_start:
    mov ebp, eax
    jmp 1f
.global pvh_start
pvh_start:
    xor ebp, ebp
1:
    cli
    cld
# 2048 entries of 2 MiB, present and writable.
    mov edi, offset boot_pd
    mov eax, 0x83
    xor edx, edx
    mov ecx, 2048
2: mov [edi], eax; mov [edi + 4], edx; add eax, 0x200000; add edi, 8; loop 2b
    mov eax, offset boot_pd + 3
    mov edi, offset boot_pdpt
    mov ecx, 4
3: mov [edi], eax; add eax, 0x1000; add edi, 8; loop 3b
    mov dword ptr [boot_pdpt_high + 510 * 8], offset boot_pd + 3
    mov dword ptr [boot_pml4], offset boot_pdpt + 3
    mov dword ptr [boot_pml4 + 256 * 8], offset boot_pdpt + 3
    mov dword ptr [boot_pml4 + 511 * 8], offset boot_pdpt_high + 3
    mov eax, offset boot_pml4
    mov cr3, eax
# PAE, OSFXSR, OSXMMEXCPT: guests' SSE state is switched by FXSAVE.
    mov eax, cr4; or eax, 0x620; mov cr4, eax
# LME, NXE.
    mov ecx, 0xc0000080; rdmsr; or eax, 0x900; wrmsr
# PG, WP, NE, MP, PE; not EM, TS, CD, NW.
    mov eax, 0x80010023; mov cr0, eax
    lgdt [boot_gdtr]
.byte 0xea; .long boot64; .short 8
.code64
boot64:
    mov eax, 16; mov ds, eax; mov es, eax; mov ss, eax; xor eax, eax; mov fs, eax; mov gs, eax
    mov edi, ebp
    mov esi, ebx
    movabs rsp, offset BOOT_STACK + {stack_len}
    xor ebp, ebp
    push rbp
    movabs rax, offset {start}
    jmp rax
.balign 8
boot_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdtr: .short 23; .long boot_gdt
.section .boot.data, "aw"
.balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pdpt_high: .skip 4096
boot_pd: .skip 4 * 4096
.text
