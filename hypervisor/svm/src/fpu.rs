//! A guest's x87, SSE and debug address registers: the hypervisor uses none of them, so they are switched only when another
//! vCPU comes to a CPU, and then eagerly. Guests see no XSAVE (and so no AVX): 512 bytes are all there is.

use core::arch::asm;

/// FXSAVE image and DR0 to DR3.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct FpuState {
    fx: [u8; 512],
    debug: [u64; 4],
}

impl Default for FpuState {
    /// As after INIT: FCW 037Fh, MXCSR 1F80h, everything else zero.
    fn default() -> Self {
        let mut fx = [0; 512];
        fx[0] = 0x7f;
        fx[1] = 0x03;
        fx[24] = 0x80;
        fx[25] = 0x1f;
        Self { fx, debug: [0; 4] }
    }
}

impl FpuState {
    /// Takes the registers of this CPU.
    ///
    /// # Safety
    /// In ring 0 with CR0.TS and CR0.EM clear and CR4.OSFXSR set.
    pub unsafe fn save(&mut self) {
        // SAFETY: 512 bytes, aligned to 16 by the type.
        unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut self.fx, options(nostack, preserves_flags)) };
        let [d0, d1, d2, d3] = &mut self.debug;
        // SAFETY: reading debug registers in ring 0; DR7 of the host is disabled.
        unsafe {
            asm!(
                "mov {}, dr0",
                "mov {}, dr1",
                "mov {}, dr2",
                "mov {}, dr3",
                out(reg) * d0,
                out(reg) * d1,
                out(reg) * d2,
                out(reg) * d3,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
    /// Puts them on this CPU.
    ///
    /// # Safety
    /// As [`Self::save`]; the CPU's present registers are nobody's any more.
    pub unsafe fn load(&self) {
        // SAFETY: the image was made by FXSAVE or by `default`: no reserved MXCSR bit is set.
        unsafe { asm!("fxrstor64 [{}]", in(reg) &raw const self.fx, options(nostack, preserves_flags)) };
        let [d0, d1, d2, d3] = self.debug;
        // SAFETY: addresses only; what they do is in DR7, which VMRUN switches.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                 in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3, options(nomem, nostack, preserves_flags));
        }
    }
}
