//! The virtual machine control block (APM 2, appendix B), its fields by their names there.

/// What is intercepted, by the bit numbers of APM 2, appendix B.
pub mod intercept {
    use crate::bits;

    /// First word, always: INTR, NMI, INIT, RDPMC, CPUID, RSM, INVD, HLT, INVLPGA, I/O map, MSR map, task switch, shutdown.
    pub const FIRST: u32 = bits(&[0, 1, 3, 15, 18, 19, 22, 24, 26, 27, 28, 29, 31]);
    /// Second word: all seven SVM instructions, WBINVD, MONITOR, MWAIT armed or not, XSETBV.
    pub const SECOND: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13]);
    /// Exceptions: #DB and #AC (whose delivery can loop for ever inside the guest), #MC (which is the machine's).
    pub const EXCEPTIONS: u32 = bits(&[1, 17, 18]);
}

/// Bits of [`Control::v_intr`].
pub mod v_intr {
    /// The guest's CR8.
    pub const V_TPR: u64 = 0xf;
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// Whatever the TPR says.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// The guest's IF and TPR mask virtual interrupts only; the host's IF masks physical ones.
    pub const V_INTR_MASKING: u64 = 1 << 24;
    /// The vector of the pending virtual interrupt.
    pub const V_VECTOR: u64 = 0xff << 32;
}

/// An event for EVENTINJ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub u64);

impl Event {
    const VALID: u64 = 1 << 31;
    const ERROR_CODE: u64 = 1 << 11;

    /// #UD.
    pub const INVALID_OPCODE: Self = Self(6 | 3 << 8 | Self::VALID);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self(13 | 3 << 8 | Self::ERROR_CODE | Self::VALID);
    /// #DB or #AC as it was intercepted.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        let base = vector as u64 | 3 << 8 | Self::VALID;
        match error_code {
            Some(code) => Self(base | Self::ERROR_CODE | (code as u64) << 32),
            None => Self(base),
        }
    }
    /// Whether there is one.
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }
}

/// A segment register as the VMCB holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40.
    pub attrib: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// Control area.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// CR reads (low half) and writes.
    pub intercept_cr: u32,
    /// DR reads and writes.
    pub intercept_dr: u32,
    /// Exceptions by vector.
    pub intercept_exceptions: u32,
    /// Instructions and events, [`intercept`].
    pub intercepts: [u32; 2],
    reserved_14: [u8; 0x2c],
    /// Physical address of the I/O permission map.
    pub iopm_base_pa: u64,
    /// Physical address of the MSR permission map.
    pub msrpm_base_pa: u64,
    /// Added to the TSC the guest reads.
    pub tsc_offset: u64,
    /// Address space identifier, never 0.
    pub asid: u32,
    /// 0 nothing, 1 flush everything at VMRUN.
    pub tlb_control: u32,
    /// [`v_intr`].
    pub v_intr: u64,
    /// Bit 0: in an interrupt shadow.
    pub interrupt_shadow: u64,
    /// Why it exited.
    pub exitcode: u64,
    /// More on it.
    pub exitinfo1: u64,
    /// More on it.
    pub exitinfo2: u64,
    /// The event whose delivery the exit interrupted.
    pub exitintinfo: u64,
    /// Bit 0: nested paging.
    pub np_enable: u64,
    reserved_98: [u8; 0x10],
    /// Event to inject.
    pub eventinj: u64,
    /// Nested page table.
    pub n_cr3: u64,
    /// LBR virtualisation.
    pub lbr: u64,
    /// Clean bits; 0 = reload all.
    pub clean: u64,
    reserved_c8: [u8; 0x338],
}

/// State save area.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Save {
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// GDTR.
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR.
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    reserved_a0: [u8; 0x2b],
    /// CPL.
    pub cpl: u8,
    reserved_cc: u32,
    /// EFER.
    pub efer: u64,
    reserved_d8: [u8; 0x70],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    reserved_180: [u8; 0x58],
    /// RSP.
    pub rsp: u64,
    reserved_1e0: [u8; 0x18],
    /// RAX.
    pub rax: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// `KernelGSBase`.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    /// Guest PAT.
    pub g_pat: u64,
    reserved_270: [u8; 0x990],
}

/// A whole VMCB, one frame.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Control area.
    pub control: Control,
    /// State save area.
    pub save: Save,
}

abi::assert_layout!(Segment, 16);
abi::assert_layout!(Control, 0x400, intercepts @ 0x0c, iopm_base_pa @ 0x40, asid @ 0x58, v_intr @ 0x60, exitcode @ 0x70,
    exitintinfo @ 0x88, np_enable @ 0x90, eventinj @ 0xa8, n_cr3 @ 0xb0, clean @ 0xc0);
abi::assert_layout!(Save, 0xc00, gdtr @ 0x60, tr @ 0x90, cpl @ 0xcb, efer @ 0xd0, cr4 @ 0x148, rflags @ 0x170, rip @ 0x178,
    rsp @ 0x1d8, rax @ 0x1f8, star @ 0x200, cr2 @ 0x240, g_pat @ 0x268);
abi::assert_layout!(Vmcb, 4096, save @ 0x400);
