# 256 stubs of 16 bytes. Vectors 8, 10-14, 17, 21, 29, 30 come with an error code; the others push a zero in its place.
.text
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
.balign 16
.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
.endif
    push vector
    jmp trap_common
.set vector, vector + 1
.endr
.balign 16
trap_common:
    push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp
    push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    call {handler}
    mov rsp, rbp
    pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8
    pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax
    add rsp, 16
    iretq
