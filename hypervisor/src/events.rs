//! Event delivery: from what the table of `hv_core` says to bits in shared pages and a wake-up.
//!
//! The order makes no wake-up get lost (see `vcpu.rs`): pending bit, selector, upcall flag, then a look at what the vCPU does.
//! Bits are only ever hints: one that is set though its port has closed meanwhile is a spurious event, which the ABI allows.

use crate::domain::{self, Domain};
use crate::run;
use crate::vcpu::{Vcpu, Wait, state};
use abi::evtchn::{NR_CHANNELS_2L, VIRQ_DOM_EXC, VIRQ_TIMER};
use abi::shared::{shared_info, vcpu_info};
use abi::{DomId, EvtchnPort, hvm};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use hv_core::evtchn::{EvtchnError, EvtchnTable, Notify};
use spin::{Mutex, MutexGuard};

static TABLE: Mutex<EvtchnTable> = Mutex::new(EvtchnTable::new());

/// The ports of all domains.
pub fn table() -> MutexGuard<'static, EvtchnTable> {
    TABLE.lock()
}

/// The word of a bitmap of the shared page that holds `port`, and the port's bit in it.
fn word(domain: &Domain, bitmap: usize, port: EvtchnPort) -> Option<(&AtomicU64, u64)> {
    if port.0 >= NR_CHANNELS_2L {
        return None;
    }
    let word = domain.shared_info.u64_at(bitmap + port.0 as usize / 64 * 8)?;
    Some((word, 1 << (port.0 % 64)))
}

/// Whether a port is pending, masked or not.
pub fn pending(domain: &Domain, port: EvtchnPort) -> bool {
    word(domain, shared_info::EVTCHN_PENDING, port).is_some_and(|(w, bit)| w.load(SeqCst) & bit != 0)
}

/// Clears a port's pending bit: it was closed.
pub fn clear_pending(domain: &Domain, port: EvtchnPort) {
    if let Some((w, bit)) = word(domain, shared_info::EVTCHN_PENDING, port) {
        w.fetch_and(!bit, SeqCst);
    }
}

/// Makes an event known to its domain.
pub fn deliver(notify: Notify) {
    if let Some(domain) = domain::find(notify.dom) {
        deliver_to(&domain, notify);
    }
}

/// As [`deliver`], by who has the domain already.
pub fn deliver_to(domain: &Domain, notify: Notify) {
    let Some((pending, bit)) = word(domain, shared_info::EVTCHN_PENDING, notify.port) else { return };
    if pending.fetch_or(bit, SeqCst) & bit != 0 {
        return;
    }
    domain.counters.events.fetch_add(1, Relaxed);
    let masked = word(domain, shared_info::EVTCHN_MASK, notify.port).is_some_and(|(w, bit)| w.load(SeqCst) & bit != 0);
    if !masked && let Some(vcpu) = domain.vcpu(notify.vcpu) {
        select(domain, vcpu, notify.port);
    }
    for vcpu in &domain.vcpus {
        let polled = vcpu.state.load(SeqCst) == state::BLOCKED
            && matches!(&*vcpu.wait.lock(), Wait::Poll { ports, .. } if ports.contains(&notify.port));
        if polled {
            run::wake(vcpu);
        }
    }
}

/// Marks the word that holds `port` for `vcpu`, raises its upcall flag and wakes it.
fn select(domain: &Domain, vcpu: &Arc<Vcpu>, port: EvtchnPort) {
    let _in_use = vcpu.info_use.lock();
    let Some(info) = vcpu.info(domain) else { return };
    let (Some(sel), Some(upcall)) = (info.pending_sel(), info.byte(vcpu_info::EVTCHN_UPCALL_PENDING)) else { return };
    let bit = 1u64 << (port.0 / 64);
    if sel.fetch_or(bit, SeqCst) & bit == 0 && upcall.swap(1, SeqCst) == 0 {
        run::wake(vcpu);
    }
}

/// `EVTCHNOP_unmask`: clears the mask and delivers what waited behind it.
pub fn unmask(domain: &Domain, notify: Notify) {
    let Some((mask, bit)) = word(domain, shared_info::EVTCHN_MASK, notify.port) else { return };
    let was_masked = mask.fetch_and(!bit, SeqCst) & bit != 0;
    if was_masked
        && pending(domain, notify.port)
        && let Some(vcpu) = domain.vcpu(notify.vcpu)
    {
        select(domain, vcpu, notify.port);
    }
}

/// Looks at all pending words again for a vCPU whose `vcpu_info` has just moved: what was pending before is not lost.
pub fn reselect(domain: &Domain, vcpu: &Arc<Vcpu>) {
    let Some(info) = vcpu.info(domain) else { return };
    if let (Some(sel), Some(upcall)) = (info.pending_sel(), info.byte(vcpu_info::EVTCHN_UPCALL_PENDING)) {
        sel.store(u64::MAX, SeqCst);
        upcall.store(1, SeqCst);
        run::wake(vcpu);
    }
}

/// The single-shot timer of a vCPU has expired.
pub fn timer_expired(domain: &Domain, vcpu: u32) {
    let notify = table().virq(domain.id, VIRQ_TIMER, vcpu);
    notify.into_iter().for_each(|notify| deliver_to(domain, notify));
}

/// The control domain has an event to fetch.
pub fn tell_control() {
    let notify = table().virq(DomId::CONTROL, VIRQ_DOM_EXC, 0);
    notify.into_iter().for_each(deliver);
}

/// An interrupt of a domain's device.
pub fn pirq(dom: DomId, pirq: u32) {
    let notify = table().pirq(dom, pirq);
    notify.into_iter().for_each(deliver);
}

/// A domain comes to be: it has no ports yet.
pub fn add_domain(domain: &Domain) {
    table().add_domain(domain.id, domain.vcpus.len() as u32, domain.record.max_ports);
}

/// Before each first entry of an instance: no port but the two that wait for the control domain, named in the HVM parameters.
/// Its peers' ports have become unbound, reserved for it. The shared page has been cleared by the caller.
///
/// # Errors
/// Where the domain may not even have two ports.
pub fn prepare(domain: &Domain) -> Result<(), EvtchnError> {
    let mut table = TABLE.lock();
    table.close_all(domain.id);
    let store = table.alloc_unbound(domain.id, DomId::CONTROL)?;
    let console = table.alloc_unbound(domain.id, DomId::CONTROL)?;
    drop(table);
    domain.set_params([(hvm::PARAM_STORE_EVTCHN, store.0.into()), (hvm::PARAM_CONSOLE_EVTCHN, console.0.into())]);
    Ok(())
}
