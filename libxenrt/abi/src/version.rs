//! `xen_version` (`public/version.h`).

/// `XENVER_version`: major << 16 | minor.
pub const VERSION: u64 = 0;
/// `XENVER_extraversion`: 16 bytes.
pub const EXTRAVERSION: u64 = 1;
/// `XENVER_get_features`: `{submap_idx: u32, submap: u32}`.
pub const GET_FEATURES: u64 = 6;
/// The version of the ABI we implement: 4.17.
pub const ABI_VERSION: u32 = 4 << 16 | 17;

/// `XENFEAT_writable_page_tables`.
pub const FEAT_WRITABLE_PAGE_TABLES: u32 = 0;
/// `XENFEAT_auto_translated_physmap`.
pub const FEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// `XENFEAT_supervisor_mode_kernel`.
pub const FEAT_SUPERVISOR_MODE_KERNEL: u32 = 3;
/// `XENFEAT_mmu_pt_update_preserve_ad`.
pub const FEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
/// `XENFEAT_hvm_callback_vector`.
pub const FEAT_HVM_CALLBACK_VECTOR: u32 = 8;
/// `XENFEAT_hvm_safe_pvclock`.
pub const FEAT_HVM_SAFE_PVCLOCK: u32 = 9;
/// `XENFEAT_hvm_pirqs`.
pub const FEAT_HVM_PIRQS: u32 = 10;
