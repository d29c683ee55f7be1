//! Stopping and restarting domains: who stopped, why, what control is told, and the way back to a running domain.
//!
//! A stop contains the domain at once, on whatever CPU it is noticed: its vCPUs enter no guest any more, its device reaches no
//! memory. Everything that takes time waits for the control domain's order.

use crate::domain::{Domain, pause};
use crate::{deadlines, device, events, grants, hypercall, image, iommu, loader, power, run, time};
use abi::shared::{shared_info, time_info};
use abi::xenolith::{self, DomOp, Event, cause};
use abi::bundle::special;
use abi::{Errno, hvm};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use hv_core::lifecycle::EventQueue;
use hv_npt::Rights;
use spin::Mutex;
use zerocopy::IntoBytes;

/// How long vCPUs may take to leave their CPUs: a hypercall in flight ends first.
const STOP_NS: u64 = 200 * time::MS;
/// Guest frames past the end of RAM, up to the end of a nested table.
pub const GUEST_FRAMES: u64 = 1 << 36;

/// Why a domain stops; the numbers go to `xenolith::Event` as `abi::xenolith::cause` lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// `abi::xenolith::cause`.
    pub cause: u32,
    /// As the cause says.
    pub info: [u64; 4],
}

static EVENTS: Mutex<EventQueue> = Mutex::new(EventQueue::new());

/// Stops `domain`: contained at once, control is told. Does nothing to a domain that is stopped or being restarted.
pub fn stop(domain: &Arc<Domain>, why: Cause) {
    // While a restart builds the next instance nothing can happen that is that one's fault.
    let may = |p: u32| (p & (pause::STOPPED | pause::BUILDING) == 0).then_some(p | pause::STOPPED);
    if domain.paused.fetch_update(SeqCst, SeqCst, may).is_err() {
        return;
    }
    domain.state.store(xenolith::state::STOPPED, SeqCst);
    domain.last_cause.store(why.cause, SeqCst);
    kick_all(domain);
    device::contain(domain.id);
    let line = domain.console.lock().last_line();
    let [a, b, c, _] = why.info;
    log::warn!("{} (domain {}) stopped: {} {a:#x} {b:#x} {c:#x}", domain.name, domain.id, cause::name(why.cause));
    let text = iommu::explain(&why.info);
    let text = if why.cause == cause::IOMMU_FAULT {
        log::warn!("{text}");
        text.as_bytes()
    } else {
        &line
    };
    if domain.is_control() {
        // As with Xen's domain 0: its orderly end is the machine's, its death leaves the others without a supervisor.
        if why.cause == cause::POWEROFF {
            power::off(0);
        }
        log::error!("the control domain is gone; the others go on without it");
    }
    let mut event =
        Event { domid: domain.id, cause: why.cause, time_ns: time::now_ns(), info: why.info, ..Event::default() };
    for (to, from) in event.text.iter_mut().zip(text) {
        *to = *from;
    }
    EVENTS.lock().push(event);
    events::tell_control();
}

/// The oldest event not yet fetched.
pub fn next_event() -> Option<Event> {
    EVENTS.lock().pop()
}

fn kick_all(domain: &Domain) {
    for vcpu in domain.vcpus.iter().filter(|v| v.in_guest.load(SeqCst)) {
        run::kick(vcpu.cpu.load(SeqCst));
    }
}

/// `DOM_PAUSE`.
///
/// # Errors
/// `EINVAL` unless it runs.
pub fn pause(domain: &Arc<Domain>) -> Result<(), Errno> {
    domain.paused.compare_exchange(0, pause::ADMIN, SeqCst, SeqCst).map_err(|_| Errno::EINVAL)?;
    domain.state.store(xenolith::state::PAUSED, SeqCst);
    kick_all(domain);
    Ok(())
}

/// `DOM_UNPAUSE`.
///
/// # Errors
/// `EINVAL` unless it is paused.
pub fn unpause(domain: &Arc<Domain>) -> Result<(), Errno> {
    if domain.paused.load(SeqCst) == pause::ADMIN {
        // Before any of them runs: its watchdogs are not to count the time.
        domain.vcpus.iter().for_each(|vcpu| vcpu.write_clock(domain, time_info::GUEST_STOPPED));
    }
    domain.paused.compare_exchange(pause::ADMIN, 0, SeqCst, SeqCst).map_err(|_| Errno::EINVAL)?;
    domain.state.store(xenolith::state::RUNNING, SeqCst);
    for vcpu in &domain.vcpus {
        run::wake(vcpu);
    }
    Ok(())
}

/// `DOM_KILL`: contained, not restarted.
pub fn kill(domain: &Arc<Domain>) {
    let rip = domain.vcpu(0).map_or(0, |v| v.last_rip.load(Relaxed));
    stop(domain, Cause { cause: cause::ADMIN, info: [rip, 0, 0, 0] });
}

/// What every instance finds, the first and those after a restart: its own address space and nothing in it but RAM, an empty
/// `shared_info`, HVM parameters, the ports and grants that wait for the control domain, vCPU 0 at its entry. All vCPUs are down.
///
/// # Errors
/// A message for people.
pub fn prepare(domain: &Arc<Domain>) -> Result<(), &'static str> {
    domain.shared_info.zero();
    let _inside = domain.shared_info.write(shared_info::WC_SEC, time::boot_clock().as_bytes());
    *domain.hvm_params.lock() = [0; hvm::NR_PARAMS as usize];
    let [store, console] = [special::STORE, special::CONSOLE].map(|page| domain.special_gfn(page).0);
    domain.set_params([(hvm::PARAM_STORE_PFN, store), (hvm::PARAM_CONSOLE_PFN, console)]);
    *domain.watchdogs.lock() = hv_core::watchdog::Watchdogs::default();
    events::prepare(domain).map_err(|_| "its port limit leaves no room for the store and console ports")?;
    grants::prepare(domain).map_err(|_| "there is no room for its grant table")?;
    device::attach(domain).map_err(|_| "there is no memory for its device's tables")?;
    let root = domain.p2m.lock().root();
    for vcpu in &domain.vcpus {
        deadlines::clear(vcpu);
        vcpu.reset();
        vcpu.context.lock().reset(domain, root);
        vcpu.write_clock(domain, 0);
    }
    Ok(())
}

/// Gives a domain that has none its memory, filled from the pristine image.
///
/// # Errors
/// A message for people; it has no memory then, unless `Domain::filled` says that there is more to be done.
pub fn make(domain: &Arc<Domain>) -> Result<(), &'static str> {
    if domain.filled.load(SeqCst) == 0 && !loader::give_memory(domain) {
        return Err("there is too little free memory");
    }
    image::restore(domain, false).map_err(|_| "its memory is not filled yet")?;
    prepare(domain).inspect_err(|_| forget(domain))?;
    domain.state.store(xenolith::state::STOPPED, SeqCst);
    Ok(())
}

/// `DOM_CREATE`.
///
/// # Errors
/// `EINVAL` for a domain that has memory, `ENOMEM`, `EAGAIN` after each part of its memory: to be called again.
pub fn create(domain: &Arc<Domain>) -> Result<(), Errno> {
    use xenolith::state::{DESTROYED, RESTARTING};
    domain.state.compare_exchange(DESTROYED, RESTARTING, SeqCst, SeqCst).map_err(|_| Errno::EINVAL)?;
    if let Err(why) = make(domain) {
        domain.state.store(DESTROYED, SeqCst);
        if domain.filled.load(SeqCst) != 0 {
            return Err(Errno::EAGAIN);
        }
        log::warn!("{} (domain {}) cannot be made: {why}", domain.name, domain.id);
        return Err(Errno::ENOMEM);
    }
    enter(domain);
    Ok(())
}

/// `DOM_DESTROY`.
///
/// # Errors
/// `EBUSY` unless it is stopped, `ETIMEDOUT` if a vCPU does not leave its CPU.
pub fn destroy(domain: &Arc<Domain>) -> Result<(), Errno> {
    let stopped = |p: u32| (p & (pause::STOPPED | pause::BUILDING) == pause::STOPPED).then_some(p | pause::BUILDING);
    let paused = domain.paused.fetch_update(SeqCst, SeqCst, stopped).map_err(|_| Errno::EBUSY)?;
    if !run::all_down(domain, STOP_NS) {
        domain.paused.store(paused, SeqCst);
        return Err(Errno::ETIMEDOUT);
    }
    forget(domain);
    domain.state.store(xenolith::state::DESTROYED, SeqCst);
    Ok(())
}

/// Undoes all that a domain is beyond its record: what it holds of others, what others may reach of it, its memory. None of its
/// vCPUs runs.
fn forget(domain: &Domain) {
    device::contain(domain.id);
    domain.vcpus.iter().for_each(|vcpu| deadlines::clear(vcpu));
    grants::take_back_all(domain);
    grants::revoke_all(domain);
    hypercall::forget_registrations(domain);
    events::table().close_all(domain.id);
    loader::take_memory(domain);
}

/// System time at which the first domain was entered; 0 before.
static BOOT_NS: AtomicU64 = AtomicU64::new(0);

/// See [`BOOT_NS`].
pub fn boot_ns() -> u64 {
    BOOT_NS.load(Relaxed)
}

/// Lets a prepared domain run.
pub fn enter(domain: &Domain) {
    // Only the first counts.
    let _ = BOOT_NS.compare_exchange(0, time::now_ns(), Relaxed, Relaxed);
    domain.state.store(xenolith::state::RUNNING, SeqCst);
    domain.paused.store(0, SeqCst);
    if let Some(vcpu) = domain.vcpu(0) {
        run::up(vcpu);
    }
}

/// Undoes what the instance did to its address space: RAM where it was, nothing else.
fn restore_p2m(domain: &Domain) -> Result<(), Errno> {
    let mut replaced = false;
    let mut p2m = domain.p2m.lock();
    let beyond = domain.mem_frames();
    replaced |= p2m.unmap(hv_core::Gfn(beyond), GUEST_FRAMES - beyond).map_err(|_| Errno::ENOMEM)?.replaced;
    *domain.ballooned.lock() = None;
    for &(gfn, mfn, pages) in domain.ram.lock().iter() {
        replaced |= p2m.map(gfn, mfn, pages, Rights::RWX).map_err(|_| Errno::ENOMEM)?.replaced;
    }
    drop(p2m);
    if replaced {
        run::flush_tlb(domain);
    }
    domain.p2m.lock().reclaim();
    Ok(())
}

/// `DOM_RESTART`: restart in place from the pristine image. The answer holds the phases' durations.
///
/// # Errors
/// `EINVAL` for the caller itself, `EBUSY` while a restart runs, `EAGAIN` as in [`create`], `ETIMEDOUT` if a vCPU does not leave its CPU; the domain then stays
/// stopped.
pub fn restart(domain: &Arc<Domain>, caller: &Domain) -> Result<DomOp, Errno> {
    if domain.id == caller.id {
        return Err(Errno::EINVAL);
    }
    let mut op = DomOp { domid: domain.id, ..DomOp::default() };
    let mut clock = time::now_ns();
    let mut phase = || {
        let now = time::now_ns();
        now - core::mem::replace(&mut clock, now)
    };
    if domain.paused.fetch_or(pause::BUILDING, SeqCst) & pause::BUILDING != 0 {
        return Err(Errno::EBUSY);
    }
    if domain.state.swap(xenolith::state::RESTARTING, SeqCst) != xenolith::state::STOPPED {
        domain.last_cause.store(cause::ADMIN, SeqCst);
    }
    let result = restart_phases(domain, &mut op, &mut phase);
    if let Err(e) = result {
        domain.state.store(xenolith::state::STOPPED, SeqCst);
        domain.paused.store(pause::STOPPED, SeqCst);
        return Err(e);
    }
    // Faults of the old instance's DMA are told by now; from here on they would be the new one's.
    iommu::poll();
    domain.generation.fetch_add(1, SeqCst);
    enter(domain);
    op.enter_ns = phase();
    Ok(op)
}

fn restart_phases(domain: &Arc<Domain>, op: &mut DomOp, phase: &mut impl FnMut() -> u64) -> Result<(), Errno> {
    if !run::all_down(domain, STOP_NS) {
        return Err(Errno::ETIMEDOUT);
    }
    op.stop_ns = phase();
    device::contain(domain.id);
    op.device_ns = phase();
    grants::take_back_all(domain);
    grants::revoke_all(domain);
    hypercall::forget_registrations(domain);
    image::renew_pinned(domain)?;
    restore_p2m(domain)?;
    op.unbind_ns = phase();
    image::restore(domain, true)?;
    op.image_ns = phase();
    prepare(domain).map_err(|_| Errno::ENOSPC)
}
