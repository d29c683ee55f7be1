//! `xen_version`: 4.17 with the features Linux asks of a PVH domain's hypervisor.

use super::Caller;
use abi::{Errno, version};
use hv_core::args::{FeatureInfo, XenVersion as Op};

/// `XENVER_extraversion`, NUL-padded.
const EXTRAVERSION: [u8; 16] = *b".0-xenolith\0\0\0\0\0";
/// The first 32 features.
const FEATURES: u32 = 1 << version::FEAT_WRITABLE_PAGE_TABLES
    | 1 << version::FEAT_AUTO_TRANSLATED_PHYSMAP
    | 1 << version::FEAT_HVM_CALLBACK_VECTOR
    | 1 << version::FEAT_HVM_SAFE_PVCLOCK;

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::Version => Ok(version::ABI_VERSION.into()),
        Op::Extraversion(to) => caller.mem.write(to, &EXTRAVERSION).map(|()| 0),
        Op::GetFeatures(info) => {
            let submap = if info.submap_idx == 0 { FEATURES } else { return Err(Errno::EINVAL) };
            caller.mem.write(arg, &FeatureInfo { submap, ..info }).map(|()| 0)
        }
    }
}
