//! MSRs that are intercepted: a few are emulated, reading or writing the others is #GP as on a processor that has none, and
//! touching the hypervisor's own is the end of the domain.

use crate::context::{CR0_PG, Context, EFER_SVME};
use crate::domain::{Domain, writable};
use crate::vcpu::Vcpu;
use crate::{lapic, time};
use abi::cpuid::HYPERCALL_MSR;
use abi::hypercall::{COUNT, STUB_SIZE};
use abi::{PAGE_SHIFT, PAGE_SIZE};
use alloc::sync::Arc;
use hv_core::Gfn;
use hv_core::lapic::{FIRST_MSR, LAST_MSR};

/// What an access leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Emulated.
    Done,
    /// #GP.
    Fault,
    /// No guest may even try.
    Forbidden(u32),
}

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
/// What was added to this vCPU's TSC. Being 0 and staying so it tells Linux that the TSC needs no watching.
const TSC_ADJUST: u32 = 0x3b;
const BIOS_SIGN_ID: u32 = 0x8b;
/// Machine checks: there are no banks to look at, and no error is told.
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
/// Hardware configuration, and its bit that says that the TSC counts with the P0 frequency.
const HWCR: u32 = 0xc001_0015;
const TSC_FREQ_SEL: u64 = 1 << 24;
/// Northbridge configuration, and its bit that opens extended configuration space: there is none to open.
const NB_CFG: u32 = 0xc001_001f;
const CF8_EXT_CFG: u64 = 1 << 46;
/// `VM_CR` to `SVM_LOCK_KEY`: SVM's own.
const SVM: core::ops::RangeInclusive<u32> = 0xc001_0114..=0xc001_0118;

/// SCE, LME, NXE: what a guest may change.
const EFER_WRITABLE: u64 = 1 | 1 << 8 | 1 << 11;
const EFER_LME: u64 = 1 << 8;
/// Boot processor.
const APIC_BSP: u64 = 1 << 8;
/// Enabled at its usual place, in x2APIC mode. Without: there is none, nothing is mapped there.
const APIC_X2: u64 = 3 << 10;
const APIC_ADDR: u64 = 0xfee0_0000;

/// Emulates RDMSR, or WRMSR if `write`.
pub fn emulate(domain: &Arc<Domain>, vcpu: &Vcpu, context: &mut Context, write: bool) -> Outcome {
    let number = context.regs.rcx as u32;
    if SVM.contains(&number) {
        return Outcome::Forbidden(number);
    }
    if write {
        let value = (context.regs.rdx << 32) | (context.vmcb().save.rax & 0xffff_ffff);
        return write_msr(domain, vcpu, context, number, value);
    }
    let save = &context.vmcb().save;
    let value = match number {
        TSC => Some(time::tsc()),
        APIC_BASE => Some(apic_base(vcpu)),
        TSC_ADJUST | BIOS_SIGN_ID | MCG_CAP | MCG_STATUS | MISC_ENABLE => Some(0),
        HWCR => Some(TSC_FREQ_SEL),
        NB_CFG => Some(CF8_EXT_CFG),
        PAT => Some(save.g_pat),
        EFER => Some(save.efer & !EFER_SVME),
        FIRST_MSR..=LAST_MSR => lapic::read(vcpu, context, number),
        _ => None,
    };
    let Some(value) = value else { return Outcome::Fault };
    context.vmcb().save.rax = value & 0xffff_ffff;
    context.regs.rdx = value >> 32;
    Outcome::Done
}

fn apic_base(vcpu: &Vcpu) -> u64 {
    let mode = if vcpu.lapic.is_some() { APIC_X2 } else { 0 };
    let boot = if vcpu.id.0 == 0 { APIC_BSP } else { 0 };
    APIC_ADDR | mode | boot
}

fn write_msr(domain: &Arc<Domain>, vcpu: &Vcpu, context: &mut Context, number: u32, value: u64) -> Outcome {
    match number {
        HYPERCALL_MSR => return if hypercall_page(domain, value) { Outcome::Done } else { Outcome::Fault },
        PAT => {
            // Types 2 and 3 are reserved (APM 2, 7.8.1).
            if value.to_le_bytes().iter().any(|&t| t > 7 || t == 2 || t == 3) {
                return Outcome::Fault;
            }
            context.vmcb().save.g_pat = value;
        }
        EFER => {
            let save = &mut context.vmcb().save;
            let changed = (save.efer ^ value) & !(1 << 10);
            let may = EFER_WRITABLE | EFER_SVME;
            if changed & !may != 0 || value & EFER_SVME != 0 || (changed & EFER_LME != 0 && save.cr0 & CR0_PG != 0) {
                return Outcome::Fault;
            }
            save.efer = (save.efer & !EFER_WRITABLE) | (value & EFER_WRITABLE);
        }
        APIC_BASE if value == apic_base(vcpu) => {}
        FIRST_MSR..=LAST_MSR if lapic::write(domain, vcpu, context, number, value).is_some() => {}
        // Microcode revision is cleared before it is read.
        BIOS_SIGN_ID => {}
        TSC_ADJUST | MCG_STATUS if value == 0 => {}
        _ => return Outcome::Fault,
    }
    Outcome::Done
}

/// Writes the page of stubs, `mov eax, number; vmmcall; ret` each, at the guest-physical page `addr` (its low bits are the page's
/// index, of which there is one).
fn hypercall_page(domain: &Domain, addr: u64) -> bool {
    let mut page = [0u8; PAGE_SIZE];
    for (number, stub) in (0..COUNT as u32).zip(page.chunks_exact_mut(STUB_SIZE)) {
        let [a, b, c, d] = number.to_le_bytes();
        let code = [0xb8, a, b, c, d, 0x0f, 0x01, 0xd9, 0xc3];
        for (to, from) in stub.iter_mut().zip(code) {
            *to = from;
        }
    }
    if !addr.is_multiple_of(PAGE_SIZE as u64) {
        return false;
    }
    let p2m = domain.p2m.lock();
    let frame = writable(&p2m, Gfn(addr >> PAGE_SHIFT));
    frame.is_some_and(|frame| frame.write(0, &page))
}
