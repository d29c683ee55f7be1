//! The local APICs of PVH guests: their registers by MSR, and what interprocessor interrupts do to other vCPUs. The registers
//! themselves are `hv_core::lapic`.

use crate::context::Context;
use crate::domain::Domain;
use crate::run;
use crate::vcpu::{Vcpu, state};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::SeqCst;
use hv_core::lapic::{Ipi, Message};
use hv_svm::v_intr::V_TPR;

/// APIC ID of a vCPU, as in its CPUID and in the domain's ACPI tables.
pub const fn id(vcpu: u32) -> u32 {
    vcpu * 2
}

/// Reads a register; `None` = #GP.
pub fn read(vcpu: &Vcpu, context: &mut Context, msr: u32) -> Option<u64> {
    let mut lapic = vcpu.lapic.as_ref()?.lock();
    lapic.tpr = ((context.vmcb().control.v_intr & V_TPR) << 4) as u8;
    lapic.read(msr)
}

/// Writes a register; `None` = #GP.
pub fn write(domain: &Arc<Domain>, vcpu: &Vcpu, context: &mut Context, msr: u32, value: u64) -> Option<()> {
    let v_intr = &mut context.vmcb().control.v_intr;
    let result = {
        let mut lapic = vcpu.lapic.as_ref()?.lock();
        lapic.tpr = ((*v_intr & V_TPR) << 4) as u8;
        let result = lapic.write(msr, value);
        *v_intr = *v_intr & !V_TPR | u64::from(lapic.tpr >> 4);
        result
    };
    if let Some(ipi) = result? {
        send(domain, ipi);
    }
    Some(())
}

/// Carries out an interrupt command. INIT matters only to a vCPU that is down already, as one that halts for good is: it then
/// waits for the start-up that follows. NMIs are not there.
fn send(domain: &Arc<Domain>, ipi: Ipi) {
    for vcpu in domain.vcpus.iter().filter(|v| ipi.reaches(id(v.id.0))) {
        match ipi.message {
            Message::Fixed(vector) => {
                if let Some(lapic) = &vcpu.lapic {
                    lapic.lock().request(vector);
                }
                run::wake(vcpu);
            }
            Message::Startup(page) => start_up(domain, vcpu, page),
            Message::Init | Message::Nmi => {}
        }
    }
}

/// Starts a vCPU that is down, in real mode.
fn start_up(domain: &Domain, vcpu: &Arc<Vcpu>, page: u8) {
    let root = domain.p2m.lock().root();
    // Who has the lock runs it, or starts it already.
    let Some(mut context) = vcpu.context.try_lock() else { return };
    if vcpu.state.load(SeqCst) == state::DOWN {
        context.reset_real_mode(domain, root, page);
        drop(context);
        // False: another start-up was quicker.
        let _started = run::up(vcpu);
    }
}
