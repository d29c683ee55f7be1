//! Hypercall arguments: from registers and guest bytes to one typed value per call, so that a handler is a `match`.
//!
//! Every structure is copied out of guest memory once, here; nothing reads it again. An unknown command is `ENOSYS`, a pointer
//! that does not translate `EFAULT`. Sizes and layouts are `abi`'s. Neighbours: `hypervisor/src/hypercall` has a file per call.

use abi::{Errno, evtchn, grant, hvm, memory, physdev, sched, vcpu, version, xenolith};
use zerocopy::{FromBytes, IntoBytes};

/// Guest memory by linear address.
pub trait GuestBytes {
    /// Copies from linear `addr` into `to`.
    ///
    /// # Errors
    /// `EFAULT` if a page does not translate; `to` may then be partly written.
    fn copy_in(&self, addr: u64, to: &mut [u8]) -> Result<(), Errno>;

    /// A structure at linear `addr`, as a private copy.
    ///
    /// # Errors
    /// As [`Self::copy_in`].
    fn fetch<T: FromBytes + IntoBytes>(&self, addr: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.copy_in(addr, value.as_mut_bytes())?;
        Ok(value)
    }
}

/// Entries one grant-table or multi-call hypercall may have: bounds the time in the hypervisor.
pub const BATCH_MAX: u32 = 512;

/// A list in guest memory of at most [`BATCH_MAX`] entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Linear address of the first.
    pub addr: u64,
    /// Entries.
    pub count: u32,
}

impl Batch {
    fn new(addr: u64, count: u64) -> Result<Self, Errno> {
        let count = u32::try_from(count).ok().filter(|&n| n <= BATCH_MAX).ok_or(Errno::E2BIG)?;
        Ok(Self { addr, count })
    }

    /// Linear addresses of the entries, each `size` bytes.
    ///
    /// # Errors
    /// `EFAULT` where the list passes the end of the address space.
    pub fn entries(self, size: usize) -> Result<impl Iterator<Item = u64>, Errno> {
        self.parts(size, 1)
    }

    /// Linear addresses of every `stride`-th entry, each `size` bytes.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub fn parts(self, size: usize, stride: usize) -> Result<impl Iterator<Item = u64>, Errno> {
        let len = u64::from(self.count).saturating_mul(size as u64);
        let end = self.addr.checked_add(len).ok_or(Errno::EFAULT)?;
        Ok((self.addr..end).step_by(size.saturating_mul(stride).max(1)))
    }
}

macro_rules! call {
    (
        $(#[$m:meta])* $name:ident:
        $( $(#[$vm:meta])* $cmd:path => $how:ident $variant:ident $(($t:ty))?, )*
    ) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$vm])* $variant $(($t))?, )* }

        impl $name {
            /// Decodes command `cmd` with its argument; `count` matters to those that take a list.
            ///
            /// # Errors
            /// `ENOSYS` for an unknown command, `EFAULT` for a bad pointer, `E2BIG` for too long a list.
            pub fn decode<M: GuestBytes>(cmd: u64, arg: u64, count: u64, mem: &M) -> Result<Self, Errno> {
                let _where_unused = (arg, count, mem);
                Ok(match cmd {
                    $( $cmd => call!(@$how $variant, arg, count, mem), )*
                    _ => return Err(Errno::ENOSYS),
                })
            }
        }
    };
    // No argument.
    (@bare $variant:ident, $arg:ident, $count:ident, $mem:ident) => { Self::$variant };
    // The argument itself: a number, or the address for the answer.
    (@value $variant:ident, $arg:ident, $count:ident, $mem:ident) => { Self::$variant($arg) };
    // A structure at that address.
    (@at $variant:ident, $arg:ident, $count:ident, $mem:ident) => { Self::$variant($mem.fetch($arg)?) };
    // A list of structures.
    (@list $variant:ident, $arg:ident, $count:ident, $mem:ident) => { Self::$variant(Batch::new($arg, $count)?) };
}

call!(
    /// `event_channel_op`.
    EventChannelOp:
    /// Bind to a remote unbound port.
    evtchn::BIND_INTERDOMAIN => at BindInterdomain(evtchn::BindInterdomain),
    /// Bind a virtual interrupt.
    evtchn::BIND_VIRQ => at BindVirq(evtchn::BindVirq),
    /// Bind a physical interrupt.
    evtchn::BIND_PIRQ => at BindPirq(evtchn::BindPirq),
    /// Close a port.
    evtchn::CLOSE => at Close(evtchn::Port),
    /// Notify.
    evtchn::SEND => at Send(evtchn::Port),
    /// A port's state.
    evtchn::STATUS => at Status(evtchn::Status),
    /// A port for a remote to bind.
    evtchn::ALLOC_UNBOUND => at AllocUnbound(evtchn::AllocUnbound),
    /// A port between vCPUs.
    evtchn::BIND_IPI => at BindIpi(evtchn::BindIpi),
    /// Move a port to a vCPU.
    evtchn::BIND_VCPU => at BindVcpu(evtchn::BindVcpu),
    /// Unmask a port.
    evtchn::UNMASK => at Unmask(evtchn::Port),
);

call!(
    /// `grant_table_op`: lists, and structures of which there is one.
    GrantTableOp:
    /// Map grants.
    grant::MAP_GRANT_REF => list Map(Batch),
    /// Unmap them.
    grant::UNMAP_GRANT_REF => list Unmap(Batch),
    /// Copy by grants.
    grant::COPY => list Copy(Batch),
    /// Its size.
    grant::QUERY_SIZE => at QuerySize(grant::QuerySize),
    /// Choose the version.
    grant::SET_VERSION => at SetVersion(SetVersion),
    /// Tell the version.
    grant::GET_VERSION => at GetVersion(grant::GetVersion),
);

/// `gnttab_set_version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct SetVersion {
    /// IN: wanted; OUT: in force.
    pub version: u32,
}

call!(
    /// `memory_op`.
    MemoryOp:
    /// Give frames back.
    memory::DECREASE_RESERVATION => at Decrease(memory::MemoryReservation),
    /// Fill holes with frames.
    memory::POPULATE_PHYSMAP => at Populate(memory::MemoryReservation),
    /// Let a shared page appear.
    memory::ADD_TO_PHYSMAP => at AddToPhysmap(memory::AddToPhysmap),
);

call!(
    /// `sched_op`.
    SchedOp:
    /// Give the rest of the slice away.
    sched::YIELD => bare Yield,
    /// Wait for an upcall.
    sched::BLOCK => bare Block,
    /// Stop for a reason.
    sched::SHUTDOWN => at Shutdown(sched::Shutdown),
    /// Wait for a port.
    sched::POLL => at Poll(sched::Poll),
    /// Watchdog in seconds.
    sched::WATCHDOG => at Watchdog(sched::Watchdog),
);

call!(
    /// `vcpu_op`; the vCPU is an argument of its own.
    VcpuOp:
    /// The area that is kept up to date with it.
    vcpu::REGISTER_RUNSTATE_MEMORY_AREA => at RegisterRunstateArea(vcpu::RegisterArea),
    /// Never: there are no periodic timers, but stopping one is fine.
    vcpu::STOP_PERIODIC_TIMER => bare StopPeriodicTimer,
    /// One-shot timer.
    vcpu::SET_SINGLESHOT_TIMER => at SetSingleshotTimer(vcpu::SetSingleshotTimer),
    /// Stop it.
    vcpu::STOP_SINGLESHOT_TIMER => bare StopSingleshotTimer,
    /// Where its `vcpu_info` is to be.
    vcpu::REGISTER_VCPU_INFO => at RegisterVcpuInfo(vcpu::RegisterVcpuInfo),
    /// A second copy of its time information.
    vcpu::REGISTER_VCPU_TIME_MEMORY_AREA => at RegisterTimeArea(vcpu::RegisterArea),
);

call!(
    /// `hvm_op`.
    HvmOp:
    /// Set a parameter.
    hvm::SET_PARAM => at SetParam(hvm::HvmParam),
    /// Get one.
    hvm::GET_PARAM => at GetParam(hvm::HvmParam),
);

call!(
    /// `physdev_op`.
    PhysdevOp:
    /// Unmask a level-triggered interrupt.
    physdev::EOI => at Eoi(physdev::Eoi),
    /// Whether it wants that.
    physdev::IRQ_STATUS_QUERY => at IrqStatusQuery(physdev::IrqStatusQuery),
);

/// `xen_feature_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct FeatureInfo {
    /// IN: which 32 features.
    pub submap_idx: u32,
    /// OUT: them.
    pub submap: u32,
}

call!(
    /// `xen_version`.
    XenVersion:
    /// Major and minor.
    version::VERSION => bare Version,
    /// The rest: where to.
    version::EXTRAVERSION => value Extraversion(u64),
    /// Features.
    version::GET_FEATURES => at GetFeatures(FeatureInfo),
);

call!(
    /// `XENOLITH_OP`.
    XenolithOp:
    /// About the machine: where to.
    xenolith::INFO => value Info(u64),
    /// About a domain.
    xenolith::DOM_INFO => at DomInfo(xenolith::DomInfo),
    /// Restart in place.
    xenolith::DOM_RESTART => at Restart(xenolith::DomOp),
    /// Pause.
    xenolith::DOM_PAUSE => at Pause(xenolith::DomOp),
    /// Unpause.
    xenolith::DOM_UNPAUSE => at Unpause(xenolith::DomOp),
    /// Kill.
    xenolith::DOM_KILL => at Kill(xenolith::DomOp),
    /// Give it memory, and start it.
    xenolith::DOM_CREATE => at Create(xenolith::DomOp),
    /// Take its memory.
    xenolith::DOM_DESTROY => at Destroy(xenolith::DomOp),
    /// Oldest life-cycle event: where to.
    xenolith::NEXT_EVENT => value NextEvent(u64),
    /// Read a console log.
    xenolith::CONSOLE_READ => at ConsoleRead(xenolith::ConsoleRead),
    /// An assigned device.
    xenolith::DEVICE_INFO => at DeviceInfo(xenolith::DeviceInfo),
    /// Read configuration space.
    xenolith::PCI_READ => at PciRead(xenolith::PciAccess),
    /// Write it.
    xenolith::PCI_WRITE => at PciWrite(xenolith::PciAccess),
    /// About the caller: where to.
    xenolith::SELF_INFO => value SelfInfo(u64),
    /// Fine watchdog, milliseconds.
    xenolith::WATCHDOG_MS => value WatchdogMs(u64),
    /// End the machine with this code.
    xenolith::POWEROFF => value Poweroff(u64),
);

impl XenolithOp {
    /// Whether only a control domain may call it: all but what concerns the caller alone.
    pub const fn is_control(&self) -> bool {
        !matches!(
            self,
            Self::Info(_)
                | Self::DeviceInfo(_)
                | Self::PciRead(_)
                | Self::PciWrite(_)
                | Self::SelfInfo(_)
                | Self::WatchdogMs(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::{DomId, EvtchnPort};
    use proptest::prelude::*;

    /// Guest memory that begins at 0x1000.
    struct Mem(Vec<u8>);

    impl GuestBytes for Mem {
        fn copy_in(&self, addr: u64, to: &mut [u8]) -> Result<(), Errno> {
            let start = addr.checked_sub(0x1000).and_then(|a| usize::try_from(a).ok()).ok_or(Errno::EFAULT)?;
            let end = start.checked_add(to.len()).ok_or(Errno::EFAULT)?;
            to.copy_from_slice(self.0.get(start..end).ok_or(Errno::EFAULT)?);
            Ok(())
        }
    }

    #[test]
    fn a_structure_is_decoded_from_its_bytes() {
        let mem = Mem(vec![2, 0, 0, 0, 7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let op = EventChannelOp::decode(evtchn::BIND_INTERDOMAIN, 0x1000, 1, &mem);
        let expected = evtchn::BindInterdomain {
            remote_dom: DomId(2),
            pad: 0,
            remote_port: EvtchnPort(7),
            local_port: EvtchnPort(u32::MAX),
        };
        assert_eq!(op, Ok(EventChannelOp::BindInterdomain(expected)));
        assert_eq!(EventChannelOp::decode(evtchn::BIND_INTERDOMAIN, 0x1001, 1, &mem), Err(Errno::EFAULT));
        assert_eq!(EventChannelOp::decode(evtchn::SEND, u64::MAX, 1, &mem), Err(Errno::EFAULT));
        assert_eq!(EventChannelOp::decode(99, 0x1000, 1, &mem), Err(Errno::ENOSYS));
    }

    #[test]
    fn lists_are_bounded_and_stay_in_the_address_space() {
        let mem = Mem(vec![]);
        assert_eq!(GrantTableOp::decode(grant::COPY, 0, u64::from(BATCH_MAX) + 1, &mem), Err(Errno::E2BIG));
        assert_eq!(GrantTableOp::decode(grant::COPY, 0, 1 << 32, &mem), Err(Errno::E2BIG));
        let Ok(GrantTableOp::Copy(batch)) = GrantTableOp::decode(grant::COPY, u64::MAX - 60, 2, &mem) else {
            panic!("a list of two");
        };
        assert_eq!(batch.entries(40).err(), Some(Errno::EFAULT));
        assert_eq!(batch.entries(30).map(Iterator::count), Ok(2));
        let five = Batch { addr: 0x1000, count: 5 };
        assert_eq!(five.parts(0x10, 2).map(Iterator::collect::<Vec<_>>), Ok(vec![0x1000, 0x1020, 0x1040]));
    }

    proptest! {
        /// No bytes and no registers make decoding panic, and only what is named is known.
        #[test]
        fn any_registers_and_bytes_decode_or_are_refused(
            cmd in prop_oneof![0u64..40, any::<u64>()],
            arg in prop_oneof![0x0ff0u64..0x1100, any::<u64>()],
            count in any::<u64>(),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mem = Mem(bytes);
            let errnos = [
                EventChannelOp::decode(cmd, arg, count, &mem).err(),
                GrantTableOp::decode(cmd, arg, count, &mem).err(),
                MemoryOp::decode(cmd, arg, count, &mem).err(),
                SchedOp::decode(cmd, arg, count, &mem).err(),
                VcpuOp::decode(cmd, arg, count, &mem).err(),
                HvmOp::decode(cmd, arg, count, &mem).err(),
                PhysdevOp::decode(cmd, arg, count, &mem).err(),
                XenVersion::decode(cmd, arg, count, &mem).err(),
                XenolithOp::decode(cmd, arg, count, &mem).err(),
            ];
            for e in errnos.into_iter().flatten() {
                prop_assert!(matches!(e, Errno::ENOSYS | Errno::EFAULT | Errno::E2BIG));
            }
        }
    }
}
