//! Hypercalls: who calls, and the way to the handler.

use crate::domain::Domain;
use crate::guest_mem::GuestMem;
use crate::vcpu::Vcpu;
use abi::Errno;
use alloc::sync::Arc;

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

/// Does what `call` asks for and gives the value for RAX.
pub fn dispatch(caller: &Caller<'_>, call: Call) -> i64 {
    log::warn!("{} called {} at {:#x}, which is not implemented", caller.domain.name, call.number, caller.rip);
    Errno::ENOSYS.to_return()
}
