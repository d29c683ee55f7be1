//! Grants, version 1: pages this domain lets others use ([`Grant`], [`GrantedPage`]), pages of others mapped here
//! ([`map`]), and batched copies ([`copy`]).
//!
//! A granted page may only be reused once the grant has ended; the types keep it so: [`GrantedPage`] owns both, and where
//! the peer still holds the page when it is dropped, page and reference are leaked and counted rather than reused.
//! Source: `public/grant_table.h` (protocol of the entry's flags).

use crate::hypercall;
use crate::memory::window;
use crate::shared_page::SharedPage;
use abi::grant::{self as nr, GrantCopy, MapGrantRef, UnmapGrantRef};
use abi::{DomId, Errno, GrantRef, PAGE_SIZE};
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Mutex;

/// Why a grant could not be made, mapped or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The grant table is full.
    TableFull,
    /// No room in the foreign window, or no memory.
    NoRoom,
    /// The frame number does not fit an entry.
    BadFrame(u64),
    /// The peer still maps or copies the page.
    Busy(GrantRef),
    /// The hypervisor refused this operation: `GNTST_*`.
    Status(i16),
    /// The hypervisor refused the call.
    Hypercall(Errno),
}

impl From<Errno> for GrantError {
    fn from(e: Errno) -> Self {
        Self::Hypercall(e)
    }
}

impl From<GrantError> for Errno {
    fn from(e: GrantError) -> Self {
        match e {
            GrantError::Hypercall(e) => e,
            GrantError::NoRoom | GrantError::TableFull => Self::ENOMEM,
            GrantError::BadFrame(_) => Self::ERANGE,
            GrantError::Busy(_) => Self::EBUSY,
            GrantError::Status(_) => Self::EINVAL,
        }
    }
}

/// Whether the peer may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Operations the hypervisor takes in one call.
const CALL_MAX: usize = 512;

struct Table {
    frames: Vec<SharedPage>,
    max_frames: Option<u32>,
    free: Vec<u32>,
    next: u32,
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { frames: Vec::new(), max_frames: None, free: Vec::new(), next: nr::NR_RESERVED_ENTRIES });

/// Pages and references that stay lost because a peer held them when they were given up.
static LEAKED: AtomicU32 = AtomicU32::new(0);

/// Grants leaked so far, see the module's head.
#[must_use]
pub fn leaked() -> u32 {
    LEAKED.load(Ordering::Relaxed)
}

impl Table {
    fn room(&mut self, gref: u32) -> Result<(), GrantError> {
        let frame = gref / nr::ENTRIES_PER_FRAME;
        while frame as usize >= self.frames.len() {
            self.grow()?;
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<(), GrantError> {
        let max = match self.max_frames {
            Some(max) => max,
            None if cfg!(not(target_os = "none")) => window::GRANT_FRAMES_MAX,
            None => {
                let mut op = nr::QuerySize { dom: DomId::SELF, ..Default::default() };
                hypercall::grant_query_size(&mut op)?;
                if op.status != nr::status::OKAY {
                    return Err(GrantError::Status(op.status));
                }
                *self.max_frames.insert(op.max_nr_frames.min(window::GRANT_FRAMES_MAX))
            }
        };
        let index = self.frames.len() as u32;
        if index >= max {
            return Err(GrantError::TableFull);
        }
        self.map_frame(index)
    }

    #[cfg(target_os = "none")]
    fn map_frame(&mut self, index: u32) -> Result<(), GrantError> {
        use abi::{PAGE_SHIFT, memory};
        let gpa = window::GRANT_TABLE.wrapping_add(u64::from(index) << PAGE_SHIFT);
        hypercall::add_to_physmap(&mut memory::AddToPhysmap {
            domid: DomId::SELF,
            size: 0,
            space: memory::MAPSPACE_GRANT_TABLE,
            idx: u64::from(index),
            gpfn: gpa >> PAGE_SHIFT,
        })?;
        // SAFETY: I4 – the hypervisor has just put the frame there, and the window reserves the address for it.
        self.frames.push(unsafe { SharedPage::fixed(gpa) });
        Ok(())
    }

    #[cfg(not(target_os = "none"))]
    fn map_frame(&mut self, _index: u32) -> Result<(), GrantError> {
        self.frames.push(SharedPage::alloc().ok_or(GrantError::NoRoom)?);
        Ok(())
    }

    fn take(&mut self) -> Result<u32, GrantError> {
        if let Some(gref) = self.free.pop() {
            return Ok(gref);
        }
        let gref = self.next;
        self.room(gref)?;
        self.next = gref.wrapping_add(1);
        Ok(gref)
    }

    fn entry(&self, gref: u32) -> Option<(&SharedPage, usize)> {
        let page = self.frames.get((gref / nr::ENTRIES_PER_FRAME) as usize)?;
        Some((page, (gref % nr::ENTRIES_PER_FRAME) as usize * size_of::<nr::EntryV1>()))
    }

    fn permit(&self, gref: u32, to: DomId, frame: u32, access: Access) {
        use ring::SharedMem;
        let Some((page, at)) = self.entry(gref) else { return };
        let readonly = if access == Access::ReadOnly { nr::GTF_READONLY } else { 0 };
        page.write(at.wrapping_add(4), frame);
        // Flags last: the entry is valid from this store on.
        page.store_release(at, u32::from(nr::GTF_PERMIT_ACCESS | readonly) | u32::from(to.0) << 16);
    }

    fn revoke(&mut self, gref: u32) -> Result<(), GrantError> {
        let Some((page, at)) = self.entry(gref) else { return Ok(()) };
        let mut word = page.word(at);
        loop {
            if word & u32::from(nr::GTF_READING | nr::GTF_WRITING) != 0 {
                return Err(GrantError::Busy(GrantRef(gref)));
            }
            match page.compare_exchange32(at, word, 0) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        self.free.push(gref);
        Ok(())
    }
}

/// Permission for one domain to use one frame. Ended on drop; where the peer still holds it, the reference is leaked.
#[derive(Debug)]
pub struct Grant {
    gref: GrantRef,
    live: bool,
}

impl Grant {
    /// Permits `to` to use the frame `gfn`.
    ///
    /// # Safety
    /// I6: the frame is shared memory (a [`SharedPage`] or DMA region) that is not reused before the grant has ended.
    ///
    /// # Errors
    /// [`GrantError::TableFull`], [`GrantError::BadFrame`], or the hypervisor's refusal to grow the table.
    pub unsafe fn new(to: DomId, gfn: u64, access: Access) -> Result<Self, GrantError> {
        // On the host an address is no guest-physical one, and the entry only stands for itself.
        let frame = if cfg!(target_os = "none") {
            u32::try_from(gfn).map_err(|_| GrantError::BadFrame(gfn))?
        } else {
            gfn as u32
        };
        let mut table = TABLE.lock();
        let gref = table.take()?;
        table.permit(gref, to, frame, access);
        Ok(Self { gref: GrantRef(gref), live: true })
    }

    /// The reference the peer is told.
    #[must_use]
    pub const fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`GrantError::Busy`]: the peer uses the page at this moment; the grant stays.
    pub fn end(&mut self) -> Result<(), GrantError> {
        if self.live {
            TABLE.lock().revoke(self.gref.0)?;
            self.live = false;
        }
        Ok(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.end().is_err() {
            LEAKED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A page of ours that a peer may use, with its grant.
#[derive(Debug)]
pub struct GrantedPage {
    /// `None` only while being dropped.
    page: Option<SharedPage>,
    grant: Grant,
}

impl GrantedPage {
    /// A fresh, zeroed page granted to `to`.
    ///
    /// # Errors
    /// [`GrantError::NoRoom`] without memory, else as [`Grant::new`].
    pub fn alloc(to: DomId, access: Access) -> Result<Self, GrantError> {
        let page = SharedPage::alloc().ok_or(GrantError::NoRoom)?;
        // SAFETY: I6 – the page lives in the same value and outlives the grant (see `drop`).
        let grant = unsafe { Grant::new(to, page.gfn(), access) }?;
        Ok(Self { page: Some(page), grant })
    }
    /// The reference the peer is told.
    #[must_use]
    pub const fn gref(&self) -> GrantRef {
        self.grant.gref()
    }
    /// The page.
    #[must_use]
    pub const fn page(&self) -> Option<&SharedPage> {
        self.page.as_ref()
    }
}

impl ring::SharedMem for GrantedPage {
    fn read(&self, offset: usize) -> u32 {
        self.page.as_ref().map_or(0, |p| p.read(offset))
    }
    fn write(&self, offset: usize, value: u32) {
        if let Some(page) = &self.page {
            page.write(offset, value);
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.page.as_ref().map_or(0, |p| p.load_acquire(offset))
    }
    fn store_release(&self, offset: usize, value: u32) {
        if let Some(page) = &self.page {
            page.store_release(offset, value);
        }
    }
    fn fence(&self) {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Drop for GrantedPage {
    fn drop(&mut self) {
        if self.grant.end().is_err() {
            // The peer can still write it: it must never become anything else.
            core::mem::forget(self.page.take());
        }
    }
}

/// The places in the foreign window, a bit per page: set = taken.
static FOREIGN: Mutex<[u64; window::FOREIGN_PAGES / 64]> = Mutex::new([0; window::FOREIGN_PAGES / 64]);

/// One page of the foreign window with a peer's page in it (or, before the hypercall, nothing). Unmapped and given back on drop.
#[derive(Debug)]
pub struct Mapping {
    slot: usize,
    handle: Option<u32>,
    device_address: Option<u64>,
    /// The hypervisor did not unmap it.
    lost: bool,
}

impl Mapping {
    fn reserve() -> Option<Self> {
        let mut words = FOREIGN.lock();
        let (index, word) = words.iter_mut().enumerate().find(|(_, w)| **w != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1u64.checked_shl(bit)?;
        let slot = index.wrapping_mul(64).wrapping_add(bit as usize);
        Some(Self { slot, handle: None, device_address: None, lost: false })
    }
    fn gpa(&self) -> u64 {
        window::FOREIGN.wrapping_add((self.slot as u64).wrapping_mul(PAGE_SIZE as u64))
    }
    pub(crate) fn base(&self) -> NonNull<u8> {
        let base = core::ptr::with_exposed_provenance_mut(self.gpa() as usize);
        // The window does not begin at 0.
        NonNull::new(base).unwrap_or(NonNull::dangling())
    }
    pub(crate) const fn device_address(&self) -> Option<u64> {
        self.device_address
    }
}

impl Mapping {
    /// What unmaps it, if it is mapped.
    fn unmap_op(&self) -> Option<UnmapGrantRef> {
        let handle = self.handle?;
        Some(UnmapGrantRef { host_addr: self.gpa(), dev_bus_addr: 0, handle, ..Default::default() })
    }
    /// It was unmapped, or could not be: then its place is not given to anything else.
    fn ended(&mut self, unmapped: bool) {
        self.handle = None;
        self.lost = !unmapped;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(mut op) = self.unmap_op() {
            // SAFETY: I7 – the page that reached through this mapping is gone with it.
            let done = unsafe { hypercall::grant_unmap(core::slice::from_mut(&mut op)) };
            self.ended(done.is_ok() && op.status == nr::status::OKAY);
        }
        if self.lost {
            LEAKED.fetch_add(1, Ordering::Relaxed);
        } else if let Some(word) = FOREIGN.lock().get_mut(self.slot / 64) {
            *word &= !(1u64 << (self.slot % 64));
        }
    }
}

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest {
    /// Whose page.
    pub dom: DomId,
    /// Its reference.
    pub gref: GrantRef,
    /// Our access.
    pub access: Access,
    /// Also for this domain's device (zero-copy DMA).
    pub device: bool,
}

/// Maps one page of another domain.
///
/// # Errors
/// As [`map_many`] and its single result.
pub fn map(dom: DomId, gref: GrantRef, access: Access) -> Result<SharedPage, GrantError> {
    let mut all = map_many(&[MapRequest { dom, gref, access, device: false }])?;
    all.pop().unwrap_or(Err(GrantError::NoRoom))
}

/// Maps many pages, at most 512, in one hypercall; each has its own result, in order.
///
/// # Errors
/// [`GrantError::NoRoom`] in the window, or the call's refusal as a whole; then nothing is mapped.
pub fn map_many(requests: &[MapRequest]) -> Result<Vec<Result<SharedPage, GrantError>>, GrantError> {
    let mut mappings = Vec::with_capacity(requests.len());
    let mut ops = Vec::with_capacity(requests.len());
    for request in requests {
        let mapping = Mapping::reserve().ok_or(GrantError::NoRoom)?;
        let mut flags = nr::GNTMAP_HOST_MAP;
        if request.access == Access::ReadOnly {
            flags |= nr::GNTMAP_READONLY;
        }
        if request.device {
            flags |= nr::GNTMAP_DEVICE_MAP;
        }
        ops.push(MapGrantRef {
            host_addr: mapping.gpa(),
            flags,
            gref: request.gref,
            dom: request.dom,
            ..Default::default()
        });
        mappings.push(mapping);
    }
    // SAFETY: I7 – every address is a place in the foreign window that `reserve` took for this mapping.
    unsafe { hypercall::grant_map(&mut ops) }?;
    let wanted = requests.iter().map(|r| r.device);
    Ok(mappings
        .into_iter()
        .zip(ops)
        .zip(wanted)
        .map(|((mut mapping, op), device)| {
            if op.status != nr::status::OKAY {
                return Err(GrantError::Status(op.status));
            }
            mapping.handle = Some(op.handle);
            mapping.device_address = device.then_some(op.dev_bus_addr);
            Ok(SharedPage::foreign(mapping))
        })
        .collect())
}

/// Gives up pages of other domains, as dropping each does, but with one hypercall, and one flush, for many.
pub fn unmap_many(pages: impl IntoIterator<Item = SharedPage>) {
    let mut mappings: Vec<Mapping> = pages.into_iter().filter_map(SharedPage::into_mapping).collect();
    for chunk in mappings.chunks_mut(CALL_MAX) {
        let mut ops: Vec<UnmapGrantRef> = chunk.iter().filter_map(Mapping::unmap_op).collect();
        // SAFETY: I7 – the pages that reached through these mappings were taken apart.
        let done = unsafe { hypercall::grant_unmap(&mut ops) };
        let mapped = chunk.iter_mut().filter(|mapping| mapping.handle.is_some());
        for (mapping, op) in mapped.zip(&ops) {
            mapping.ended(done.is_ok() && op.status == nr::status::OKAY);
        }
    }
}

/// Performs copies in one hypercall; each operation's `status` tells its own result.
///
/// # Safety
/// I6: local frames among the destinations are shared pages or DMA regions.
///
/// # Errors
/// The hypervisor's, for the call as a whole.
pub unsafe fn copy(ops: &mut [GrantCopy]) -> Result<(), Errno> {
    crate::crash::point();
    if ops.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { hypercall::grant_copy(ops) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_in_use_is_not_revoked_and_a_reference_comes_back_after_it_was() {
        let mut table = Table { frames: Vec::new(), max_frames: Some(2), free: Vec::new(), next: 8 };
        let gref = table.take().expect("room");
        assert_eq!(gref, 8);
        table.permit(gref, DomId(3), 0x1234, Access::ReadOnly);
        let (page, at) = table.entry(gref).expect("entry");
        assert_eq!((page.word(at), page.word(at + 4)), (3 << 16 | 5, 0x1234));
        page.fetch_or64(at, u64::from(nr::GTF_READING));
        assert_eq!(table.revoke(gref), Err(GrantError::Busy(GrantRef(8))));
        let (page, at) = table.entry(gref).expect("entry");
        page.fetch_clear64(at, u64::from(nr::GTF_READING));
        assert_eq!(table.revoke(gref), Ok(()));
        assert_eq!(table.take(), Ok(8));
        for expected in 9..1024 {
            assert_eq!(table.take(), Ok(expected));
        }
        assert_eq!(table.take(), Err(GrantError::TableFull));
    }

    #[test]
    fn places_in_the_window_are_distinct_and_come_back() {
        let a = Mapping::reserve().expect("room");
        let b = Mapping::reserve().expect("room");
        assert_ne!(a.gpa(), b.gpa());
        let place = a.gpa();
        drop(a);
        assert_eq!(Mapping::reserve().expect("room").gpa(), place);
    }
}
