//! `hvm_op`: parameters, the vector that upcalls come by among them.

use super::Caller;
use abi::hvm::{CALLBACK_TYPE_VECTOR, PARAM_CALLBACK_IRQ};
use abi::Errno;
use hv_core::args::HvmOp as Op;

/// Vectors below this are the processor's.
const FIRST_VECTOR: u8 = 0x10;

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::SetParam(p) => {
            caller.only_self(p.domid)?;
            let mut params = caller.domain.hvm_params.lock();
            let slot = params.get_mut(p.index as usize).ok_or(Errno::EINVAL)?;
            // All others are told to the domain, not by it.
            if p.index != PARAM_CALLBACK_IRQ {
                return Err(Errno::EPERM);
            }
            let vector = p.value >> 56 == CALLBACK_TYPE_VECTOR && p.value as u8 >= FIRST_VECTOR;
            if !vector && p.value != 0 {
                return Err(Errno::EINVAL);
            }
            *slot = p.value;
            Ok(0)
        }
        Op::GetParam(mut p) => {
            // The control domain asks for the store's and the console's page and port of the others.
            let domain = caller.self_or_control(p.domid)?;
            p.value = *domain.hvm_params.lock().get(p.index as usize).ok_or(Errno::EINVAL)?;
            caller.mem.write(arg, &p).map(|()| 0)
        }
    }
}
