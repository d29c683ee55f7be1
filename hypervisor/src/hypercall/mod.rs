//! Hypercalls: who calls, and the way to the handler.
//!
//! `hv_core::args` decodes, one file here per call does it in the caller's name. What is refused has changed nothing. The
//! first refusal of each call as unknown or not permitted is logged, the rest is only answered, so that a domain cannot
//! fill the log with them.

mod console_io;
mod event_channel;
mod grant_copy;
mod grant_table;
mod hvm;
mod memory;
mod multicall;
mod physdev;
mod sched;
mod vcpu;
mod version;
mod xenolith;

pub use vcpu::forget_registrations;

use crate::domain::{self, Domain};
use crate::guest_mem::GuestMem;
use crate::vcpu::Vcpu;
use abi::{DomId, Errno, hypercall};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use hv_core::args::GuestBytes;

/// Who makes a hypercall. Everything a handler may do, it does in this name.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The domain.
    pub domain: &'a Arc<Domain>,
    /// The vCPU, which runs on this physical CPU.
    pub vcpu: &'a Arc<Vcpu>,
    /// Its memory by its linear addresses.
    pub mem: GuestMem<'a>,
    /// Where it called from.
    pub rip: u64,
}

/// A hypercall as the registers have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// RAX: `abi::hypercall`.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8.
    pub args: [u64; 5],
}

impl GuestBytes for GuestMem<'_> {
    fn copy_in(&self, addr: u64, to: &mut [u8]) -> Result<(), Errno> {
        self.read_bytes(addr, to)
    }
}

impl Caller<'_> {
    /// The domain that an argument means, with `DOMID_SELF` resolved.
    fn resolve(&self, dom: DomId) -> DomId {
        if dom == DomId::SELF { self.domain.id } else { dom }
    }

    /// An argument that may only mean the caller.
    ///
    /// # Errors
    /// `ESRCH` where there is no such domain, `EPERM` where it is another.
    fn only_self(&self, dom: DomId) -> Result<(), Errno> {
        match domain::find(self.resolve(dom)) {
            Some(d) if d.id == self.domain.id => Ok(()),
            Some(_) => Err(Errno::EPERM),
            None => Err(Errno::ESRCH),
        }
    }

    /// An argument that means the caller, or any domain if the caller is a control domain.
    ///
    /// # Errors
    /// As [`Self::only_self`].
    fn self_or_control(&self, dom: DomId) -> Result<Arc<Domain>, Errno> {
        let found = domain::find(self.resolve(dom)).ok_or(Errno::ESRCH)?;
        if found.id == self.domain.id || self.domain.is_control() { Ok(found) } else { Err(Errno::EPERM) }
    }
}

/// Does what `call` asks for and gives the value for RAX.
pub fn dispatch(caller: &Caller<'_>, call: Call) -> i64 {
    let [cmd, arg, ..] = call.args;
    let result = match call.number {
        hypercall::MEMORY_OP => memory::call(caller, cmd, arg),
        hypercall::MULTICALL => multicall::call(caller, cmd, arg),
        hypercall::XEN_VERSION => version::call(caller, cmd, arg),
        hypercall::CONSOLE_IO => console_io::call(caller, call.args),
        hypercall::GRANT_TABLE_OP => grant_table::call(caller, call.args),
        hypercall::VCPU_OP => vcpu::call(caller, call.args),
        hypercall::SCHED_OP => sched::call(caller, cmd, arg),
        hypercall::EVENT_CHANNEL_OP => event_channel::call(caller, cmd, arg),
        hypercall::PHYSDEV_OP => physdev::call(caller, cmd, arg),
        hypercall::HVM_OP => hvm::call(caller, cmd, arg),
        hypercall::XENOLITH_OP => xenolith::call(caller, cmd, arg),
        _ => Err(Errno::ENOSYS),
    };
    caller.domain.counters.hypercalls.fetch_add(1, Relaxed);
    match result {
        Ok(value) => value,
        Err(e) => {
            let bit = 1 << call.number.min(63);
            if matches!(e, Errno::ENOSYS | Errno::EPERM) && caller.domain.refused.fetch_or(bit, Relaxed) & bit == 0 {
                let name = &caller.domain.name;
                log::warn!("{name}: hypercall {} command {cmd:#x} at {:#x} refused: {e}", call.number, caller.rip);
            }
            e.to_return()
        }
    }
}
