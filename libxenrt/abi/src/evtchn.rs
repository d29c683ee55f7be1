//! Event channels, 2-level ABI (`public/event_channel.h`). Bits and masks live in [`crate::shared::SharedInfo`].

use crate::ids::{DomId, EvtchnPort};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `EVTCHNOP_bind_interdomain`.
pub const BIND_INTERDOMAIN: u64 = 0;
/// `EVTCHNOP_bind_virq`.
pub const BIND_VIRQ: u64 = 1;
/// `EVTCHNOP_bind_pirq`.
pub const BIND_PIRQ: u64 = 2;
/// `EVTCHNOP_close`.
pub const CLOSE: u64 = 3;
/// `EVTCHNOP_send`.
pub const SEND: u64 = 4;
/// `EVTCHNOP_status`.
pub const STATUS: u64 = 5;
/// `EVTCHNOP_alloc_unbound`.
pub const ALLOC_UNBOUND: u64 = 6;
/// `EVTCHNOP_bind_ipi`.
pub const BIND_IPI: u64 = 7;
/// `EVTCHNOP_bind_vcpu`.
pub const BIND_VCPU: u64 = 8;
/// `EVTCHNOP_unmask`.
pub const UNMASK: u64 = 9;
/// `EVTCHNOP_reset`.
pub const RESET: u64 = 10;

/// Ports of a domain under the 2-level ABI: 64 words of 64 bits.
pub const NR_CHANNELS_2L: u32 = 4096;

/// `VIRQ_TIMER` (`xen.h`).
pub const VIRQ_TIMER: u32 = 0;
/// `VIRQ_DEBUG`.
pub const VIRQ_DEBUG: u32 = 1;
/// `VIRQ_CONSOLE`: bytes are available in the console rings of domains.
pub const VIRQ_CONSOLE: u32 = 2;
/// `VIRQ_DOM_EXC`: a domain changed state; the control domain fetches [`crate::xenolith::NEXT_EVENT`].
pub const VIRQ_DOM_EXC: u32 = 3;
/// VIRQs are numbered below this.
pub const NR_VIRQS: u32 = 24;

/// A port's state in [`Status`].
pub mod status {
    /// Closed.
    pub const CLOSED: u32 = 0;
    /// Unbound, reserved for a remote domain.
    pub const UNBOUND: u32 = 1;
    /// Bound to a remote port.
    pub const INTERDOMAIN: u32 = 2;
    /// Bound to a physical interrupt.
    pub const PIRQ: u32 = 3;
    /// Bound to a virtual interrupt.
    pub const VIRQ: u32 = 4;
    /// Bound to an inter-vCPU interrupt.
    pub const IPI: u32 = 5;
}

macro_rules! op {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident : $t:ty,)* } = $size:expr) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fm])* pub $f: $t,)* }
        crate::assert_layout!($name, $size);
    };
}

op!(
    /// `evtchn_alloc_unbound`: a fresh port of `dom` that `remote_dom` may bind.
    AllocUnbound {
        /// IN: who gets the port.
        dom: DomId,
        /// IN: who may bind to it.
        remote_dom: DomId,
        /// OUT.
        port: EvtchnPort,
    } = 8
);
op!(
    /// `evtchn_bind_interdomain`: bind to a remote unbound port; the new local port starts pending.
    BindInterdomain {
        /// IN.
        remote_dom: DomId,
        /// Zero.
        pad: u16,
        /// IN.
        remote_port: EvtchnPort,
        /// OUT.
        local_port: EvtchnPort,
    } = 12
);
op!(
    /// `evtchn_bind_virq`.
    BindVirq {
        /// IN: `VIRQ_*`.
        virq: u32,
        /// IN.
        vcpu: u32,
        /// OUT.
        port: EvtchnPort,
    } = 12
);
op!(
    /// `evtchn_bind_pirq`.
    BindPirq {
        /// IN: physical interrupt, from [`crate::xenolith::DeviceInfo`].
        pirq: u32,
        /// IN: `BIND_PIRQ__WILL_SHARE` (1).
        flags: u32,
        /// OUT.
        port: EvtchnPort,
    } = 12
);
op!(
    /// `evtchn_bind_ipi`.
    BindIpi {
        /// IN.
        vcpu: u32,
        /// OUT.
        port: EvtchnPort,
    } = 8
);
op!(
    /// `evtchn_close`, `evtchn_send`, `evtchn_unmask`: a local port.
    Port {
        /// IN.
        port: EvtchnPort,
    } = 4
);
op!(
    /// `evtchn_bind_vcpu`.
    BindVcpu {
        /// IN.
        port: EvtchnPort,
        /// IN.
        vcpu: u32,
    } = 8
);
op!(
    /// `evtchn_reset`.
    Reset {
        /// IN: only `DOMID_SELF`.
        dom: DomId,
    } = 2
);
op!(
    /// `evtchn_status`. The union is two words: `{dom: u16, pad, port}` for interdomain and unbound, `{pirq}`, `{virq}`.
    Status {
        /// IN.
        dom: DomId,
        /// Zero.
        pad: u16,
        /// IN.
        port: EvtchnPort,
        /// OUT: see [`status`].
        status: u32,
        /// OUT: vCPU notified.
        vcpu: u32,
        /// OUT: first word of the union (remote domain in the low 16 bits; pirq; virq).
        u0: u32,
        /// OUT: second word of the union (remote port).
        u1: u32,
    } = 24
);
