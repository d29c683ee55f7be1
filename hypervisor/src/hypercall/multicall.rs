//! `multicall`: several hypercalls in one world switch. Each entry has its own result; one does not stop the next.

use super::{Call, Caller, dispatch};
use abi::hypercall::{MULTICALL, MulticallEntry};
use abi::{Errno, hypercall};
use core::mem::offset_of;
use hv_core::args::{BATCH_MAX, Batch};

pub fn call(caller: &Caller<'_>, list: u64, count: u64) -> Result<i64, Errno> {
    let count = u32::try_from(count).ok().filter(|&n| n <= BATCH_MAX).ok_or(Errno::E2BIG)?;
    for at in (Batch { addr: list, count }).entries(size_of::<MulticallEntry>())? {
        let entry: MulticallEntry = caller.mem.read(at)?;
        let result = if entry.op == MULTICALL {
            Errno::EINVAL.to_return()
        } else {
            let [a, b, c, d, e, _] = entry.args;
            dispatch(caller, Call { number: entry.op.min(hypercall::COUNT), args: [a, b, c, d, e] })
        };
        caller.mem.write(at + offset_of!(MulticallEntry, result) as u64, &result)?;
    }
    Ok(0)
}
