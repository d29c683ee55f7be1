//! The life of a CPU: pick a vCPU, enter it, handle its exit, again; and what others may ask of it: wake, kick, flush.

use crate::domain::Domain;
use crate::percpu;
use crate::vcpu::{Vcpu, Wait, state};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::SeqCst;

/// An event may concern `vcpu`: if it waits, it becomes runnable, and the CPU it belongs to is told.
pub fn wake(vcpu: &Arc<Vcpu>) {
    if vcpu.state.compare_exchange(state::BLOCKED, state::QUEUED, SeqCst, SeqCst).is_ok() {
        kick(vcpu.cpu.load(SeqCst));
    } else if vcpu.in_guest.load(SeqCst) {
        // It runs: a new upcall is looked at on the next entry.
        kick(vcpu.cpu.load(SeqCst));
    }
}

/// The calling vCPU waits once its present exit has been handled. It runs again when what it waits for is already there.
pub fn wait(vcpu: &Vcpu, wait: Wait) {
    *vcpu.wait.lock() = wait;
}

/// CPU `cpu` leaves its guest, or its sleep, and looks at its queue again.
pub fn kick(cpu: u32) {
    if let Some(cpu) = percpu::get(cpu) {
        cpu.reschedule.store(true, SeqCst);
    }
}

/// After this no CPU uses a translation of `domain`'s nested tables made before: call it after taking rights away and before
/// the frames are given to anyone else.
pub fn flush_tlb(domain: &Domain) {
    for vcpu in &domain.vcpus {
        vcpu.flush_tlb.store(true, SeqCst);
        if vcpu.in_guest.load(SeqCst) {
            kick(vcpu.cpu.load(SeqCst));
        }
    }
}
