//! The life of a CPU: pick a vCPU, enter it, handle its exit, again; nothing to run: halt. And what others ask of it: wake, kick,
//! flush. A CPU never waits for another one with a lock held, and what it does wait for (another CPU outside of its guest) needs no
//! lock of that CPU, so two that wait for each other go on.

use crate::context::Context;
use crate::domain::{self, Domain};
use crate::exits::{self, Next};
use crate::lifecycle::{self, Cause};
use crate::percpu::{self, PerCpu};
use crate::vcpu::{Vcpu, Wait, state};
use crate::{apic, deadlines, events, time};
use abi::hvm;
use abi::vcpu::runstate;
use abi::xenolith::cause;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use hv_core::sched::{PutBack, VcpuKey};
use hv_core::timer::Kind;
use hv_svm::v_intr;

/// How long another CPU may take to come out of its guest. The interrupt takes microseconds; beyond this the machine is broken.
const LEAVE_GUEST_NS: u64 = 1000 * time::MS;
/// Interrupts sent in this time.
const KICKS: u64 = 100;

/// An event may concern `vcpu`: if it waits, it becomes runnable; if it is in its guest, it comes out to be told.
pub fn wake(vcpu: &Arc<Vcpu>) {
    if vcpu.state.compare_exchange(state::BLOCKED, state::QUEUED, SeqCst, SeqCst).is_ok() {
        vcpu.account(runstate::RUNNABLE);
        enqueue(vcpu);
    } else if vcpu.in_guest.load(SeqCst) {
        kick(vcpu.cpu.load(SeqCst));
    }
}

/// Starts a vCPU that was down, as its context says.
pub fn up(vcpu: &Arc<Vcpu>) -> bool {
    let was_down = vcpu.state.compare_exchange(state::DOWN, state::QUEUED, SeqCst, SeqCst).is_ok();
    if was_down {
        enqueue(vcpu);
    }
    was_down
}

/// The calling vCPU waits once its present exit has been handled. It runs again when what it waits for is already there.
pub fn wait(vcpu: &Vcpu, wait: Wait) {
    *vcpu.wait.lock() = wait;
}

/// Puts a vCPU that is `QUEUED`, and in no queue yet, where it is to run: on its own CPU, or on an idle one that its mask allows.
fn enqueue(vcpu: &Arc<Vcpu>) {
    let home = vcpu.cpu.load(SeqCst);
    let allowed = |cpu: &&PerCpu| vcpu.cpu_mask >> cpu.id & 1 != 0;
    let mut target = percpu::get(home);
    if !target.is_some_and(|cpu| cpu.idle.load(SeqCst)) {
        target = percpu::all().filter(allowed).find(|cpu| cpu.idle.load(SeqCst)).or(target);
    }
    let Some(target) = target else { return };
    if target.id != home {
        deadlines::migrate(vcpu, home, target);
    }
    deadlines::set_busy(vcpu, true);
    if target.queue.lock().wake(vcpu.key, vcpu.class) {
        kick(target.id);
    }
}

/// CPU `cpu` leaves its guest, or its sleep, and looks at its queue again.
pub fn kick(cpu: u32) {
    let Some(cpu) = percpu::get(cpu) else { return };
    cpu.reschedule.store(true, SeqCst);
    // One in the hypervisor looks at the flag before it goes away.
    if cpu.id != percpu::this().id && cpu.away.load(SeqCst) {
        apic::kick(cpu.apic_id);
    }
}

/// After this no CPU uses a translation of `domain`'s nested tables made before: call it after taking rights away and before
/// the frames are given to anyone else. The caller holds no lock but the domain's p2m:
/// who is in the guest needs that one only when it is out.
pub fn flush_tlb(domain: &Domain) {
    for vcpu in &domain.vcpus {
        vcpu.flush_tlb.store(true, SeqCst);
    }
    for vcpu in &domain.vcpus {
        out_of_guest(vcpu);
    }
}

/// Waits until `vcpu` is outside of its guest; it looks at its flags before it enters again.
///
/// # Panics
/// If another CPU ignores its interrupt for a second.
pub fn out_of_guest(vcpu: &Vcpu) {
    if !vcpu.in_guest.load(SeqCst) {
        return;
    }
    let is_out = || !vcpu.in_guest.load(SeqCst) || !vcpu.flush_tlb.load(SeqCst);
    // More than once: an emulator was read that can lose an interrupt.
    let left = (0..KICKS).any(|_| {
        kick(vcpu.cpu.load(SeqCst));
        time::spin_until(LEAVE_GUEST_NS / KICKS, is_out)
    });
    assert!(left, "CPU {} does not leave its guest", vcpu.cpu.load(SeqCst));
}

/// Takes all vCPUs of a domain that may not run (`Domain::paused`) off their CPUs and down, so that none is picked from a queue any
/// more. The caller holds no lock, and is none of them. False after `timeout_ns`.
#[must_use]
pub fn all_down(domain: &Domain, timeout_ns: u64) -> bool {
    let is_down = |vcpu: &Vcpu| {
        if vcpu.in_guest.load(SeqCst) {
            kick(vcpu.cpu.load(SeqCst));
        }
        let now = vcpu.state.load(SeqCst);
        now != state::RUNNING && vcpu.state.compare_exchange(now, state::DOWN, SeqCst, SeqCst).is_ok()
    };
    // Twice: one that was still in a handler may have started another, which cannot do so in its turn.
    let mut twice = domain.vcpus.iter().chain(&domain.vcpus);
    twice.all(|vcpu| time::spin_until(timeout_ns, || is_down(vcpu)))
}

/// A CPU's life.
pub fn cpu_loop(cpu: &'static PerCpu) -> ! {
    loop {
        deadlines::expire(cpu);
        let picked = cpu.queue.lock().pick(time::now_ns());
        let Some(key) = picked else {
            if !take_from_busy(cpu) {
                idle(cpu);
            }
            continue;
        };
        let domain = domain::find(key.dom);
        let back = match domain.as_ref().and_then(|d| Some((d, d.vcpu(key.vcpu.0)?))) {
            Some((domain, vcpu)) => run_vcpu(cpu, domain, vcpu),
            None => PutBack::Away,
        };
        cpu.queue.lock().put_back(back, time::now_ns());
    }
}

/// Before a CPU sleeps: takes over a vCPU that waits for a busy one. True if there was one.
fn take_from_busy(cpu: &PerCpu) -> bool {
    for other in percpu::all().filter(|other| other.id != cpu.id) {
        let allowed = |key: VcpuKey| find(key).is_some_and(|v| v.cpu_mask >> cpu.id & 1 != 0);
        let taken = other.queue.lock().give_away(allowed);
        if let Some((key, class)) = taken
            && let Some(vcpu) = find(key)
        {
            // In no queue now, and still `QUEUED`: nobody else moves it.
            deadlines::migrate(&vcpu, other.id, cpu);
            // The CPU is this one, and looks at once.
            let _ = cpu.queue.lock().wake(key, class);
            return true;
        }
    }
    false
}

/// Also under a queue's lock: the list of domains is only read while CPUs run.
fn find(key: VcpuKey) -> Option<Arc<Vcpu>> {
    domain::find(key.dom)?.vcpu(key.vcpu.0).cloned()
}

/// Sleeps until an interrupt, unless something came meanwhile.
fn idle(cpu: &PerCpu) {
    cpu.idle.store(true, SeqCst);
    deadlines::arm(cpu, None);
    cpu.away.store(true, SeqCst);
    // Who queues a vCPU here after this look finds `away`, and `idle` or an empty queue's "look at once", and kicks.
    if !cpu.queue.lock().contended() && !cpu.reschedule.swap(false, SeqCst) {
        // STI takes effect after the next instruction: an interrupt that is pending ends the HLT.
        x86_64::instructions::interrupts::enable_and_hlt();
        x86_64::instructions::interrupts::disable();
    }
    cpu.away.store(false, SeqCst);
    cpu.reschedule.store(false, SeqCst);
    cpu.idle.store(false, SeqCst);
}

/// Lets pending physical interrupts in. Their handlers may take any lock but a vCPU's context, the only one that is held here.
pub fn interrupt_window() {
    // SAFETY: ring 0 with a complete IDT; the NOP is where STI takes effect.
    unsafe { core::arch::asm!("sti", "nop", "cli", options(nomem, nostack)) };
}

/// Runs a picked vCPU until it gives its CPU up, and says where it goes.
fn run_vcpu(cpu: &'static PerCpu, domain: &Arc<Domain>, vcpu: &Arc<Vcpu>) -> PutBack {
    // An entry in a queue may be older than a restart, which took the vCPU down and started it elsewhere.
    if vcpu.state.compare_exchange(state::QUEUED, state::RUNNING, SeqCst, SeqCst).is_err() {
        return PutBack::Away;
    }
    let home = vcpu.cpu.load(SeqCst);
    if home != cpu.id {
        deadlines::migrate(vcpu, home, cpu);
    }
    let start = time::now_ns();
    vcpu.account(runstate::RUNNING);
    vcpu.tell_times(domain);
    let left = {
        let mut context = vcpu.context.lock();
        // SAFETY: the hypervisor uses no FPU; what the registers hold was saved when its owner left this CPU.
        unsafe { context.fpu.load() };
        let left = stint(cpu, domain, vcpu, &mut context);
        // SAFETY: as above.
        unsafe { context.fpu.save() };
        left
    };
    domain.counters.cpu_ns.fetch_add(time::now_ns().saturating_sub(start), Relaxed);
    vcpu.account(match left {
        Left::Preempted | Left::SliceOver => runstate::RUNNABLE,
        Left::Waits => runstate::BLOCKED,
        Left::MayNotRun | Left::Down => runstate::OFFLINE,
    });
    match left {
        Left::Preempted => requeue(vcpu, PutBack::Front),
        Left::SliceOver => requeue(vcpu, PutBack::Back),
        Left::Down => {
            deadlines::clear(vcpu);
            vcpu.state.store(state::DOWN, SeqCst);
            if domain.vcpus.iter().all(|v| v.state.load(SeqCst) == state::DOWN) {
                let rip = vcpu.last_rip.load(Relaxed);
                lifecycle::stop(domain, Cause { cause: cause::HALT, info: [rip, 0, 0, 0] });
            }
            PutBack::Away
        }
        Left::Waits | Left::MayNotRun => away(cpu, domain, vcpu),
    }
}

/// Back into the queue, unless it was taken down meanwhile.
fn requeue(vcpu: &Vcpu, to: PutBack) -> PutBack {
    let runs = vcpu.state.compare_exchange(state::RUNNING, state::QUEUED, SeqCst, SeqCst).is_ok();
    if runs { to } else { PutBack::Away }
}

/// Takes a vCPU off its CPU until it is woken, unless what it waits for has come meanwhile (see `vcpu.rs`).
fn away(cpu: &PerCpu, domain: &Domain, vcpu: &Arc<Vcpu>) -> PutBack {
    deadlines::set_busy(vcpu, false);
    if let Wait::Poll { deadline_ns, .. } = &*vcpu.wait.lock() {
        // Not for one that may not run: woken by a deadline that has passed it would come back here at once, and again.
        deadlines::set(vcpu, Kind::Poll, (*deadline_ns != 0 && domain.runnable()).then_some(*deadline_ns));
    }
    // Off the queue's record first: a waker that sees `BLOCKED` queues it, here or elsewhere.
    cpu.queue.lock().put_back(PutBack::Away, time::now_ns());
    let off = vcpu.state.compare_exchange(state::RUNNING, state::BLOCKED, SeqCst, SeqCst).is_ok();
    if off && domain.runnable() && vcpu.wait_over(domain) {
        wake(vcpu);
    }
    PutBack::Away
}

/// Why a vCPU left its CPU.
enum Left {
    /// Something more urgent came.
    Preempted,
    /// Its slice is over, or it yielded.
    SliceOver,
    /// It waits for something.
    Waits,
    /// Its domain is paused or stopped.
    MayNotRun,
    /// It took itself down.
    Down,
}

fn stint(cpu: &'static PerCpu, domain: &Arc<Domain>, vcpu: &Arc<Vcpu>, context: &mut Context) -> Left {
    loop {
        deadlines::expire(cpu);
        if !domain.runnable() {
            return Left::MayNotRun;
        }
        if !vcpu.wait_over(domain) {
            return Left::Waits;
        }
        *vcpu.wait.lock() = Wait::No;
        let (contended, preempted, slice_end) = {
            let queue = cpu.queue.lock();
            (queue.contended(), queue.is_preempted(), queue.slice_end_ns())
        };
        if cpu.reschedule.swap(false, SeqCst) && preempted {
            return Left::Preempted;
        }
        if contended && time::now_ns() >= slice_end {
            return Left::SliceOver;
        }
        deadlines::arm(cpu, contended.then_some(slice_end));
        // Who posts an event after this kicks; what was posted before is seen below. A kick after the look at `reschedule`
        // interrupts the guest at once.
        cpu.away.store(true, SeqCst);
        vcpu.in_guest.store(true, SeqCst);
        offer_interrupt(domain, vcpu, context);
        if cpu.reschedule.load(SeqCst) || !domain.runnable() {
            vcpu.in_guest.store(false, SeqCst);
            cpu.away.store(false, SeqCst);
            continue;
        }
        let flush = vcpu.flush_tlb.swap(false, SeqCst);
        domain.counters.world_switches.fetch_add(1, Relaxed);
        let exit = context.enter(cpu, flush);
        note_delivered(vcpu, context);
        vcpu.in_guest.store(false, SeqCst);
        cpu.away.store(false, SeqCst);
        vcpu.last_rip.store(context.vmcb().save.rip, Relaxed);
        match exits::handle(domain, vcpu, context, exit) {
            Next::Resume => {}
            Next::Yield => return Left::SliceOver,
            Next::Down => return Left::Down,
        }
    }
}

/// Offers the guest an interrupt of its local APIC, or else the upcall, if one is due: the processor delivers it when the guest can take
/// it (an upcall too many tells nothing, and does no harm). Where both are due, the first one's EOI is an exit. Never by EVENTINJ, which
/// QEMU may deliver twice, the second time to a guest that takes none (docs/decisions/0007).
fn offer_interrupt(domain: &Domain, vcpu: &Vcpu, context: &mut Context) {
    let upcall = || upcall_vector(domain).filter(|_| vcpu.upcall_due(domain));
    let c = &mut context.vmcb().control;
    c.v_intr &= !(v_intr::V_IRQ | v_intr::V_IGN_TPR | v_intr::V_VECTOR);
    if let Some(vector) = vcpu.lapic_pending().or_else(upcall) {
        c.v_intr |= v_intr::V_IRQ | v_intr::V_IGN_TPR | u64::from(vector) << v_intr::V_VECTOR.trailing_zeros();
    }
}

/// After an exit: what was offered and is so no more has been delivered. The local APIC takes note, if it was its.
fn note_delivered(vcpu: &Vcpu, context: &mut Context) {
    let v_intr = context.vmcb().control.v_intr;
    let vector = (v_intr & v_intr::V_VECTOR) >> v_intr::V_VECTOR.trailing_zeros();
    if vector != 0 && v_intr & v_intr::V_IRQ == 0 && let Some(lapic) = &vcpu.lapic {
        lapic.lock().take(vector as u8);
    }
}

/// The vector by which the guest wants upcalls, if by any.
fn upcall_vector(domain: &Domain) -> Option<u8> {
    let callback = domain.hvm_params.lock().get(hvm::PARAM_CALLBACK_IRQ as usize).copied()?;
    (callback >> 56 == hvm::CALLBACK_TYPE_VECTOR).then_some(callback as u8).filter(|&v| v >= 16)
}

/// What a deadline of `vcpu` leads to.
pub fn deadline_passed(domain: &Arc<Domain>, vcpu: &Arc<Vcpu>, kind: Kind) {
    match kind {
        Kind::Timer => events::timer_expired(domain, vcpu.id.0),
        Kind::Poll => wake(vcpu),
        Kind::Watchdog => deadlines::watchdog_passed(domain, vcpu),
    }
}
