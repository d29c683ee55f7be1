//! A vCPU's registers: its VMCB, general registers and FPU. Who holds the lock around it is the one CPU that may run it, so a
//! restart, which refills it, waits for nothing else.

use crate::domain::Domain;
use crate::percpu::PerCpu;
use crate::{mem, permissions};
use abi::bundle;
use core::sync::atomic::Ordering::Relaxed;
use hv_core::Mfn;
use hv_svm::fpu::FpuState;
use hv_svm::{Event, Exit, GuestRegs, Segment, Vmcb, intercept, v_intr};

/// EFER.SVME: VMRUN wants it in the VMCB; guests never see it.
pub const EFER_SVME: u64 = 1 << 12;
/// EFER.LME and LMA.
pub const EFER_LONG: u64 = 1 << 8 | 1 << 10;
const EFER_NXE: u64 = 1 << 11;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
/// PG, WP, NE, ET, MP, PE.
const CR0_LONG: u64 = 0x8001_0033;
/// ET, PE.
const CR0_PROTECTED: u64 = 0x11;
/// ET.
const CR0_REAL: u64 = 0x10;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4_LONG: u64 = 0x620;
/// PAT after reset (APM 2, 7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Bit 11 of a segment's attributes here is G, 10 D, 9 L; below, the descriptor's access byte.
const CODE_64: u16 = 0xa9b;
const CODE_32: u16 = 0xc9b;
const DATA: u16 = 0xc93;
const CODE_16: u16 = 0x9b;
const DATA_16: u16 = 0x93;
const TSS_BUSY: u16 = 0x8b;
const LDT: u16 = 0x82;

/// Address space identifier of a vCPU on one CPU; void when that CPU started a new generation.
#[derive(Clone, Copy, Debug, Default)]
struct Asid {
    cpu: u32,
    generation: u64,
    id: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Context {
    vmcb: Mfn,
    /// General registers but RAX and RSP.
    pub regs: GuestRegs,
    /// FPU, SSE, AVX, debug address registers while off a CPU.
    pub fpu: FpuState,
    asid: Asid,
}

impl Context {
    /// A context with a VMCB of its own; `None` without memory.
    pub fn new() -> Option<Self> {
        let vmcb = mem::alloc_zeroed()?;
        Some(Self { vmcb, regs: GuestRegs::default(), fpu: FpuState::default(), asid: Asid::default() })
    }
    /// The VMCB.
    pub fn vmcb(&mut self) -> &mut Vmcb {
        // SAFETY: the frame is this context's alone (invariant 1 of `hv_svm`), whole, and any bytes are a `Vmcb`; the guest
        // does not run while the context is borrowed but by `enter`.
        unsafe { &mut *mem::direct(self.vmcb.addr()).cast() }
    }

    /// Everything zero but what keeps the guest inside of its domain, and the registers that start alike in every mode.
    fn clear(&mut self, domain: &Domain, n_cr3: Mfn) {
        self.asid = Asid::default();
        self.regs = GuestRegs::default();
        self.fpu = FpuState::default();
        // SAFETY: a whole frame that is this context's alone.
        unsafe { mem::zero_bytes(mem::direct(self.vmcb.addr()), abi::PAGE_SIZE) };
        let vmcb = self.vmcb();
        let c = &mut vmcb.control;
        c.intercept_exceptions = intercept::EXCEPTIONS;
        c.intercepts = [intercept::FIRST, intercept::SECOND];
        c.iopm_base_pa = domain.iopm.addr();
        c.msrpm_base_pa = permissions::msrpm().addr();
        c.v_intr = v_intr::V_INTR_MASKING;
        c.np_enable = 1;
        c.n_cr3 = n_cr3.addr();
        let s = &mut vmcb.save;
        s.tr = Segment { selector: 0, attrib: TSS_BUSY, limit: 0x67, base: 0 };
        s.ldtr = Segment { selector: 0, attrib: LDT, limit: 0, base: 0 };
        s.rflags = 2;
        s.dr6 = 0xffff_0ff0;
        s.dr7 = 0x400;
        s.g_pat = PAT_RESET;
        s.efer = EFER_SVME;
    }

    /// In real mode at the first byte of a page, as a start-up interprocessor interrupt leaves a processor.
    pub fn reset_real_mode(&mut self, domain: &Domain, n_cr3: Mfn, page: u8) {
        self.clear(domain, n_cr3);
        let s = &mut self.vmcb().save;
        let real = Segment { selector: 0, attrib: DATA_16, limit: 0xffff, base: 0 };
        let base = u64::from(page) << 12;
        s.cs = Segment { selector: (base >> 4) as u16, attrib: CODE_16, base, ..real };
        for segment in [&mut s.ss, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.gdtr, &mut s.idtr] {
            *segment = real;
        }
        s.cr0 = CR0_REAL;
    }

    /// As at the domain's first entry.
    pub fn reset(&mut self, domain: &Domain, n_cr3: Mfn) {
        self.clear(domain, n_cr3);
        let record = &domain.record;
        let s = &mut self.vmcb().save;
        let long = record.entry_kind == bundle::entry::LONG64;
        let flat = |attrib| Segment { selector: 16, attrib, limit: u32::MAX, base: 0 };
        s.cs = Segment { selector: 8, ..flat(if long { CODE_64 } else { CODE_32 }) };
        for segment in [&mut s.ss, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs] {
            *segment = flat(DATA);
        }
        s.rip = record.rip;
        if long {
            (s.cr0, s.cr3, s.cr4) = (CR0_LONG, record.cr3, CR4_LONG);
            s.efer = EFER_SVME | EFER_LONG | EFER_NXE;
            s.rsp = record.rsp;
            self.regs.rdi = record.rdi;
        } else {
            s.cr0 = CR0_PROTECTED;
            self.regs.rbx = record.rdi;
        }
    }

    /// Whether it runs 64-bit code.
    pub fn is_long(&mut self) -> bool {
        let s = &self.vmcb().save;
        s.efer & EFER_LONG == EFER_LONG && s.cs.attrib & 1 << 9 != 0
    }
    /// Steps over the instruction that exited.
    pub fn advance(&mut self, len: u64) {
        let long = self.is_long();
        let vmcb = self.vmcb();
        let next = vmcb.save.rip.wrapping_add(len);
        vmcb.save.rip = if long { next } else { next & 0xffff_ffff };
        vmcb.control.interrupt_shadow = 0;
    }
    /// Injects an event on the next entry.
    pub fn inject(&mut self, event: Event) {
        self.vmcb().control.eventinj = event.0;
    }
    /// Takes a fresh address space identifier if the CPU changed or `flush` is wanted: old entries of the TLB are then never
    /// used again. Only when a CPU runs out of identifiers is everything flushed.
    fn renew_asid(&mut self, cpu: &PerCpu, flush: bool) {
        let current = self.asid.id != 0 && self.asid.cpu == cpu.id && self.asid.generation == cpu.asid_generation.load(Relaxed);
        if current && !flush {
            self.vmcb().control.tlb_control = 0;
            return;
        }
        let (id, wrapped) = cpu.next_asid();
        self.asid = Asid { cpu: cpu.id, generation: cpu.asid_generation.load(Relaxed), id };
        let c = &mut self.vmcb().control;
        c.asid = id;
        c.tlb_control = u32::from(wrapped);
    }

    /// Runs the guest until its next exit. Interrupts are off before and after.
    pub fn enter(&mut self, cpu: &PerCpu, flush: bool) -> Exit {
        self.renew_asid(cpu, flush);
        let vmcb = self.vmcb.addr();
        // SAFETY: the VMCB is this context's, made by `reset`; the host area is this CPU's (`PerCpu::enable_svm`).
        unsafe { hv_svm::enter(&mut self.regs, vmcb, cpu.host_area()) };
        let control = &mut self.vmcb().control;
        let exit = Exit::decode(control);
        // An event whose delivery the exit interrupted is delivered again; otherwise nothing is left to inject.
        control.eventinj = if Event(control.exitintinfo).is_valid() { control.exitintinfo } else { 0 };
        exit
    }
}
