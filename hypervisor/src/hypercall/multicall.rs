//! `multicall`: several hypercalls in one world switch. Each entry has its own result; one does not stop the next.

use super::{Call, Caller, dispatch};
use abi::hypercall::{MULTICALL, MulticallEntry};
use abi::{Errno, hypercall};
use core::mem::offset_of;
use hv_core::args::{BATCH_MAX, Batch};

/// What the entries of one multicall may do together, in [`weight`]s: lists of lists must not keep a CPU for long.
const BUDGET: u64 = 4 * BATCH_MAX as u64;

/// How much an entry does: one for itself, and the entries of its own list.
const fn weight(entry: &MulticallEntry) -> u64 {
    let [_, bytes, count, ..] = entry.args;
    let list = match entry.op {
        hypercall::GRANT_TABLE_OP => count,
        hypercall::CONSOLE_IO => bytes / 64,
        hypercall::MEMORY_OP => BATCH_MAX as u64,
        _ => 0,
    };
    list.saturating_add(1)
}

pub fn call(caller: &Caller<'_>, list: u64, count: u64) -> Result<i64, Errno> {
    let count = u32::try_from(count).ok().filter(|&n| n <= BATCH_MAX).ok_or(Errno::E2BIG)?;
    let mut budget = BUDGET;
    for at in (Batch { addr: list, count }).entries(size_of::<MulticallEntry>())? {
        let entry: MulticallEntry = caller.mem.read(at)?;
        let result = if entry.op == MULTICALL {
            Errno::EINVAL.to_return()
        } else if let Some(left) = budget.checked_sub(weight(&entry)) {
            budget = left;
            let [a, b, c, d, e, _] = entry.args;
            dispatch(caller, Call { number: entry.op.min(hypercall::COUNT), args: [a, b, c, d, e] })
        } else {
            Errno::E2BIG.to_return()
        };
        caller.mem.write(at + offset_of!(MulticallEntry, result) as u64, &result)?;
    }
    Ok(0)
}
