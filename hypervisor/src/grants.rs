//! Grants of all domains: the table in use (`hv_core::grants`), the pages the entries lie in, and what to do with the mappings
//! of a domain that is restarted.

use crate::domain::{self, Domain};
use crate::shared_frame::SharedFrame;
use crate::{iommu, mem, run};
use abi::grant::{ENTRIES_PER_FRAME, EntryV1, GTF_PERMIT_ACCESS, RESERVED_CONSOLE, RESERVED_XENSTORE};
use abi::{DomId, Errno, GrantRef, bundle::special};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use hv_core::grants::{Access, EntryTable, GrantError, Grants, Mapping, Place, Want};
use hv_core::{Dfn, Gfn, Mfn};
use spin::{Mutex, MutexGuard};

/// Mappings a domain may hold at once: bounds the records kept for it, 100 bytes each.
const MAPS_MAX: usize = 1024;
/// The same for a domain with a device, which keeps its frontends' data mapped: four vbds of 32 requests, each with 32 pages
/// of data and one that names them, and the rings.
const DRIVER_MAPS_MAX: usize = 4 * 33 * 32 + 128;

static GRANTS: Mutex<Grants> = Mutex::new(Grants::new());

/// The grants in use.
pub fn table() -> MutexGuard<'static, Grants> {
    GRANTS.lock()
}

/// The pages of a domain's grant table, which it writes at will.
struct Entries<'a>(MutexGuard<'a, Vec<SharedFrame>>);

impl<'a> Entries<'a> {
    fn of(domain: &'a Domain) -> Self {
        Self(domain.grant_frames.lock())
    }
    /// Word `index` (0: the header, 1: the frame) of an entry.
    fn word(&self, gref: GrantRef, index: usize) -> Option<&AtomicU32> {
        let frame = self.0.get((gref.0 / ENTRIES_PER_FRAME) as usize)?;
        frame.u32_at((gref.0 % ENTRIES_PER_FRAME) as usize * size_of::<EntryV1>() + index * 4)
    }
}

impl EntryTable for Entries<'_> {
    fn header(&self, gref: GrantRef) -> Option<u32> {
        self.word(gref, 0).map(|w| w.load(SeqCst))
    }
    fn frame(&self, gref: GrantRef) -> Option<u32> {
        self.word(gref, 1).map(|w| w.load(SeqCst))
    }
    fn exchange(&self, gref: GrantRef, current: u32, new: u32) -> bool {
        self.word(gref, 0).is_some_and(|w| w.compare_exchange(current, new, SeqCst, SeqCst).is_ok())
    }
    fn clear(&self, gref: GrantRef, bits: u32) {
        if let Some(w) = self.word(gref, 0) {
            w.fetch_and(!bits, SeqCst);
        }
    }
}

/// Begins a use of a grant of `grantor`.
///
/// # Errors
/// As [`Grants::acquire`].
pub fn acquire(grantor: &Domain, want: Want) -> Result<Access, GrantError> {
    let p2m = grantor.p2m.lock();
    let entries = Entries::of(grantor);
    // What the frame table does not call the grantor's own is refused there: shared pages, registers, foreign mappings.
    let translate = |gfn: Gfn| -> Option<Mfn> { p2m.translate(gfn).map(|leaf| leaf.mfn) };
    let mut frames = mem::frames();
    GRANTS.lock().acquire(want, &entries, &mut frames, translate)
}

/// Ends uses. The frames are given up, so no translation to them may be left.
pub fn release(accesses: impl IntoIterator<Item = Access>) {
    let mut last: Option<Arc<Domain>> = None;
    for access in accesses {
        if last.as_ref().is_none_or(|d| d.id != access.grantor()) {
            last = domain::find(access.grantor());
        }
        let entries = last.as_ref().map(|d| Entries::of(d));
        let mut frames = mem::frames();
        GRANTS.lock().release(access, entries.as_ref(), &mut frames);
    }
}

/// Takes pages out of a user's page tables; afterwards no CPU and no device of the user reaches them; who held an access
/// there releases it then. The lock is held to the
/// end: tables that became empty must not be freed before this flush, by whoever else flushes.
pub fn take_out(user: &Domain, places: &[Place]) {
    let mut p2m = user.p2m.lock();
    for place in places {
        // A page in a page table is taken out without new tables, unless a large page is in the way, which none is.
        if place.host && let Err(e) = p2m.unmap(place.gfn, 1) {
            panic!("grant mapping of {} at {}: {e:?}", user.name, place.gfn);
        }
        if place.device && let Err(e) = iommu::unmap(user.id, Dfn(place.gfn.0), 1) {
            panic!("grant mapping of {} at device frame {}: {e:?}", user.name, place.gfn);
        }
    }
    run::flush_tlb(user);
    iommu::flush(user.id);
    p2m.reclaim();
}

/// Takes mappings out of their user's page tables, and ends them once no CPU and no device can reach them any more.
pub fn remove(user: &Domain, mappings: Vec<Mapping>) {
    let places: Vec<Place> = mappings.iter().map(|m| m.place).collect();
    take_out(user, &places);
    release(mappings.into_iter().map(|m| m.access));
}

/// Takes back all mappings that `user` holds: it is being restarted.
pub fn take_back_all(user: &Domain) {
    let mappings = table().take_back_all(user.id);
    if !mappings.is_empty() {
        remove(user, mappings);
    }
}

/// A domain comes to be.
pub fn add_domain(domain: &Domain) {
    let max = if domain.record.nr_devices > 0 { DRIVER_MAPS_MAX } else { MAPS_MAX };
    table().add_domain(domain.id, max);
}

/// Lets the grant table have at least `wanted` frames.
///
/// # Errors
/// `EINVAL` beyond the domain's limit, `ENOMEM`; nothing changed but frames that were added before memory ran out.
pub fn grow(domain: &Domain, wanted: u32) -> Result<(), Errno> {
    if wanted > domain.record.max_grant_frames {
        return Err(Errno::EINVAL);
    }
    let mut table = domain.grant_frames.lock();
    while table.len() < wanted as usize {
        let mfn = mem::alloc_zeroed().ok_or(Errno::ENOMEM)?;
        // SAFETY: a fresh frame of the hypervisor, kept for ever in the domain's list, used for nothing else.
        table.push(unsafe { SharedFrame::from_mfn(mfn) });
    }
    Ok(())
}

/// Nobody gets at a domain's frames by its grants from here on; who is using one keeps the frame only.
pub fn revoke_all(domain: &Domain) {
    let entries = Entries::of(domain);
    table().forget_grantor(domain.id);
    entries.0.iter().for_each(SharedFrame::zero);
}

/// Before each first entry of an instance: its table is empty but for the two entries that let the control domain reach its
/// console and store pages; what others still use of the instance before is a matter of frames only.
///
/// # Errors
/// `ENOMEM`, or `EINVAL` where the domain may not have a table at all.
pub fn prepare(domain: &Domain) -> Result<(), Errno> {
    revoke_all(domain);
    grow(domain, 1)?;
    let entries = Entries::of(domain);
    for (gref, page) in [(RESERVED_CONSOLE, special::CONSOLE), (RESERVED_XENSTORE, special::STORE)] {
        let (header, frame) = (entries.word(gref, 0), entries.word(gref, 1));
        if let (Some(header), Some(frame)) = (header, frame) {
            frame.store(domain.special_gfn(page).0 as u32, SeqCst);
            header.store(u32::from(GTF_PERMIT_ACCESS) | u32::from(DomId::CONTROL.0) << 16, SeqCst);
        }
    }
    Ok(())
}
