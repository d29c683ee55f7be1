//! Event channels, 2-level ABI. The usual way to wait is [`poll`]: all ports stay masked, a wait is one hypercall and no
//! interrupt is ever taken; whether something is pending is first looked up in shared memory, without a hypercall. A domain
//! that wants upcalls registers a handler with [`on_upcall`] and unmasks ports.

use crate::clock::Instant;
use crate::{crash, hypercall, shared_info};
use abi::shared::shared_info as layout;
use abi::{DomId, EvtchnPort, evtchn};

pub use hypercall::Result;

/// An open local port. Closed on drop.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    port: EvtchnPort,
    close: bool,
}

/// Byte offset of the word and the bit of `port` in one of the two bit arrays.
fn bit(array: usize, port: EvtchnPort) -> (usize, u64) {
    let port = port.0 % evtchn::NR_CHANNELS_2L;
    (array.wrapping_add((port as usize / 64).wrapping_mul(8)), 1u64 << (port % 64))
}

/// Whether `port` is pending; no hypercall, nothing is cleared.
#[must_use]
pub fn is_pending(port: EvtchnPort) -> bool {
    let (word, mask) = bit(layout::EVTCHN_PENDING, port);
    shared_info::page().is_some_and(|page| page.pair(word) & mask != 0)
}

/// Clears `port`'s pending bit; answers whether it was set. Do this before looking for work, so that an event which
/// arrives meanwhile is not lost.
pub fn take_pending(port: EvtchnPort) -> bool {
    let (word, mask) = bit(layout::EVTCHN_PENDING, port);
    is_pending(port) && shared_info::page().is_some_and(|page| page.fetch_clear64(word, mask) & mask != 0)
}

/// Waits until one of `ports` is pending or `deadline` has passed; at once, without a hypercall, where one already is.
/// Answers whether any is pending.
///
/// # Errors
/// EINVAL for a port the domain does not have.
pub fn poll(ports: &[EvtchnPort], deadline: Option<Instant>) -> Result<bool> {
    crash::point();
    if ports.iter().any(|&port| is_pending(port)) {
        return Ok(true);
    }
    if deadline.is_some_and(|at| crate::clock::now() >= at) {
        return Ok(false);
    }
    hypercall::poll(ports, deadline.map_or(0, Instant::as_ns))?;
    Ok(ports.iter().any(|&port| is_pending(port)))
}

impl Event {
    const fn owned(port: EvtchnPort) -> Self {
        Self { port, close: true }
    }

    /// A port somebody else made for us (the store's, the console's); not closed on drop.
    #[must_use]
    pub const fn given(port: EvtchnPort) -> Self {
        Self { port, close: false }
    }

    /// A new port that `remote` may bind to.
    ///
    /// # Errors
    /// ENOSPC when the domain has no port left.
    pub fn alloc_unbound(remote: DomId) -> Result<Self> {
        let mut op = evtchn::AllocUnbound { dom: DomId::SELF, remote_dom: remote, port: EvtchnPort(0) };
        hypercall::evtchn_alloc_unbound(&mut op)?;
        Ok(Self::owned(op.port))
    }

    /// Binds to `remote`'s unbound port; the new port starts pending.
    ///
    /// # Errors
    /// EINVAL where that port is not unbound and reserved for us.
    pub fn bind_interdomain(remote: DomId, remote_port: EvtchnPort) -> Result<Self> {
        let mut op = evtchn::BindInterdomain { remote_dom: remote, pad: 0, remote_port, local_port: EvtchnPort(0) };
        hypercall::evtchn_bind_interdomain(&mut op)?;
        Ok(Self::owned(op.local_port))
    }

    /// Binds a virtual interrupt (`VIRQ_*`) of vCPU 0.
    ///
    /// # Errors
    /// EEXIST where it is bound already.
    pub fn bind_virq(virq: u32) -> Result<Self> {
        let mut op = evtchn::BindVirq { virq, vcpu: 0, port: EvtchnPort(0) };
        hypercall::evtchn_bind_virq(&mut op)?;
        Ok(Self::owned(op.port))
    }

    /// Binds a physical interrupt of an assigned device.
    ///
    /// # Errors
    /// EPERM where the interrupt is not ours.
    pub fn bind_pirq(pirq: u32) -> Result<Self> {
        let mut op = evtchn::BindPirq { pirq, flags: 0, port: EvtchnPort(0) };
        hypercall::evtchn_bind_pirq(&mut op)?;
        Ok(Self::owned(op.port))
    }

    /// The port's number, as peers and xenstore name it.
    #[must_use]
    pub const fn port(&self) -> EvtchnPort {
        self.port
    }
    /// Notifies the peer.
    ///
    /// # Errors
    /// EINVAL where the port is not bound (any more).
    pub fn notify(&self) -> Result<()> {
        crash::point();
        hypercall::evtchn_send(self.port).map(|_| ())
    }
    /// Whether it is pending; see [`is_pending`].
    #[must_use]
    pub fn is_pending(&self) -> bool {
        is_pending(self.port)
    }
    /// Clears the pending bit; see [`take_pending`].
    pub fn take_pending(&self) -> bool {
        take_pending(self.port)
    }
    /// No upcalls for this port (the state every port starts in).
    pub fn mask(&self) {
        let (word, mask) = bit(layout::EVTCHN_MASK, self.port);
        if let Some(page) = shared_info::page() {
            page.fetch_or64(word, mask);
        }
    }
    /// Upcalls for this port, at once where it is pending.
    ///
    /// # Errors
    /// EINVAL where the port is not open.
    pub fn unmask(&self) -> Result<()> {
        hypercall::evtchn_unmask(self.port).map(|_| ())
    }
    /// What the hypervisor says about the port.
    ///
    /// # Errors
    /// EINVAL for a port out of range.
    pub fn status(&self) -> Result<evtchn::Status> {
        let mut op = evtchn::Status { dom: DomId::SELF, port: self.port, ..Default::default() };
        hypercall::evtchn_status(&mut op)?;
        Ok(op)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.close {
            let _ = hypercall::evtchn_close(self.port);
            take_pending(self.port);
        }
    }
}

/// What runs for each pending, unmasked port at an upcall. It interrupts the program anywhere: it may touch atomics and
/// notify, but neither allocate nor log.
pub type UpcallHandler = fn(EvtchnPort);

#[cfg(target_os = "none")]
mod upcall {
    use super::{UpcallHandler, layout};
    use crate::{hypercall, shared_info};
    use abi::{DomId, EvtchnPort, hvm, shared::vcpu_info};

    static HANDLER: spin::Once<UpcallHandler> = spin::Once::new();

    /// Registers `handler` and the vector events arrive at, and enables interrupts. Once per domain; a second call is ignored.
    ///
    /// # Errors
    /// The hypervisor's, where it refuses the vector.
    pub fn on_upcall(handler: UpcallHandler) -> hypercall::Result<()> {
        HANDLER.call_once(|| handler);
        hypercall::hvm_set_param(&mut hvm::HvmParam {
            domid: DomId::SELF,
            pad: 0,
            index: hvm::PARAM_CALLBACK_IRQ,
            value: hvm::CALLBACK_TYPE_VECTOR << 56 | u64::from(crate::boot::UPCALL_VECTOR),
        })?;
        x86_64::instructions::interrupts::enable();
        Ok(())
    }

    /// Sleeps until an unmasked event is pending; its upcall has run when this returns.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn block() -> hypercall::Result<()> {
        hypercall::block().map(|_| ())
    }

    /// Serves everything pending: flag, then selector, then bits, each taken before it is looked at, so nothing is lost
    /// (`public/event_channel.h`; the order in which the hypervisor sets them, backwards).
    pub(crate) fn serve() {
        let (Some(page), Some(handler)) = (shared_info::page(), HANDLER.get()) else { return };
        while page.swap8(vcpu_info::EVTCHN_UPCALL_PENDING, 0) != 0 {
            let mut words = page.swap64(vcpu_info::EVTCHN_PENDING_SEL, 0);
            while words != 0 {
                let index = words.trailing_zeros();
                words &= words.wrapping_sub(1);
                let at = (index as usize).wrapping_mul(8);
                let masked = page.pair(layout::EVTCHN_MASK.wrapping_add(at));
                let pending = layout::EVTCHN_PENDING.wrapping_add(at);
                let mut bits = page.pair(pending) & !masked;
                page.fetch_clear64(pending, bits);
                while bits != 0 {
                    handler(EvtchnPort(index.wrapping_mul(64).wrapping_add(bits.trailing_zeros())));
                    bits &= bits.wrapping_sub(1);
                }
            }
        }
    }
}
#[cfg(target_os = "none")]
pub(crate) use upcall::serve;
#[cfg(target_os = "none")]
pub use upcall::{block, on_upcall};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_header_puts_them() {
        assert_eq!(bit(layout::EVTCHN_PENDING, EvtchnPort(0)), (2048, 1));
        assert_eq!(bit(layout::EVTCHN_PENDING, EvtchnPort(65)), (2056, 2));
        assert_eq!(bit(layout::EVTCHN_MASK, EvtchnPort(4095)), (2560 + 63 * 8, 1 << 63));
    }
}
