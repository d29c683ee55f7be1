//! The survivor page: the one page of a domain that a restart in place does not clear. The backend records there what it is
//! about to publish (`ring::Survivor`). Written by code that may have been failing: whoever reads it checks it.

use crate::shared_page::SharedPage;

/// The page; `None` where the hypervisor keeps none for this domain, or where it was already taken.
#[must_use]
pub fn page() -> Option<SharedPage> {
    #[cfg(target_os = "none")]
    {
        use core::sync::atomic::{AtomicBool, Ordering};
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let gpa = crate::identity::self_info().ok()?.survivor_gpa;
        let sound = gpa != 0 && gpa.is_multiple_of(abi::PAGE_SIZE as u64) && gpa < crate::memory::window::START;
        if !sound || TAKEN.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: I4 – a special page at the end of RAM, which the page allocator does not own.
        Some(unsafe { SharedPage::fixed(gpa) })
    }
    #[cfg(not(target_os = "none"))]
    None
}
