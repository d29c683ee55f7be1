//! The backend as a whole: what it owns and the order in which it works.

use crate::Platform;
use crate::disk::{Disks, DriveId, DriveInfo, DriveStats, ResetError};
use abi::DomId;
use hw::DmaMemory;
use ring::{Recovery, SharedMem, Survivor};
use xenstore::{Store, StoreError};

/// What can be chosen about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Data pages mapped at one time, of all vbds together. The hypervisor's limit, less ring pages (up to 8 a vbd).
    pub mappings: u16,
    /// Persistent grants kept mapped for one vbd.
    pub persistent: u16,
    /// Pages of a ring, as a power of two (at most 3).
    pub ring_page_order: u8,
    /// Segments of one request that are offered (`feature-max-indirect-segments`), 12 to 4096; 0 = not offered.
    pub indirect_segments: u16,
    /// Bytes a vbd may move before the others have their turn.
    pub quantum: u32,
    /// How long to poll after the last work before arming, in microseconds.
    pub spin_us: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mappings: 960,
            persistent: 352,
            ring_page_order: 2,
            indirect_segments: 128,
            quantum: 256 * 1024,
            spin_us: 30,
        }
    }
}

/// What a backend is made of.
pub struct Parts<P, D, M, S> {
    /// This domain.
    pub me: DomId,
    /// What can be chosen.
    pub config: Config,
    /// The domain's side.
    pub platform: P,
    /// The controller, ready.
    pub disks: D,
    /// Memory into which partition tables are read: at least 4096 bytes.
    pub scratch: M,
    /// The survivor page.
    pub survivor: S,
    /// This domain never ran before (generation 0).
    pub first_boot: bool,
}

/// What the domain does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next turn.
    Again,
    /// Nothing to do: block until an event, or until this time ([`::backend::Runtime::now_us`]).
    Wait {
        /// Microseconds; `None` = only an event.
        until_us: Option<u64>,
    },
    /// The controller cannot be revived: end the domain, to be restarted.
    Dead(ResetError),
}

/// Counters of the backend itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Turns made.
    pub turns: u64,
    /// Times it armed and waited.
    pub waits: u64,
    /// Hypercalls that mapped.
    pub map_calls: u64,
    /// Pages they mapped.
    pub maps: u64,
    /// Hypercalls that unmapped.
    pub unmap_calls: u64,
    /// Calls that sent events.
    pub notify_calls: u64,
    /// Commands given to drives.
    pub commands: u64,
    /// Controller resets.
    pub resets: u64,
    /// Vbds closed because their frontend broke the protocol.
    pub vbds_closed: u64,
}

/// Counters of a vbd, since this instance of the domain began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VbdStats {
    /// Reads answered.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes and barriers answered.
    pub flushes: u64,
    /// Discards answered.
    pub discards: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Segments of all requests.
    pub segments: u64,
    /// Of them merged with their predecessor, because their pages lie in a row.
    pub merged: u64,
    /// Requests that waited for an earlier one that they overlap.
    pub overlaps: u64,
    /// Most requests in flight at one time.
    pub max_depth: u32,
    /// Events sent to the frontend.
    pub notifications: u64,
    /// Times its ring was taken up from a dead instance.
    pub reattached: u64,
    /// Requests that were executed again for it.
    pub replayed: u64,
}

/// One vbd, as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VbdStatus {
    /// Whose.
    pub frontend: DomId,
    /// Its number there (51712 = xvda).
    pub device: u16,
    /// Its ring is in our hands.
    pub connected: bool,
    /// Which drive, once its source is resolved.
    pub drive: Option<DriveId>,
    /// First sector on it and sectors, of 512 bytes.
    pub first: u64,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Requests in flight now.
    pub depth: u32,
    /// Pages mapped now, persistent ones included.
    pub mapped: u32,
    /// Persistent grants among them.
    pub persistent: u32,
    /// Slots of the ring.
    pub slots: u32,
    /// Counters.
    pub stats: VbdStats,
}

/// The backend of one controller.
pub struct Backend<P: Platform, D, M, S> {
    me: DomId,
    config: Config,
    platform: P,
    disks: D,
    scratch: M,
    survivor: Survivor<S>,
    stats: BackendStats,
}

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// Begins to serve. Rings that an earlier instance served are taken up where they stand, before anything else is published;
    /// then every such frontend is notified once.
    ///
    /// # Errors
    /// The store did not answer; nothing can be served without it.
    pub fn start<St: Store>(parts: Parts<P, D, M, S>, store: &mut St) -> Result<Self, StoreError> {
        let recovery = Recovery::open(parts.survivor, parts.first_boot);
        store.watch(&::backend::xenbus::root(parts.me, "vbd"))?;
        Ok(Self {
            me: parts.me,
            config: parts.config,
            platform: parts.platform,
            disks: parts.disks,
            scratch: parts.scratch,
            survivor: recovery.finish(),
            stats: BackendStats::default(),
        })
    }

    /// One round of work; see the module's head.
    pub fn turn<St: Store>(&mut self, store: &mut St) -> Turn {
        let _ = (store, self.me, self.config, &self.scratch, self.survivor.page());
        self.stats.turns = self.stats.turns.saturating_add(1);
        Turn::Wait { until_us: self.disks.tick() }
    }

    /// The store says that something at `path` changed. The next turns look at it.
    pub fn store_changed(&mut self, path: &str) {
        log::trace!("{path}");
    }

    /// The domain's side.
    pub fn platform(&mut self) -> &mut P {
        &mut self.platform
    }

    /// The controller.
    pub fn disks(&mut self) -> &mut D {
        &mut self.disks
    }

    /// Counters of the backend.
    pub fn stats(&self) -> BackendStats {
        self.stats
    }

    /// All vbds.
    pub fn vbds(&self) -> impl Iterator<Item = VbdStatus> {
        core::iter::empty()
    }

    /// All drives that are there.
    pub fn drives(&self) -> impl Iterator<Item = (DriveId, DriveInfo, DriveStats)> {
        (0..self.disks.drives()).map(DriveId).filter_map(|id| Some((id, *self.disks.info(id)?, self.disks.stats(id))))
    }
}
