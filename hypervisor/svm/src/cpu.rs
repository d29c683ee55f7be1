//! Whether this CPU can do it, and switching it on.

use crate::fpu;
use core::arch::x86_64::__cpuid;
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

/// `VM_CR`, and its bit that disables SVM.
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
/// `VM_HSAVE_PA`.
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// CPUID 8000_0001h ECX bit 2.
    Svm,
    /// Switched off by the firmware.
    DisabledByFirmware,
    /// CPUID 8000_000Ah EDX bit 0.
    NestedPaging,
}

impl core::fmt::Display for Missing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Svm => {
                "SVM not available: an AMD processor with SVM is needed (QEMU: -cpu EPYC,+svm,+npt or -cpu max)"
            }
            Self::DisabledByFirmware => "SVM not available: the firmware disables it; enable SVM in its setup",
            Self::NestedPaging => {
                "nested paging (NPT) not available: QEMU needs +npt in -cpu, e.g. -cpu EPYC,+svm,+npt"
            }
        })
    }
}

/// Checks for SVM with nested paging; gives the number of address space identifiers.
///
/// # Errors
/// The first thing [`Missing`].
pub fn check() -> Result<u32, Missing> {
    if __cpuid(0x8000_0000).eax < 0x8000_000a || __cpuid(0x8000_0001).ecx & 1 << 2 == 0 {
        return Err(Missing::Svm);
    }
    // SAFETY: VM_CR exists where CPUID says SVM.
    if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
        return Err(Missing::DisabledByFirmware);
    }
    let leaf = __cpuid(0x8000_000a);
    if leaf.edx & 1 == 0 {
        return Err(Missing::NestedPaging);
    }
    Ok(leaf.ebx)
}

/// Switches SVM on, on this CPU, and what guests' extended state needs.
///
/// # Safety
/// [`check`] succeeded; `hsave` is the physical address of a frame that is this CPU's alone for ever.
pub unsafe fn enable(hsave: u64) {
    // SAFETY: SVM is there (contract); the bit changes nothing for code that uses no SVM instruction.
    unsafe { Efer::update(|e| e.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE)) };
    // SAFETY: the frame is ours (contract).
    unsafe { Msr::new(VM_HSAVE_PA).write(hsave) };
    fpu::enable();
}
