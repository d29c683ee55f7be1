//! A virtual CPU: its registers while it is off a CPU, where it may run, what it waits for, how it is told of events.
//!
//! [`Vcpu::state`] and the shared pages are the two halves of a Dekker handshake, so that no wake-up is lost without a lock: who
//! posts an event sets the pending bits, then tries `Blocked → Queued`; who blocks stores `Blocked`, then looks at the bits.

use crate::context::Context;
use crate::domain::Domain;
use crate::shared_frame::SharedFrame;
use crate::time::{self, Scale};
use crate::{events, lapic, smp};
use abi::sched::POLL_MAX_PORTS;
use abi::shared::{VcpuTimeInfo, shared_info, time_info, vcpu_info};
use abi::vcpu::RunstateInfo;
use abi::{EvtchnPort, PAGE_SIZE, VcpuId, bundle};
use alloc::sync::Weak;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use hv_core::Mfn;
use hv_core::lapic::Lapic;
use hv_core::sched::{Class, RunTimes, VcpuKey};
use hv_core::watchdog::FineWatchdog;
use spin::Mutex;
use zerocopy::IntoBytes;

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
#[expect(clippy::large_enum_variant, reason = "there is one per vCPU, and a poll must not allocate")]
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
    /// CPUs it may run on, bit per CPU ([`smp::for_guests`]).
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
    /// Held by who delivers an event there, and by who lets go of that place.
    pub info_use: Mutex<()>,
    /// It yielded.
    pub yields: AtomicBool,
    /// `xenolith::WATCHDOG_MS`.
    pub watchdog: Mutex<FineWatchdog>,
    /// Its RIP at the last exit, for whoever stops it.
    pub last_rip: AtomicU64,
    /// Its name in the queues.
    pub key: VcpuKey,
    /// Its class in the queues.
    pub class: Class,
    /// How long it ran and waited.
    pub times: Mutex<RunTimes>,
    /// Guest-physical address of the area that is told of them, and of its part on the next page (0 = none).
    pub runstate_area: Mutex<Option<[u64; 2]>>,
    /// The local APIC of a PVH guest.
    pub lapic: Option<Mutex<Lapic>>,
    /// Its registers; locked by the CPU that runs it.
    pub context: Mutex<Context>,
}

/// A vCPU's `vcpu_info`, wherever it is registered.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo {
    frame: SharedFrame,
    offset: usize,
}

impl VcpuInfo {
    /// All of it, as it is now.
    pub fn bytes(&self) -> [u8; vcpu_info::SIZE] {
        let mut bytes = [0; vcpu_info::SIZE];
        let inside = self.frame.read(self.offset, &mut bytes);
        debug_assert!(inside, "no vcpu_info crosses a page");
        bytes
    }
    /// The flag byte at `field` ([`vcpu_info`]).
    pub fn byte(&self, field: usize) -> Option<&AtomicU8> {
        self.frame.u8_at(self.offset + field)
    }
    /// `evtchn_pending_sel`.
    pub fn pending_sel(&self) -> Option<&AtomicU64> {
        self.frame.u64_at(self.offset + vcpu_info::EVTCHN_PENDING_SEL)
    }
}

impl Vcpu {
    /// A vCPU that is down, on CPU `cpu`.
    pub fn new(id: u32, domain: Weak<Domain>, record: &bundle::Domain, cpu: u32, context: Context) -> Self {
        let driver = record.flags & bundle::flags::DRIVER != 0;
        Self {
            id: VcpuId(id),
            domain,
            cpu_mask: smp::for_guests(record.cpu_mask),
            cpu: AtomicU32::new(cpu),
            state: AtomicU8::new(state::DOWN),
            in_guest: AtomicBool::new(false),
            flush_tlb: AtomicBool::new(false),
            wait: Mutex::new(Wait::No),
            info_addr: AtomicU64::new(0),
            info_use: Mutex::new(()),
            yields: AtomicBool::new(false),
            watchdog: Mutex::new(FineWatchdog::default()),
            last_rip: AtomicU64::new(0),
            key: VcpuKey { dom: record.domid, vcpu: VcpuId(id) },
            class: if driver { Class::Driver } else { Class::Other },
            times: Mutex::new(RunTimes::new(time::now_ns())),
            runstate_area: Mutex::new(None),
            lapic: (record.flags & bundle::flags::PVH != 0).then(|| Mutex::new(Lapic::new(lapic::id(id)))),
            context: Mutex::new(context),
        }
    }
    /// It is in another run state (`abi::vcpu::runstate`) now.
    pub fn account(&self, state: u32) {
        self.times.lock().enter(state, time::now_ns());
    }
    /// Brings the guest's copy of its run times up to date, if it wants one. Where the page is gone, so is the copy.
    pub fn tell_times(&self, domain: &Domain) {
        let Some([first, second]) = *self.runstate_area.lock() else { return };
        let info = self.times.lock().info();
        let here = (PAGE_SIZE - first as usize % PAGE_SIZE).min(size_of::<RunstateInfo>());
        let (head, tail) = info.as_bytes().split_at(here);
        let _ = domain.write_phys(first, head).and_then(|()| domain.write_phys(second, tail));
    }
    /// Forgets what its former instance registered.
    pub fn reset(&self) {
        *self.wait.lock() = Wait::No;
        *self.runstate_area.lock() = None;
        *self.watchdog.lock() = FineWatchdog::default();
        if let Some(lapic) = &self.lapic {
            *lapic.lock() = Lapic::new(lapic::id(self.id.0));
        }
        self.info_addr.store(0, SeqCst);
        self.flush_tlb.store(true, SeqCst);
    }
    /// Writes the PV clock into its `vcpu_info`. All CPUs share one invariant TSC, so the same values hold for ever; they are
    /// written when the structure is new or has moved, and to raise `flags` of [`time_info`], which the guest takes down.
    pub fn write_clock(&self, domain: &Domain, flags: u8) {
        let Some(info) = self.info(domain) else { return };
        let Some(version) = info.frame.u32_at(info.offset + vcpu_info::TIME + time_info::VERSION) else { return };
        let even = version.load(SeqCst) & !1;
        version.store(even.wrapping_add(1), SeqCst);
        let Scale { base: tsc_timestamp, mul: tsc_to_system_mul, shift: tsc_shift, .. } = time::scale();
        let flags = time_info::TSC_STABLE | flags;
        let clock = VcpuTimeInfo { tsc_timestamp, tsc_to_system_mul, tsc_shift, flags, ..VcpuTimeInfo::default() };
        // All but the version and the word beside it.
        let (_, fields) = clock.as_bytes().split_at(time_info::TSC_TIMESTAMP);
        let inside = info.frame.write(info.offset + vcpu_info::TIME + time_info::TSC_TIMESTAMP, fields);
        debug_assert!(inside, "no vcpu_info crosses a page");
        version.store(even.wrapping_add(2), SeqCst);
    }
    /// Where its `vcpu_info` is. vCPUs without a slot in `shared_info` have none before they register one.
    pub fn info(&self, domain: &Domain) -> Option<VcpuInfo> {
        let addr = self.info_addr.load(SeqCst);
        if addr != 0 {
            // SAFETY: `info_addr` is only set to a frame of the domain, pinned by whoever registered it until no vCPU of the domain runs and
            // `info_use` is free.
            let frame = unsafe { SharedFrame::from_mfn(Mfn::containing(addr)) };
            return Some(VcpuInfo { frame, offset: addr as usize % abi::PAGE_SIZE });
        }
        if self.id.0 >= shared_info::LEGACY_MAX_VCPUS {
            return None;
        }
        let offset = shared_info::VCPU_INFO + self.id.0 as usize * vcpu_info::SIZE;
        Some(VcpuInfo { frame: domain.shared_info, offset })
    }
    /// Whether what it waits for is there.
    pub fn wait_over(&self, domain: &Domain) -> bool {
        match &*self.wait.lock() {
            Wait::No => true,
            Wait::Upcall => self.upcall_due(domain) || self.lapic_pending().is_some(),
            Wait::Poll { ports, deadline_ns } => {
                self.upcall_due(domain)
                    || self.lapic_pending().is_some()
                    || (*deadline_ns != 0 && time::now_ns() >= *deadline_ns)
                    || ports.iter().any(|&port| events::pending(domain, port))
            }
        }
    }
    /// The interrupt its local APIC has for it.
    pub fn lapic_pending(&self) -> Option<u8> {
        self.lapic.as_ref()?.lock().pending()
    }
    /// Whether an upcall is due: pending and not masked.
    pub fn upcall_due(&self, domain: &Domain) -> bool {
        let Some(info) = self.info(domain) else { return false };
        let set = |field| info.byte(field).is_some_and(|b| b.load(SeqCst) != 0);
        set(vcpu_info::EVTCHN_UPCALL_PENDING) && !set(vcpu_info::EVTCHN_UPCALL_MASK)
    }
}
