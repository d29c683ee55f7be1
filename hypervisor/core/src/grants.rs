//! Grant references in use: who may touch whose frame, and for how long it stays.
//!
//! A grant entry lies in a page that the granting domain can write at any moment, so it is an allegation: its header is read
//! once, checked, and taken by one compare-exchange that sets `GTF_reading` (and `GTF_writing`); after that only the record
//! kept here counts. Each use is an [`Access`], a value that cannot be copied and pins the frame until it is given to
//! [`Grants::release`]; so an entry revoked while in use stays safe, and bits are cleared exactly when the last use ends.
//! A mapping is an access in its user's table of handles. The caller alters page tables: installs between [`Grants::acquire`]
//! and [`Grants::hold`], removes and flushes between [`Grants::unmap`] and [`Grants::release`].
//!
//! When a granting domain is restarted its table starts empty: [`Grants::forget_grantor`] begins a new *epoch*, so that a use
//! from before never touches an entry of the new instance.

use crate::frames::{FrameTable, Owner};
use crate::{DomId, Gfn, GrantRef, Mfn};
use abi::grant::{GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_TYPE_MASK, GTF_WRITING, status};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The table of one granting domain, version 1, in memory it can write. The header of an entry is its first word: flags in
/// the low, domid in the high half; all accesses are atomic.
pub trait EntryTable {
    /// The header; `None` beyond the table.
    fn header(&self, gref: GrantRef) -> Option<u32>;
    /// The second word: the guest frame granted.
    fn frame(&self, gref: GrantRef) -> Option<u32>;
    /// Compare-exchange of the header; says whether it was `current`.
    fn exchange(&self, gref: GrantRef, current: u32, new: u32) -> bool;
    /// Clears bits of the header.
    fn clear(&self, gref: GrantRef, bits: u32);
}

/// Why an operation was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// Beyond the granting domain's table.
    BadRef(GrantRef),
    /// The entry does not permit this domain this access; its header.
    Denied(u32),
    /// The entry kept changing while it was taken.
    Unstable(GrantRef),
    /// Not a frame the granting domain owns.
    BadFrame(Gfn),
    /// Too many uses at once.
    TooMany,
    /// The user's table of handles is full.
    NoHandle,
    /// No mapping of this handle.
    BadHandle(u32),
    /// The mapping is elsewhere.
    BadAddress(Gfn),
}

impl GrantError {
    /// `GNTST_*`, the number Xen gives in the same case.
    pub const fn status(self) -> i16 {
        match self {
            Self::BadRef(_) => status::BAD_GNTREF,
            Self::Denied(_) | Self::Unstable(_) | Self::TooMany | Self::BadAddress(_) => status::GENERAL_ERROR,
            Self::BadFrame(_) => status::BAD_PAGE,
            Self::NoHandle => status::NO_DEVICE_SPACE,
            Self::BadHandle(_) => status::BAD_HANDLE,
        }
    }
}

/// Compare-exchanges before an entry counts as unstable.
const EXCHANGES: u32 = 5;

/// What is wanted of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Who wants it.
    pub user: DomId,
    /// Whose entry.
    pub grantor: DomId,
    /// Which.
    pub gref: GrantRef,
    /// Reading is enough.
    pub readonly: bool,
}

/// One use of a grant: holds the frame until it is released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an access that is dropped pins its frame for ever"]
pub struct Access {
    want: Want,
    epoch: u32,
    mfn: Mfn,
}

impl Access {
    /// The frame.
    pub const fn mfn(&self) -> Mfn {
        self.mfn
    }
    /// Whose it is: the table for [`Grants::release`].
    pub const fn grantor(&self) -> DomId {
        self.want.grantor
    }
    /// Whether it may only be read.
    pub const fn readonly(&self) -> bool {
        self.want.readonly
    }
}

/// Where a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Guest frame of the user, also its device frame.
    pub gfn: Gfn,
    /// In the user's nested table (`GNTMAP_host_map`).
    pub host: bool,
    /// In the tables of its devices (`GNTMAP_device_map`).
    pub device: bool,
}

/// A mapping taken out of its user's table, to be removed from page tables, flushed, and released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a mapping that is dropped pins its frame for ever"]
pub struct Mapping {
    /// Where.
    pub place: Place,
    /// What.
    pub access: Access,
}

/// An entry in use.
#[derive(Debug)]
struct Active {
    user: DomId,
    mfn: Mfn,
    readers: u32,
    writers: u32,
}

#[derive(Debug, Default)]
struct Handles {
    slots: Vec<Option<Mapping>>,
    /// Which of them are empty.
    free: Vec<u32>,
    limit: usize,
}

impl Handles {
    const fn live(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }
}

/// All grants in use.
#[derive(Debug, Default)]
pub struct Grants {
    active: BTreeMap<(DomId, GrantRef), Active>,
    handles: BTreeMap<DomId, Handles>,
    epochs: BTreeMap<DomId, u32>,
}

impl Grants {
    /// None.
    pub const fn new() -> Self {
        Self { active: BTreeMap::new(), handles: BTreeMap::new(), epochs: BTreeMap::new() }
    }

    /// A domain comes to be. It may hold `max_maps` mappings.
    pub fn add_domain(&mut self, dom: DomId, max_maps: usize) {
        self.handles.insert(dom, Handles { limit: max_maps, ..Handles::default() });
    }

    /// Mappings a domain holds.
    pub fn held(&self, user: DomId) -> usize {
        self.handles.get(&user).map_or(0, Handles::live)
    }

    /// Whether a domain's entry is in use.
    #[cfg(test)]
    fn in_use(&self, grantor: DomId, gref: GrantRef) -> bool {
        self.active.contains_key(&(grantor, gref))
    }

    fn epoch(&self, grantor: DomId) -> u32 {
        self.epochs.get(&grantor).copied().unwrap_or_default()
    }

    /// Begins a use. `translate` gives the machine frame of a guest frame of the granting domain, whose physical map the
    /// caller keeps from changing meanwhile.
    ///
    /// # Errors
    /// [`GrantError`]; nothing changed.
    pub fn acquire(
        &mut self,
        want: Want,
        table: &impl EntryTable,
        frames: &mut FrameTable<'_>,
        translate: impl FnOnce(Gfn) -> Option<Mfn>,
    ) -> Result<Access, GrantError> {
        let Want { user, grantor, gref, readonly } = want;
        let epoch = self.epoch(grantor);
        let owner = Owner::Domain(grantor);
        let header = table.header(gref).ok_or(GrantError::BadRef(gref))?;
        if let Some(active) = self.active.get_mut(&(grantor, gref)) {
            if active.user != user {
                return Err(GrantError::Denied(header));
            }
            // An orphan must not be pinned anew: the grantor gave it up.
            frames.pin(active.mfn, owner).map_err(|_| GrantError::TooMany)?;
            let bits = if !readonly && active.writers == 0 { take(want, table) } else { Ok(0) };
            if let Err(e) = bits {
                // The pin was made just above, so it is there to be dropped.
                let _pinned = frames.unpin(active.mfn);
                return Err(e);
            }
            active.readers = active.readers.saturating_add(u32::from(readonly));
            active.writers = active.writers.saturating_add(u32::from(!readonly));
            return Ok(Access { want, epoch, mfn: active.mfn });
        }
        let bits = take(want, table)?;
        let gfn = Gfn(table.frame(gref).unwrap_or(u32::MAX).into());
        let mfn = translate(gfn).filter(|&mfn| frames.pin(mfn, owner).is_ok());
        let Some(mfn) = mfn else {
            table.clear(gref, bits);
            return Err(GrantError::BadFrame(gfn));
        };
        let active = Active { user, mfn, readers: readonly.into(), writers: (!readonly).into() };
        self.active.insert((grantor, gref), active);
        Ok(Access { want, epoch, mfn })
    }

    /// Ends a use: the frame is let go, and the entry's bits go with the last reader and the last writer. `table` is the
    /// granting domain's, or `None` where that domain is gone.
    pub fn release(&mut self, access: Access, table: Option<&impl EntryTable>, frames: &mut FrameTable<'_>) {
        let Access { want: Want { grantor, gref, readonly, .. }, epoch, mfn } = access;
        // An access holds exactly one pin, so there is one to drop.
        let _pinned = frames.unpin(mfn);
        if epoch != self.epoch(grantor) {
            return;
        }
        let Some(active) = self.active.get_mut(&(grantor, gref)) else { return };
        active.readers = active.readers.saturating_sub(u32::from(readonly));
        active.writers = active.writers.saturating_sub(u32::from(!readonly));
        let mut bits = if active.writers == 0 { u32::from(GTF_WRITING) } else { 0 };
        if active.writers == 0 && active.readers == 0 {
            bits |= u32::from(GTF_READING);
            self.active.remove(&(grantor, gref));
        }
        if let Some(table) = table.filter(|_| bits != 0) {
            table.clear(gref, bits);
        }
    }

    /// Whether a domain may hold one mapping more.
    pub fn has_room(&self, user: DomId) -> bool {
        self.handles.get(&user).is_some_and(|h| h.live() < h.limit)
    }

    /// Enters an access, which the caller has put into page tables at `place`, as a mapping and gives its handle.
    ///
    /// # Errors
    /// The access, where the user's table of handles is full; nothing changed.
    pub fn hold(&mut self, place: Place, access: Access) -> Result<u32, Access> {
        let Some(handles) = self.handles.get_mut(&access.want.user).filter(|h| h.live() < h.limit) else {
            return Err(access);
        };
        let handle = handles.free.pop().unwrap_or(handles.slots.len() as u32);
        let mapping = Some(Mapping { place, access });
        match handles.slots.get_mut(handle as usize) {
            Some(slot) => *slot = mapping,
            None => handles.slots.push(mapping),
        }
        Ok(handle)
    }

    /// Takes a mapping out of its user's table; `gfn` is where the user says it is.
    ///
    /// # Errors
    /// [`GrantError::BadHandle`], [`GrantError::BadAddress`]; nothing changed.
    pub fn unmap(&mut self, user: DomId, handle: u32, gfn: Gfn) -> Result<Mapping, GrantError> {
        let bad = GrantError::BadHandle(handle);
        let handles = self.handles.get_mut(&user).ok_or(bad)?;
        let slot = handles.slots.get_mut(handle as usize).ok_or(bad)?;
        if slot.as_ref().ok_or(bad)?.place.gfn != gfn {
            return Err(GrantError::BadAddress(gfn));
        }
        handles.free.push(handle);
        slot.take().ok_or(bad)
    }

    /// Takes all mappings of a domain: it is restarted, or gone.
    #[must_use]
    pub fn take_back_all(&mut self, user: DomId) -> Vec<Mapping> {
        let Some(handles) = self.handles.get_mut(&user) else { return Vec::new() };
        handles.free.clear();
        core::mem::take(&mut handles.slots).into_iter().flatten().collect()
    }

    /// The granting domain starts anew, or is gone: what is in use now no longer concerns its entries, only the frames
    /// (which the caller lets go by [`FrameTable::release`], so that pinned ones become orphans).
    pub fn forget_grantor(&mut self, grantor: DomId) {
        let epoch = self.epochs.entry(grantor).or_default();
        *epoch = epoch.wrapping_add(1);
        self.active.retain(|(dom, _), _| *dom != grantor);
    }
}

/// Checks an entry and marks it in use: the bits this set.
fn take(want: Want, table: &impl EntryTable) -> Result<u32, GrantError> {
    let bad = GrantError::BadRef(want.gref);
    let using = if want.readonly { GTF_READING } else { GTF_READING | GTF_WRITING };
    for _ in 0..EXCHANGES {
        let header = table.header(want.gref).ok_or(bad)?;
        let (flags, domid) = (header as u16, (header >> 16) as u16);
        let permitted = flags & GTF_TYPE_MASK == GTF_PERMIT_ACCESS
            && domid == want.user.0
            && (want.readonly || flags & GTF_READONLY == 0);
        if !permitted {
            return Err(GrantError::Denied(header));
        }
        if table.exchange(want.gref, header, header | u32::from(using)) {
            return Ok(u32::from(using));
        }
    }
    Err(GrantError::Unstable(want.gref))
}

#[cfg(test)]
mod tests;
