//! Event channels of all domains, 2-level ABI.
//!
//! One table, because half of the operations concern two domains. An operation changes the table and returns whom to notify
//! ([`Notify`]); setting bits in shared pages and waking vCPUs is the caller's. Semantics are Xen's (`common/event_channel.c`
//! behaviour as documented in `public/event_channel.h`), above all: closing one end of an interdomain channel returns the
//! peer's port to unbound, reserved for the same domain. A restart in place stands on that.

use crate::{DomId, EvtchnPort};
use abi::evtchn::{NR_CHANNELS_2L, NR_VIRQS, VIRQ_DEBUG, status};
use abi::{Errno, evtchn::Status};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// What a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Nothing.
    #[default]
    Closed,
    /// May be bound by this domain.
    Unbound(DomId),
    /// One end of a channel: the other end's domain and port.
    Interdomain(DomId, EvtchnPort),
    /// A virtual interrupt.
    Virq(u32),
    /// A physical interrupt.
    Pirq(u32),
    /// Between vCPUs of the domain.
    Ipi,
}

#[derive(Clone, Copy, Debug, Default)]
struct Port {
    channel: Channel,
    vcpu: u32,
}

/// An event to deliver: set `port` pending in `dom`, tell `vcpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Notify {
    /// Whose port.
    pub dom: DomId,
    /// Which.
    pub port: EvtchnPort,
    /// vCPU that is told.
    pub vcpu: u32,
}

/// Why an operation was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvtchnError {
    /// The domain does not exist.
    NoDomain(DomId),
    /// Not a port of the domain, or not in a state the operation is for.
    BadPort(EvtchnPort),
    /// The remote port is not unbound for the caller.
    BadRemote(DomId, EvtchnPort),
    /// No such vCPU.
    BadVcpu(u32),
    /// No such VIRQ, or a global one on another vCPU than 0.
    BadVirq(u32),
    /// VIRQ or PIRQ bound already.
    Bound(u32),
    /// The domain's limit is reached.
    NoPort,
}

impl From<EvtchnError> for Errno {
    fn from(e: EvtchnError) -> Self {
        match e {
            EvtchnError::NoDomain(_) => Self::ESRCH,
            EvtchnError::BadPort(_) | EvtchnError::BadRemote(..) | EvtchnError::BadVirq(_) => Self::EINVAL,
            EvtchnError::BadVcpu(_) => Self::ENOENT,
            EvtchnError::Bound(_) => Self::EEXIST,
            EvtchnError::NoPort => Self::ENOSPC,
        }
    }
}

/// A VIRQ of which each domain has one, not one per vCPU.
pub const fn virq_is_global(virq: u32) -> bool {
    virq > VIRQ_DEBUG
}

#[derive(Debug)]
struct Ports {
    /// By port number; port 0 stays closed.
    ports: Vec<Port>,
    vcpus: u32,
    /// Ports are numbered below this.
    limit: u32,
    /// VIRQ and vCPU to port.
    virqs: BTreeMap<(u32, u32), EvtchnPort>,
    pirqs: BTreeMap<u32, EvtchnPort>,
}

impl Ports {
    fn get(&self, port: EvtchnPort) -> Result<&Port, EvtchnError> {
        let found = self.ports.get(port.0 as usize).filter(|p| p.channel != Channel::Closed);
        found.ok_or(EvtchnError::BadPort(port))
    }

    fn get_mut(&mut self, port: EvtchnPort) -> Option<&mut Port> {
        self.ports.get_mut(port.0 as usize)
    }

    fn vcpu(&self, vcpu: u32) -> Result<u32, EvtchnError> {
        if vcpu < self.vcpus { Ok(vcpu) } else { Err(EvtchnError::BadVcpu(vcpu)) }
    }

    /// The lowest closed port becomes `channel`.
    fn open(&mut self, channel: Channel, vcpu: u32) -> Result<EvtchnPort, EvtchnError> {
        let new = Port { channel, vcpu };
        let free = self.ports.iter_mut().enumerate().skip(1).find(|(_, p)| p.channel == Channel::Closed);
        if let Some((number, port)) = free {
            *port = new;
            return Ok(EvtchnPort(number as u32));
        }
        let number = self.ports.len() as u32;
        if number >= self.limit {
            return Err(EvtchnError::NoPort);
        }
        self.ports.push(new);
        Ok(EvtchnPort(number))
    }
}

/// The ports of all domains.
#[derive(Debug, Default)]
pub struct EvtchnTable {
    domains: BTreeMap<DomId, Ports>,
}

impl EvtchnTable {
    /// No domains.
    pub const fn new() -> Self {
        Self { domains: BTreeMap::new() }
    }

    /// A domain comes to be, with no ports. It may have `max_ports` of them.
    pub fn add_domain(&mut self, dom: DomId, vcpus: u32, max_ports: u32) {
        let limit = max_ports.saturating_add(1).min(NR_CHANNELS_2L);
        let ports = alloc::vec![Port::default()];
        let new = Ports { ports, vcpus, limit, virqs: BTreeMap::new(), pirqs: BTreeMap::new() };
        self.domains.insert(dom, new);
    }

    fn of(&self, dom: DomId) -> Result<&Ports, EvtchnError> {
        self.domains.get(&dom).ok_or(EvtchnError::NoDomain(dom))
    }

    fn of_mut(&mut self, dom: DomId) -> Result<&mut Ports, EvtchnError> {
        self.domains.get_mut(&dom).ok_or(EvtchnError::NoDomain(dom))
    }

    /// A port of `dom` that `remote` may bind. `remote` need not exist yet.
    ///
    /// # Errors
    /// [`EvtchnError::NoDomain`], [`EvtchnError::NoPort`].
    pub fn alloc_unbound(&mut self, dom: DomId, remote: DomId) -> Result<EvtchnPort, EvtchnError> {
        self.of_mut(dom)?.open(Channel::Unbound(remote), 0)
    }

    /// Binds a new port of `dom` to an unbound one of `remote`. The new port starts pending, as whatever the remote sent
    /// before was lost.
    ///
    /// # Errors
    /// [`EvtchnError::NoDomain`], [`EvtchnError::BadRemote`], [`EvtchnError::NoPort`].
    pub fn bind_interdomain(
        &mut self,
        dom: DomId,
        remote: DomId,
        remote_port: EvtchnPort,
    ) -> Result<(EvtchnPort, Notify), EvtchnError> {
        if self.of(remote)?.get(remote_port).map(|p| p.channel) != Ok(Channel::Unbound(dom)) {
            return Err(EvtchnError::BadRemote(remote, remote_port));
        }
        let port = self.of_mut(dom)?.open(Channel::Interdomain(remote, remote_port), 0)?;
        if let Some(peer) = self.of_mut(remote)?.get_mut(remote_port) {
            peer.channel = Channel::Interdomain(dom, port);
        }
        Ok((port, Notify { dom, port, vcpu: 0 }))
    }

    /// Binds a virtual interrupt.
    ///
    /// # Errors
    /// [`EvtchnError::BadVirq`], [`EvtchnError::BadVcpu`], [`EvtchnError::Bound`], [`EvtchnError::NoPort`].
    pub fn bind_virq(&mut self, dom: DomId, virq: u32, vcpu: u32) -> Result<EvtchnPort, EvtchnError> {
        if virq >= NR_VIRQS || (virq_is_global(virq) && vcpu != 0) {
            return Err(EvtchnError::BadVirq(virq));
        }
        let d = self.of_mut(dom)?;
        d.vcpu(vcpu)?;
        if d.virqs.contains_key(&(virq, vcpu)) {
            return Err(EvtchnError::Bound(virq));
        }
        let port = d.open(Channel::Virq(virq), vcpu)?;
        d.virqs.insert((virq, vcpu), port);
        Ok(port)
    }

    /// Binds a physical interrupt; that it is the domain's is the caller's to check.
    ///
    /// # Errors
    /// [`EvtchnError::Bound`], [`EvtchnError::NoPort`].
    pub fn bind_pirq(&mut self, dom: DomId, pirq: u32) -> Result<EvtchnPort, EvtchnError> {
        let d = self.of_mut(dom)?;
        if d.pirqs.contains_key(&pirq) {
            return Err(EvtchnError::Bound(pirq));
        }
        let port = d.open(Channel::Pirq(pirq), 0)?;
        d.pirqs.insert(pirq, port);
        Ok(port)
    }

    /// A port that notifies `vcpu` of the same domain.
    ///
    /// # Errors
    /// [`EvtchnError::BadVcpu`], [`EvtchnError::NoPort`].
    pub fn bind_ipi(&mut self, dom: DomId, vcpu: u32) -> Result<EvtchnPort, EvtchnError> {
        let d = self.of_mut(dom)?;
        d.vcpu(vcpu)?;
        d.open(Channel::Ipi, vcpu)
    }

    /// Closes a port and says what it was. The caller clears its pending bit.
    ///
    /// # Errors
    /// [`EvtchnError::BadPort`].
    pub fn close(&mut self, dom: DomId, port: EvtchnPort) -> Result<Channel, EvtchnError> {
        let d = self.of_mut(dom)?;
        let Port { channel, vcpu } = *d.get(port)?;
        if let Some(p) = d.get_mut(port) {
            *p = Port::default();
        }
        match channel {
            Channel::Virq(virq) => {
                d.virqs.remove(&(virq, if virq_is_global(virq) { 0 } else { vcpu }));
            }
            Channel::Pirq(pirq) => {
                d.pirqs.remove(&pirq);
            }
            Channel::Interdomain(remote, peer) => {
                if let Some(p) = self.domains.get_mut(&remote).and_then(|d| d.get_mut(peer)) {
                    p.channel = Channel::Unbound(dom);
                }
            }
            Channel::Unbound(_) | Channel::Ipi | Channel::Closed => {}
        }
        Ok(channel)
    }

    /// Closes all ports of a domain: for its restart in place and its end.
    pub fn close_all(&mut self, dom: DomId) {
        let count = self.of(dom).map_or(0, |d| d.ports.len() as u32);
        for port in 1..count {
            let _closed_or_never_open = self.close(dom, EvtchnPort(port));
        }
    }

    /// `EVTCHNOP_send`: whom to notify; an unbound port's event is dropped.
    ///
    /// # Errors
    /// [`EvtchnError::BadPort`] where the port is none to send on.
    pub fn send(&self, dom: DomId, port: EvtchnPort) -> Result<Option<Notify>, EvtchnError> {
        let p = self.of(dom)?.get(port)?;
        match p.channel {
            Channel::Interdomain(remote, peer) => {
                let vcpu = self.of(remote).and_then(|d| d.get(peer)).map(|p| p.vcpu);
                Ok(vcpu.ok().map(|vcpu| Notify { dom: remote, port: peer, vcpu }))
            }
            Channel::Ipi => Ok(Some(Notify { dom, port, vcpu: p.vcpu })),
            Channel::Unbound(_) => Ok(None),
            _ => Err(EvtchnError::BadPort(port)),
        }
    }

    /// Whom a virtual interrupt of `vcpu` notifies.
    pub fn virq(&self, dom: DomId, virq: u32, vcpu: u32) -> Option<Notify> {
        let d = self.of(dom).ok()?;
        let port = *d.virqs.get(&(virq, if virq_is_global(virq) { 0 } else { vcpu }))?;
        Some(Notify { dom, port, vcpu: d.get(port).ok()?.vcpu })
    }

    /// Whom a physical interrupt notifies.
    pub fn pirq(&self, dom: DomId, pirq: u32) -> Option<Notify> {
        let d = self.of(dom).ok()?;
        let port = *d.pirqs.get(&pirq)?;
        Some(Notify { dom, port, vcpu: d.get(port).ok()?.vcpu })
    }

    /// The notification that a port, pending already, owes (`EVTCHNOP_unmask`).
    ///
    /// # Errors
    /// [`EvtchnError::BadPort`].
    pub fn owed(&self, dom: DomId, port: EvtchnPort) -> Result<Notify, EvtchnError> {
        Ok(Notify { dom, port, vcpu: self.of(dom)?.get(port)?.vcpu })
    }

    /// `EVTCHNOP_bind_vcpu`: the vCPU that a port's events go to.
    ///
    /// # Errors
    /// [`EvtchnError::BadVcpu`]; [`EvtchnError::BadPort`], also for IPIs and per-vCPU VIRQs, which cannot move.
    pub fn bind_vcpu(&mut self, dom: DomId, port: EvtchnPort, vcpu: u32) -> Result<(), EvtchnError> {
        let d = self.of_mut(dom)?;
        d.vcpu(vcpu)?;
        let movable = match d.get(port)?.channel {
            Channel::Unbound(_) | Channel::Interdomain(..) | Channel::Pirq(_) => true,
            Channel::Virq(virq) => virq_is_global(virq),
            Channel::Ipi | Channel::Closed => false,
        };
        let p = d.get_mut(port).filter(|_| movable).ok_or(EvtchnError::BadPort(port))?;
        p.vcpu = vcpu;
        Ok(())
    }

    /// `EVTCHNOP_status`. A closed port has a status, a number beyond the limit has none.
    ///
    /// # Errors
    /// [`EvtchnError::NoDomain`], [`EvtchnError::BadPort`].
    pub fn status(&self, dom: DomId, port: EvtchnPort) -> Result<Status, EvtchnError> {
        let d = self.of(dom)?;
        if port.0 >= d.limit {
            return Err(EvtchnError::BadPort(port));
        }
        let Port { channel, vcpu } = d.ports.get(port.0 as usize).copied().unwrap_or_default();
        let (status, u0, u1) = match channel {
            Channel::Closed => (status::CLOSED, 0, 0),
            Channel::Unbound(remote) => (status::UNBOUND, u32::from(remote.0), 0),
            Channel::Interdomain(remote, port) => (status::INTERDOMAIN, u32::from(remote.0), port.0),
            Channel::Virq(virq) => (status::VIRQ, virq, 0),
            Channel::Pirq(pirq) => (status::PIRQ, pirq, 0),
            Channel::Ipi => (status::IPI, 0, 0),
        };
        Ok(Status { dom, pad: 0, port, status, vcpu, u0, u1 })
    }
}

#[cfg(test)]
mod tests;
