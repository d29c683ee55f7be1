//! `physdev_op`: the end of a level-triggered interrupt.

use super::Caller;
use crate::irq;
use abi::{Errno, physdev};
use hv_core::args::PhysdevOp as Op;

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    let own = caller.domain.id;
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::Eoi(op) => irq::eoi(own, op.irq).map(|()| 0),
        Op::IrqStatusQuery(mut op) => {
            op.flags = if irq::needs_eoi(own, op.irq)? { physdev::IRQSTAT_NEEDS_EOI } else { 0 };
            caller.mem.write(arg, &op).map(|()| 0)
        }
    }
}
