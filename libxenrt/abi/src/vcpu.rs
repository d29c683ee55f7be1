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

/// `RUNSTATE_*`: what a vCPU does.
pub mod runstate {
    /// On a CPU.
    pub const RUNNING: u32 = 0;
    /// Waits for a CPU.
    pub const RUNNABLE: u32 = 1;
    /// Waits for an event.
    pub const BLOCKED: u32 = 2;
    /// Must not run.
    pub const OFFLINE: u32 = 3;
}

/// `vcpu_runstate_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunstateInfo {
    /// OUT: [`runstate`].
    pub state: u32,
    /// Zero.
    pub pad: u32,
    /// OUT: system time at which it was entered, ns.
    pub state_entry_time: u64,
    /// OUT: ns spent in each state.
    pub time: [u64; 4],
}
crate::assert_layout!(RunstateInfo, 48, state_entry_time @ 8, time @ 16);

/// `vcpu_register_runstate_memory_area` and `vcpu_register_time_memory_area`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterArea {
    /// IN: linear address of the area; 0 ends it.
    pub addr: u64,
}
crate::assert_layout!(RegisterArea, 8);

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
