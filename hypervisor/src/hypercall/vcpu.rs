//! `vcpu_op`: a vCPU's timer, and where its `vcpu_info` and its times are.

use super::Caller;
use crate::domain::{Domain, writable};
use crate::vcpu::{Vcpu, state};
use crate::{deadlines, events, mem, time};
use abi::shared::vcpu_info;
use abi::vcpu::{RegisterVcpuInfo, RunstateInfo, SSHOTTMR_FUTURE};
use abi::{Errno, PAGE_SIZE};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::SeqCst;
use hv_core::args::VcpuOp as Op;
use hv_core::frames::Owner;
use hv_core::timer::Kind;
use hv_core::{Gfn, Mfn};

pub fn call(caller: &Caller<'_>, [cmd, id, arg, ..]: [u64; 5]) -> Result<i64, Errno> {
    let id = u32::try_from(id).map_err(|_| Errno::ENOENT)?;
    let vcpu = caller.domain.vcpu(id).ok_or(Errno::ENOENT)?;
    let own = || if vcpu.id == caller.vcpu.id { Ok(()) } else { Err(Errno::EINVAL) };
    match Op::decode(cmd, arg, 1, &caller.mem)? {
        Op::StopPeriodicTimer => Ok(0),
        Op::SetSingleshotTimer(op) => {
            own()?;
            if op.flags & SSHOTTMR_FUTURE != 0 && op.timeout_abs_ns < time::now_ns() {
                return Err(Errno::ETIME);
            }
            deadlines::set(vcpu, Kind::Timer, Some(op.timeout_abs_ns));
            Ok(0)
        }
        Op::StopSingleshotTimer => {
            own()?;
            deadlines::set(vcpu, Kind::Timer, None);
            Ok(0)
        }
        Op::RegisterVcpuInfo(op) => register_info(caller.domain, caller.vcpu, vcpu, &op).map(|()| 0),
        Op::RegisterRunstateArea(op) => {
            let area = places(caller, op.addr, size_of::<RunstateInfo>())?;
            *vcpu.runstate_area.lock() = area;
            vcpu.tell_times(caller.domain);
            Ok(0)
        }
        Op::RegisterTimeArea(op) => {
            if op.addr != 0 {
                // The scale never changes, so this is the only time the copy has to be made.
                let info = vcpu.info(caller.domain).ok_or(Errno::EINVAL)?.bytes();
                let time = info.get(vcpu_info::TIME..).ok_or(Errno::EINVAL)?;
                caller.mem.write_bytes(op.addr, time)?;
            }
            Ok(0)
        }
    }
}

/// Guest-physical addresses of an area's first byte and of its part on the next page, 0 where it has none; `None` for no area.
fn places(caller: &Caller<'_>, addr: u64, len: usize) -> Result<Option<[u64; 2]>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let last = addr.checked_add(len as u64 - 1).ok_or(Errno::EFAULT)?;
    let page = PAGE_SIZE as u64;
    let second = if last / page == addr / page { 0 } else { caller.mem.translate(last / page * page, true)? };
    Ok(Some([caller.mem.translate(addr, true)?, second]))
}

/// Moves a vCPU's `vcpu_info` to a page of its domain, once; the page is pinned there until the domain restarts.
fn register_info(domain: &Domain, caller: &Vcpu, vcpu: &Arc<Vcpu>, op: &RegisterVcpuInfo) -> Result<(), Errno> {
    let offset = op.offset as usize;
    let others = vcpu.id != caller.id && vcpu.state.load(SeqCst) != state::DOWN;
    if offset > PAGE_SIZE - vcpu_info::SIZE || !offset.is_multiple_of(8) || others || vcpu.info_addr.load(SeqCst) != 0 {
        return Err(Errno::EINVAL);
    }
    let p2m = domain.p2m.lock();
    let frame = writable(&p2m, Gfn(op.mfn)).ok_or(Errno::EINVAL)?;
    let old = vcpu.info(domain).map_or([0; vcpu_info::SIZE], |info| info.bytes());
    mem::frames().pin(frame.mfn(), Owner::Domain(domain.id)).map_err(|_| Errno::EINVAL)?;
    let written = frame.write(offset, &old);
    debug_assert!(written, "the structure was checked to lie inside the page");
    let addr = frame.mfn().addr() + offset as u64;
    if vcpu.info_addr.compare_exchange(0, addr, SeqCst, SeqCst).is_err() {
        mem::unpin(frame.mfn());
        return Err(Errno::EINVAL);
    }
    drop(p2m);
    vcpu.write_clock(domain, 0);
    // What came between the copy and the move may be in the old place only: look at everything once.
    events::reselect(domain, vcpu);
    Ok(())
}

/// Lets go of what a domain's vCPUs have registered: it is being restarted, and none of them runs.
pub fn forget_registrations(domain: &Domain) {
    for vcpu in &domain.vcpus {
        let addr = {
            let _nobody_delivers = vcpu.info_use.lock();
            vcpu.info_addr.swap(0, SeqCst)
        };
        if addr != 0 {
            mem::unpin(Mfn::containing(addr));
        }
    }
}
