//! Scheduling operations (`public/sched.h`).

use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SCHEDOP_yield`.
pub const YIELD: u64 = 0;
/// `SCHEDOP_block`: enable upcalls and sleep until an event is pending.
pub const BLOCK: u64 = 1;
/// `SCHEDOP_shutdown`.
pub const SHUTDOWN: u64 = 2;
/// `SCHEDOP_poll`: sleep until one of some ports is pending (masked or not) or the deadline passes.
pub const POLL: u64 = 3;
/// `SCHEDOP_remote_shutdown`.
pub const REMOTE_SHUTDOWN: u64 = 4;
/// `SCHEDOP_shutdown_code`.
pub const SHUTDOWN_CODE: u64 = 5;
/// `SCHEDOP_watchdog`.
pub const WATCHDOG: u64 = 6;

/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_reboot`.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// `SHUTDOWN_suspend`.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;
/// `SHUTDOWN_soft_reset`: a kernel that has put another in its place (kexec).
pub const SHUTDOWN_SOFT_RESET: u32 = 5;
/// `SHUTDOWN_watchdog`.
pub const SHUTDOWN_WATCHDOG: u32 = 4;

/// Ports a single poll may name.
pub const POLL_MAX_PORTS: u32 = 128;

/// `sched_poll`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Poll {
    /// IN: linear address of `nr_ports` × `u32`.
    pub ports: u64,
    /// IN.
    pub nr_ports: u32,
    /// Zero.
    pub pad: u32,
    /// IN: absolute system time in ns; 0 = no deadline.
    pub timeout: u64,
}
crate::assert_layout!(Poll, 24, nr_ports @ 8, timeout @ 16);

/// `sched_shutdown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Shutdown {
    /// IN: `SHUTDOWN_*`.
    pub reason: u32,
}
crate::assert_layout!(Shutdown, 4);

/// `sched_watchdog`: id 0 makes one (returns its id), a timeout of 0 ends it, otherwise it is re-armed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Watchdog {
    /// IN.
    pub id: u32,
    /// IN: seconds.
    pub timeout: u32,
}
crate::assert_layout!(Watchdog, 8);

/// `sched_remote_shutdown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RemoteShutdown {
    /// IN.
    pub domain_id: DomId,
    /// Zero.
    pub pad: u16,
    /// IN.
    pub reason: u32,
}
crate::assert_layout!(RemoteShutdown, 8, reason @ 4);
