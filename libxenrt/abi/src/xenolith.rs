//! Our own hypercall, `XENOLITH_OP(cmd, arg)` (number `arch_7`), for what Xen's guest ABI leaves to a toolstack: the
//! domain life cycle, devices, logs. Commands marked *control* answer EPERM to every domain without
//! [`crate::bundle::flags::CONTROL`]; the others concern only the caller. `arg` is a guest linear address of the structure
//! named at the command. All times are ns of system time (the PV clock's).

use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `(Info)` OUT: about the machine and this ABI.
pub const INFO: u64 = 0;
/// `(DomInfo)` *control*: IN `domid`, OUT the rest. ESRCH where there is none.
pub const DOM_INFO: u64 = 1;
/// `(DomOp)` *control*: restart in place from the pristine image; works in every state but `Destroyed`.
/// OUT: the phases' durations (of the last call). EAGAIN as of [`DOM_CREATE`], except for a driver domain, which others wait for; the
/// domain is stopped then.
pub const DOM_RESTART: u64 = 2;
/// `(DomOp)` *control*: stop the domain's vCPUs.
pub const DOM_PAUSE: u64 = 3;
/// `(DomOp)` *control*: let them go on.
pub const DOM_UNPAUSE: u64 = 4;
/// `(DomOp)` *control*: kill at whatever instruction it is at, as if it had crashed with [`cause::ADMIN`]; contained, not restarted.
pub const DOM_KILL: u64 = 5;
/// `(Event)` *control*, OUT: the oldest life-cycle event not yet fetched; ENODATA when there is none. Signalled by `VIRQ_DOM_EXC`.
pub const NEXT_EVENT: u64 = 6;
/// `(ConsoleRead)` *control*: bytes of a domain's console log (`DOMID_XEN`: the hypervisor's own), from a sequence number on.
pub const CONSOLE_READ: u64 = 7;
/// `(DeviceInfo)` IN `index`, OUT the caller's n-th assigned device; ENODEV past the last.
pub const DEVICE_INFO: u64 = 8;
/// `(PciAccess)` read configuration space of an assigned device.
pub const PCI_READ: u64 = 9;
/// `(PciAccess)` write it; only bus-master and interrupt-disable of COMMAND are let
/// through, everything else is EPERM (BARs, MSI addresses).
pub const PCI_WRITE: u64 = 10;
/// `(SelfInfo)` OUT: the caller's own identity, special pages and generation.
pub const SELF_INFO: u64 = 11;
/// `arg` = milliseconds, by value (0 ends it): arm or feed the caller's fine watchdog. Its time runs only while the vCPU is
/// runnable or running, so a blocked domain need not wake to feed it.
pub const WATCHDOG_MS: u64 = 12;
/// `arg` = exit code, by value, *control*: end the machine (QEMU: `isa-debug-exit` where the bundle's flags name it, else ACPI S5).
pub const POWEROFF: u64 = 13;
/// `(DomOp)` *control*: gives a domain that is [`state::DESTROYED`] memory and lets it run from its pristine image. ENOMEM: there
/// is too little free memory, EINVAL: it has memory already, EAGAIN: a part of its memory was filled, to be called again until all is;
/// between the calls others can be served.
pub const DOM_CREATE: u64 = 14;
/// `(DomOp)` *control*: takes a stopped domain's memory; what it was is gone, its place in the bundle stays for
/// [`DOM_CREATE`]. EBUSY: it is not [`state::STOPPED`] ([`DOM_KILL`] stops it).
pub const DOM_DESTROY: u64 = 15;

/// Version of this file's ABI, in [`Info::version`].
pub const ABI_VERSION: u32 = 1;
/// Bytes of a domain's name, NUL-padded.
pub const NAME_LEN: usize = 32;
/// Bytes of the text in an [`Event`], NUL-padded.
pub const TEXT_LEN: usize = 120;

/// Why a domain stopped ([`Event::cause`], [`DomInfo::last_cause`]).
pub mod cause {
    /// Never stopped.
    pub const NONE: u32 = 0;
    /// `SCHEDOP_shutdown(poweroff)`.
    pub const POWEROFF: u32 = 1;
    /// `SCHEDOP_shutdown(reboot)`.
    pub const REBOOT: u32 = 2;
    /// `SCHEDOP_shutdown(crash)`: a panic; `info[0]` = RIP.
    pub const CRASH: u32 = 3;
    /// Triple fault (SHUTDOWN intercept); `info[0]` = RIP, `info[1]` = CR2.
    pub const TRIPLE_FAULT: u32 = 4;
    /// Nested page fault outside of every mapping; `info[0]` = RIP, `info[1]` = guest-physical address, `info[2]` = EXITINFO1.
    pub const NPT_FAULT: u32 = 5;
    /// I/O port outside of the domain's; `info[0]` = RIP, `info[1]` = port, `info[2]` = 1 for a write.
    pub const PORT_IO: u32 = 6;
    /// MSR that no guest may touch; `info[0]` = RIP, `info[1]` = MSR.
    pub const MSR: u32 = 7;
    /// IOMMU fault of its device; `info[0]` = bus/device/function, `info[1]` = device address or [`UNKNOWN_ADDRESS`], `info[2]` =
    /// flags.
    pub const IOMMU_FAULT: u32 = 8;
    /// The IOMMU told that there was a fault, but not where.
    pub const UNKNOWN_ADDRESS: u64 = u64::MAX;
    /// A missed watchdog; `info[0]` = RIP.
    pub const WATCHDOG: u32 = 9;
    /// Halted with interrupts off and nothing to wake it; `info[0]` = RIP.
    pub const HALT: u32 = 10;
    /// An administrator's order ([`super::DOM_KILL`], [`super::DOM_RESTART`] of a running domain).
    pub const ADMIN: u32 = 11;
    /// An instruction or exit that no guest of ours makes; `info[0]` = RIP, `info[1]` = exit code.
    pub const BAD_EXIT: u32 = 12;
    /// An interrupt storm of its device: throttled beyond the limit; `info[0]` = PIRQ.
    pub const IRQ_STORM: u32 = 13;

    /// The name used in logs, tables and JSON.
    #[must_use]
    pub const fn name(cause: u32) -> &'static str {
        match cause {
            NONE => "none",
            POWEROFF => "poweroff",
            REBOOT => "reboot",
            CRASH => "panic",
            TRIPLE_FAULT => "triple-fault",
            NPT_FAULT => "nested-page-fault",
            PORT_IO => "port-io",
            MSR => "msr",
            IOMMU_FAULT => "iommu-fault",
            WATCHDOG => "watchdog",
            HALT => "halt",
            ADMIN => "admin",
            BAD_EXIT => "bad-exit",
            IRQ_STORM => "irq-storm",
            _ => "unknown",
        }
    }
}

/// A domain's state ([`DomInfo::state`]).
pub mod state {
    /// vCPUs may run.
    pub const RUNNING: u32 = 0;
    /// Paused by the control domain.
    pub const PAUSED: u32 = 1;
    /// Stopped by a fault or a shutdown; contained: vCPUs stopped, bus-master off, device blocked.
    pub const STOPPED: u32 = 2;
    /// Being restarted.
    pub const RESTARTING: u32 = 3;
    /// It has no memory: not made yet, or destroyed.
    pub const DESTROYED: u32 = 4;

    /// The name used in tables and JSON.
    #[must_use]
    pub const fn name(state: u32) -> &'static str {
        match state {
            RUNNING => "running",
            PAUSED => "paused",
            STOPPED => "stopped",
            RESTARTING => "restarting",
            DESTROYED => "destroyed",
            _ => "unknown",
        }
    }
}

macro_rules! wire {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident : $t:ty,)* } = $size:expr) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fm])* pub $f: $t,)* }
        crate::assert_layout!($name, $size);
        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}

wire!(
    /// See [`INFO`].
    Info {
        /// [`ABI_VERSION`].
        version: u32,
        /// CPUs that run domains.
        cpus: u32,
        /// Frequency of the TSC.
        tsc_khz: u64,
        /// Frames of RAM the machine has.
        total_frames: u64,
        /// Frames nobody owns.
        free_frames: u64,
        /// Bytes of the hypervisor's heap in use.
        heap_used_bytes: u64,
        /// Domains that exist.
        domains: u32,
        /// Zero.
        pad: u32,
        /// System time at which the first domain was entered.
        boot_ns: u64,
    } = 56
);
wire!(
    /// See [`DOM_INFO`].
    DomInfo {
        /// IN.
        domid: DomId,
        /// Zero.
        pad: u16,
        /// OUT, all below: [`state`].
        state: u32,
        /// NUL-padded.
        name: [u8; NAME_LEN],
        /// vCPUs.
        vcpus: u32,
        /// Times restarted in place.
        restarts: u32,
        /// [`cause`] of the last stop.
        last_cause: u32,
        /// Zero.
        pad2: u32,
        /// Frames owned.
        frames: u64,
        /// Most frames ever owned, plus page-table and table frames held for it.
        peak_frames: u64,
        /// World switches into it.
        world_switches: u64,
        /// Hypercalls made (an entry of a multicall counts as one).
        hypercalls: u64,
        /// Events delivered to it.
        events: u64,
        /// Grant-copy operations done for it.
        grant_copies: u64,
        /// Bytes they moved.
        grant_copy_bytes: u64,
        /// Grant mappings it holds now.
        grant_maps: u64,
        /// CPU time used.
        cpu_ns: u64,
    } = 128
);
wire!(
    /// See [`DOM_RESTART`], [`DOM_PAUSE`], [`DOM_UNPAUSE`], [`DOM_KILL`], [`DOM_CREATE`], [`DOM_DESTROY`]. The `ns` fields are OUT of a restart.
    DomOp {
        /// IN.
        domid: DomId,
        /// Zero.
        pad: u16,
        /// Zero.
        flags: u32,
        /// vCPUs stopped.
        stop_ns: u64,
        /// Bus-master off, device blocked, IOTLB flushed, device reset.
        device_ns: u64,
        /// Grant mappings taken back, ports unbound.
        unbind_ns: u64,
        /// Image restored, rest zeroed.
        image_ns: u64,
        /// vCPU made ready.
        enter_ns: u64,
    } = 48
);
wire!(
    /// See [`NEXT_EVENT`].
    Event {
        /// Who.
        domid: DomId,
        /// Zero.
        pad: u16,
        /// [`cause`].
        cause: u32,
        /// When it stopped.
        time_ns: u64,
        /// As the cause says.
        info: [u64; 4],
        /// What to tell people: the last console line of a panic, the device and address of an IOMMU fault.
        text: [u8; TEXT_LEN],
    } = 168
);
wire!(
    /// See [`CONSOLE_READ`].
    ConsoleRead {
        /// IN: whose.
        domid: DomId,
        /// Zero.
        pad: u16,
        /// IN: room in bytes; OUT: bytes written.
        len: u32,
        /// IN: first byte wanted, counted from the domain's creation; OUT: first byte given (later, where older ones are gone).
        seq: u64,
        /// IN: linear address of the buffer.
        buffer: u64,
    } = 24
);
wire!(
    /// One base address register of a device, mapped 1:1 at its bus address in the owner's memory.
    Bar {
        /// Guest-physical address (memory BAR) or port number; 0 = none.
        addr: u64,
        /// Bytes.
        len: u64,
        /// 1 = memory, 2 = I/O ports.
        kind: u32,
        /// Zero.
        pad: u32,
    } = 24
);
wire!(
    /// See [`DEVICE_INFO`].
    DeviceInfo {
        /// IN: which, from 0.
        index: u32,
        /// OUT, all below: bus << 8 | device << 3 | function.
        bdf: u32,
        /// Vendor in the low, device in the high half.
        id: u32,
        /// PIRQ for [`crate::evtchn::BIND_PIRQ`].
        pirq: u32,
        /// Class code << 8 | revision.
        class: u32,
        /// 1 = the PIRQ is level-triggered and wants PHYSDEVOP_eoi.
        needs_eoi: u32,
        /// BARs by number.
        bars: [Bar; 6],
    } = 168
);
wire!(
    /// See [`PCI_READ`], [`PCI_WRITE`].
    PciAccess {
        /// IN.
        bdf: u32,
        /// IN: byte offset, aligned to `width`.
        offset: u16,
        /// IN: 1, 2 or 4.
        width: u16,
        /// IN or OUT.
        value: u32,
        /// Zero.
        pad: u32,
    } = 16
);
wire!(
    /// See [`SELF_INFO`].
    SelfInfo {
        /// Caller.
        domid: DomId,
        /// Zero.
        pad: u16,
        /// 0 at first boot, then the number of restarts in place.
        generation: u32,
        /// Guest-physical address of the survivor page (kept over restarts), 0 = none.
        survivor_gpa: u64,
        /// NUL-padded.
        name: [u8; NAME_LEN],
        /// `bundle::flags`.
        flags: u32,
        /// Zero.
        pad2: u32,
    } = 56
);
