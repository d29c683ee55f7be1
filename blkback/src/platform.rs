//! What the backend needs of the domain it runs in, beside [`backend::Runtime`] and xenstore: frontends' pages, mapped for this CPU and
//! for the disk. libxenrt's wiring implements it with hypercalls, the simulation with a fake hypervisor. All calls return at once.

use ::backend::Runtime;
use abi::{DomId, GrantRef};
use alloc::vec::Vec;
use ring::SharedMem;

/// What to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Whose page.
    pub dom: DomId,
    /// Its reference.
    pub gref: GrantRef,
    /// Neither we nor the device shall write it: a grant for reading is enough.
    pub readonly: bool,
    /// Also for the disk (`GNTMAP_device_map`).
    pub device: bool,
}

/// A mapped page.
#[derive(Debug)]
pub struct Mapped<P> {
    /// For this CPU; unmapped when dropped, or with others by [`Platform::unmap`].
    pub page: P,
    /// Where the disk sees it, if that was asked for; else 0.
    pub device_addr: u64,
}

/// Why a page was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The grant does not permit it (`GNTST_*`).
    Refused(i16),
    /// There is no room for more mappings now.
    NoRoom,
}

/// Grants.
pub trait Platform: Runtime {
    /// A frontend's page.
    type Page: SharedMem;

    /// Maps pages in one hypercall (or as few as its limits allow) and appends a result for each, in order.
    fn map(&mut self, requests: &[MapRequest], results: &mut Vec<Result<Mapped<Self::Page>, MapError>>);

    /// Unmaps pages in one hypercall and leaves `pages` empty. When it returns neither CPU nor disk reaches them.
    fn unmap(&mut self, pages: &mut Vec<Self::Page>);
}
