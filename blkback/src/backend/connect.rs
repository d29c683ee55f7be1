//! The backend follows xenstore: finds its vbds, takes up the rings of a dead instance, resolves sources, connects and closes.

use super::{Backend, BackendStats, Parts};
use crate::Platform;
use crate::disk::{Disks, DriveId};
use crate::negotiate::{self, Directory, Nodes, offer};
use crate::source::{Extent, Source, identity};
use crate::table::{Drive, Unresolved};
use crate::vbd::{Connection, Vbd};
use ::backend::Devices;
use ::backend::cache::{load, save};
use ::backend::xenbus::{self, Step, step};
use abi::io::xenbus::XenbusState;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::{Polling, Recovery, SharedMem};
use xenstore::{Store, StoreError};

/// How long a drive may take to be there after a start, in microseconds.
const DRIVE_PATIENCE_US: u64 = 10_000_000;

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// Begins to serve. Rings that an earlier instance served are taken up where they stand, before anything else is published;
    /// then every such frontend is notified once. Where the earlier instance left word of all of them (`cache`), the store is asked
    /// only afterwards, in one of the first turns.
    ///
    /// # Errors
    /// The store did not answer; nothing can be served without it.
    pub fn start<St: Store>(parts: Parts<P, D, M, S>, store: &mut St) -> Result<Self, StoreError> {
        let mut recovery = Recovery::open(parts.survivor, parts.first_boot);
        let mut platform = parts.platform;
        // Where nobody was connected, nobody is kept waiting by a look at the store.
        let cached = load(recovery.page(), parts.me).filter(|kept| !parts.first_boot && !kept.is_empty());
        let (mut vbds, directories) = Devices::<Vbd<P::Page>>::find(store, parts.me, cached)?;
        let mut next_epoch: u32 = 0;
        for (vbd, directory) in vbds.iter_mut().zip(&directories) {
            if step(directory.back_state, directory.front_state, false) == Step::Reattach {
                next_epoch = next_epoch.wrapping_add(1);
                let how = (next_epoch, &parts.config);
                reattach(&mut platform, vbd, directory, &mut recovery, how);
            }
        }
        let now_us = platform.now_us();
        let mut backend = Self {
            me: parts.me,
            config: parts.config,
            drives: (0..parts.disks.drives()).map(|n| Drive::new(DriveId(n))).collect(),
            disks: parts.disks,
            scratch: parts.scratch,
            survivor: recovery.finish(),
            vbds,
            flights: Vec::new(),
            first: 0,
            next_epoch,
            scratch_of: None,
            garbage: Vec::new(),
            armed: false,
            polling: Polling::new(parts.config.spin_us),
            patience_until_us: now_us.saturating_add(DRIVE_PATIENCE_US),
            retry_us: None,
            stirred: true,
            ports: Vec::new(),
            faults: Vec::new(),
            maps: Vec::new(),
            known: VecDeque::new(),
            segments: Vec::new(),
            stats: BackendStats::default(),
            platform,
        };
        backend.open(store, &directories)?;
        Ok(backend)
    }

    fn open<St: Store>(&mut self, store: &mut St, directories: &[Directory]) -> Result<(), StoreError> {
        self.disks.interrupts_enable(false);
        let connections = self.vbds.iter().filter_map(|vbd| vbd.connection.as_ref());
        self.ports.extend(connections.map(|connection| connection.port));
        self.send_events();
        // All kicked: what follows is not in the way of anybody's requests.
        (0..self.disks.drives()).for_each(|n| self.close_drive(store, DriveId(n), false));
        self.remember();
        if self.vbds.reattached(store, directories, self.platform.now_us())? {
            directories.iter().for_each(|directory| self.follow(store, directory));
        }
        Ok(())
    }

    /// The store says that something at `path` changed. The next turns look at it.
    pub fn store_changed(&mut self, path: &str) {
        self.vbds.changed(path, self.platform.now_us());
    }

    /// Xenstore is to be looked at soon.
    pub(super) fn look_again(&mut self) {
        self.vbds.look_at(self.platform.now_us());
    }

    /// Looks at the store and does what the states ask for.
    pub(super) fn scan<St: Store>(&mut self, store: &mut St) {
        let Some(directories) = self.vbds.look(store) else { return self.look_again() };
        for slot in self.vbds.gone(&directories) {
            self.disconnect(slot);
            // What the drive still has of it keeps its slot.
            if self.vbds.get(slot).is_some_and(|vbd| vbd.orphans.is_empty()) {
                self.vbds.remove(store, slot);
            }
        }
        directories.iter().for_each(|directory| self.follow(store, directory));
    }

    /// Leaves word of the connected vbds for the next instance.
    fn remember(&self) {
        // One that is lost has no future: another drive may be in the place of its own by then.
        let connected = self.vbds.iter().filter(|vbd| vbd.connection.as_ref().is_some_and(|c| !c.lost));
        save(self.survivor.page(), self.me, connected.map(|vbd| vbd.known.as_ref()));
    }

    /// Does what the states of one vbd ask for; makes the vbd if it is new.
    fn follow<St: Store>(&mut self, store: &mut St, directory: &Directory) {
        let Some(slot) = self.vbds.slot_of(store, directory) else { return };
        let Some(vbd) = self.vbds.get(slot) else { return };
        let live = vbd.connection.is_some();
        // What we know of our own state is newer than what was read.
        let todo = step(vbd.state, directory.front_state, live);
        if matches!(todo, Step::Offer | Step::Close(_)) {
            self.disconnect(slot);
        }
        let orphans = self.vbds.get(slot).is_some_and(|vbd| !vbd.orphans.is_empty());
        if orphans && todo != Step::Stay {
            // The drive still moves data of its former life; this is looked at again when it is done.
            return;
        }
        match todo {
            Step::Stay if live => self.verify(store, slot, directory),
            Step::Stay => {}
            Step::Offer => self.offer(store, slot, directory),
            Step::Connect => self.connect(store, slot, directory),
            // Only a fresh instance could continue them, and it has tried.
            Step::Reattach => self.say(store, slot, XenbusState::Closing),
            Step::Close(state) => self.say(store, slot, state),
        }
    }

    /// Compares a live vbd with what the store says of it.
    fn verify<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) {
        let Some(vbd) = self.vbds.get(slot) else { return };
        let (Some(known), Some(connection)) = (&vbd.known, &vbd.connection) else { return };
        if known.nodes.keys != directory.nodes.keys {
            log::warn!("{vbd}: its frontend names another ring than that it is connected by");
        }
        if known.nodes.source != directory.nodes.source {
            log::warn!("{vbd}: another source counts from its next connection on");
        }
        if directory.nodes.extent.is_some_and(|extent| extent != connection.extent) {
            // It would be served the wrong sectors.
            return self.refuse(store, slot, XenbusState::Closing, "what the last life left of it does not fit");
        }
        // A death between taking up the ring and saying so; or a write that failed.
        let state = vbd.state;
        if directory.back_state != state {
            self.say(store, slot, state);
        }
    }

    /// Writes our state node.
    fn say<St: Store>(&mut self, store: &mut St, slot: usize, state: XenbusState) {
        let Some(vbd) = self.vbds.get(slot) else { return };
        let nodes = [xenbus::state(&vbd.place.back, state)];
        self.write(store, slot, state, &nodes);
    }

    /// Closes a vbd and says why.
    fn refuse<St: Store>(&mut self, store: &mut St, slot: usize, state: XenbusState, why: &str) {
        self.disconnect(slot);
        let Some(vbd) = self.vbds.get(slot) else { return };
        log::error!("{vbd}: {why}; closing it");
        let nodes = [negotiate::error(&vbd.place.back, why), xenbus::state(&vbd.place.back, state)];
        self.write(store, slot, state, &nodes);
    }

    fn write<St: Store>(&mut self, store: &mut St, slot: usize, state: XenbusState, nodes: &[(String, String)]) {
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        vbd.state = state;
        if let Err(error) = store.write(nodes) {
            log::warn!("{vbd}: state {state:?} could not be written: {error:?}");
        }
    }

    /// Which sectors a vbd is; `None` while that is not known, or after it was refused.
    fn resolve<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) -> Option<Extent> {
        let source = match Source::parse(&directory.nodes.source) {
            Ok(source) => source,
            Err(error) => {
                self.refuse(store, slot, XenbusState::Closed, &error.to_string());
                return None;
            }
        };
        if self.is_missing(source.drive, self.platform.now_us()) {
            self.refuse(store, slot, XenbusState::Closed, &format!("drive {} is not there", source.drive.0));
            return None;
        }
        let Some(info) = self.info(source.drive) else {
            // It may still come.
            self.vbds.look_at(self.patience_until_us);
            return None;
        };
        let drive = self.drives.get_mut(usize::from(source.drive.0))?;
        match drive.resolve(&source, &info) {
            Ok(extent) => Some(extent),
            Err(Unresolved::Pending) => {
                self.stirred = true;
                None
            }
            Err(Unresolved::Never(error)) => {
                self.refuse(store, slot, XenbusState::Closed, &error.to_string());
                None
            }
        }
    }

    /// Tells the frontend what there is, once that is known.
    fn offer<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) {
        let Some(extent) = self.resolve(store, slot, directory) else { return };
        let Some(info) = self.info(extent.drive) else { return };
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        vbd.extent = Some(extent);
        vbd.read_only = directory.nodes.read_only || info.read_only;
        let nodes = offer(&vbd.place.back, &extent, vbd.read_only, &info, &self.config);
        self.write(store, slot, XenbusState::InitWait, &nodes);
    }

    fn connect<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) {
        let keys = match &directory.nodes.keys {
            Ok(keys) => keys,
            Err(bad) => {
                let why = format!("frontend's {} is missing or bad", bad.0);
                return self.refuse(store, slot, XenbusState::Closing, &why);
            }
        };
        let connected = self.vbds.iter().filter(|vbd| vbd.connection.is_some()).count();
        if connected.saturating_add(1).saturating_mul(self.page_reserve()) > usize::from(self.config.mappings) {
            return self.refuse(store, slot, XenbusState::Closing, "there is no room to map another vbd's data");
        }
        // Offered by us, or by an earlier life.
        let offered = self.vbds.get(slot).and_then(|vbd| vbd.extent).or(directory.nodes.extent);
        let Some(extent) = offered.or_else(|| self.resolve(store, slot, directory)) else { return };
        if self.info(extent.drive).is_some_and(|info| identity(&info) != extent.identity) {
            let why = format!("drive {} is another than was offered", extent.drive.0);
            return self.refuse(store, slot, XenbusState::Closing, &why);
        }
        self.next_epoch = self.next_epoch.wrapping_add(1);
        let how = (self.next_epoch, &self.config);
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        match Connection::open::<P, S>(&mut self.platform, vbd, (keys, extent), None, how) {
            Err(error) => self.refuse(store, slot, XenbusState::Closing, &error.to_string()),
            Ok((connection, _)) => {
                log::info!(
                    "{vbd}: connected, {} sectors of drive {} from {}",
                    extent.sectors,
                    extent.drive.0,
                    extent.first
                );
                vbd.connection = Some(connection);
                vbd.extent = Some(extent);
                let nodes = Nodes { extent: Some(extent), read_only: vbd.read_only, ..directory.nodes.clone() };
                vbd.known = Some(Directory { nodes, ..directory.clone() });
                // Before anything is published in its ring: the journal's record must find it.
                self.remember();
                self.say(store, slot, XenbusState::Connected);
            }
        }
    }

    /// Closes the vbds whose frontends broke the protocol in this turn; the others do not notice.
    pub(super) fn close_faulty<St: Store>(&mut self, store: &mut St) {
        for (slot, fault) in core::mem::take(&mut self.faults) {
            if self.vbds.get(slot).is_none_or(|vbd| vbd.connection.is_none()) {
                continue;
            }
            self.stats.vbds_closed = self.stats.vbds_closed.saturating_add(1);
            self.refuse(store, slot, XenbusState::Closing, &format!("frontend broke the protocol ({fault})"));
        }
    }

    /// Asks the vbds of a drive to close that has `gone`, or those that are of another than is in that place now. Until they do, their
    /// requests fail.
    pub(super) fn close_drive<St: Store>(&mut self, store: &mut St, id: DriveId, gone: bool) {
        let now = self.info(id).as_ref().map(identity);
        let lost = |extent: Extent| extent.drive == id && (gone || now.is_some_and(|now| now != extent.identity));
        for slot in 0..self.vbds.slots() {
            let Some(vbd) = self.vbds.get_mut(slot) else { continue };
            // What was offered of it counts no more, either.
            if vbd.extent.take_if(|extent| lost(*extent)).is_some() && vbd.state == XenbusState::InitWait {
                self.refuse(store, slot, XenbusState::Closing, &format!("drive {} has gone", id.0));
                continue;
            }
            let Some(connection) = vbd.connection.as_mut().filter(|c| !c.lost && lost(c.extent)) else { continue };
            connection.lost = true;
            let why = format!("drive {} has {}", id.0, if gone { "gone" } else { "become another" });
            log::error!("{vbd}: {why}; closing it");
            let nodes = [negotiate::error(&vbd.place.back, &why), xenbus::state(&vbd.place.back, XenbusState::Closing)];
            self.write(store, slot, XenbusState::Closing, &nodes);
            self.remember();
        }
    }

    /// Lets go of a vbd's ring. What the drive still has of it stays mapped until it is done.
    fn disconnect(&mut self, slot: usize) {
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        let Some(connection) = vbd.connection.take() else { return };
        let orphans = connection.close(&mut self.platform, &mut self.garbage);
        vbd.orphans.extend(orphans);
        vbd.known = None;
        self.unmap();
        self.remember();
    }
}

/// Takes up the ring of a dead instance. Where that is not possible this one vbd is closed; [`Backend::follow`] says so.
fn reattach<P: Platform, S: SharedMem>(
    platform: &mut P,
    vbd: &mut Vbd<P::Page>,
    directory: &Directory,
    recovery: &mut Recovery<S>,
    how: (u32, &crate::Config),
) {
    let keys = match &directory.nodes.keys {
        Ok(keys) => keys,
        Err(bad) => return log::warn!("{vbd}: frontend's {} is missing or bad", bad.0),
    };
    let Some(extent) = directory.nodes.extent else { return log::warn!("{vbd}: which sectors it is was not kept") };
    match Connection::open(platform, vbd, (keys, extent), Some(recovery), how) {
        Ok((connection, unanswered)) => {
            vbd.stats.reattached = 1;
            vbd.stats.replayed = u64::from(unanswered);
            vbd.connection = Some(connection);
            vbd.known = Some(directory.clone());
        }
        Err(error) => log::warn!("{vbd}: cannot be continued ({error}); reconnecting it"),
    }
}
