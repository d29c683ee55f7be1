//! From the loader's entry to the first line of Rust, and what the loader told us.
//!
//! Entered in 32-bit protected mode without paging, by PVH (EBX = `hvm_start_info`) or Multiboot2 (EAX = magic, EBX = information).
//! The code at its physical address maps the first 4 GiB three times with 2 MiB pages: at 0 (until [`crate::paging`] has built the
//! real tables), in the direct map, and at the link address; enters long mode; and calls [`crate::start`] there.

pub mod info;
mod multiboot2;
mod pvh;

use core::arch::global_asm;

/// Bytes of the first stack, on which the boot CPU stays.
pub const STACK_LEN: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_LEN]);
#[unsafe(no_mangle)]
static mut BOOT_STACK: Stack = Stack([0; STACK_LEN]);

global_asm!(include_str!("entry.s"), stack_len = const STACK_LEN, start = sym crate::start);
