//! The ABI between the hypervisor and every domain: Xen's public interface in its PVH form, byte for byte, plus the
//! few calls of our own ([`xenolith`]) that no guest uses and the format of the system bundle ([`bundle`]).
//!
//! Neighbours: the hypervisor decodes these structures, libxenrt encodes them, xtask writes bundles, the tests use all
//! of it. The crate holds layout and names, no behaviour, so that both sides can only agree. Every layout is asserted
//! where it is declared. Source: Xen 4.17, `xen/include/public/`; the header is named at each module.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bundle;
pub mod console;
pub mod cpuid;
pub mod errno;
pub mod evtchn;
pub mod grant;
pub mod hvm;
pub mod hypercall;
pub mod ids;
pub mod io;
pub mod memory;
pub mod physdev;
pub mod sched;
pub mod shared;
pub mod start_info;
pub mod vcpu;
pub mod version;
pub mod xenolith;

pub use errno::Errno;
pub use ids::{DomId, EvtchnPort, GrantRef, VcpuId};

/// Bytes in a page; the unit of frames, grants and rings.
pub const PAGE_SIZE: usize = 4096;
/// `log2(PAGE_SIZE)`.
pub const PAGE_SHIFT: u32 = 12;

/// Asserts size and field offsets of a structure at compile time.
#[macro_export]
macro_rules! assert_layout {
    ($t:ty, $size:expr $(, $field:ident @ $off:expr)* $(,)?) => {
        const _: () = {
            assert!(core::mem::size_of::<$t>() == $size);
            $(assert!(core::mem::offset_of!($t, $field) == $off);)*
        };
    };
}
