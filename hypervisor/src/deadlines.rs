//! The deadlines of a CPU's vCPUs (timer, poll, watchdog) and the one hardware timer that serves them.
//!
//! A vCPU's deadlines are in the queue of the CPU it belongs to; only that vCPU's own CPU changes them, or who moves it to
//! another while it is queued. The hardware timer is set again only for an earlier deadline: one that fires too early costs one
//! look at the queue, setting it for each feed of a watchdog would cost more.

use crate::domain::{self, Domain};
use crate::lifecycle::{self, Cause};
use crate::percpu::{self, PerCpu};
use crate::vcpu::Vcpu;
use crate::{apic, console, irq, run, time};
use abi::xenolith::cause;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use hv_core::timer::Kind;

const KINDS: [Kind; 3] = [Kind::Timer, Kind::Poll, Kind::Watchdog];

/// Sets or clears (`None`) a deadline, system time in ns.
pub fn set(vcpu: &Vcpu, kind: Kind, at_ns: Option<u64>) {
    if let Some(cpu) = percpu::get(vcpu.cpu.load(SeqCst)) {
        cpu.deadlines.lock().set(vcpu.key, kind, at_ns);
    }
}
/// Clears all of a vCPU's.
pub fn clear(vcpu: &Vcpu) {
    if let Some(cpu) = percpu::get(vcpu.cpu.load(SeqCst)) {
        cpu.deadlines.lock().clear(vcpu.key);
    }
}
/// Moves a queued vCPU and its deadlines to CPU `to`.
pub fn migrate(vcpu: &Vcpu, from: u32, to: &PerCpu) {
    if let Some(from) = percpu::get(from) {
        let mut queue = from.deadlines.lock();
        let old = KINDS.map(|kind| queue.get(vcpu.key, kind));
        queue.clear(vcpu.key);
        drop(queue);
        let mut queue = to.deadlines.lock();
        for (kind, at) in KINDS.into_iter().zip(old) {
            queue.set(vcpu.key, kind, at);
        }
    }
    vcpu.cpu.store(to.id, SeqCst);
}

/// The vCPU may run (queued or running), or does not: its fine watchdog counts that time only.
pub fn set_busy(vcpu: &Vcpu, busy: bool) {
    vcpu.watchdog.lock().set_busy(busy, time::now_ns());
    watchdog_changed(vcpu);
}
/// A watchdog of the vCPU or its domain was armed, fed or ended.
pub fn watchdog_changed(vcpu: &Vcpu) {
    let fine = vcpu.watchdog.lock().deadline_ns();
    let coarse = vcpu.domain.upgrade().filter(|_| vcpu.id.0 == 0).and_then(|d| d.watchdogs.lock().next_ns());
    set(vcpu, Kind::Watchdog, fine.into_iter().chain(coarse).min());
}
/// A deadline passed: the domain is stopped if it was the last, and not fed on another CPU meanwhile.
pub fn watchdog_passed(domain: &Arc<Domain>, vcpu: &Vcpu) {
    let now = time::now_ns();
    let fine = vcpu.watchdog.lock().expire(now);
    let coarse = domain.watchdogs.lock().next_ns().is_some_and(|at| at <= now);
    if fine || coarse {
        let rip = vcpu.last_rip.load(Relaxed);
        lifecycle::stop(domain, Cause { cause: cause::WATCHDOG, info: [rip, 0, 0, 0] });
    } else {
        watchdog_changed(vcpu);
    }
}

/// Serves the deadlines of this CPU that have passed, and those of throttled interrupts.
pub fn expire(cpu: &PerCpu) {
    console::pump();
    if irq::deadline_ns(cpu.id) != u64::MAX {
        irq::tick(time::now_ns());
    }
    loop {
        let next = {
            let mut queue = cpu.deadlines.lock();
            match queue.next_ns() {
                Some(at) if at <= time::now_ns() => queue.expired(at),
                _ => None,
            }
        };
        let Some((key, kind)) = next else { return };
        if let Some(domain) = domain::find(key.dom)
            && let Some(vcpu) = domain.vcpu(key.vcpu.0)
        {
            run::deadline_passed(&domain, vcpu, kind);
        }
    }
}

/// Sees to it that the hardware timer fires at the next deadline, or at `slice_end`, at the latest.
pub fn arm(cpu: &PerCpu, slice_end: Option<u64>) {
    let next = cpu.deadlines.lock().next_ns();
    let others = [irq::deadline_ns(cpu.id), console::due_ns()];
    let at = next.into_iter().chain(slice_end).chain(others).fold(u64::MAX, u64::min);
    if at < cpu.armed_ns.load(Relaxed) {
        let now = time::now_ns();
        cpu.armed_ns.store(at, Relaxed);
        apic::arm_timer(at.saturating_sub(now));
    }
}
/// The hardware timer fired.
pub fn fired(cpu: &PerCpu) {
    cpu.armed_ns.store(u64::MAX, Relaxed);
}
