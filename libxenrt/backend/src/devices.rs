//! The devices that a backend serves, each in its slot, and how it follows what xenstore says of them: one watch on its own directories,
//! one on the state of each frontend. A change asks for a look at all of them; traffic comes first, but not for ever.
//!
//! A start from the cache of an earlier life ([`cache`](crate::cache)) does without xenstore until traffic flows again: the first look sets
//! the watches. What a pair of states then asks for is in [`xenbus`]; doing it is the backend's (`connect.rs` of `netback` and `blkback`).

use crate::xenbus::{self, Directory, Kind, Place, root, state_of};
use abi::DomId;
use alloc::vec::Vec;
use core::fmt::Display;
use xenstore::{Store, StoreError};

/// How long work may put off a look at xenstore, in microseconds.
const LOOK_DELAY_US: u64 = 5_000;
/// When a start from the cache is compared with xenstore, in microseconds after it: the traffic that waited comes first.
const VERIFY_DELAY_US: u64 = 50_000;

/// A device of a backend; messages call it by its `Display`.
pub trait Device: Display {
    /// What is read of one.
    type Kind: Kind;
    /// How many one backend serves.
    const MAX: usize;

    /// One that is not connected.
    fn new(directory: &Directory<Self::Kind>) -> Self;

    /// Where it is.
    fn place(&self) -> &Place;
}

/// What xenstore says of all devices.
pub type Directories<D> = Vec<Directory<<D as Device>::Kind>>;

/// The devices of one backend, and when xenstore is to be asked about them.
#[derive(Debug)]
pub struct Devices<D> {
    me: DomId,
    slots: Vec<Option<D>>,
    /// The store's watches are set.
    watching: bool,
    /// Xenstore may say something new, since when (or from when on it is to be asked).
    look_us: Option<u64>,
}

impl<D: Device> Devices<D> {
    /// Takes up those that are in the cache; without one, those that xenstore names. Also what was said of each, in the order of the slots.
    ///
    /// # Errors
    /// The store's, where it had to be asked.
    pub fn find<S: Store>(
        store: &mut S,
        me: DomId,
        cached: Option<Directories<D>>,
    ) -> Result<(Self, Directories<D>), StoreError> {
        let watching = cached.is_none();
        let directories = match cached {
            Some(directories) => directories,
            None => {
                store.watch(&root(me, D::Kind::NAME))?;
                D::Kind::discover(store, me)?
            }
        };
        let slots = directories.iter().take(D::MAX).map(|directory| Some(D::new(directory))).collect();
        Ok((Self { me, slots, watching, look_us: None }, directories))
    }

    /// The rings of an earlier life are taken up: watches the frontends; true if `directories` are to be followed now. Those of the cache
    /// are compared with xenstore later.
    ///
    /// # Errors
    /// The store's.
    pub fn reattached<S: Store>(
        &mut self,
        store: &mut S,
        directories: &[Directory<D::Kind>],
        now_us: u64,
    ) -> Result<bool, StoreError> {
        if self.watching {
            directories.iter().try_for_each(|directory| store.watch(&state_of(&directory.place.front)))?;
        } else {
            self.look_at(now_us.saturating_add(VERIFY_DELAY_US));
        }
        Ok(self.watching)
    }

    /// A change at `path`, now.
    pub fn changed(&mut self, path: &str, now_us: u64) {
        let places = self.iter().map(|device| (device.place().back.as_str(), device.place().front.as_str()));
        if xenbus::concerns(path, (self.me, D::Kind::NAME), places, D::Kind::OTHERS) {
            self.look_at(now_us);
        }
    }

    /// Xenstore is to be looked at, from then on.
    pub fn look_at(&mut self, time_us: u64) {
        self.look_us = Some(self.look_us.map_or(time_us, |earlier| earlier.min(time_us)));
    }

    /// Is it time to look, where there was work or not?
    #[must_use]
    pub fn due(&self, worked: bool, now_us: u64) -> bool {
        let due = |since| now_us >= since && (!worked || now_us.saturating_sub(since) >= LOOK_DELAY_US);
        self.look_us.is_some_and(due)
    }

    /// When to look although nothing happens.
    #[must_use]
    pub fn due_us(&self, now_us: u64) -> Option<u64> {
        self.look_us.map(|since| since.max(now_us))
    }

    /// What xenstore says of all devices, after the watches that a start from the cache has left out; `None` where it does not answer.
    pub fn look<S: Store>(&mut self, store: &mut S) -> Option<Directories<D>> {
        self.look_us = None;
        let found = self.watch(store).and_then(|()| D::Kind::discover(store, self.me));
        found.inspect_err(|error| log::warn!("xenstore: {error:?}; will look again")).ok()
    }

    fn watch<S: Store>(&mut self, store: &mut S) -> Result<(), StoreError> {
        if !self.watching {
            store.watch(&root(self.me, D::Kind::NAME))?;
            self.iter().try_for_each(|device| store.watch(&state_of(&device.place().front)))?;
            self.watching = true;
        }
        Ok(())
    }

    /// The slots of devices that none of `directories` is of.
    #[must_use]
    pub fn gone(&self, directories: &[Directory<D::Kind>]) -> Vec<usize> {
        let is_gone = |device: &D| !directories.iter().any(|directory| device.place().is(&directory.place));
        self.enumerate().filter(|(_, device)| is_gone(device)).map(|(slot, _)| slot).collect()
    }

    /// Empties a slot and ends the watch on its frontend; until then a device made again is this one.
    pub fn remove<S: Store>(&mut self, store: &mut S, slot: usize) {
        if let Some(device) = self.slots.get_mut(slot).and_then(Option::take) {
            log::info!("{device}: removed");
            store.unwatch(&state_of(&device.place().front));
        }
    }

    /// The slot of a device: its own or, where it is new, a free one; `None` where there is no room or its frontend cannot be watched.
    pub fn slot_of<S: Store>(&mut self, store: &mut S, directory: &Directory<D::Kind>) -> Option<usize> {
        let place = &directory.place;
        if let Some((slot, _)) = self.enumerate().find(|(_, device)| device.place().is(place)) {
            return Some(slot);
        }
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.or_else(|| (self.slots.len() < D::MAX).then_some(self.slots.len()))?;
        if let Err(error) = store.watch(&state_of(&place.front)) {
            log::warn!("xenstore: {error:?}; {} is not followed", place.front);
            return None;
        }
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        *self.slots.get_mut(slot)? = Some(D::new(directory));
        Some(slot)
    }
}

impl<D> Devices<D> {
    /// Slots there are, with or without a device.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The device in a slot.
    #[must_use]
    pub fn get(&self, slot: usize) -> Option<&D> {
        self.slots.get(slot)?.as_ref()
    }

    /// The device in a slot.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut D> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// All devices.
    pub fn iter(&self) -> impl Iterator<Item = &D> {
        self.slots.iter().flatten()
    }

    /// All devices.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut D> {
        self.slots.iter_mut().flatten()
    }

    /// All devices, with their slots.
    pub fn enumerate(&self) -> impl Iterator<Item = (usize, &D)> {
        self.slots.iter().enumerate().filter_map(|(slot, device)| Some((slot, device.as_ref()?)))
    }

    /// All devices, with their slots.
    pub fn enumerate_mut(&mut self) -> impl Iterator<Item = (usize, &mut D)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, device)| Some((slot, device.as_mut()?)))
    }
}

#[cfg(test)]
mod tests;
