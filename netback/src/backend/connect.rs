//! The backend follows xenstore: finds its vifs, takes up the rings of a dead instance, connects and closes.

use super::{Backend, BackendStats, Config};
use crate::cache;
use crate::frames::Frames;
use crate::gro::Gro;
use crate::negotiate::{Directory, KIND, discover, offer};
use crate::nic::{MacAddr, Nic, RxFilter};
use crate::pool::Pool;
use crate::rx::Batch;
use crate::vif::{Connection, Vif};
use crate::{Area, Fabric, Platform, PortId, Store, StoreError};
use ::backend::cache as framing;
use ::backend::xenbus::{self, Step, state_of, step};
use abi::DomId;
use abi::io::xenbus::XenbusState;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ring::{Recovery, SharedMem};

/// Unicast addresses that are filtered by the NIC; with more it takes every frame and the switch sorts.
const MAX_FILTERED: usize = 15;
/// How long work may put off a look at xenstore, in microseconds.
const SCAN_DELAY_US: u64 = 5_000;

/// When a start from the cache is compared with xenstore, in microseconds after it: the traffic that waited comes first.
const VERIFY_DELAY_US: u64 = 50_000;

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
        let cached = cache::load(recovery.page(), parts.me).filter(|_| !parts.first_boot);
        let known = cached.is_some();
        let directories = match cached {
            Some(directories) => directories,
            None => {
                store.watch(&xenbus::root(parts.me, KIND))?;
                discover(store, parts.me)?
            }
        };
        let mut vifs: Vec<Option<Vif<P::Page>>> = Vec::new();
        let mut next_epoch: u32 = 0;
        for directory in directories.iter().take(PortId::MAX.saturating_sub(1)) {
            let mut vif = Vif::new(directory);
            if step(directory.back_state, directory.front_state, false) == Step::Reattach {
                next_epoch = next_epoch.wrapping_add(1);
                reattach(&mut platform, &mut vif, directory, &mut recovery, next_epoch);
            }
            vifs.push(Some(vif));
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
            watching: !known,
            scan_since_us: known.then_some(now_us.saturating_add(VERIFY_DELAY_US)),
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
        for slot in 0..self.vifs.len() {
            self.announce(slot, directories);
        }
        self.filter();
        self.send_events();
        // All kicked: what follows is not in the way of anybody's traffic.
        self.remember();
        if !self.watching {
            return Ok(());
        }
        for directory in directories {
            store.watch(&state_of(&directory.place.front))?;
        }
        for directory in directories {
            self.follow(store, directory);
        }
        Ok(())
    }

    /// A vif whose rings were taken up joins the switch, and its frontend is kicked.
    fn announce(&mut self, slot: usize, directories: &[Directory]) {
        let Some(vif) = self.vifs.get(slot).and_then(Option::as_ref) else { return };
        let Some(connection) = &vif.connection else { return };
        self.ports.push(connection.tx_port);
        if connection.rx_port != connection.tx_port {
            self.ports.push(connection.rx_port);
        }
        let rules = directories.iter().find(|d| vif.is(d)).and_then(|d| d.rules.as_deref());
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
        let vifs = self.vifs.iter().flatten().map(|vif| (vif.place.back.as_str(), vif.place.front.as_str()));
        let relevant = xenbus::concerns(path, (self.me, KIND), vifs, &["rules", "mac", "frontend", "online"]);
        if relevant && self.scan_since_us.is_none() {
            self.scan_since_us = Some(self.platform.now_us());
        }
    }

    /// Is it time to look at the store? Traffic comes first, but not for ever.
    pub(super) fn scan_due(&self, worked: bool, now_us: u64) -> bool {
        let due = |since| now_us >= since && (!worked || now_us.saturating_sub(since) >= SCAN_DELAY_US);
        self.scan_since_us.is_some_and(due)
    }

    /// Looks at the store and does what the states ask for.
    pub(super) fn scan<St: Store>(&mut self, store: &mut St) {
        self.scan_since_us = None;
        let directories = match self.watch(store).and_then(|()| discover(store, self.me)) {
            Ok(directories) => directories,
            Err(error) => {
                log::warn!("xenstore: {error:?}; will look again");
                self.scan_since_us = Some(self.platform.now_us());
                return;
            }
        };
        for slot in 0..self.vifs.len() {
            let Some(vif) = self.vifs.get(slot).and_then(Option::as_ref) else { continue };
            if !directories.iter().any(|directory| vif.is(directory)) {
                log::info!("{vif}: removed");
                store.unwatch(&state_of(&vif.place.front));
                self.disconnect(slot);
                if let Some(vif) = self.vifs.get_mut(slot) {
                    *vif = None;
                }
            }
        }
        for directory in &directories {
            self.follow(store, directory);
        }
    }

    /// Sets the watches that a start from the cache has left out.
    fn watch<St: Store>(&mut self, store: &mut St) -> Result<(), StoreError> {
        if !self.watching {
            store.watch(&xenbus::root(self.me, KIND))?;
            for vif in self.vifs.iter().flatten() {
                store.watch(&state_of(&vif.place.front))?;
            }
            self.watching = true;
        }
        Ok(())
    }

    /// Leaves word of the connected vifs for the next instance.
    fn remember(&self) {
        let connected = self.vifs.iter().flatten().filter(|vif| vif.connection.is_some());
        if connected.clone().all(|vif| vif.known.is_some()) {
            cache::save(self.survivor.page(), self.me, connected.filter_map(|vif| vif.known.as_ref()));
        } else {
            framing::clear(self.survivor.page());
        }
    }

    /// Does what the states of one vif ask for; makes the vif if it is new.
    fn follow<St: Store>(&mut self, store: &mut St, directory: &Directory) {
        let known = self.vifs.iter().position(|vif| vif.as_ref().is_some_and(|vif| vif.is(directory)));
        let Some(slot) = known.or_else(|| self.admit(store, directory)) else { return };
        let Some(vif) = self.vifs.get_mut(slot).and_then(Option::as_mut) else { return };
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
        let Some(vif) = self.vifs.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(known) = &mut vif.known else { return };
        let port = Vif::<P::Page>::port(slot);
        let same_rings = known.keys == directory.keys;
        let (rules, mac) = (known.rules != directory.rules, directory.mac.filter(|_| known.mac != directory.mac));
        let mut now = directory.clone();
        now.keys = known.keys;
        now.mac = mac.or(known.mac);
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
            self.set_rules(port, directory.rules.as_deref());
        }
        if rules || mac.is_some() {
            self.remember();
        }
        if unsaid {
            self.say(store, slot, XenbusState::Connected);
        }
    }

    fn admit<St: Store>(&mut self, store: &mut St, directory: &Directory) -> Option<usize> {
        let free = self.vifs.iter().position(Option::is_none);
        let slot = free.or_else(|| (self.vifs.len() < PortId::MAX.saturating_sub(1)).then_some(self.vifs.len()))?;
        if let Err(error) = store.watch(&state_of(&directory.place.front)) {
            log::warn!("xenstore: {error:?}; {} is not followed", directory.place.front);
            return None;
        }
        if slot == self.vifs.len() {
            self.vifs.push(None);
        }
        *self.vifs.get_mut(slot)? = Some(Vif::new(directory));
        Some(slot)
    }

    /// Writes our state node (with the offer, for `InitWait`).
    fn say<St: Store>(&mut self, store: &mut St, slot: usize, state: XenbusState) {
        let Some(vif) = self.vifs.get_mut(slot).and_then(Option::as_mut) else { return };
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
        let Some(vif) = self.vifs.get_mut(slot).and_then(Option::as_mut) else { return };
        let keys = match &directory.keys {
            Ok(keys) => keys,
            Err(bad) => {
                log::warn!("{vif}: frontend's {} is missing or bad", bad.0);
                return self.say(store, slot, XenbusState::Closing);
            }
        };
        let Some(mac) = directory.mac else {
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
            let Some(vif) = self.vifs.get(slot).and_then(Option::as_ref) else { continue };
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
        let Some(vif) = self.vifs.get_mut(slot).and_then(Option::as_mut) else { return };
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
        let connected = self.vifs.iter().flatten().filter(|vif| vif.connection.is_some());
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
    let keys = match &directory.keys {
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
