//! The backend follows xenstore: finds its vifs, takes up the rings of a dead instance, connects and closes.

use super::{Backend, BackendStats, Config};
use crate::frames::Frames;
use crate::gro::Gro;
use crate::negotiate::{Directory, offer};
use crate::nic::{MacAddr, Nic, RxFilter};
use crate::pool::Pool;
use crate::rx::Batch;
use crate::vif::{Connection, Vif};
use crate::{Area, Fabric, Platform, PortId, Store, StoreError};
use ::backend::Devices;
use ::backend::cache::{load, save};
use ::backend::xenbus::{self, Step, step};
use abi::DomId;
use abi::io::xenbus::XenbusState;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ring::{Recovery, SharedMem};

/// Unicast addresses that are filtered by the NIC; with more it takes every frame and the switch sorts.
const MAX_FILTERED: usize = 15;
/// What a backend is made of.
pub struct Parts<P, N, A, F, S> {
    /// This domain.
    pub me: DomId,
    /// What can be chosen.
    pub config: Config,
    /// The domain's side.
    pub platform: P,
    /// The device, reset and ready.
    pub nic: N,
    /// Packet memory.
    pub area: A,
    /// The switch.
    pub fabric: F,
    /// The survivor page.
    pub survivor: S,
    /// This domain never ran before (generation 0).
    pub first_boot: bool,
}

impl<P: Platform, N: Nic, A: Area, F: Fabric, S: SharedMem> Backend<P, N, A, F, S> {
    /// Begins to serve. Rings that an earlier instance served are taken up where they stand, before anything else is
    /// published; then every such frontend is notified once. Where the earlier instance left word of all of them
    /// (`cache`), the store is asked only afterwards, in one of the first turns.
    ///
    /// # Errors
    /// The store did not answer; nothing can be served without it.
    pub fn start<St: Store>(parts: Parts<P, N, A, F, S>, store: &mut St) -> Result<Self, StoreError> {
        let mut recovery = Recovery::open(parts.survivor, parts.first_boot);
        let mut platform = parts.platform;
        let cached = load(recovery.page(), parts.me).filter(|_| !parts.first_boot);
        let (mut vifs, directories) = Devices::<Vif<P::Page>>::find(store, parts.me, cached)?;
        let mut next_epoch: u32 = 0;
        for (vif, directory) in vifs.iter_mut().zip(&directories) {
            if step(directory.back_state, directory.front_state, false) == Step::Reattach {
                next_epoch = next_epoch.wrapping_add(1);
                reattach(&mut platform, vif, directory, &mut recovery, next_epoch);
            }
        }
        let pool = Pool::new(parts.area, parts.config.large_buffers);
        let posted = alloc::vec![false; pool.len()];
        let now_us = platform.now_us();
        let mut backend = Self {
            me: parts.me,
            config: parts.config,
            nic: parts.nic,
            fabric: parts.fabric,
            survivor: recovery.finish(),
            pool,
            frames: Frames::new(parts.config.frames),
            vifs,
            first: 0,
            next_epoch,
            to_nic: VecDeque::new(),
            in_nic: VecDeque::new(),
            posted,
            posted_count: 0,
            partial: None,
            gro: Gro::default(),
            armed: false,
            last_work_us: now_us,
            copies: Vec::new(),
            incoming: Vec::new(),
            batch: Batch::default(),
            done: Vec::new(),
            ports: Vec::new(),
            faults: Vec::new(),
            stats: BackendStats::default(),
            platform,
        };
        backend.open(store, &directories)?;
        Ok(backend)
    }

    fn open<St: Store>(&mut self, store: &mut St, directories: &[Directory]) -> Result<(), StoreError> {
        self.nic.interrupts_enable(false);
        self.post();
        for slot in 0..self.vifs.slots() {
            self.announce(slot, directories);
        }
        self.filter();
        self.send_events();
        // All kicked: what follows is not in the way of anybody's traffic.
        self.remember();
        if self.vifs.reattached(store, directories, self.platform.now_us())? {
            directories.iter().for_each(|directory| self.follow(store, directory));
        }
        Ok(())
    }

    /// A vif whose rings were taken up joins the switch, and its frontend is kicked.
    fn announce(&mut self, slot: usize, directories: &[Directory]) {
        let Some(vif) = self.vifs.get(slot) else { return };
        let Some(connection) = &vif.connection else { return };
        self.ports.push(connection.tx_port);
        if connection.rx_port != connection.tx_port {
            self.ports.push(connection.rx_port);
        }
        let rules = directories.iter().find(|d| vif.place.is(&d.place)).and_then(|d| d.nodes.rules.as_deref());
        let (port, mac) = (Vif::<P::Page>::port(slot), vif.mac);
        self.set_rules(port, rules);
        if let Some(mac) = mac {
            self.fabric.attach(port, mac);
        }
    }

    fn set_rules(&mut self, port: PortId, rules: Option<&str>) {
        if let Err(error) = self.fabric.set_rules(port, rules) {
            log::error!("{port:?}: {error}; nothing passes");
        }
    }

    /// The store says that something at `path` changed. The next turns look at it.
    pub fn store_changed(&mut self, path: &str) {
        self.vifs.changed(path, self.platform.now_us());
    }

    /// Looks at the store and does what the states ask for.
    pub(super) fn scan<St: Store>(&mut self, store: &mut St) {
        let Some(directories) = self.vifs.look(store) else {
            return self.vifs.look_at(self.platform.now_us());
        };
        for slot in self.vifs.gone(&directories) {
            self.disconnect(slot);
            self.vifs.remove(store, slot);
        }
        directories.iter().for_each(|directory| self.follow(store, directory));
    }

    /// Leaves word of the connected vifs for the next instance.
    fn remember(&self) {
        let connected = self.vifs.iter().filter(|vif| vif.connection.is_some());
        save(self.survivor.page(), self.me, connected.map(|vif| vif.known.as_ref()));
    }

    /// Does what the states of one vif ask for; makes the vif if it is new.
    fn follow<St: Store>(&mut self, store: &mut St, directory: &Directory) {
        let Some(slot) = self.vifs.slot_of(store, directory) else { return };
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let live = vif.connection.is_some();
        // What we know of our own state is newer than what was read.
        let todo = step(vif.state, directory.front_state, live);
        if live && todo == Step::Stay {
            self.verify(store, slot, directory);
        }
        match todo {
            Step::Stay => {}
            Step::Offer => {
                self.disconnect(slot);
                self.say(store, slot, XenbusState::InitWait);
            }
            Step::Connect => self.connect(store, slot, directory),
            // Only a fresh instance could continue them, and it has tried.
            Step::Reattach => self.say(store, slot, XenbusState::Closing),
            Step::Close(state) => {
                self.disconnect(slot);
                self.say(store, slot, state);
            }
        }
    }

    /// Compares a live vif with what the store says of it: what may change meanwhile, and what the cache said.
    fn verify<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let Some(known) = &mut vif.known else { return };
        let port = Vif::<P::Page>::port(slot);
        let same_rings = known.nodes.keys == directory.nodes.keys;
        let (rules, mac) = (
            known.nodes.rules != directory.nodes.rules,
            directory.nodes.mac.filter(|_| known.nodes.mac != directory.nodes.mac),
        );
        let mut now = directory.clone();
        now.nodes.keys = known.nodes.keys;
        now.nodes.mac = mac.or(known.nodes.mac);
        *known = now;
        // A death between taking up the rings and saying so.
        let unsaid = directory.back_state != XenbusState::Connected;
        if !same_rings {
            log::warn!("{vif}: its frontend names other rings than those it is connected by");
        }
        if let Some(mac) = mac {
            log::info!("{vif}: has another address");
            vif.mac = Some(mac);
            self.fabric.attach(port, mac);
            self.filter();
        }
        if rules {
            self.set_rules(port, directory.nodes.rules.as_deref());
        }
        if rules || mac.is_some() {
            self.remember();
        }
        if unsaid {
            self.say(store, slot, XenbusState::Connected);
        }
    }

    /// Writes our state node (with the offer, for `InitWait`).
    fn say<St: Store>(&mut self, store: &mut St, slot: usize, state: XenbusState) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.state = state;
        let nodes = match state {
            XenbusState::InitWait => offer(&vif.place.back),
            _ => alloc::vec![xenbus::state(&vif.place.back, state)],
        };
        if let Err(error) = store.write(&nodes) {
            log::warn!("{vif}: state {state:?} could not be written: {error:?}");
        }
    }

    fn connect<St: Store>(&mut self, store: &mut St, slot: usize, directory: &Directory) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let keys = match &directory.nodes.keys {
            Ok(keys) => keys,
            Err(bad) => {
                log::warn!("{vif}: frontend's {} is missing or bad", bad.0);
                return self.say(store, slot, XenbusState::Closing);
            }
        };
        let Some(mac) = directory.nodes.mac else {
            log::error!("{vif}: its mac node is missing or bad");
            return self.say(store, slot, XenbusState::Closing);
        };
        vif.mac = Some(mac);
        self.next_epoch = self.next_epoch.wrapping_add(1);
        match Connection::open::<P, S>(&mut self.platform, vif, keys, None, self.next_epoch) {
            Err(error) => {
                log::warn!("{vif}: {error}");
                self.say(store, slot, XenbusState::Closing);
            }
            Ok(connection) => {
                log::info!("{vif}: connected");
                vif.connection = Some(connection);
                vif.known = Some(directory.clone());
                // Before anything is published in its rings: the journal's record must find them.
                self.remember();
                self.announce(slot, core::slice::from_ref(directory));
                self.filter();
                self.say(store, slot, XenbusState::Connected);
                self.send_events();
            }
        }
    }

    /// Closes the vifs whose frontends broke the protocol in this turn; the others do not notice.
    pub(super) fn close_faulty<St: Store>(&mut self, store: &mut St) {
        for (slot, fault) in core::mem::take(&mut self.faults) {
            let Some(vif) = self.vifs.get(slot) else { continue };
            if vif.connection.is_none() {
                continue;
            }
            log::warn!("{vif}: frontend broke the protocol ({fault}); closing it");
            self.stats.vifs_closed = self.stats.vifs_closed.saturating_add(1);
            self.disconnect(slot);
            self.say(store, slot, XenbusState::Closing);
        }
    }

    /// Lets go of a vif's rings. Its frames on their way elsewhere go on, their answers have no taker.
    fn disconnect(&mut self, slot: usize) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let Some(connection) = vif.connection.take() else { return };
        for frame in connection.close(&mut self.platform) {
            self.frames.release(&mut self.pool, frame.id, false);
        }
        self.remember();
        self.fabric.detach(Vif::<P::Page>::port(slot));
        self.filter();
    }

    /// Tells the NIC whose frames to take.
    fn filter(&mut self) {
        let connected = self.vifs.iter().filter(|vif| vif.connection.is_some());
        let addresses: Vec<MacAddr> = connected.filter_map(|vif| vif.mac).collect();
        self.nic.set_receive_filter(&RxFilter {
            promiscuous: addresses.len() > MAX_FILTERED,
            unicast: &addresses,
            all_multicast: !addresses.is_empty(),
            multicast: &[],
        });
    }
}

/// Takes up the rings of a dead instance. Where that is not possible this one vif is closed; [`Backend::follow`] says so.
fn reattach<P: Platform, S: SharedMem>(
    platform: &mut P,
    vif: &mut Vif<P::Page>,
    directory: &Directory,
    recovery: &mut Recovery<S>,
    epoch: u32,
) {
    let keys = match &directory.nodes.keys {
        Ok(keys) => keys,
        Err(bad) => return log::warn!("{vif}: frontend's {} is missing or bad", bad.0),
    };
    match Connection::open(platform, vif, keys, Some(recovery), epoch) {
        Ok(connection) => {
            vif.stats.reattached = 1;
            vif.connection = Some(connection);
            vif.known = Some(directory.clone());
        }
        Err(error) => log::warn!("{vif}: cannot be continued ({error}); reconnecting it"),
    }
}
