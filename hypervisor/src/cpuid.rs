//! CPUID as guests see it: the processor without what is the hypervisor's (SVM, MONITOR, state that is not switched, power and
//! debug facilities), and Xen's leaves.

use crate::context::{CR4_OSXSAVE, Context};
use crate::domain::Domain;
use crate::vcpu::Vcpu;
use crate::{lapic, time};
use abi::cpuid::{BASE, HVM_DOMID_PRESENT, HVM_VCPU_ID_PRESENT, HYPERCALL_MSR, MAX_LEAF, SIGNATURE};
use abi::version::ABI_VERSION;
use core::arch::x86_64::__cpuid_count;
use hv_svm::{bits, fpu};

/// Leaf 1, ECX: MONITOR, VMX, SMX, EIST, TM2, FMA, PDCM, PCID, DCA, x2APIC, TSC deadline, XSAVE, OSXSAVE, AVX, F16C.
const HIDDEN_1_ECX: u32 = bits(&[3, 5, 6, 7, 8, 12, 15, 17, 18, 21, 24, 26, 27, 28, 29]);
/// Leaf 1, ECX, that the state of [`fpu::COMPONENTS`] is for: FMA, XSAVE, AVX, F16C.
const EXTENDED_1_ECX: u32 = bits(&[12, 26, 28, 29]);
/// Leaf 1, ECX: CR4.OSXSAVE as the guest has it.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7, EBX, for the same state: AVX2.
const EXTENDED_7_EBX: u32 = 1 << 5;
/// Leaf 7, EBX: the MSR is there, whatever the processor has.
const TSC_ADJUST: u32 = 1 << 1;
/// Leaf Dh, 1, EAX that stays: XSAVEOPT, XGETBV with ECX = 1.
const SHOWN_D1_EAX: u32 = bits(&[0, 2]);
/// Leaf 1, EDX: MTRR, ACPI thermal, debug store, HT (one thread per vCPU), TM.
const HIDDEN_1_EDX: u32 = bits(&[12, 21, 22, 28, 29]);
/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
/// Hypervisor present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, EBX that stays: FSGSBASE, BMI1, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, SHA.
const SHOWN_7_EBX: u32 = bits(&[0, 3, 7, 8, 9, 18, 19, 20, 23, 29]);
/// Leaf 8000_0001h, ECX: SVM, extended APIC, OSVW, IBS, XOP, SKINIT, WDT, LWP, FMA4, TCE, node ID, topology, perf counters, MONITORX.
const HIDDEN_X1_ECX: u32 = bits(&[2, 3, 9, 10, 11, 12, 13, 15, 16, 17, 19, 22, 23, 24, 26, 27, 28, 29]);
/// Leaf 8000_0001h, EDX: MTRR, FFXSR, RDTSCP (`TSC_AUX` is the hypervisor's).
const HIDDEN_X1_EDX: u32 = bits(&[12, 25, 27]);
const X1: u32 = 0x8000_0001;

/// EAX, EBX, ECX, EDX of a leaf.
fn leaf(domain: &Domain, vcpu: &Vcpu, context: &mut Context, eax: u32, ecx: u32) -> [u32; 4] {
    if (BASE..BASE + 0x100).contains(&eax) {
        return xen_leaf(domain, vcpu, eax - BASE, ecx);
    }
    let r = __cpuid_count(eax, ecx);
    let id = vcpu.id.0;
    let extended = if fpu::has_xsave() { u32::MAX } else { 0 };
    match eax {
        0 => [r.eax.min(if extended != 0 { 0xd } else { 7 }), r.ebx, r.ecx, r.edx],
        1 => {
            let ebx = (r.ebx & 0xffff) | 1 << 16 | lapic::id(id) << 24;
            let apic = if vcpu.lapic.is_some() { X2APIC } else { 0 };
            let xsave = if context.vmcb().save.cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
            let shown = HYPERVISOR | apic | extended & (r.ecx & EXTENDED_1_ECX | xsave);
            [r.eax, ebx, (r.ecx & !HIDDEN_1_ECX) | shown, r.edx & !HIDDEN_1_EDX]
        }
        7 if ecx == 0 => [0, r.ebx & (SHOWN_7_EBX | extended & EXTENDED_7_EBX) | TSC_ADJUST, 0, 0],
        0xd if extended != 0 => match ecx {
            // The size for what is on now is the guest's: so is XCR0.
            0 => [fpu::COMPONENTS as u32, r.ebx, fpu::AREA_LEN, 0],
            1 => [r.eax & SHOWN_D1_EAX, 0, 0, 0],
            2 => [r.eax, r.ebx, 0, 0],
            _ => [0; 4],
        },
        2..=0xd => [0; 4],
        0x8000_0000 => [r.eax.min(0x8000_0008), r.ebx, r.ecx, r.edx],
        X1 => [r.eax, r.ebx, r.ecx & !HIDDEN_X1_ECX, r.edx & !HIDDEN_X1_EDX],
        // Advanced power management: only the invariant TSC is told.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        // Sizes of addresses; all vCPUs are cores of one package, whose number is in 6 bits of the APIC ID.
        0x8000_0008 => [r.eax, 0, 6 << 12 | (domain.record.vcpus - 1), 0],
        0x8000_0002..=0x8000_0006 => [r.eax, r.ebx, r.ecx, r.edx],
        _ => [0; 4],
    }
}

/// `public/arch-x86/cpuid.h`.
fn xen_leaf(domain: &Domain, vcpu: &Vcpu, leaf: u32, sub: u32) -> [u32; 4] {
    match (leaf, sub) {
        (0, _) => [MAX_LEAF, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]],
        (1, _) => [ABI_VERSION, 0, 0, 0],
        (2, _) => [1, HYPERCALL_MSR, 0, 0],
        // TSC not emulated, mode "default", native frequency. Of mode "never emulate" Linux (6.3 and on) takes the TSC for its clock, which
        // does not tell it that it was paused: its watchdogs then report lockups.
        (3, 0) => [0, 0, time::tsc_khz() as u32, 0],
        (4, _) => [HVM_VCPU_ID_PRESENT | HVM_DOMID_PRESENT, vcpu.id.0, u32::from(domain.id.0), 0],
        _ => [0; 4],
    }
}

/// Answers CPUID.
pub fn emulate(domain: &Domain, vcpu: &Vcpu, context: &mut Context) {
    let eax = context.vmcb().save.rax as u32;
    let ecx = context.regs.rcx as u32;
    let [a, b, c, d] = leaf(domain, vcpu, context, eax, ecx);
    context.vmcb().save.rax = a.into();
    (context.regs.rbx, context.regs.rcx, context.regs.rdx) = (b.into(), c.into(), d.into());
}
