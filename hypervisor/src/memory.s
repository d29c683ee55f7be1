# Copying, comparing and clearing in blocks of 64 bytes. Plain moves: an emulator takes an order of magnitude longer for each step of
# a string instruction, and a processor about the same for both.
.text

# void mem_copy(u8 *to, const u8 *from, usize len)
.global mem_copy
mem_copy:
    mov rcx, rdx
    shr rdx, 6
    jz 3f
2:
    mov rax, [rsi]; mov r8, [rsi + 8]; mov r9, [rsi + 16]; mov r10, [rsi + 24]
    mov [rdi], rax; mov [rdi + 8], r8; mov [rdi + 16], r9; mov [rdi + 24], r10
    mov rax, [rsi + 32]; mov r8, [rsi + 40]; mov r9, [rsi + 48]; mov r10, [rsi + 56]
    mov [rdi + 32], rax; mov [rdi + 40], r8; mov [rdi + 48], r9; mov [rdi + 56], r10
    add rsi, 64
    add rdi, 64
    dec rdx
    jnz 2b
3:
    and ecx, 63
    rep movsb
    ret

# void mem_zero(u8 *to, usize len)
.global mem_zero
mem_zero:
    xor eax, eax
    mov rcx, rsi
    shr rsi, 6
    jz 3f
2:
    mov [rdi], rax; mov [rdi + 8], rax; mov [rdi + 16], rax; mov [rdi + 24], rax
    mov [rdi + 32], rax; mov [rdi + 40], rax; mov [rdi + 48], rax; mov [rdi + 56], rax
    add rdi, 64
    dec rsi
    jnz 2b
3:
    and ecx, 63
    rep stosb
    ret

# void mem_refresh(u8 *to, const u8 *from, usize blocks): writes only the blocks that differ.
.global mem_refresh
mem_refresh:
    test rdx, rdx
    jz 4f
2:
    mov rax, [rsi]; mov r8, [rsi + 8]; mov r9, [rsi + 16]; mov r10, [rsi + 24]
    xor rax, [rdi]; xor r8, [rdi + 8]; xor r9, [rdi + 16]; xor r10, [rdi + 24]
    or rax, r8; or r9, r10; or rax, r9
    mov r8, [rsi + 32]; mov r9, [rsi + 40]; mov r10, [rsi + 48]; mov r11, [rsi + 56]
    xor r8, [rdi + 32]; xor r9, [rdi + 40]; xor r10, [rdi + 48]; xor r11, [rdi + 56]
    or rax, r8; or r9, r10; or rax, r11; or rax, r9
    jz 3f
    mov rax, [rsi]; mov r8, [rsi + 8]; mov r9, [rsi + 16]; mov r10, [rsi + 24]
    mov [rdi], rax; mov [rdi + 8], r8; mov [rdi + 16], r9; mov [rdi + 24], r10
    mov rax, [rsi + 32]; mov r8, [rsi + 40]; mov r9, [rsi + 48]; mov r10, [rsi + 56]
    mov [rdi + 32], rax; mov [rdi + 40], r8; mov [rdi + 48], r9; mov [rdi + 56], r10
3:
    add rsi, 64
    add rdi, 64
    dec rdx
    jnz 2b
4:
    ret
