//! `event_channel_op`. The table is `hv_core::evtchn`; delivery is [`crate::events`].

use super::Caller;
use crate::{events, irq};
use abi::evtchn::VIRQ_DOM_EXC;
use abi::{DomId, Errno, EvtchnPort};
use hv_core::args::EventChannelOp as Op;
use hv_core::evtchn::Channel;
use zerocopy::{Immutable, IntoBytes};

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    let own = caller.domain.id;
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::AllocUnbound(mut op) => {
            caller.only_self(op.dom)?;
            op.port = events::table().alloc_unbound(own, caller.resolve(op.remote_dom))?;
            answer(caller, arg, &op, op.port)
        }
        Op::BindInterdomain(mut op) => {
            let remote = caller.resolve(op.remote_dom);
            let (port, notify) = events::table().bind_interdomain(own, remote, op.remote_port)?;
            op.local_port = port;
            let result = answer(caller, arg, &op, port)?;
            events::deliver_to(caller.domain, notify);
            Ok(result)
        }
        Op::BindVirq(mut op) => {
            op.port = events::table().bind_virq(own, op.virq, op.vcpu)?;
            let result = answer(caller, arg, &op, op.port)?;
            // A domain may have stopped before the control domain was ready to hear of it.
            if op.virq == VIRQ_DOM_EXC && caller.domain.is_control() {
                events::tell_control();
            }
            Ok(result)
        }
        Op::BindPirq(mut op) => {
            // Whose line it is comes first: a refusal here has changed nothing.
            irq::needs_eoi(own, op.pirq)?;
            op.port = events::table().bind_pirq(own, op.pirq)?;
            let result = answer(caller, arg, &op, op.port)?;
            irq::bind(own, op.pirq).map(|()| result).inspect_err(|_| {
                let _closed = events::table().close(own, op.port);
            })
        }
        Op::BindIpi(mut op) => {
            op.port = events::table().bind_ipi(own, op.vcpu)?;
            answer(caller, arg, &op, op.port)
        }
        Op::Close(op) => close(caller, op.port),
        Op::Send(op) => {
            let notify = events::table().send(own, op.port)?;
            notify.into_iter().for_each(events::deliver);
            Ok(0)
        }
        Op::Status(op) => {
            let domain = caller.self_or_control(op.dom)?;
            let status = events::table().status(domain.id, op.port)?;
            caller.mem.write(arg, &abi::evtchn::Status { dom: op.dom, ..status })?;
            Ok(0)
        }
        Op::BindVcpu(op) => {
            events::table().bind_vcpu(own, op.port, op.vcpu)?;
            Ok(0)
        }
        Op::Unmask(op) => {
            let owed = events::table().owed(own, op.port)?;
            events::unmask(caller.domain, owed);
            Ok(0)
        }
    }
}

fn close(caller: &Caller<'_>, port: EvtchnPort) -> Result<i64, Errno> {
    let was = events::table().close(caller.domain.id, port)?;
    if let Channel::Pirq(pirq) = was {
        irq::unbind(caller.domain.id, pirq);
    }
    events::clear_pending(caller.domain, port);
    Ok(0)
}

/// Tells the caller its new port; where that cannot be written, the port is closed again.
fn answer(caller: &Caller<'_>, arg: u64, op: &(impl IntoBytes + Immutable), port: EvtchnPort) -> Result<i64, Errno> {
    // A new port's number may have been used before: what is pending there is none of its business.
    events::clear_pending(caller.domain, port);
    caller.mem.write(arg, op).map(|()| 0).inspect_err(|_| {
        let dom: DomId = caller.domain.id;
        let _closed = events::table().close(dom, port);
    })
}
