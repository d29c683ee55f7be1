//! A guest's x87, SSE, AVX and debug address registers: the hypervisor uses none of them, so they are switched only when another
//! vCPU comes to a CPU, and then eagerly.
//!
//! Where the processor has XSAVE with AVX, guests may use both. XCR0 is the vCPU's own while it is on a CPU; one that has AVX on there is
//! switched by XSAVE and XRSTOR, any other by FXSAVE and FXRSTOR, which is cheaper and covers what it reaches. No upper half of a register
//! stays behind when AVX is on, so nobody finds another's. XSETBV is intercepted, but QEMU before 8.1 does not honour that:
//! so the guest's XCR0 is read back from the processor, and what is not in [`COMPONENTS`] there lasts until the next switch.
//! Further components (AVX-512, protection keys) are not offered. Source: APM 1, 13.5; APM 2, 11.5; XSETBV in APM 4.

use core::arch::{asm, x86_64::__cpuid_count};
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3};

/// XCR0: x87, which is always on.
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// What guests may set in XCR0.
pub const COMPONENTS: u64 = X87 | SSE | AVX;
/// Bytes of an XSAVE area of them all.
pub const AREA_LEN: u32 = 832;

/// XSAVE area of [`COMPONENTS`] in its standard form, XCR0, DR0 to DR3.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct FpuState {
    fx: [u8; 512],
    /// XSTATE_BV (which of the parts hold something), XCOMP_BV, reserved.
    header: [u64; 8],
    ymm: [u8; 256],
    /// As the guest has it, while off a CPU.
    xcr0: u64,
    debug: [u64; 4],
}
abi::assert_layout!(FpuState, 896, header @ 512, ymm @ 576);

impl Default for FpuState {
    /// As after INIT: FCW 037Fh, MXCSR 1F80h, everything else zero.
    fn default() -> Self {
        let mut fx = [0; 512];
        fx[0] = 0x7f;
        fx[1] = 0x03;
        fx[24] = 0x80;
        fx[25] = 0x1f;
        // What FXSAVE puts there is valid, the AVX part is not.
        let header = [X87 | SSE, 0, 0, 0, 0, 0, 0, 0];
        Self { fx, header, ymm: [0; 256], xcr0: X87, debug: [0; 4] }
    }
}

/// Switches XSAVE on, on this CPU, if it has all [`COMPONENTS`] where [`FpuState`] has them (CPUID leaf Dh).
pub fn enable() {
    let (leaf, main, avx) = (__cpuid_count(1, 0), __cpuid_count(0xd, 0), __cpuid_count(0xd, 2));
    let fits = u64::from(main.eax) & COMPONENTS == COMPONENTS && (avx.eax, avx.ebx) == (256, 576);
    if leaf.ecx & 1 << 26 != 0 && fits {
        // SAFETY: the processor has XSAVE; the bit changes nothing for code that does not use it.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::OSXSAVE)) };
    }
}

/// Whether guests may use XSAVE and AVX: [`enable`] found them.
pub fn has_xsave() -> bool {
    Cr4::read().contains(Cr4Flags::OSXSAVE)
}

/// XCR0 of this CPU, which is the guest's between its load and its save; x87 only where there is no XSAVE.
pub fn xcr0() -> u64 {
    if !has_xsave() {
        return X87;
    }
    let (low, _high): (u32, u32);
    // SAFETY: OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack, preserves_flags)) };
    u64::from(low)
}

/// Whether a guest may set XCR0 to this: x87 always, AVX with SSE only, nothing that is not offered.
const fn is_valid(xcr0: u64) -> bool {
    xcr0 & !COMPONENTS == 0 && xcr0 & X87 != 0 && xcr0 & (SSE | AVX) != AVX
}

/// Sets XCR0; false, and nothing done, where a guest that does so gets #GP, and where there is no XSAVE.
pub fn set_xcr0(value: u64) -> bool {
    let can = is_valid(value) && has_xsave();
    if can {
        if xcr0() & AVX != 0 && value & AVX == 0 {
            // SAFETY: AVX is on. What a guest leaves in the upper halves would else be there when another switches AVX on.
            unsafe { asm!("vzeroupper", options(nomem, nostack, preserves_flags)) };
        }
        // SAFETY: OSXSAVE is set, and the value is valid; code that uses no such registers does not notice.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") 0, options(nostack, preserves_flags)) };
    }
    can
}

impl FpuState {
    /// Takes the registers of this CPU.
    ///
    /// # Safety
    /// In ring 0 with CR0.TS and CR0.EM clear and CR4.OSFXSR set.
    pub unsafe fn save(&mut self) {
        let area = &raw mut *self;
        self.xcr0 = xcr0() & COMPONENTS;
        if self.xcr0 & AVX != 0 {
            // SAFETY: AVX and with it SSE are on; 832 bytes as `enable` found, aligned to 64 by the type.
            unsafe {
                asm!("xsave64 [{}]", "vzeroupper", in(reg) area, in("eax") COMPONENTS, in("edx") 0, options(nostack, preserves_flags));
            }
        } else {
            // SAFETY: 512 bytes, aligned by the type.
            unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        }
        self.debug = [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()];
    }
    /// Puts them on this CPU.
    ///
    /// # Safety
    /// As [`Self::save`]; the CPU's present registers are nobody's any more.
    pub unsafe fn load(&self) {
        let area = &raw const *self;
        if xcr0() != self.xcr0 {
            // It was valid when it was read; without XSAVE there is but one.
            let _set = set_xcr0(self.xcr0);
        }
        if self.xcr0 & AVX != 0 {
            // SAFETY: AVX is on; the area was made by XSAVE, or by FXSAVE with the header of `default`: nothing reserved is set.
            unsafe {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") COMPONENTS, in("edx") 0, options(nostack, preserves_flags))
            };
        } else {
            // SAFETY: the image was made by FXSAVE or by `default`: no reserved MXCSR bit is set.
            unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        }
        // Addresses only; what they do is in DR7, which VMRUN switches.
        let [d0, d1, d2, d3] = self.debug;
        Dr0::write(d0);
        Dr1::write(d1);
        Dr2::write(d2);
        Dr3::write(d3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_is_x87_with_sse_with_avx() {
        let valid: Vec<u64> =
            (0..16).chain([u64::MAX, 1 << 9 | COMPONENTS, 1 << 63 | X87]).filter(|&v| is_valid(v)).collect();
        assert_eq!(valid, [X87, X87 | SSE, COMPONENTS]);
    }

    #[test]
    fn a_state_begins_as_after_init() {
        let state = FpuState::default();
        assert_eq!((state.xcr0, state.header), (X87, [3, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!((&state.fx[..2], &state.fx[24..28]), (&[0x7f, 0x03][..], &[0x80, 0x1f, 0, 0][..]));
        assert!(state.fx[32..].iter().chain(&state.ymm).all(|&b| b == 0));
    }
}
