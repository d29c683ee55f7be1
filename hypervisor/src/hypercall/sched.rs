//! `sched_op`. Nothing here waits: it is noted what the vCPU waits for, and the run loop does the rest.

use super::Caller;
use crate::lifecycle::{self, Cause};
use crate::vcpu::Wait;
use crate::{deadlines, events, run, time};
use abi::sched::{
    POLL_MAX_PORTS, Poll, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SOFT_RESET, SHUTDOWN_SUSPEND, SHUTDOWN_WATCHDOG,
};
use abi::shared::vcpu_info;
use abi::xenolith::cause;
use abi::{Errno, EvtchnPort, evtchn};
use core::sync::atomic::Ordering::SeqCst;
use hv_core::args::SchedOp as Op;
use zerocopy::IntoBytes;

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::Yield => {
            caller.vcpu.yields.store(true, SeqCst);
            Ok(0)
        }
        Op::Block => {
            if let Some(mask) = caller.vcpu.info(caller.domain).as_ref().and_then(|i| i.byte(vcpu_info::EVTCHN_UPCALL_MASK)) {
                mask.store(0, SeqCst);
            }
            run::wait(caller.vcpu, Wait::Upcall);
            Ok(0)
        }
        Op::Poll(op) => poll(caller, &op),
        Op::Shutdown(op) => {
            let info = [caller.rip, 0, 0, 0];
            lifecycle::stop(caller.domain, Cause { cause: cause_of(op.reason)?, info });
            Ok(0)
        }
        Op::Watchdog(op) => {
            let id = caller.domain.watchdogs.lock().set(op.id, op.timeout, time::now_ns())?;
            if let Some(first) = caller.domain.vcpu(0) {
                deadlines::watchdog_changed(first);
                run::kick(first.cpu.load(SeqCst));
            }
            Ok(id.into())
        }
    }
}

/// The cause that a shutdown for `SHUTDOWN_*` is.
fn cause_of(reason: u32) -> Result<u32, Errno> {
    match reason {
        SHUTDOWN_POWEROFF => Ok(cause::POWEROFF),
        SHUTDOWN_REBOOT => Ok(cause::REBOOT),
        // Not carried out. Linux stops at a BUG where it is refused, and asks for it when it has crashed with a crash kernel loaded.
        SHUTDOWN_CRASH | SHUTDOWN_SOFT_RESET => Ok(cause::CRASH),
        SHUTDOWN_WATCHDOG => Ok(cause::WATCHDOG),
        SHUTDOWN_SUSPEND => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

fn poll(caller: &Caller<'_>, op: &Poll) -> Result<i64, Errno> {
    if op.nr_ports > POLL_MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let mut ports: heapless::Vec<_, _> = core::iter::repeat_n(EvtchnPort(0), op.nr_ports as usize).collect();
    caller.mem.read_bytes(op.ports, ports.as_mut_bytes())?;
    if ports.iter().any(|port| port.0 >= evtchn::NR_CHANNELS_2L) {
        return Err(Errno::EINVAL);
    }
    if !ports.iter().any(|&port| events::pending(caller.domain, port)) {
        run::wait(caller.vcpu, Wait::Poll { ports, deadline_ns: op.timeout });
    }
    Ok(0)
}
