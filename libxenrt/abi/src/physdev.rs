//! Physical-interrupt operations (`public/physdev.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `PHYSDEVOP_irq_status_query`.
pub const IRQ_STATUS_QUERY: u64 = 5;
/// `PHYSDEVOP_eoi`: the level-triggered interrupt has been served; unmask it.
pub const EOI: u64 = 9;
/// `XENIRQSTAT_needs_eoi`.
pub const IRQSTAT_NEEDS_EOI: u32 = 1;

/// `physdev_eoi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Eoi {
    /// IN: PIRQ.
    pub irq: u32,
}
crate::assert_layout!(Eoi, 4);

/// `physdev_irq_status_query`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqStatusQuery {
    /// IN: PIRQ.
    pub irq: u32,
    /// OUT: `XENIRQSTAT_*`.
    pub flags: u32,
}
crate::assert_layout!(IrqStatusQuery, 8);
