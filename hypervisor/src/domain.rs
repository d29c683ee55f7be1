//! A domain: its memory, vCPUs, special pages, counters and state. Made from the bundle at boot; a restart in place refills it.
//!
//! Locks, in the order they are taken: the list, then one domain's `p2m`, `hvm_params`, `grant_frames`, then the IOMMU's, then the
//! tables of `hv_core`, then `console`. What has no lock never changes after the domain was made, or is one atomic word.

use crate::console::Log;
use crate::mem::Tables;
use crate::shared_frame::SharedFrame;
use crate::vcpu::Vcpu;
use abi::{DomId, bundle, hvm};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use hv_core::watchdog::Watchdogs;
use hv_core::{Gfn, Mfn};
use hv_npt::{NestedTree, Rights};
use spin::{Mutex, RwLock};

/// The guest-physical address space of one domain: its nested page table, which is also the only record of what is where.
/// RAM is what the frame table says the domain owns; another owner makes it a grant or a page of the hypervisor
/// (`shared_info`, grant table); uncached means registers of an assigned device. Where a change says `replaced`, its maker drops
/// the lock, calls `run::flush_tlb` and only then `reclaim`s and lets go of the frames.
pub type P2m = NestedTree<Tables>;

/// The frame at `gfn`, to be read while the caller holds the p2m's lock.
pub fn readable(p2m: &P2m, gfn: Gfn) -> Option<SharedFrame> {
    let leaf = p2m.translate(gfn)?;
    if leaf.rights.contains(Rights::UNCACHED) {
        return None;
    }
    // SAFETY: everything in a p2m but registers is a domain's RAM or a shared page, kept there by the p2m's lock.
    Some(unsafe { SharedFrame::from_mfn(leaf.mfn) })
}
/// The frame at `gfn`, to be written while the caller holds the p2m's lock.
pub fn writable(p2m: &P2m, gfn: Gfn) -> Option<SharedFrame> {
    if p2m.translate(gfn)?.rights.contains(Rights::WRITE) { readable(p2m, gfn) } else { None }
}

/// Counters of `xenolith::DomInfo`.
#[derive(Debug, Default)]
pub struct Counters {
    /// World switches into it.
    pub world_switches: AtomicU64,
    /// Hypercalls made.
    pub hypercalls: AtomicU64,
    /// Events delivered.
    pub events: AtomicU64,
    /// Grant copies.
    pub grant_copies: AtomicU64,
    /// Bytes they moved.
    pub grant_copy_bytes: AtomicU64,
    /// CPU time used, ns.
    pub cpu_ns: AtomicU64,
}

/// A part of a domain's pristine image.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// Its bytes.
    pub bytes: &'static [u8],
}

/// Frames of nested tables a domain may have beyond those its RAM needs at most.
const TABLES_SPARE: u64 = 64;

/// A domain.
#[derive(Debug)]
pub struct Domain {
    /// Its number; survives restarts.
    pub id: DomId,
    /// Its name, as consoles show it.
    pub name: heapless::String<32>,
    /// Its record in the bundle: memory, entry registers, limits. Checked by `Bundle::parse`.
    pub record: bundle::Domain,
    /// Its pristine image: bytes in the bundle, which stays in memory as it came.
    pub image: Box<[Segment]>,
    /// Its vCPUs by number.
    pub vcpus: Box<[Arc<Vcpu>]>,
    /// Guest-physical memory.
    pub p2m: Mutex<P2m>,
    /// The `shared_info` page, whether the domain has mapped it or not.
    pub shared_info: SharedFrame,
    /// Frames of the grant table so far, at most `record.max_grant_frames`.
    pub grant_frames: Mutex<Vec<SharedFrame>>,
    /// `SCHEDOP_watchdog`.
    pub watchdogs: Mutex<Watchdogs>,
    /// I/O permission map.
    pub iopm: Mfn,
    /// Its RAM as it was given: first guest frame, first machine frame, count. What the domain has done to its map since is
    /// the p2m's to know; a restart brings this back.
    pub ram: Mutex<Vec<(Gfn, Mfn, u64)>>,
    /// RAM that it has taken out of its map and not yet put back (`XENMEM_decrease_reservation`): the last such frame, which begins a list.
    pub ballooned: Mutex<Option<Mfn>>,
    /// Where the filling of its memory goes on (guest-physical); 0 unless some of it was filled, and not all.
    pub filled: AtomicU64,
    /// HVM parameters by number.
    pub hvm_params: Mutex<[u64; hvm::NR_PARAMS as usize]>,
    /// `xenolith::state`.
    pub state: AtomicU32,
    /// Why its vCPUs must not run now, [`pause`] bits; they may when it is 0.
    pub paused: AtomicU32,
    /// Restarts in place so far.
    pub generation: AtomicU32,
    /// `xenolith::cause` of the last stop.
    pub last_cause: AtomicU32,
    /// See [`Counters`].
    pub counters: Counters,
    /// Hypercalls of which a refusal has been logged, bit per number.
    pub refused: AtomicU64,
    /// Its console log.
    pub console: Mutex<Log>,
}

/// Reasons in [`Domain::paused`].
pub mod pause {
    /// The control domain said so.
    pub const ADMIN: u32 = 1 << 0;
    /// Stopped by a fault or a shutdown.
    pub const STOPPED: u32 = 1 << 1;
    /// Being made or restarted.
    pub const BUILDING: u32 = 1 << 2;
}

impl Domain {
    /// RAM in frames; guest frames below this are its own.
    pub const fn mem_frames(&self) -> u64 {
        self.record.mem_pages as u64
    }
    /// Guest frame of a special page, [`bundle::special`].
    pub const fn special_gfn(&self, which: u32) -> Gfn {
        Gfn::containing((self.record.mem_pages as u64).saturating_sub(which as u64) * abi::PAGE_SIZE as u64)
    }
    /// Tells it values by HVM parameters.
    pub fn set_params(&self, values: [(u32, u64); 2]) {
        let mut params = self.hvm_params.lock();
        for (index, value) in values {
            if let Some(param) = params.get_mut(index as usize) {
                *param = value;
            }
        }
    }
    /// Whether its nested tables may still grow: what it maps far apart must not cost the machine its memory.
    #[must_use]
    pub const fn may_grow(&self, p2m: &P2m) -> bool {
        p2m.tables() < TABLES_SPARE + self.mem_frames() / 256
    }
    /// Whether it may call the *control* commands.
    pub const fn is_control(&self) -> bool {
        self.record.flags & bundle::flags::CONTROL != 0
    }
    /// vCPU by number.
    pub fn vcpu(&self, id: u32) -> Option<&Arc<Vcpu>> {
        self.vcpus.get(id as usize)
    }
    /// Whether its vCPUs may run.
    pub fn runnable(&self) -> bool {
        self.paused.load(Relaxed) == 0
    }
}

static DOMAINS: RwLock<Vec<Arc<Domain>>> = RwLock::new(Vec::new());

/// The domain with this number.
pub fn find(id: DomId) -> Option<Arc<Domain>> {
    DOMAINS.read().iter().find(|d| d.id == id).cloned()
}
/// All domains, ascending by number.
pub fn all() -> Vec<Arc<Domain>> {
    DOMAINS.read().clone()
}
/// Makes a domain known. Its number is new and greater than those before it (`Bundle::parse` checked the order).
pub fn add(domain: Arc<Domain>) {
    DOMAINS.write().push(domain);
}
