//! The requests of the drive, one a slot. Nothing here touches a register.

use alloc::vec;
use alloc::vec::Vec;
use blkback::disk::IoError;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes; with `then_flush` a flush follows in the same slot.
    Write {
        /// The data has to be on media.
        then_flush: bool,
    },
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The backend's name for it.
    pub token: u32,
    /// What it is.
    pub kind: Kind,
    /// Bytes it moves for the backend.
    pub bytes: u32,
    /// Bytes the device may write, its status among them.
    pub writable: u32,
    /// When it was given to the device, microseconds.
    pub since: u64,
    /// Deadlines it missed.
    pub late: u8,
    /// Its end.
    pub result: Result<(), IoError>,
}

const FREE: Slot = Slot { token: 0, kind: Kind::Flush, bytes: 0, writable: 0, since: 0, late: 0, result: Ok(()) };

/// All of them; masks have a bit per slot.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    free: u64,
    /// With the device.
    out: u64,
    /// Over, the backend does not know yet.
    done: u64,
}

const fn bit(slot: u8) -> u64 {
    1u64.wrapping_shl(slot as u32)
}

/// The slots of a mask, from 0.
pub fn each(mut mask: u64) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let slot = mask.trailing_zeros() as u8;
        (mask != 0).then(|| {
            mask &= mask.wrapping_sub(1);
            slot
        })
    })
}

impl Slots {
    /// `depth` free ones, at most 64.
    #[must_use]
    pub fn new(depth: u8) -> Self {
        let free = if depth >= 64 { u64::MAX } else { bit(depth).wrapping_sub(1) };
        Self { slots: vec![FREE; depth.into()], free, out: 0, done: 0 }
    }

    /// Those that are free.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.free.count_ones() as usize
    }

    /// A free one.
    #[must_use]
    pub fn free(&self) -> Option<u8> {
        each(self.free).next()
    }

    /// With the device, a bit each.
    #[must_use]
    pub const fn out(&self) -> u64 {
        self.out
    }

    /// The request in a slot that is with the device.
    #[must_use]
    pub fn get(&self, slot: u8) -> Option<&Slot> {
        self.slots.get(usize::from(slot)).filter(|_| self.out & bit(slot) != 0)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, slot: u8) -> Option<&mut Slot> {
        let out = self.out & bit(slot) != 0;
        self.slots.get_mut(usize::from(slot)).filter(|_| out)
    }

    /// Puts a request into a free slot; it is with the device from now on.
    pub fn put(&mut self, slot: u8, request: Slot) {
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = request;
            self.free &= !bit(slot);
            self.out |= bit(slot);
        }
    }

    /// A request with the device is over.
    pub fn finish(&mut self, slot: u8, result: Result<(), IoError>) {
        let Some(request) = self.get_mut(slot) else { return };
        request.result = result;
        self.out &= !bit(slot);
        self.done |= bit(slot);
    }

    /// The next that is over; its slot is free.
    pub fn reap(&mut self) -> Option<Slot> {
        let slot = each(self.done).next()?;
        self.done &= !bit(slot);
        self.free |= bit(slot);
        self.slots.get(usize::from(slot)).copied()
    }
}
