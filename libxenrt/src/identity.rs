//! Who this domain is: number, name, generation (how often it was restarted in place), and its special pages.

use crate::hypercall;
use abi::{DomId, hvm, xenolith};
use alloc::string::String;

/// The caller's own identity.
///
/// # Errors
/// ENOSYS on a hypervisor without Xenolith's calls (stock Xen).
pub fn self_info() -> hypercall::Result<xenolith::SelfInfo> {
    let mut info = xenolith::SelfInfo::default();
    hypercall::self_info(&mut info)?;
    Ok(info)
}

/// 0 at the first boot, then the number of restarts in place; 0 where the hypervisor does not say.
#[must_use]
pub fn generation() -> u32 {
    self_info().map_or(0, |info| info.generation)
}

/// The domain's number, where the hypervisor tells it.
#[must_use]
pub fn domid() -> Option<DomId> {
    self_info().ok().map(|info| info.domid)
}

/// The domain's name; empty where the hypervisor does not tell it.
#[must_use]
pub fn name() -> String {
    let Ok(info) = self_info() else { return String::new() };
    let len = info.name.iter().position(|&b| b == 0).unwrap_or(info.name.len());
    String::from_utf8_lossy(info.name.get(..len).unwrap_or_default()).into_owned()
}

/// An HVM parameter of this domain (`HVM_PARAM_*`).
///
/// # Errors
/// The hypervisor's.
pub fn hvm_param(index: u32) -> hypercall::Result {
    let mut op = hvm::HvmParam { domid: DomId::SELF, pad: 0, index, value: 0 };
    hypercall::hvm_get_param(&mut op)?;
    Ok(op.value)
}
