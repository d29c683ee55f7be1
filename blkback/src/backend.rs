//! The backend as a whole: what it owns and the order in which it works.
//!
//! One [`turn`](Backend::turn) moves everything that can move: completions of the drives; requests out of the rings (`intake`: one hypercall
//! maps the indirect pages among them); then, vbd by vbd in fair shares, what may begin (`issue`: one hypercall unmaps what is done, one
//! maps what is needed, one doorbell per drive); then the answers and one call for all events. A page is unmapped only when the drive is done
//! with it, and before the answer that tells its owner so. While there is work it polls with interrupts and events suppressed; without
//! work it arms them, looks once more, and only then lets the domain block. `connect` follows xenstore.

mod connect;
mod finish;
mod intake;
mod issue;
mod share;

use crate::disk::{Change, Disks, DriveId, DriveInfo, DriveStats, ResetError, Segment};
use crate::grants::Known;
use crate::table::{Drive, Table, Ticket};
use crate::vbd::{Connection, Vbd, VbdStats};
use crate::{MapRequest, Platform};
use ::backend::{Devices, Turn};
use abi::{DomId, EvtchnPort};
use alloc::string::String;
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::{Polling, RingFault, SharedMem, Survivor};
use xenstore::Store;

/// What can be chosen about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Data pages mapped at one time, of all vbds together. The hypervisor's limit, less ring pages (up to 8 a vbd).
    pub mappings: u16,
    /// Persistent grants kept mapped for one vbd. Linux makes at most 1056 of them for a ring of a page.
    pub persistent: u16,
    /// Pages of a ring, as a power of two (at most 3).
    pub ring_page_order: u8,
    /// Segments of one request that are offered (`feature-max-indirect-segments`), 12 to 4096; 0 = not offered.
    pub indirect_segments: u16,
    /// Bytes a vbd may move before the others have their turn.
    pub quantum: u32,
    /// How long to poll after the last work before arming, at most, in microseconds ([`Polling`]).
    pub spin_us: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mappings: 960,
            persistent: 1056,
            ring_page_order: 2,
            indirect_segments: 256,
            quantum: 256 * 1024,
            spin_us: 400,
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

/// What the drives have, by token.
pub(crate) enum Flight {
    /// A command of a request.
    Data(Ticket),
    /// A flush for all of these.
    Flush(Vec<Ticket>),
    /// A part of a partition table, in bytes.
    Table(u32),
}

/// The backend of one controller.
pub struct Backend<P: Platform, D, M, S> {
    me: DomId,
    config: Config,
    platform: P,
    disks: D,
    scratch: M,
    survivor: Survivor<S>,
    drives: Vec<Drive>,
    vbds: Devices<Vbd<P::Page>>,
    flights: Vec<Option<Flight>>,
    /// The vbd that goes first in this turn.
    first: usize,
    next_epoch: u32,
    /// Whose partition table is being read into the scratch memory.
    scratch_of: Option<DriveId>,
    /// Pages to be unmapped.
    garbage: Vec<P::Page>,
    armed: bool,
    polling: Polling,
    /// Drives that are not there by then are missing.
    patience_until_us: u64,
    /// The hypervisor had no room for mappings: when to try again.
    retry_us: Option<u64>,
    /// Something came or was done since requests were last chosen.
    stirred: bool,
    ports: Vec<EvtchnPort>,
    faults: Vec<(usize, RingFault)>,
    // Kept between turns for their memory.
    maps: Vec<MapRequest>,
    known: Known<P::Page>,
    segments: Vec<Segment>,
    stats: BackendStats,
}

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// One round of work; see the module's head.
    pub fn turn<St: Store>(&mut self, store: &mut St) -> Turn<ResetError> {
        self.disarm();
        self.stats.turns = self.stats.turns.saturating_add(1);
        let now_us = self.platform.now_us();
        let worked = match self.work(store, now_us) {
            Ok(worked) => worked,
            Err(error) => return Turn::Dead(error),
        };
        if worked {
            self.polling.found(now_us);
        }
        if self.vbds.due(worked, now_us) {
            self.scan(store);
            return Turn::Again;
        }
        if worked || self.polling.look_again(now_us) || self.arm() {
            return Turn::Again;
        }
        self.stats.waits = self.stats.waits.saturating_add(1);
        Turn::Wait { until_us: self.deadline(now_us) }
    }

    /// Moves everything that can move; true if anything did.
    fn work<St: Store>(&mut self, store: &mut St, now_us: u64) -> Result<bool, ResetError> {
        let mut worked = self.reap();
        // Before a request goes anywhere: the drive in a place may be another than that it was meant for.
        while let Some(change) = self.disks.change() {
            self.drive_changed(store, change);
            worked = true;
        }
        self.platform.crash_point();
        worked |= self.take_requests();
        self.platform.crash_point();
        worked |= self.issue(now_us);
        self.platform.crash_point();
        if self.disks.fault().is_some() {
            self.revive()?;
            worked = true;
        }
        worked |= self.publish();
        self.close_faulty(store);
        Ok(worked)
    }

    /// Publishes the answers that are due and sends all events of this turn. What was mapped for them is unmapped before.
    fn publish(&mut self) -> bool {
        self.unmap();
        self.platform.crash_point();
        let mut any = false;
        for vbd in self.vbds.iter_mut() {
            let Some(connection) = &mut vbd.connection else { continue };
            let published = connection.ring.publish(&mut self.survivor);
            connection.line.published(published.count);
            any |= published.count > 0;
            if published.notify {
                vbd.stats.notifications = vbd.stats.notifications.saturating_add(1);
                self.ports.push(connection.port);
            }
        }
        self.platform.crash_point();
        self.send_events();
        self.stirred |= any;
        any
    }

    fn send_events(&mut self) {
        if !self.ports.is_empty() {
            self.stats.notify_calls = self.stats.notify_calls.saturating_add(1);
            self.platform.notify(&self.ports);
            self.ports.clear();
        }
    }

    /// One call unmaps all that is done with.
    fn unmap(&mut self) {
        if !self.garbage.is_empty() {
            self.stats.unmap_calls = self.stats.unmap_calls.saturating_add(1);
            self.platform.unmap(&mut self.garbage);
            self.garbage.clear();
        }
    }

    /// Suppresses interrupts after a wait. Events need nothing: an index that is not moved on suppresses itself.
    fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.disks.interrupt();
            self.disks.interrupts_enable(false);
        }
    }

    /// Asks for interrupts and events, then looks once more; true if there is work after all.
    fn arm(&mut self) -> bool {
        self.armed = true;
        self.disks.interrupts_enable(true);
        let mut more = self.reap();
        for (slot, vbd) in self.vbds.enumerate_mut() {
            let Some(connection) = &mut vbd.connection else { continue };
            // What is left in a stalled ring waits for pages or its drive, and that comes with the drives' work.
            let wanted =
                if connection.stalled { connection.ring.pending().map(|n| n.saturating_add(1)) } else { Ok(1) };
            match wanted.and_then(|wanted| connection.ring.arm(wanted)) {
                Ok(now) => more |= now,
                Err(fault) => {
                    self.faults.push((slot, fault));
                    more = true;
                }
            }
        }
        more
    }

    /// When to look again although no event came.
    fn deadline(&mut self, now_us: u64) -> Option<u64> {
        let scan = self.vbds.due_us(now_us);
        let stalled = self.vbds.iter().filter_map(|vbd| vbd.connection.as_ref()).any(|c| c.stalled);
        let missing = (stalled && now_us < self.patience_until_us).then_some(self.patience_until_us);
        [self.disks.tick(), scan, self.retry_us, missing].into_iter().flatten().min()
    }

    /// The controller failed: resets it and gives it again what it had.
    fn revive(&mut self) -> Result<(), ResetError> {
        if let Some(fault) = self.disks.fault() {
            log::warn!("controller: {fault}; resetting it");
        }
        self.stats.resets = self.stats.resets.saturating_add(1);
        self.disks.reset()?;
        self.forget_flights();
        Ok(())
    }

    fn drive_changed<St: Store>(&mut self, store: &mut St, change: Change) {
        let (Change::Gone(id) | Change::Came(id)) = change;
        let gone = change == Change::Gone(id);
        self.stirred = true;
        log::warn!("drive {} has {}", id.0, if gone { "gone" } else { "come" });
        if let Some(drive) = self.drives.get_mut(usize::from(id.0)) {
            drive.gone = gone;
            if !matches!(drive.table, Table::Reading { out: true, .. }) {
                drive.table = Table::Unread;
            }
            if gone {
                // Those who wait fail, as all of their connections are lost.
                drive.waiters.clear();
            }
        }
        self.close_drive(store, id, gone);
        self.look_again();
    }

    /// Where drive `id` stands.
    fn info(&self, id: DriveId) -> Option<DriveInfo> {
        self.disks.info(id).copied()
    }

    /// A drive that will not come (again): its requests fail.
    fn is_missing(&self, id: DriveId, now_us: u64) -> bool {
        let gone = self.drives.get(usize::from(id.0)).is_none_or(|drive| drive.gone);
        self.disks.info(id).is_none() && (gone || now_us >= self.patience_until_us)
    }

    /// Requests of this connection fail.
    fn is_lost(&self, connection: &Connection<P::Page>, now_us: u64) -> bool {
        connection.lost || self.is_missing(connection.extent.drive, now_us)
    }

    /// Pages that vbd `slot` may map now: all that are free, less what the others have reserved.
    fn page_room(&self, slot: usize) -> usize {
        let reserve = self.page_reserve();
        let mut free = usize::from(self.config.mappings).saturating_sub(self.garbage.len());
        for (other, vbd) in self.vbds.enumerate() {
            let mapped = vbd.mapped();
            let kept = if other != slot && vbd.connection.is_some() { mapped.max(reserve) } else { mapped };
            free = free.saturating_sub(kept);
        }
        free
    }

    /// Pages that each vbd can always have: those of the largest request.
    fn page_reserve(&self) -> usize {
        usize::from(crate::negotiate::indirect_segments(&self.config).max(11)).saturating_add(1)
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
        self.vbds.iter().map(|vbd| {
            let extent = vbd.extent;
            let connection = vbd.connection.as_ref();
            VbdStatus {
                frontend: vbd.place.frontend,
                device: vbd.place.device,
                connected: connection.is_some(),
                drive: extent.map(|extent| extent.drive),
                first: extent.map_or(0, |extent| extent.first),
                sectors: extent.map_or(0, |extent| extent.sectors),
                read_only: vbd.read_only,
                depth: connection.map_or(0, |connection| connection.line.len() as u32),
                mapped: vbd.mapped() as u32,
                persistent: connection.map_or(0, |connection| connection.grants.kept() as u32),
                slots: connection.map_or(0, |connection| connection.ring.slots()),
                stats: vbd.stats,
            }
        })
    }

    /// All drives that are there.
    pub fn drives(&self) -> impl Iterator<Item = (DriveId, DriveInfo, DriveStats)> {
        (0..self.disks.drives()).map(DriveId).filter_map(|id| Some((id, self.info(id)?, self.disks.stats(id))))
    }

    /// Requests not answered and commands not completed: both 0 when nothing is in flight.
    pub fn in_flight(&self) -> (usize, usize) {
        let lines = self.vbds.iter().filter_map(|vbd| vbd.connection.as_ref());
        (lines.map(|connection| connection.line.len()).sum(), self.flights.iter().flatten().count())
    }

    /// How vbd `slot` is called in messages.
    fn name(&self, slot: usize) -> String {
        self.vbds.get(slot).map_or_else(String::new, |vbd| alloc::format!("{vbd}"))
    }
}
