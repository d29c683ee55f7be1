//! Hypercall numbers (`public/xen.h`). Number in RAX, arguments in RDI, RSI, RDX, R10, R8; result in RAX
//! (`public/arch-x86/xen-x86_64.h`). Pointers are guest linear addresses.

/// `memory_op(cmd, arg)`.
pub const MEMORY_OP: u64 = 12;
/// `multicall(list, count)`.
pub const MULTICALL: u64 = 13;
/// `xen_version(cmd, arg)`.
pub const XEN_VERSION: u64 = 17;
/// `console_io(cmd, count, str)`.
pub const CONSOLE_IO: u64 = 18;
/// `grant_table_op(cmd, uop, count)`.
pub const GRANT_TABLE_OP: u64 = 20;
/// `vcpu_op(cmd, vcpuid, extra)`.
pub const VCPU_OP: u64 = 24;
/// `sched_op(cmd, arg)`.
pub const SCHED_OP: u64 = 29;
/// `event_channel_op(cmd, op)`.
pub const EVENT_CHANNEL_OP: u64 = 32;
/// `physdev_op(cmd, arg)`.
pub const PHYSDEV_OP: u64 = 33;
/// `hvm_op(op, arg)`.
pub const HVM_OP: u64 = 34;
/// `arch_7`: ours, see [`crate::xenolith`].
pub const XENOLITH_OP: u64 = 55;
/// Hypercalls are numbered below this: a 4 KiB hypercall page of 32-byte stubs.
pub const COUNT: u64 = 128;
/// Bytes of one stub in the hypercall page.
pub const STUB_SIZE: usize = 32;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct multicall_entry` (`xen.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// IN: hypercall number.
    pub op: u64,
    /// OUT: result.
    pub result: u64,
    /// IN: arguments.
    pub args: [u64; 6],
}
crate::assert_layout!(MulticallEntry, 64, result @ 8, args @ 16);
