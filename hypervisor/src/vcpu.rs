//! A virtual CPU: its registers while it is off a CPU, where it may run, what it waits for, how it is told of events.
//!
//! [`Vcpu::state`] and the shared pages are the two halves of a Dekker handshake, so that no wake-up is lost without a lock: who
//! posts an event sets the pending bits, then tries `Blocked → Queued`; who blocks stores `Blocked`, then looks at the bits.

use crate::domain::Domain;
use crate::shared_frame::SharedFrame;
use abi::sched::POLL_MAX_PORTS;
use abi::shared::{shared_info, vcpu_info};
use abi::{EvtchnPort, VcpuId};
use alloc::sync::Weak;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use hv_core::Mfn;
use spin::Mutex;

/// [`Vcpu::state`].
pub mod state {
    /// Not started, or taken down.
    pub const DOWN: u8 = 0;
    /// Waits for an event, or is parked while its domain is paused; in no queue.
    pub const BLOCKED: u8 = 1;
    /// In a run queue.
    pub const QUEUED: u8 = 2;
    /// On a CPU: in the guest or in a handler of one of its exits.
    pub const RUNNING: u8 = 3;
}

/// What a vCPU that does not run waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    #[default]
    No,
    /// `SCHEDOP_block` or HLT: an upcall.
    Upcall,
    /// `SCHEDOP_poll`: one of the ports pending, or system time `deadline_ns` (0 = none).
    Poll {
        /// Ports.
        ports: heapless::Vec<EvtchnPort, { POLL_MAX_PORTS as usize }>,
        /// System time.
        deadline_ns: u64,
    },
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    /// Number in its domain.
    pub id: VcpuId,
    /// Whose it is.
    pub domain: Weak<Domain>,
    /// CPUs it may run on, bit per CPU.
    pub cpu_mask: u32,
    /// The CPU it runs on, or ran on last.
    pub cpu: AtomicU32,
    /// [`state`].
    pub state: AtomicU8,
    /// Between VMRUN and #VMEXIT.
    pub in_guest: AtomicBool,
    /// The next entry must flush its TLB entries.
    pub flush_tlb: AtomicBool,
    /// What it waits for; changed only by itself, and by a restart.
    pub wait: Mutex<Wait>,
    /// Where its `vcpu_info` is: machine address, 0 = the slot in `shared_info`.
    pub info_addr: AtomicU64,
    /// Vector of `HVMOP_set_evtchn_upcall_vector`; 0 = the domain's callback.
    pub upcall_vector: AtomicU8,
    /// Deadline of the single-shot timer, system time in ns; 0 = off.
    pub timer_ns: AtomicU64,
}

/// A vCPU's `vcpu_info`, wherever it is registered.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo {
    frame: SharedFrame,
    offset: usize,
}

impl VcpuInfo {
    /// The flag byte at `field` ([`vcpu_info`]).
    #[must_use]
    pub fn byte(&self, field: usize) -> Option<&AtomicU8> {
        self.frame.u8_at(self.offset + field)
    }
    /// `evtchn_pending_sel`.
    #[must_use]
    pub fn pending_sel(&self) -> Option<&AtomicU64> {
        self.frame.u64_at(self.offset + vcpu_info::EVTCHN_PENDING_SEL)
    }
    /// The 32-bit word at `field`.
    #[must_use]
    pub fn word(&self, field: usize) -> Option<&AtomicU32> {
        self.frame.u32_at(self.offset + field)
    }
    /// The 64-bit word at `field`.
    #[must_use]
    pub fn quad(&self, field: usize) -> Option<&AtomicU64> {
        self.frame.u64_at(self.offset + field)
    }
}

impl Vcpu {
    /// Where its `vcpu_info` is. vCPUs without a slot in `shared_info` have none before they register one.
    #[must_use]
    pub fn info(&self, domain: &Domain) -> Option<VcpuInfo> {
        let addr = self.info_addr.load(SeqCst);
        if addr != 0 {
            // SAFETY: `info_addr` is only set to a frame of the domain, pinned by whoever registered it.
            let frame = unsafe { SharedFrame::from_mfn(Mfn::containing(addr)) };
            return Some(VcpuInfo { frame, offset: addr as usize % abi::PAGE_SIZE });
        }
        if self.id.0 >= shared_info::LEGACY_MAX_VCPUS {
            return None;
        }
        let offset = shared_info::VCPU_INFO + self.id.0 as usize * vcpu_info::SIZE;
        Some(VcpuInfo { frame: domain.shared_info, offset })
    }
    /// Whether an upcall is due: pending and not masked.
    #[must_use]
    pub fn upcall_due(&self, domain: &Domain) -> bool {
        let Some(info) = self.info(domain) else { return false };
        let set = |field| info.byte(field).is_some_and(|b| b.load(SeqCst) != 0);
        set(vcpu_info::EVTCHN_UPCALL_PENDING) && !set(vcpu_info::EVTCHN_UPCALL_MASK)
    }
}
