//! What each exit of a guest leads to. A guest's mistake is an exception for the guest where a processor would raise one, else the
//! end of the guest; never more.

use crate::context::{CR4_OSXSAVE, Context, RFLAGS_IF};
use crate::domain::Domain;
use crate::guest_mem::GuestMem;
use crate::hypercall::{self, Call, Caller};
use crate::lifecycle::{self, Cause};
use crate::vcpu::{Vcpu, Wait};
use crate::{cpuid, msr, run};
use abi::xenolith::cause;
use abi::bundle::{self, pvh};
use abi::Errno;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::SeqCst;
use hv_svm::{Event, Exit, Io, fpu};

/// Counter of the interval timer that a PC's clocks are measured by; there is none.
const PIT_COUNTER_2: u16 = 0x42;

/// What the run loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter again, unless the vCPU waits or its domain was stopped.
    Resume,
    /// Let others run.
    Yield,
    /// The vCPU took itself down.
    Down,
}

/// Handles one exit.
pub fn handle(domain: &Arc<Domain>, vcpu: &Arc<Vcpu>, context: &mut Context, exit: Exit) -> Next {
    let rip = context.vmcb().save.rip;
    let stop = |cause, a, b| lifecycle::stop(domain, Cause { cause, info: [rip, a, b, 0] });
    match exit {
        Exit::Vmmcall => return vmmcall(domain, vcpu, context, rip),
        Exit::Interrupt => run::interrupt_window(),
        // Reported again as soon as the global interrupt flag opens, to the hypervisor's own handler.
        Exit::Nmi | Exit::Init => {}
        Exit::Hlt => {
            if context.vmcb().save.rflags & RFLAGS_IF == 0 {
                return Next::Down;
            }
            context.advance(exit.instruction_len());
            run::wait(vcpu, Wait::Upcall);
        }
        Exit::Cpuid => {
            cpuid::emulate(domain, vcpu, context);
            context.advance(exit.instruction_len());
        }
        Exit::Msr(write) => match msr::emulate(domain, vcpu, context, write) {
            msr::Outcome::Done => context.advance(exit.instruction_len()),
            msr::Outcome::Fault => context.inject(Event::GENERAL_PROTECTION),
            msr::Outcome::Forbidden(number) => stop(cause::MSR, u64::from(number), 0),
        },
        Exit::Io(io) => port_io(domain, context, io, rip),
        Exit::CacheFlush => context.advance(exit.instruction_len()),
        Exit::Rdpmc => context.inject(Event::GENERAL_PROTECTION),
        Exit::Xsetbv => xsetbv(context, exit.instruction_len()),
        Exit::Forbidden(_) => context.inject(Event::INVALID_OPCODE),
        Exit::Exception(18, _) => panic!("machine check in {} at {rip:#x}", domain.name),
        Exit::Exception(vector, code) => context.inject(Event::exception(vector, (vector == 17).then_some(code))),
        Exit::Shutdown => {
            let cr2 = context.vmcb().save.cr2;
            stop(cause::TRIPLE_FAULT, cr2, 0);
        }
        Exit::NestedPageFault { error, gpa } => stop(cause::NPT_FAULT, gpa, error),
        Exit::Invalid => stop(cause::BAD_EXIT, u64::MAX, 0),
        Exit::Unknown(code) => stop(cause::BAD_EXIT, code, 0),
    }
    Next::Resume
}

fn vmmcall(domain: &Arc<Domain>, vcpu: &Arc<Vcpu>, context: &mut Context, rip: u64) -> Next {
    context.advance(Exit::Vmmcall.instruction_len());
    let long = context.is_long();
    let (regs, save) = (context.regs, &context.vmcb().save);
    let mem = GuestMem::new(domain, save.cr3);
    let call = Call { number: save.rax, args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8] };
    let result = if save.cpl != 0 {
        Errno::EPERM.to_return()
    } else if !long {
        // Every guest of ours calls from 64-bit code; the 32-bit convention has other structures.
        Errno::ENOSYS.to_return()
    } else {
        hypercall::dispatch(&Caller { domain, vcpu, mem, rip }, call)
    };
    context.vmcb().save.rax = result.cast_unsigned();
    if vcpu.yields.swap(false, SeqCst) { Next::Yield } else { Next::Resume }
}

/// XSETBV (APM 4): the guest says what of the extended state it uses. It is on this CPU, so XCR0 here is its own.
fn xsetbv(context: &mut Context, len: u64) {
    let (value, register) = ((context.regs.rdx << 32) | (context.vmcb().save.rax & 0xffff_ffff), context.regs.rcx as u32);
    let save = &context.vmcb().save;
    if save.cr4 & CR4_OSXSAVE == 0 || !fpu::has_xsave() {
        context.inject(Event::INVALID_OPCODE);
    } else if save.cpl == 0 && register == 0 && fpu::set_xcr0(value) {
        context.advance(len);
    } else {
        context.inject(Event::GENERAL_PROTECTION);
    }
}

/// A port outside of the domain's. A unikernel has no business there; a PVH kernel probes a PC's ports and finds nothing.
fn port_io(domain: &Arc<Domain>, context: &mut Context, io: Io, rip: u64) {
    if domain.record.flags & bundle::flags::PVH == 0 || io.string {
        let info = [rip, u64::from(io.port), u64::from(!io.input), 0];
        return lifecycle::stop(domain, Cause { cause: cause::PORT_IO, info });
    }
    let rax = &mut context.vmcb().save.rax;
    if io.port == pvh::SLEEP_CONTROL && !io.input {
        if *rax as u8 == pvh::SLP_EN | pvh::SLEEP_TYPE_S5 << 2 {
            lifecycle::stop(domain, Cause { cause: cause::POWEROFF, info: [rip, 0, 0, 0] });
        }
    } else if io.input {
        let mask = match io.width {
            // Against ones Linux would hold the timer's counter 100,000 times to measure its clock by it.
            1 if [pvh::SLEEP_STATUS, PIT_COUNTER_2].contains(&io.port) => 0,
            1 => 0xff,
            2 => 0xffff,
            _ => 0xffff_ffff,
        };
        *rax = if io.width == 4 { mask } else { *rax | mask };
    }
    context.vmcb().save.rip = io.next_rip;
    context.vmcb().control.interrupt_shadow = 0;
}
