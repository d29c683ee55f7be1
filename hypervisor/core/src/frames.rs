//! The frame table: every machine frame has exactly one owner and a count of pins.
//!
//! A pin is a foreign mapping or a copy in flight; a pinned frame is neither given away nor free. A domain that lets go of a
//! pinned frame ([`FrameTable::release`]) makes it an *orphan*: nobody's, and free when the last pin goes. So a peer that
//! still holds a mapping never reaches the frame's next owner, and a domain never waits for its peers to die.
//! Neighbours: [`crate::grants`] pins; `hypervisor/src` builds domains and page tables from here. The table's storage is the
//! caller's (it is made before there is a heap). Free frames are found from a hint below which none is free.

use crate::{DomId, Mfn};
use alloc::collections::BTreeMap;

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's: may be allocated.
    Free,
    /// The hypervisor's, or not RAM at all.
    Hypervisor,
    /// A domain's.
    Domain(DomId),
    /// Let go while pinned: free when the last pin goes.
    Orphan,
}

/// One frame's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    owner: Owner,
    pins: u32,
}

impl Frame {
    /// What every frame is before [`FrameTable::add_ram`].
    pub const RESERVED: Self = Self { owner: Owner::Hypervisor, pins: 0 };
}

/// Why a frame operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No free frame (run of `1 << order` frames) below the limit.
    OutOfMemory {
        /// log2 of the frames wanted.
        order: u32,
    },
    /// Not in the table.
    NoSuchFrame(Mfn),
    /// Owned by another than the caller named.
    NotOwner(Mfn, Owner),
    /// Mapped by, or being copied for, someone else.
    Pinned(Mfn),
    /// The pin count is at its end, or there is nothing to unpin.
    PinCount(Mfn),
}

/// Frames of one domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Owned now.
    pub frames: u64,
    /// Most ever owned.
    pub peak: u64,
}

/// All frames of the machine.
#[derive(Debug)]
pub struct FrameTable<'a> {
    frames: &'a mut [Frame],
    /// No frame below this index is free.
    hint: usize,
    free: u64,
    ram: u64,
    usage: BTreeMap<DomId, Usage>,
}

impl<'a> FrameTable<'a> {
    /// A table over `frames`, by machine frame number; all of them reserved.
    pub fn new(frames: &'a mut [Frame]) -> Self {
        frames.fill(Frame::RESERVED);
        Self { hint: frames.len(), frames, free: 0, ram: 0, usage: BTreeMap::new() }
    }

    /// Makes reserved frames free: RAM that boot has no use for. Frames outside of the table are left out.
    pub fn add_ram(&mut self, first: Mfn, count: u64) {
        let start = (first.0 as usize).min(self.frames.len());
        let end =
            (first.0 as usize).saturating_add(usize::try_from(count).unwrap_or(usize::MAX)).min(self.frames.len());
        for index in start..end {
            if let Some(f) = self.frames.get_mut(index).filter(|f| f.owner == Owner::Hypervisor && f.pins == 0) {
                f.owner = Owner::Free;
                self.free = self.free.saturating_add(1);
                self.ram = self.ram.saturating_add(1);
            }
        }
        self.hint = self.hint.min(start);
    }

    /// Frames nobody owns.
    pub const fn free_count(&self) -> u64 {
        self.free
    }
    /// Frames ever added.
    pub const fn ram_count(&self) -> u64 {
        self.ram
    }
    /// What a domain owns.
    pub fn usage(&self, dom: DomId) -> Usage {
        self.usage.get(&dom).copied().unwrap_or_default()
    }
    /// A frame's owner; `None` outside of the table.
    pub fn owner(&self, mfn: Mfn) -> Option<Owner> {
        self.frames.get(mfn.0 as usize).map(|f| f.owner)
    }
    /// A frame's pins.
    pub fn pins(&self, mfn: Mfn) -> u32 {
        self.frames.get(mfn.0 as usize).map_or(0, |f| f.pins)
    }

    /// One frame below `limit` for `owner`.
    ///
    /// # Errors
    /// [`FrameError::OutOfMemory`].
    pub fn allocate(&mut self, owner: Owner, limit: Mfn) -> Result<Mfn, FrameError> {
        self.allocate_contiguous(owner, 0, limit)
    }

    /// `1 << order` frames in a row for `owner`, aligned to their number, all below `limit`. The lowest such run.
    ///
    /// # Errors
    /// [`FrameError::OutOfMemory`].
    pub fn allocate_contiguous(&mut self, owner: Owner, order: u32, limit: Mfn) -> Result<Mfn, FrameError> {
        let none = FrameError::OutOfMemory { order };
        let run = 1usize.checked_shl(order).ok_or(none)?;
        let end = (limit.0 as usize).min(self.frames.len());
        while self.hint < end && self.frames.get(self.hint).is_some_and(|f| f.owner != Owner::Free) {
            self.hint = self.hint.saturating_add(1);
        }
        let mut start = self.hint.checked_next_multiple_of(run).ok_or(none)?;
        loop {
            let stop = start.checked_add(run).filter(|&stop| stop <= end).ok_or(none)?;
            let frames = self.frames.get_mut(start..stop).ok_or(none)?;
            if frames.iter().all(|f| f.owner == Owner::Free) {
                frames.fill(Frame { owner, pins: 0 });
                self.free = self.free.saturating_sub(run as u64);
                if let Owner::Domain(dom) = owner {
                    let usage = self.usage.entry(dom).or_default();
                    usage.frames = usage.frames.saturating_add(run as u64);
                    usage.peak = usage.peak.max(usage.frames);
                }
                return Ok(Mfn(start as u64));
            }
            start = stop;
        }
    }

    /// Frees an unpinned frame.
    ///
    /// # Errors
    /// [`FrameError::NoSuchFrame`], [`FrameError::NotOwner`], [`FrameError::Pinned`]; nothing changed.
    pub fn free(&mut self, mfn: Mfn, owner: Owner) -> Result<(), FrameError> {
        if self.owned(mfn, owner)?.pins != 0 {
            return Err(FrameError::Pinned(mfn));
        }
        self.release(mfn, owner).map(|_| ())
    }

    /// The owner lets go of a frame: free at once, or an orphan until its last pin goes. Says whether it is free.
    ///
    /// # Errors
    /// [`FrameError::NoSuchFrame`], [`FrameError::NotOwner`]; nothing changed.
    pub fn release(&mut self, mfn: Mfn, owner: Owner) -> Result<bool, FrameError> {
        let frame = self.owned(mfn, owner)?;
        let pinned = frame.pins != 0;
        frame.owner = if pinned { Owner::Orphan } else { Owner::Free };
        if let Owner::Domain(dom) = owner {
            let usage = self.usage.entry(dom).or_default();
            usage.frames = usage.frames.saturating_sub(1);
        }
        if !pinned {
            self.freed(mfn);
        }
        Ok(!pinned)
    }

    /// Holds a frame of `owner` in place.
    ///
    /// # Errors
    /// [`FrameError::NoSuchFrame`], [`FrameError::NotOwner`], [`FrameError::PinCount`]; nothing changed.
    pub fn pin(&mut self, mfn: Mfn, owner: Owner) -> Result<(), FrameError> {
        let frame = self.owned(mfn, owner)?;
        frame.pins = frame.pins.checked_add(1).ok_or(FrameError::PinCount(mfn))?;
        Ok(())
    }

    /// Drops one pin; an orphan's last one frees it.
    ///
    /// # Errors
    /// [`FrameError::NoSuchFrame`], [`FrameError::PinCount`]; nothing changed.
    pub fn unpin(&mut self, mfn: Mfn) -> Result<(), FrameError> {
        let frame = self.frames.get_mut(mfn.0 as usize).ok_or(FrameError::NoSuchFrame(mfn))?;
        frame.pins = frame.pins.checked_sub(1).ok_or(FrameError::PinCount(mfn))?;
        if frame.pins == 0 && frame.owner == Owner::Orphan {
            frame.owner = Owner::Free;
            self.freed(mfn);
        }
        Ok(())
    }

    fn owned(&mut self, mfn: Mfn, owner: Owner) -> Result<&mut Frame, FrameError> {
        let frame = self.frames.get_mut(mfn.0 as usize).ok_or(FrameError::NoSuchFrame(mfn))?;
        if frame.owner == owner && owner != Owner::Free {
            Ok(frame)
        } else {
            Err(FrameError::NotOwner(mfn, frame.owner))
        }
    }

    fn freed(&mut self, mfn: Mfn) {
        self.free = self.free.saturating_add(1);
        self.hint = self.hint.min(mfn.0 as usize);
    }
}

#[cfg(test)]
mod tests;
