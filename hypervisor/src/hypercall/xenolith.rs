//! `XENOLITH_OP`: the domain life cycle and logs for the control domain, its own devices and identity for any.

use super::Caller;
use crate::domain::{self, Domain};
use crate::{console, deadlines, device, grants, heap, iommu, lifecycle, mem, power, smp, time};
use abi::xenolith::{self as x, ConsoleRead, DomInfo, DomOp, Info, SelfInfo};
use abi::{DomId, Errno, bundle::special};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use hv_core::args::XenolithOp as Op;

pub fn call(caller: &Caller<'_>, cmd: u64, arg: u64) -> Result<i64, Errno> {
    let op = Op::decode(cmd, arg, 1, &caller.mem)?;
    if op.is_control() && !caller.domain.is_control() {
        return Err(Errno::EPERM);
    }
    let mem = &caller.mem;
    match op {
        Op::Info(to) => mem.write(to, &machine())?,
        Op::DomInfo(op) => mem.write(arg, &about(target(caller, op.domid)?.as_ref()))?,
        Op::Restart(op) => {
            let phases = lifecycle::restart(&other(caller, &op)?, caller.domain)?;
            mem.write(arg, &DomOp { domid: op.domid, ..phases })?;
        }
        Op::Pause(op) => lifecycle::pause(&other(caller, &op)?)?,
        Op::Unpause(op) => lifecycle::unpause(&other(caller, &op)?)?,
        Op::Kill(op) => lifecycle::kill(&other(caller, &op)?),
        Op::Create(op) => lifecycle::create(&other(caller, &op)?)?,
        Op::Destroy(op) => lifecycle::destroy(&other(caller, &op)?)?,
        Op::NextEvent(to) => {
            // Looked at before it is taken, so that a bad pointer loses no event.
            mem.translate(to, true)?;
            mem.write(to, &lifecycle::next_event().ok_or(Errno::ENODATA)?)?;
        }
        Op::ConsoleRead(op) => return console_read(caller, arg, op),
        Op::DeviceInfo(op) => mem.write(arg, &device::info(caller.domain.id, op.index)?)?,
        Op::PciRead(mut op) => {
            op.value = device::config_read(caller.domain.id, &op)?;
            mem.write(arg, &op)?;
        }
        Op::PciWrite(op) => device::config_write(caller.domain.id, &op)?,
        Op::SelfInfo(to) => mem.write(to, &identity(caller.domain))?,
        Op::WatchdogMs(timeout_ms) => {
            caller.vcpu.watchdog.lock().arm(timeout_ms, time::now_ns());
            deadlines::watchdog_changed(caller.vcpu);
        }
        Op::Poweroff(code) => power::off(code as u32),
    }
    Ok(0)
}

fn target(caller: &Caller<'_>, dom: DomId) -> Result<Arc<Domain>, Errno> {
    domain::find(caller.resolve(dom)).ok_or(Errno::ESRCH)
}

/// A domain that is not the caller: none stops or restarts itself.
fn other(caller: &Caller<'_>, op: &DomOp) -> Result<Arc<Domain>, Errno> {
    let target = target(caller, op.domid)?;
    if target.id == caller.domain.id { Err(Errno::EINVAL) } else { Ok(target) }
}

fn machine() -> Info {
    let frames = mem::frames();
    Info {
        version: x::ABI_VERSION,
        cpus: smp::for_guests(0).count_ones(),
        tsc_khz: time::tsc_khz(),
        total_frames: frames.ram_count(),
        free_frames: frames.free_count(),
        heap_used_bytes: heap::used_bytes(),
        domains: domain::all().len() as u32,
        pad: 0,
        boot_ns: lifecycle::boot_ns(),
    }
}

fn about(d: &Domain) -> DomInfo {
    let usage = mem::frames().usage(d.id);
    // What the hypervisor holds for it: page tables, grant table, shared page.
    let held = d.p2m.lock().tables() + iommu::tables(d.id) + d.grant_frames.lock().len() as u64 + 1;
    let c = &d.counters;
    DomInfo {
        domid: d.id,
        pad: 0,
        state: d.state.load(SeqCst),
        name: d.record.name,
        vcpus: d.vcpus.len() as u32,
        restarts: d.generation.load(SeqCst),
        last_cause: d.last_cause.load(SeqCst),
        pad2: 0,
        frames: usage.frames,
        peak_frames: usage.peak + held,
        world_switches: c.world_switches.load(Relaxed),
        hypercalls: c.hypercalls.load(Relaxed),
        events: c.events.load(Relaxed),
        grant_copies: c.grant_copies.load(Relaxed),
        grant_copy_bytes: c.grant_copy_bytes.load(Relaxed),
        grant_maps: grants::table().held(d.id) as u64,
        cpu_ns: c.cpu_ns.load(Relaxed),
    }
}

fn identity(d: &Domain) -> SelfInfo {
    SelfInfo {
        domid: d.id,
        pad: 0,
        generation: d.generation.load(SeqCst),
        survivor_gpa: d.special_gfn(special::SURVIVOR).addr(),
        name: d.record.name,
        flags: d.record.flags,
        pad2: 0,
    }
}

fn console_read(caller: &Caller<'_>, arg: u64, mut op: ConsoleRead) -> Result<i64, Errno> {
    let mut text = [0; 1024];
    let room = text.get_mut(..(op.len as usize).min(1024)).unwrap_or_default();
    let (seq, len) = if op.domid == DomId::XEN {
        console::read_own(op.seq, room)
    } else {
        target(caller, op.domid)?.console.lock().read(op.seq, room)
    };
    caller.mem.write_bytes(op.buffer, text.get(..len).unwrap_or_default())?;
    op.seq = seq;
    op.len = len as u32;
    caller.mem.write(arg, &op).map(|()| 0)
}
