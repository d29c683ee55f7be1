//! Crash points: faults committed on demand, at a chosen point of ordinary work. `point()` stands in ring stores, hypercalls and
//! main loops; unarmed it is one load and a branch. Armed by the domain's xenstore node `control/crash` (see
//! [`crate::store`]) with [`Order::parse`]'s `KIND[:COUNT]`.
//!
//! The fault is real each time: recursion into the guard page, a store to the unmapped page 0, a loop with interrupts off.

use crate::config::Config;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// What to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A panic.
    Panic = 1,
    /// A store to an unmapped page.
    PageFault,
    /// Recursion without end.
    StackOverflow,
    /// A busy loop.
    Hang,
    /// A busy loop with interrupts disabled.
    IrqHang,
    /// The driver points its device at a frame that is not ours: [`dma_due`] becomes true.
    Dma,
    /// A write to an I/O port that is not ours.
    PortIo,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Panic, Self::PageFault, Self::StackOverflow, Self::Hang, Self::IrqHang, Self::Dma, Self::PortIo];

    /// Its name in xenstore, `ctl` and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::PageFault => "page-fault",
            Self::StackOverflow => "stack-overflow",
            Self::Hang => "hang",
            Self::IrqHang => "irq-hang",
            Self::Dma => "dma",
            Self::PortIo => "port-io",
        }
    }
    /// The kind of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A kind and the number of crash points that are passed before it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What.
    pub kind: Kind,
    /// After how many points.
    pub after: u32,
}

impl Order {
    /// Reads `KIND[:COUNT]`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, after) = match text.trim().split_once(':') {
            Some((name, count)) => (name, count.parse().ok()?),
            None => (text.trim(), 0),
        };
        Some(Self { kind: Kind::parse(name)?, after })
    }
}

/// The order a domain's configuration gives this generation: `crash` (`KIND[:COUNT]`) on the first `crash-times` (default 1).
#[must_use]
pub fn configured(config: &Config<'_>, generation: u32) -> Option<Order> {
    let due = generation < config.number("crash-times").unwrap_or(1);
    due.then(|| config.get("crash").and_then(Order::parse)).flatten()
}

/// The kind armed, or 0.
static ARMED: AtomicU8 = AtomicU8::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
static DMA: AtomicBool = AtomicBool::new(false);

/// Arms an order; a later one replaces it.
pub fn arm(order: Order) {
    LEFT.store(order.after, Ordering::Relaxed);
    ARMED.store(order.kind as u8, Ordering::Relaxed);
}

/// A crash point.
#[inline]
pub fn point() {
    if ARMED.load(Ordering::Relaxed) != 0 {
        pass();
    }
}

#[cold]
fn pass() {
    let left = LEFT.load(Ordering::Relaxed);
    if left > 0 {
        LEFT.store(left.saturating_sub(1), Ordering::Relaxed);
        return;
    }
    let armed = ARMED.swap(0, Ordering::Relaxed);
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| *kind as u8 == armed) {
        commit(kind);
    }
}

/// Whether a driver is to commit the kind `dma` now. The crash point cannot do it itself: it is reached with the driver
/// borrowed, so a driver's main loop asks here and calls its `point_dma_at`. True once.
pub fn dma_due() -> bool {
    DMA.load(Ordering::Relaxed) && DMA.swap(false, Ordering::Relaxed)
}

/// Commits a fault at once. It returns only for [`Kind::Dma`] (left to the driver), and on the host.
pub fn commit(kind: Kind) {
    match kind {
        Kind::Dma => DMA.store(true, Ordering::Relaxed),
        #[cfg(target_os = "none")]
        other => fault::commit(other),
        #[cfg(not(target_os = "none"))]
        other => panic!("crash point: {}", other.name()),
    }
}

#[cfg(target_os = "none")]
mod fault {
    use super::Kind;
    use core::hint::black_box;

    /// A port of the PCI host bridge, which no domain owns.
    const FOREIGN_PORT: u16 = 0xcf8;

    pub fn commit(kind: Kind) -> ! {
        match kind {
            Kind::PageFault => null_store(),
            Kind::StackOverflow => {
                black_box(descend(black_box(1)));
            }
            Kind::Hang => spin(),
            Kind::IrqHang => {
                x86_64::instructions::interrupts::disable();
                spin()
            }
            Kind::PortIo => foreign_port(),
            Kind::Panic | Kind::Dma => {}
        }
        // Reached for `panic`, and where a fault was not stopped, which is worth the same end.
        panic!("crash point: {}", kind.name());
    }

    fn spin() -> ! {
        loop {
            core::hint::spin_loop();
        }
    }

    fn null_store() {
        // SAFETY: I8 – page 0 is unmapped, so the store faults and the domain ends; the assembler block keeps the compiler from
        // reasoning about it.
        unsafe { core::arch::asm!("mov qword ptr [{}], 0", in(reg) 8u64, options(nostack)) };
    }

    fn foreign_port() {
        // SAFETY: I8 – the hypervisor stops the domain at this instruction.
        unsafe { core::arch::asm!("out dx, eax", in("dx") FOREIGN_PORT, in("eax") 0u32, options(nostack, nomem)) };
    }

    /// Recurses until the guard page below the stack stops it.
    #[inline(never)]
    #[expect(unconditional_recursion, reason = "that is the fault")]
    fn descend(depth: u64) -> u64 {
        let frame = black_box([depth; 32]);
        descend(depth.wrapping_add(frame.len() as u64)).wrapping_add(black_box(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_parse_and_strange_ones_do_not() {
        assert_eq!(Order::parse("panic"), Some(Order { kind: Kind::Panic, after: 0 }));
        assert_eq!(Order::parse(" irq-hang:250\n"), Some(Order { kind: Kind::IrqHang, after: 250 }));
        for bad in ["", "panics", "panic:", "panic:-1", "panic:x", ":3"] {
            assert_eq!(Order::parse(bad), None, "{bad:?}");
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
        }
    }

    #[test]
    fn a_point_counts_down_and_fires_once() {
        arm(Order { kind: Kind::Dma, after: 2 });
        point();
        point();
        assert!(!dma_due());
        point();
        assert!(dma_due());
        point();
        assert!(!dma_due());
    }
}
