//! The shared-info page: pending and mask bits of event ports, vCPU 0's upcall flags and time. The hypervisor writes it at any
//! moment, so every access is one atomic word; nothing hands out references into it.

use crate::shared_page::SharedPage;
use spin::Once;

static PAGE: Once<SharedPage> = Once::new();

/// The mapped page; `None` before [`map`].
pub(crate) fn page() -> Option<&'static SharedPage> {
    PAGE.get()
}

/// Maps the page at its place above RAM and masks every port: libxenrt polls, so no event may raise an upcall before a
/// handler asks for it.
///
/// # Errors
/// The hypervisor's.
#[cfg(target_os = "none")]
pub(crate) fn map() -> crate::hypercall::Result<()> {
    use abi::{DomId, PAGE_SHIFT, memory, shared::shared_info};
    #[cfg(feature = "bare")]
    if crate::bare::active() {
        let page = crate::bare::shared_info().ok_or(abi::Errno::ENOMEM)?;
        PAGE.call_once(|| page);
        return Ok(());
    }
    let gpa = crate::memory::window::SHARED_INFO;
    crate::hypercall::add_to_physmap(&mut memory::AddToPhysmap {
        domid: DomId::SELF,
        size: 0,
        space: memory::MAPSPACE_SHARED_INFO,
        idx: 0,
        gpfn: gpa >> PAGE_SHIFT,
    })?;
    // SAFETY: I4 – the hypervisor has just put its page there, and the window reserves the address for it.
    let page = PAGE.call_once(|| unsafe { SharedPage::fixed(gpa) });
    for word in 0..64usize {
        page.fetch_or64(shared_info::EVTCHN_MASK.wrapping_add(word.wrapping_mul(8)), u64::MAX);
    }
    Ok(())
}
