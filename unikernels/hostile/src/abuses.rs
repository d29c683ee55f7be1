//! Offences that are answered: invalid numbers, pointers, counts, ports, grants, places, and powers that are not ours.
//!
//! Each is one hypercall whose documented answer stands beside it (`docs/xen-interfaces.md`); nothing may have changed after
//! it, which the next ones and the neighbour show.

use crate::report::Report;
use abi::grant::{self, CopyPtr, GrantCopy, MapGrantRef, UnmapGrantRef, status};
use abi::hypercall::{self as nr, MulticallEntry};
use abi::physdev;
use abi::{
    DomId, Errno, EvtchnPort, GrantRef, PAGE_SIZE, console, evtchn, hvm, memory, sched, vcpu as vcpu_op, xenolith,
};
use alloc::vec::Vec;
use libxenrt::config::config;
use libxenrt::hypercall::{self, Result};
use libxenrt::{identity, log};

/// Addresses no structure lies at: null page, no memory, unmapped, not canonical, the hypervisor's, the end of everything.
const WILD: [u64; 6] = [0, 0x7000_0000, 0x7f00_0000_0000, 0xdead_beef_dead_beef, 0xffff_8000_0010_0000, u64::MAX - 3];

fn raw(op: u64, args: [u64; 5]) -> Result {
    // SAFETY: every pointer passed here is one the hypervisor must refuse, or comes from `with`.
    unsafe { hypercall::raw(op, args) }
}

fn with<T>(op: u64, cmd: u64, arg: &mut T) -> Result {
    raw(op, [cmd, core::ptr::from_mut(arg).expose_provenance() as u64, 1, 0, 0])
}

/// A domain that is not this one.
fn other() -> DomId {
    if identity::domid() == Some(DomId(1)) { DomId(2) } else { DomId(1) }
}

/// Unknown hypercalls and commands.
pub fn numbers(r: &mut Report) {
    for number in [0, 1, 63, 127] {
        r.errno("hypercall", Errno::ENOSYS, raw(number, [0; 5]));
    }
    for number in [0, 1 << 32, u64::MAX] {
        let mut entry = MulticallEntry { op: number, ..Default::default() };
        let called = raw(nr::MULTICALL, [core::ptr::from_mut(&mut entry).expose_provenance() as u64, 1, 0, 0, 0]);
        let result = called.and_then(|_| Errno::from_return(entry.result as i64).map_or(Ok(entry.result), Err));
        r.errno("hypercall in a multicall", Errno::ENOSYS, result);
    }
    let with_commands = [
        nr::MEMORY_OP,
        nr::XEN_VERSION,
        nr::CONSOLE_IO,
        nr::GRANT_TABLE_OP,
        nr::VCPU_OP,
        nr::SCHED_OP,
        nr::EVENT_CHANNEL_OP,
        nr::PHYSDEV_OP,
        nr::HVM_OP,
        nr::XENOLITH_OP,
    ];
    for number in with_commands {
        for command in [99, u64::MAX] {
            r.errno("command", Errno::ENOSYS, raw(number, [command, 0, 0, 0, 0]));
        }
    }
}

/// Structures where there is no memory.
pub fn pointers(r: &mut Report) {
    for at in WILD {
        r.errno("event channel", Errno::EFAULT, raw(nr::EVENT_CHANNEL_OP, [evtchn::ALLOC_UNBOUND, at, 0, 0, 0]));
        r.errno("grant list", Errno::EFAULT, raw(nr::GRANT_TABLE_OP, [grant::COPY, at, 2, 0, 0]));
        r.errno("grant list", Errno::EFAULT, raw(nr::GRANT_TABLE_OP, [grant::MAP_GRANT_REF, at, 2, 0, 0]));
        r.errno("physmap", Errno::EFAULT, raw(nr::MEMORY_OP, [memory::ADD_TO_PHYSMAP, at, 0, 0, 0]));
        r.errno("text", Errno::EFAULT, raw(nr::CONSOLE_IO, [console::WRITE, 64, at, 0, 0]));
        r.errno("multicall", Errno::EFAULT, raw(nr::MULTICALL, [at, 1, 0, 0, 0]));
        r.errno("answer", Errno::EFAULT, raw(nr::XENOLITH_OP, [xenolith::INFO, at, 0, 0, 0]));
        r.errno("answer", Errno::EFAULT, raw(nr::XENOLITH_OP, [xenolith::SELF_INFO, at, 0, 0, 0]));
        let mut poll = sched::Poll { ports: at, nr_ports: 2, pad: 0, timeout: 1 };
        r.errno("list of ports", Errno::EFAULT, with(nr::SCHED_OP, sched::POLL, &mut poll));
    }
}

/// Lists without end.
pub fn counts(r: &mut Report) {
    let mut room = [0u64; 8];
    let at = room.as_mut_ptr().expose_provenance() as u64;
    for count in [513, 1 << 32, u64::MAX] {
        r.errno("grant copies", Errno::E2BIG, raw(nr::GRANT_TABLE_OP, [grant::COPY, at, count, 0, 0]));
        r.errno("grant maps", Errno::E2BIG, raw(nr::GRANT_TABLE_OP, [grant::MAP_GRANT_REF, at, count, 0, 0]));
        r.errno("grant unmaps", Errno::E2BIG, raw(nr::GRANT_TABLE_OP, [grant::UNMAP_GRANT_REF, at, count, 0, 0]));
        r.errno("multicall", Errno::E2BIG, raw(nr::MULTICALL, [at, count, 0, 0, 0]));
        let mut op = memory::MemoryReservation { extent_start: at, nr_extents: count, ..Default::default() };
        op.domid = DomId::SELF;
        r.errno("extents", Errno::E2BIG, with(nr::MEMORY_OP, memory::DECREASE_RESERVATION, &mut op));
    }
    r.errno("text", Errno::E2BIG, raw(nr::CONSOLE_IO, [console::WRITE, u64::MAX, at, 0, 0]));
    let mut poll = sched::Poll { ports: at, nr_ports: u32::MAX, pad: 0, timeout: 1 };
    r.errno("ports of a poll", Errno::EINVAL, with(nr::SCHED_OP, sched::POLL, &mut poll));
    let mut setup = grant::SetupTable { dom: DomId::SELF, nr_frames: u32::MAX, frame_list: at, ..Default::default() };
    let called = with(nr::GRANT_TABLE_OP, grant::SETUP_TABLE, &mut setup);
    r.errno("grant table by its frames", Errno::ENOSYS, called);
}

/// Ports that are closed, or someone else's.
pub fn ports(r: &mut Report) {
    for number in [0, 999, 4095, 4096, u32::MAX] {
        for (what, cmd) in [("close", evtchn::CLOSE), ("send", evtchn::SEND), ("unmask", evtchn::UNMASK)] {
            let mut port = evtchn::Port { port: EvtchnPort(number) };
            r.errno(what, Errno::EINVAL, with(nr::EVENT_CHANNEL_OP, cmd, &mut port));
        }
        let mut poll_port = number;
        let ports = core::ptr::from_mut(&mut poll_port).expose_provenance() as u64;
        if number >= evtchn::NR_CHANNELS_2L {
            let mut poll = sched::Poll { ports, nr_ports: 1, pad: 0, timeout: 1 };
            r.errno("poll", Errno::EINVAL, with(nr::SCHED_OP, sched::POLL, &mut poll));
        }
    }
    for remote_port in 1..8 {
        let mut op = evtchn::BindInterdomain {
            remote_dom: other(),
            pad: 0,
            remote_port: EvtchnPort(remote_port),
            local_port: EvtchnPort(0),
        };
        r.errno("bind another's", Errno::EINVAL, with(nr::EVENT_CHANNEL_OP, evtchn::BIND_INTERDOMAIN, &mut op));
    }
    let nobody = DomId(0x7000);
    let mut op =
        evtchn::BindInterdomain { remote_dom: nobody, pad: 0, remote_port: EvtchnPort(1), local_port: EvtchnPort(0) };
    r.errno("bind nobody's", Errno::ESRCH, with(nr::EVENT_CHANNEL_OP, evtchn::BIND_INTERDOMAIN, &mut op));
    for (what, dom, must) in [("for another", other(), Errno::EPERM), ("for nobody", nobody, Errno::ESRCH)] {
        let mut op = evtchn::AllocUnbound { dom, remote_dom: DomId::CONTROL, port: EvtchnPort(0) };
        r.errno(what, must, with(nr::EVENT_CHANNEL_OP, evtchn::ALLOC_UNBOUND, &mut op));
    }
    for (virq, vcpu, must) in [(99, 0, Errno::EINVAL), (evtchn::VIRQ_DEBUG, 7, Errno::ENOENT)] {
        let mut op = evtchn::BindVirq { virq, vcpu, port: EvtchnPort(0) };
        r.errno("VIRQ", must, with(nr::EVENT_CHANNEL_OP, evtchn::BIND_VIRQ, &mut op));
    }
    let mut op = evtchn::BindPirq { pirq: 0x7777, flags: 0, port: EvtchnPort(0) };
    r.errno("PIRQ", Errno::EINVAL, with(nr::EVENT_CHANNEL_OP, evtchn::BIND_PIRQ, &mut op));
    exhaust(r);
}

/// All the ports there are, and one more; then none of them.
fn exhaust(r: &mut Report) {
    let mut last = Ok(0);
    let mut mine = Vec::new();
    while last.is_ok() && mine.len() <= evtchn::NR_CHANNELS_2L as usize {
        let mut op = evtchn::AllocUnbound { dom: DomId::SELF, remote_dom: other(), port: EvtchnPort(0) };
        last = with(nr::EVENT_CHANNEL_OP, evtchn::ALLOC_UNBOUND, &mut op);
        if last.is_ok() {
            mine.push(op.port);
        }
    }
    r.errno("one too many", Errno::ENOSPC, last);
    let refused = mine.iter().filter(|&&port| hypercall::evtchn_close(port).is_err()).count();
    if refused != 0 {
        log::error!("hostile: ports: WRONG, {refused} of {} could not be closed", mine.len());
        r.wrong = r.wrong.saturating_add(1);
    }
}

/// Grants that were never made, at places that are taken.
pub fn grants(r: &mut Report) {
    let window = 0x7000_0000;
    let host = grant::GNTMAP_HOST_MAP;
    let maps = [
        ("map a grant beyond the table", window, host, other(), GrantRef(u32::MAX), status::BAD_GNTREF),
        ("map the store page of another", window, host, other(), grant::RESERVED_XENSTORE, status::GENERAL_ERROR),
        ("map a grant of nobody", window, host, DomId(0x7000), GrantRef(8), status::BAD_DOMAIN),
        ("map at a misaligned place", window + 8, host, other(), GrantRef(8), status::BAD_VIRT_ADDR),
        ("map without a place", window, 0, other(), GrantRef(8), status::GENERAL_ERROR),
        ("map with unknown flags", window, host | 1 << 9, other(), GrantRef(8), status::GENERAL_ERROR),
    ];
    for (what, host_addr, flags, dom, gref, must) in maps {
        let mut op = MapGrantRef { host_addr, flags, gref, dom, ..Default::default() };
        let called = with(nr::GRANT_TABLE_OP, grant::MAP_GRANT_REF, &mut op);
        r.status(what, must, called, op.status);
    }
    for handle in [0x5555, u32::MAX] {
        let mut op = UnmapGrantRef { host_addr: window, handle, ..Default::default() };
        let called = with(nr::GRANT_TABLE_OP, grant::UNMAP_GRANT_REF, &mut op);
        r.status("unmap what is not mapped", status::BAD_HANDLE, called, op.status);
    }
    let own = |offset| CopyPtr { u: 0x100, domid: DomId::SELF, offset, pad: 0 };
    let theirs = CopyPtr { u: 8, domid: other(), offset: 0, pad: 0 };
    let beyond = CopyPtr { u: u64::MAX, domid: DomId::SELF, offset: 0, pad: 0 };
    let copies = [
        ("copy over the end of a page", own(4090), own(0), 100, 0, status::BAD_COPY_ARG),
        ("copy from another's frame", theirs, own(0), 16, 0, status::PERMISSION_DENIED),
        ("copy to another's frame", own(0), theirs, 16, 0, status::PERMISSION_DENIED),
        ("copy from no frame", beyond, own(0), 16, 0, status::BAD_PAGE),
        ("copy to no frame", own(0), beyond, 16, 0, status::BAD_PAGE),
        ("copy by an absurd grant", beyond, own(0), 16, grant::GNTCOPY_SOURCE_GREF, status::BAD_GNTREF),
        ("copy with unknown flags", own(0), own(0), 16, 1 << 9, status::BAD_COPY_ARG),
    ];
    for (what, source, dest, len, flags, must) in copies {
        let mut op = GrantCopy { source, dest, len, flags, ..Default::default() };
        let called = with(nr::GRANT_TABLE_OP, grant::COPY, &mut op);
        r.status(what, must, called, op.status);
    }
}

/// Pages where they do not belong.
pub fn physmap(r: &mut Report) {
    let shared = memory::MAPSPACE_SHARED_INFO;
    let table = memory::MAPSPACE_GRANT_TABLE;
    let far = 0x7000_0000 / PAGE_SIZE as u64;
    let adds = [
        ("beyond all memory", DomId::SELF, shared, 0, u64::MAX, Errno::EINVAL),
        ("a second shared page", DomId::SELF, shared, 1, far, Errno::EINVAL),
        ("a grant table beyond the limit", DomId::SELF, table, 1 << 20, far, Errno::EINVAL),
        ("an absurd grant table", DomId::SELF, table, u64::MAX, far, Errno::EINVAL),
        ("an unknown space", DomId::SELF, 99, 0, far, Errno::EINVAL),
        ("for another", other(), shared, 0, far, Errno::EPERM),
    ];
    for (what, domid, space, idx, gpfn, must) in adds {
        let mut op = memory::AddToPhysmap { domid, size: 0, space, idx, gpfn };
        r.errno(what, must, with(nr::MEMORY_OP, memory::ADD_TO_PHYSMAP, &mut op));
    }
}

/// vCPUs, vectors, parameters and watchdogs that there are not.
pub fn vcpu(r: &mut Report) {
    for id in [7, u64::from(u32::MAX), u64::MAX] {
        r.errno("no such vCPU", Errno::ENOENT, raw(nr::VCPU_OP, [vcpu_op::STOP_PERIODIC_TIMER, id, 0, 0, 0]));
    }
    for (what, mfn, offset) in
        [("info over a page's end", 0x100, 4090), ("info misaligned", 0x100, 1), ("info nowhere", u64::MAX, 0)]
    {
        let mut op = vcpu_op::RegisterVcpuInfo { mfn, offset, rsvd: 0 };
        let at = core::ptr::from_mut(&mut op).expose_provenance() as u64;
        r.errno(what, Errno::EINVAL, raw(nr::VCPU_OP, [vcpu_op::REGISTER_VCPU_INFO, 0, at, 0, 0]));
    }
    let mut op = hvm::EvtchnUpcallVector { vcpu: 0, vector: 3, pad: [0; 3] };
    r.errno("exception as upcall", Errno::ENOSYS, with(nr::HVM_OP, hvm::SET_EVTCHN_UPCALL_VECTOR, &mut op));
    for (what, index, value, must) in [
        ("store page moved", hvm::PARAM_STORE_PFN, 1, Errno::EPERM),
        ("unknown parameter", 9999, 1, Errno::EINVAL),
        ("callback by an exception", hvm::PARAM_CALLBACK_IRQ, hvm::CALLBACK_TYPE_VECTOR << 56 | 3, Errno::EINVAL),
    ] {
        let mut op = hvm::HvmParam { domid: DomId::SELF, pad: 0, index, value };
        r.errno(what, must, with(nr::HVM_OP, hvm::SET_PARAM, &mut op));
    }
    let mut op = sched::Shutdown { reason: 77 };
    r.errno("shutdown without reason", Errno::EINVAL, with(nr::SCHED_OP, sched::SHUTDOWN, &mut op));
    let mut op = sched::Watchdog { id: 9, timeout: 1 };
    r.errno("no such watchdog", Errno::EINVAL, with(nr::SCHED_OP, sched::WATCHDOG, &mut op));
}

/// What only the control domain may.
pub fn control(r: &mut Report) {
    for (what, cmd) in [
        ("restart", xenolith::DOM_RESTART),
        ("pause", xenolith::DOM_PAUSE),
        ("unpause", xenolith::DOM_UNPAUSE),
        ("kill", xenolith::DOM_KILL),
    ] {
        let mut op = xenolith::DomOp { domid: other(), ..Default::default() };
        r.errno(what, Errno::EPERM, with(nr::XENOLITH_OP, cmd, &mut op));
    }
    let mut info = xenolith::DomInfo { domid: other(), ..Default::default() };
    r.errno("information", Errno::EPERM, with(nr::XENOLITH_OP, xenolith::DOM_INFO, &mut info));
    let mut event = xenolith::Event::default();
    r.errno("events", Errno::EPERM, with(nr::XENOLITH_OP, xenolith::NEXT_EVENT, &mut event));
    let mut read = xenolith::ConsoleRead { domid: DomId::XEN, ..Default::default() };
    r.errno("log", Errno::EPERM, with(nr::XENOLITH_OP, xenolith::CONSOLE_READ, &mut read));
    r.errno("power off", Errno::EPERM, raw(nr::XENOLITH_OP, [xenolith::POWEROFF, 0, 0, 0, 0]));
    let mut op = sched::RemoteShutdown { domain_id: other(), pad: 0, reason: sched::SHUTDOWN_CRASH };
    r.errno("remote shutdown", Errno::ENOSYS, with(nr::SCHED_OP, sched::REMOTE_SHUTDOWN, &mut op));
    let mut device = xenolith::DeviceInfo::default();
    r.errno("device", Errno::ENODEV, with(nr::XENOLITH_OP, xenolith::DEVICE_INFO, &mut device));
    let mut pci = xenolith::PciAccess { bdf: 0, offset: 4, width: 2, value: 7, pad: 0 };
    r.errno("configuration of a device", Errno::ENODEV, with(nr::XENOLITH_OP, xenolith::PCI_WRITE, &mut pci));
}

/// Many of them, as fast as it goes; only the last is told.
pub fn spam(r: &mut Report) {
    let calls = config().number("spam-calls").unwrap_or(20_000u32);
    let accepted = (0..calls).filter(|n| {
        let call = match n % 3 {
            0 => raw(nr::XENOLITH_OP, [xenolith::POWEROFF, 0, 0, 0, 0]),
            1 => raw(nr::EVENT_CHANNEL_OP, [u64::from(n | 64), 0, 0, 0, 0]),
            _ => raw(nr::GRANT_TABLE_OP, [grant::COPY, 0, 1, 0, 0]),
        };
        call.is_ok()
    });
    let accepted = accepted.count() as u64;
    log::info!("hostile: spam: {calls} calls made");
    r.errno("all of them", Errno::EPERM, if accepted == 0 { Err(Errno::EPERM) } else { Ok(accepted) });
}

/// Another domain's device, 00:03.0 on GSI 23, and the control domain's serial interrupt.
pub fn device(r: &mut Report) {
    const NIC: u32 = 3 << 3;
    let access = |offset, width, value| xenolith::PciAccess { bdf: NIC, offset, width, value, pad: 0 };
    for (what, offset, width) in [("identity", 0, 4), ("COMMAND", 4, 2), ("a BAR", 0x10, 4), ("nothing", 5, 4)] {
        let mut op = access(offset, width, 0);
        r.errno(what, Errno::EPERM, with(nr::XENOLITH_OP, xenolith::PCI_READ, &mut op));
        let mut op = access(offset, width, 7);
        r.errno(what, Errno::EPERM, with(nr::XENOLITH_OP, xenolith::PCI_WRITE, &mut op));
    }
    for bdf in [0, 0xF8, 0xFFFF, u32::MAX] {
        let mut op = xenolith::PciAccess { bdf, ..access(0x10, 4, 0) };
        r.errno("a function nobody was given", Errno::ENODEV, with(nr::XENOLITH_OP, xenolith::PCI_WRITE, &mut op));
    }
    for irq in [23, 3] {
        let mut bind = evtchn::BindPirq { pirq: irq, flags: 0, port: EvtchnPort(0) };
        r.errno("PIRQ", Errno::EPERM, with(nr::EVENT_CHANNEL_OP, evtchn::BIND_PIRQ, &mut bind));
        let mut eoi = physdev::Eoi { irq };
        r.errno("end of interrupt", Errno::EPERM, with(nr::PHYSDEV_OP, physdev::EOI, &mut eoi));
        let mut query = physdev::IrqStatusQuery { irq, flags: 0 };
        r.errno("interrupt's status", Errno::EPERM, with(nr::PHYSDEV_OP, physdev::IRQ_STATUS_QUERY, &mut query));
    }
}
