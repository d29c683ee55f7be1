//! Whether AVX registers stay this domain's own: filled, then looked at after many switches to whoever shares the CPU. Run it
//! in two domains on one CPU at once, each of which would see the other's.

use crate::report::Report;
use libxenrt::{hypercall, identity, log};

/// Times that the registers are filled anew, and yields between two looks at them.
const ROUNDS: u64 = 200;
const YIELDS: u32 = 20;

/// XCR0: x87, SSE, AVX.
const COMPONENTS: u32 = 7;
/// All of YMM0 to YMM15.
type Registers = [[u64; 4]; 16];

#[cfg(target_os = "none")]
mod cpu {
    use super::{COMPONENTS, Registers};
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    /// Whether CPUID tells of XSAVE and AVX, and of an area for both.
    pub fn has_avx() -> bool {
        let bits = 1 << 26 | 1 << 28;
        __cpuid(1).ecx & bits == bits && __cpuid_count(0xd, 0).eax & COMPONENTS == COMPONENTS
    }

    /// Switches AVX on, and says whether CPUID agrees: OSXSAVE, and the size of an area for it.
    pub fn switch_on() -> bool {
        // SAFETY: the processor has XSAVE (`has_avx`); nobody else in this domain uses CR4.OSXSAVE or XCR0.
        unsafe {
            asm!(
                "mov {0}, cr4",
                "or {0}, 1 << 18",
                "mov cr4, {0}",
                "xsetbv",
                out(reg) _,
                in("ecx") 0,
                in("eax") COMPONENTS,
                in("edx") 0
            );
        }
        __cpuid(1).ecx & 1 << 27 != 0 && __cpuid_count(0xd, 0).ebx == 832
    }

    macro_rules! each_register {
        ($before:literal, $after:literal, $memory:expr) => {
            // SAFETY: AVX is on; 16 times 32 bytes from this address on; code for this target uses no such register itself.
            unsafe {
                asm!(
                    concat!("vmovdqu ", $before, "ymm0", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm1", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm2", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm3", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm4", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm5", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm6", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm7", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm8", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm9", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm10", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm11", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm12", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm13", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm14", $after), "add {0}, 32",
                    concat!("vmovdqu ", $before, "ymm15", $after),
                    inout(reg) $memory => _
                );
            }
        };
    }

    pub fn load(from: &Registers) {
        each_register!("", ", [{0}]", from.as_ptr());
    }

    pub fn store() -> Registers {
        let mut to = Registers::default();
        each_register!("[{0}], ", "", to.as_mut_ptr());
        to
    }
}

#[cfg(not(target_os = "none"))]
mod cpu {
    use super::Registers;

    pub fn has_avx() -> bool {
        false
    }
    pub fn switch_on() -> bool {
        false
    }
    pub fn load(_: &Registers) {}
    pub fn store() -> Registers {
        Registers::default()
    }
}

/// AVX on, and its registers through switches.
pub fn avx(r: &mut Report) {
    if !cpu::has_avx() {
        return log::info!("hostile: no AVX is offered");
    }
    r.holds("CPUID tells of what was switched on", cpu::switch_on());
    // Others have used theirs: nothing of it may be here.
    r.holds("upper halves begin empty", cpu::store().iter().all(|&[.., c, d]| c == 0 && d == 0));
    let own = u64::from(identity::domid().map_or(0, |d| d.0)) << 56;
    let mut lost = 0u32;
    for round in 0..ROUNDS {
        let word = |n: usize, part: usize| own | round << 16 | (n as u64) << 8 | part as u64;
        let filled: Registers = core::array::from_fn(|n| core::array::from_fn(|part| word(n, part)));
        cpu::load(&filled);
        for _ in 0..YIELDS {
            let _yielded = hypercall::yield_cpu();
        }
        lost = lost.saturating_add(u32::from(cpu::store() != filled));
    }
    r.holds("registers are kept", lost == 0);
}
