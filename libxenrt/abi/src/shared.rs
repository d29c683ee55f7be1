//! Shared info and vCPU info (`public/xen.h`, `public/arch-x86/xen.h`). These pages are written by both sides at once;
//! the structures give the layout, accesses go through atomics at these offsets.

/// Layout of `struct vcpu_info` (64 bytes).
pub mod vcpu_info {
    /// Bytes of the structure.
    pub const SIZE: usize = 64;
    /// `evtchn_upcall_pending: u8`. Set by the hypervisor, cleared by the guest.
    pub const EVTCHN_UPCALL_PENDING: usize = 0;
    /// `evtchn_upcall_mask: u8`.
    pub const EVTCHN_UPCALL_MASK: usize = 1;
    /// `evtchn_pending_sel: u64`.
    pub const EVTCHN_PENDING_SEL: usize = 8;
    /// `arch: arch_vcpu_info` (16 bytes: `cr2`, pad).
    pub const ARCH: usize = 16;
    /// `time: vcpu_time_info`.
    pub const TIME: usize = 32;
}

/// Layout of `struct vcpu_time_info` (32 bytes). Version is odd while the hypervisor writes.
pub mod time_info {
    /// `version: u32`.
    pub const VERSION: usize = 0;
    /// `tsc_timestamp: u64`.
    pub const TSC_TIMESTAMP: usize = 8;
    /// `system_time: u64`, ns since the machine started.
    pub const SYSTEM_TIME: usize = 16;
    /// `tsc_to_system_mul: u32`: ns = ((tsc delta << shift) * mul) >> 32.
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    /// `tsc_shift: i8`.
    pub const TSC_SHIFT: usize = 28;
    /// `flags: u8`: bit 0 = TSC stable.
    pub const FLAGS: usize = 29;
    /// `XEN_PVCLOCK_TSC_STABLE_BIT`.
    pub const TSC_STABLE: u8 = 1;
    /// `XEN_PVCLOCK_GUEST_STOPPED`: the vCPU was not run for a while. The guest clears it.
    pub const GUEST_STOPPED: u8 = 2;
}

/// `struct vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while the hypervisor writes.
    pub version: u32,
    /// Padding.
    pub pad: u32,
    /// TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// ns since the machine started.
    pub system_time: u64,
    /// ns = ((tsc delta << shift) * mul) >> 32.
    pub tsc_to_system_mul: u32,
    /// Negative = right.
    pub tsc_shift: i8,
    /// [`time_info::TSC_STABLE`].
    pub flags: u8,
    /// Padding.
    pub pad1: [u8; 2],
}
crate::assert_layout!(VcpuTimeInfo, 32, tsc_timestamp @ time_info::TSC_TIMESTAMP, system_time @ time_info::SYSTEM_TIME,
    tsc_to_system_mul @ time_info::TSC_TO_SYSTEM_MUL, tsc_shift @ time_info::TSC_SHIFT, flags @ time_info::FLAGS);

/// Layout of `struct shared_info` (x86-64).
pub mod shared_info {
    /// `vcpu_info[32]`.
    pub const VCPU_INFO: usize = 0;
    /// vCPUs with a slot in the page.
    pub const LEGACY_MAX_VCPUS: u32 = 32;
    /// `evtchn_pending[64]: u64`.
    pub const EVTCHN_PENDING: usize = 2048;
    /// `evtchn_mask[64]: u64`.
    pub const EVTCHN_MASK: usize = 2560;
    /// `wc_version: u32`, then `wc_sec: u32`, `wc_nsec: u32`, `wc_sec_hi: u32`.
    pub const WC_VERSION: usize = 3072;
    /// `wc_sec`.
    pub const WC_SEC: usize = 3076;
    /// `wc_nsec`.
    pub const WC_NSEC: usize = 3080;
    /// `wc_sec_hi`.
    pub const WC_SEC_HI: usize = 3084;
}
