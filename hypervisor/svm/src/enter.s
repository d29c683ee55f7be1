# CLGI closes every physical interrupt, then IF goes to 1: V_INTR_MASKING makes the *host's* IF the mask for physical
# interrupts while the guest runs, so they exit. On the way back IF is 0 again before STGI opens the gate: interrupts wait until
# the run loop opens a window. VMLOAD/VMSAVE move what VMRUN leaves alone (FS, GS, TR, LDTR, SYSCALL and SYSENTER registers).
# void svm_enter(GuestRegs *, u64 vmcb, u64 host)
.text
.global svm_enter
svm_enter:
    push rbx; push rbp; push r12; push r13; push r14; push r15
    push rdx
    push rdi
    mov rax, rsi
    clgi
    sti
    vmload rax
    mov rbx, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rsi, [rdi + 24]
    mov rbp, [rdi + 40]; mov r8, [rdi + 48]; mov r9, [rdi + 56]; mov r10, [rdi + 64]; mov r11, [rdi + 72]
    mov r12, [rdi + 80]; mov r13, [rdi + 88]; mov r14, [rdi + 96]; mov r15, [rdi + 104]
    mov rdi, [rdi + 32]
    vmrun rax
    vmsave rax
    pop rax
    mov [rax], rbx; mov [rax + 8], rcx; mov [rax + 16], rdx; mov [rax + 24], rsi; mov [rax + 32], rdi
    mov [rax + 40], rbp; mov [rax + 48], r8; mov [rax + 56], r9; mov [rax + 64], r10; mov [rax + 72], r11
    mov [rax + 80], r12; mov [rax + 88], r13; mov [rax + 96], r14; mov [rax + 104], r15
    pop rax
    vmload rax
    cli
    stgi
    cld
    pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
    ret
