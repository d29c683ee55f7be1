//! What an exit means (APM 2, appendix C), and how long the instruction was that caused it.

use crate::Control;

/// Port access of an IOIO exit (EXITINFO1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// Port.
    pub port: u16,
    /// IN, else OUT.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// RIP after the instruction (EXITINFO2).
    pub next_rip: u64,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt is pending.
    Interrupt,
    /// A non-maskable one.
    Nmi,
    /// INIT.
    Init,
    /// An intercepted exception and its error code (meaningful where the vector has one).
    Exception(u8, u32),
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDPMC.
    Rdpmc,
    /// INVD or WBINVD: caches are coherent, so it is only skipped.
    CacheFlush,
    /// XSETBV.
    Xsetbv,
    /// An instruction that does not exist for guests: SVM's, MONITOR, MWAIT, INVLPGA, RSM.
    Forbidden(u64),
    /// IN, OUT.
    Io(Io),
    /// RDMSR, or WRMSR if true.
    Msr(bool),
    /// VMMCALL.
    Vmmcall,
    /// Triple fault.
    Shutdown,
    /// Nested page fault: error code, guest-physical address.
    NestedPageFault {
        /// EXITINFO1.
        error: u64,
        /// EXITINFO2.
        gpa: u64,
    },
    /// VMRUN refused the VMCB: our own mistake, or a state the guest should not have been able to make.
    Invalid,
    /// Anything else.
    Unknown(u64),
}

impl Exit {
    /// Decodes EXITCODE and its companions.
    pub const fn decode(c: &Control) -> Self {
        match c.exitcode {
            code @ 0x40..=0x5f => Self::Exception((code - 0x40) as u8, c.exitinfo1 as u32),
            0x60 => Self::Interrupt,
            0x61 => Self::Nmi,
            0x63 => Self::Init,
            0x6f => Self::Rdpmc,
            0x72 => Self::Cpuid,
            0x76 | 0x89 => Self::CacheFlush,
            0x78 => Self::Hlt,
            0x7b => Self::Io(Io {
                port: (c.exitinfo1 >> 16) as u16,
                input: c.exitinfo1 & 1 != 0,
                string: c.exitinfo1 & 4 != 0,
                width: (c.exitinfo1 >> 4 & 7) as u8,
                next_rip: c.exitinfo2,
            }),
            0x7c => Self::Msr(c.exitinfo1 & 1 != 0),
            0x7f => Self::Shutdown,
            0x81 => Self::Vmmcall,
            0x8d => Self::Xsetbv,
            code @ (0x73 | 0x7a | 0x80 | 0x82..=0x86 | 0x8a..=0x8c) => Self::Forbidden(code),
            0x400 => Self::NestedPageFault { error: c.exitinfo1, gpa: c.exitinfo2 },
            // QEMU stores the -1 as 32 bits.
            u64::MAX | 0xffff_ffff => Self::Invalid,
            code => Self::Unknown(code),
        }
    }
    /// Bytes of the instruction that exited, 0 where RIP stays or EXITINFO2 has the next one.
    pub const fn instruction_len(&self) -> u64 {
        match self {
            Self::Cpuid | Self::Msr(_) | Self::CacheFlush | Self::Rdpmc => 2,
            Self::Hlt => 1,
            Self::Vmmcall | Self::Xsetbv => 3,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(exitcode: u64, exitinfo1: u64, exitinfo2: u64) -> Control {
        let zero = [0u8; size_of::<Control>()];
        // SAFETY: a `Control` is integers only; every bit pattern is one.
        let mut c: Control = unsafe { core::mem::transmute(zero) };
        (c.exitcode, c.exitinfo1, c.exitinfo2) = (exitcode, exitinfo1, exitinfo2);
        c
    }

    #[test]
    fn exits_by_hand() {
        // out dx, al at port 0x3f8: SZ8 (bit 4), A64 (bit 9), port in the high half.
        let io = Io { port: 0x3f8, input: false, string: false, width: 1, next_rip: 0x1001 };
        assert_eq!(Exit::decode(&control(0x7b, 0x03f8_0210, 0x1001)), Exit::Io(io));
        assert_eq!(Exit::decode(&control(0x7c, 1, 0)), Exit::Msr(true));
        assert_eq!(Exit::decode(&control(0x400, 6, 0xfee0_0000)), Exit::NestedPageFault { error: 6, gpa: 0xfee0_0000 });
        assert_eq!(Exit::decode(&control(u64::MAX, 0, 0)), Exit::Invalid);
        assert_eq!(Exit::decode(&control(0xffff_ffff, 0, 0)), Exit::Invalid);
        assert_eq!(Exit::decode(&control(0x402, 0, 0)), Exit::Unknown(0x402));
        assert_eq!(Exit::Vmmcall.instruction_len(), 3);
    }
}
