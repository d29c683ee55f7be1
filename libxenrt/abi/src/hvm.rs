//! HVM operations and parameters (`public/hvm/hvm_op.h`, `public/hvm/params.h`).

use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HVMOP_set_param`.
pub const SET_PARAM: u64 = 0;
/// `HVMOP_get_param`.
pub const GET_PARAM: u64 = 1;
/// `HVMOP_set_evtchn_upcall_vector`.
pub const SET_EVTCHN_UPCALL_VECTOR: u64 = 23;

/// `HVM_PARAM_CALLBACK_IRQ`: bits 63:56 the type (2 = vector), low byte the vector.
pub const PARAM_CALLBACK_IRQ: u32 = 0;
/// `HVM_PARAM_STORE_PFN`.
pub const PARAM_STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`.
pub const PARAM_STORE_EVTCHN: u32 = 2;
/// `HVM_PARAM_CONSOLE_PFN`.
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`.
pub const PARAM_CONSOLE_EVTCHN: u32 = 18;
/// `HVM_NR_PARAMS`: parameters are numbered below this.
pub const NR_PARAMS: u32 = 39;
/// `HVM_PARAM_CALLBACK_TYPE_VECTOR` in bits 63:56.
pub const CALLBACK_TYPE_VECTOR: u64 = 2;

/// `xen_hvm_param`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmParam {
    /// IN.
    pub domid: DomId,
    /// Zero.
    pub pad: u16,
    /// IN.
    pub index: u32,
    /// IN/OUT.
    pub value: u64,
}
crate::assert_layout!(HvmParam, 16, index @ 4, value @ 8);

/// `xen_hvm_evtchn_upcall_vector`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EvtchnUpcallVector {
    /// IN.
    pub vcpu: u32,
    /// IN: 0x10..=0xff.
    pub vector: u8,
    /// Zero.
    pub pad: [u8; 3],
}
crate::assert_layout!(EvtchnUpcallVector, 8);
