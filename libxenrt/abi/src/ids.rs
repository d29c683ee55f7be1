//! Names of things both sides speak of. Distinct types, so that a port is never taken for a grant.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! id {
    ($(#[$m:meta])* $name:ident($int:ty)) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// A domain's number (`domid_t`, `xen.h`). 0 is the control domain.
    DomId(u16)
);
id!(
    /// An event-channel port of one domain (`evtchn_port_t`). 0 is never a valid port.
    EvtchnPort(u32)
);
id!(
    /// An index into a domain's grant table (`grant_ref_t`).
    GrantRef(u32)
);
id!(
    /// A virtual CPU of one domain.
    VcpuId(u32)
);

impl DomId {
    /// The control domain.
    pub const CONTROL: Self = Self(0);
    /// `DOMID_FIRST_RESERVED`: domains have smaller numbers.
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
    /// `DOMID_SELF`: the caller.
    pub const SELF: Self = Self(0x7FF0);
    /// `DOMID_XEN`: the hypervisor; in console and log calls, its own log.
    pub const XEN: Self = Self(0x7FF2);
    /// `DOMID_INVALID`.
    pub const INVALID: Self = Self(0x7FF4);
}
