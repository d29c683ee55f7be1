//! vCPU operations (`public/vcpu.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_initialise`.
pub const INITIALISE: u64 = 0;
/// `VCPUOP_up`.
pub const UP: u64 = 1;
/// `VCPUOP_down`.
pub const DOWN: u64 = 2;
/// `VCPUOP_is_up`.
pub const IS_UP: u64 = 3;
/// `VCPUOP_get_runstate_info`.
pub const GET_RUNSTATE_INFO: u64 = 4;
/// `VCPUOP_register_runstate_memory_area`.
pub const REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
/// `VCPUOP_set_periodic_timer`.
pub const SET_PERIODIC_TIMER: u64 = 6;
/// `VCPUOP_stop_periodic_timer`.
pub const STOP_PERIODIC_TIMER: u64 = 7;
/// `VCPUOP_set_singleshot_timer`.
pub const SET_SINGLESHOT_TIMER: u64 = 8;
/// `VCPUOP_stop_singleshot_timer`.
pub const STOP_SINGLESHOT_TIMER: u64 = 9;
/// `VCPUOP_register_vcpu_info`.
pub const REGISTER_VCPU_INFO: u64 = 10;
/// `VCPUOP_register_vcpu_time_memory_area`.
pub const REGISTER_VCPU_TIME_MEMORY_AREA: u64 = 13;

/// `VCPU_SSHOTTMR_future`: answer -ETIME where the deadline has passed.
pub const SSHOTTMR_FUTURE: u32 = 1;

/// `vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// IN: absolute system time in ns.
    pub timeout_abs_ns: u64,
    /// IN: [`SSHOTTMR_FUTURE`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}
crate::assert_layout!(SetSingleshotTimer, 16);

/// `vcpu_register_vcpu_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    /// IN: guest frame.
    pub mfn: u64,
    /// IN: byte offset; the structure must not cross the page.
    pub offset: u32,
    /// Zero.
    pub rsvd: u32,
}
crate::assert_layout!(RegisterVcpuInfo, 16);
