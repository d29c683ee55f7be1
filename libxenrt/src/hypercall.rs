//! Hypercalls: one typed, safe function per operation of `abi`, and batches of them ([`Batch`]).
//!
//! Every structure handed to the hypervisor is plain data (`zerocopy::FromBytes + IntoBytes`), so whatever the hypervisor
//! writes back is a valid value. Addresses inside those structures are the caller's business: the wrappers that take
//! buffers build them from slices. Source: Xen 4.17 `public/`, `public/arch-x86/xen-x86_64.h` (calling convention).

use abi::{Errno, EvtchnPort, console, evtchn, grant, hvm, hypercall as nr, memory, physdev, sched, vcpu, xenolith};
use zerocopy::{FromBytes, IntoBytes};

/// Result of a hypercall: its non-negative return value or the error.
pub type Result<T = u64> = core::result::Result<T, Errno>;

fn check(rax: i64) -> Result {
    u64::try_from(rax).map_err(|_| Errno::from_return(rax).unwrap_or(Errno::EIO))
}

#[cfg(target_os = "none")]
mod raw {
    use abi::{cpuid, hypercall::STUB_SIZE};

    core::arch::global_asm!(
        ".pushsection .text.hypercall_page, \"ax\", @progbits",
        ".balign 4096",
        ".global libxenrt_hypercall_page",
        "libxenrt_hypercall_page:",
        // Until the hypervisor writes its stubs, a call is an undefined instruction, not a slide through zeros.
        ".fill 4096, 1, 0xcc",
        ".popsection",
    );
    unsafe extern "C" {
        static libxenrt_hypercall_page: [u8; 4096];
    }

    /// Finds Xen's CPUID leaves and has the hypervisor write the hypercall page. `false`: no Xen ABI here.
    pub fn install() -> bool {
        let base = core::arch::x86_64::__cpuid(cpuid::BASE);
        if [base.ebx, base.ecx, base.edx] != cpuid::SIGNATURE {
            #[cfg(feature = "bare")]
            crate::bare::activate();
            return cfg!(feature = "bare");
        }
        let msr = core::arch::x86_64::__cpuid(cpuid::BASE.wrapping_add(2)).ebx;
        let page = (&raw const libxenrt_hypercall_page).addr() as u64;
        // SAFETY: I1 – the page is ours, nothing but `call` below reads it, and virtual = guest-physical.
        unsafe { x86_64::registers::model_specific::Msr::new(msr).write(page) };
        true
    }

    /// # Safety
    /// Pointers among the arguments must be valid for what hypercall `op` does with them.
    #[inline]
    pub unsafe fn call(op: u64, a: [u64; 5]) -> i64 {
        #[cfg(feature = "bare")]
        if crate::bare::active() {
            return crate::bare::call(op, a);
        }
        let stub = (&raw const libxenrt_hypercall_page).addr().wrapping_add((op as usize).wrapping_mul(STUB_SIZE));
        let rax: i64;
        // SAFETY: I1 – `install` filled the page before anything else runs; the caller answers for the pointers.
        unsafe {
            core::arch::asm!(
                "call {stub}",
                stub = in(reg) stub,
                lateout("rax") rax,
                inlateout("rdi") a[0] => _,
                inlateout("rsi") a[1] => _,
                inlateout("rdx") a[2] => _,
                inlateout("r10") a[3] => _,
                inlateout("r8") a[4] => _,
                out("r9") _,
                out("rcx") _,
                out("r11") _,
            );
        }
        rax
    }
}

#[cfg(not(target_os = "none"))]
mod raw {
    /// # Safety
    /// None: there is no hypervisor below a process.
    pub unsafe fn call(_op: u64, _a: [u64; 5]) -> i64 {
        abi::Errno::ENOSYS.to_return()
    }
}

#[cfg(target_os = "none")]
pub(crate) use raw::install;

/// A hypercall with arguments by value, for tests that try invalid ones. Everything else uses the typed functions.
///
/// # Safety
/// Pointers among the arguments must be valid for what hypercall `op` reads and writes through them, or not be guest
/// addresses at all.
///
/// # Errors
/// What the hypervisor answers.
pub unsafe fn raw(op: u64, args: [u64; 5]) -> Result {
    // SAFETY: the caller's promise.
    check(unsafe { raw::call(op, args) })
}

/// A command whose only argument is a structure, read and written in place.
fn with<T: FromBytes + IntoBytes>(op: u64, cmd: u64, arg: &mut T) -> Result {
    let address = core::ptr::from_mut(arg).expose_provenance() as u64;
    // SAFETY: I2 – `arg` is exclusively borrowed plain data of the size the command names.
    check(unsafe { raw::call(op, [cmd, address, 0, 0, 0]) })
}

/// A command without pointers.
fn plain(op: u64, args: [u64; 5]) -> Result {
    // SAFETY: I2 – no argument of the commands called so is a pointer.
    check(unsafe { raw::call(op, args) })
}

/// `CONSOLEIO_write`: bytes to the hypervisor's console; it prefixes the domain's name line by line.
///
/// # Errors
/// The hypervisor's.
pub fn console_write(text: &[u8]) -> Result {
    let address = text.as_ptr().expose_provenance() as u64;
    // SAFETY: I2 – the hypervisor only reads `text.len()` bytes at `address`.
    check(unsafe { raw::call(nr::CONSOLE_IO, [console::WRITE, text.len() as u64, address, 0, 0]) })
}

macro_rules! typed {
    ($($(#[$m:meta])* $name:ident: $op:expr, $cmd:expr, $arg:ty;)*) => {$(
        $(#[$m])*
        ///
        /// # Errors
        /// The hypervisor's.
        pub fn $name(arg: &mut $arg) -> Result {
            with($op, $cmd, arg)
        }
    )*};
}

typed! {
    /// `XENMEM_add_to_physmap`.
    add_to_physmap: nr::MEMORY_OP, memory::ADD_TO_PHYSMAP, memory::AddToPhysmap;
    /// `EVTCHNOP_alloc_unbound`.
    evtchn_alloc_unbound: nr::EVENT_CHANNEL_OP, evtchn::ALLOC_UNBOUND, evtchn::AllocUnbound;
    /// `EVTCHNOP_bind_interdomain`.
    evtchn_bind_interdomain: nr::EVENT_CHANNEL_OP, evtchn::BIND_INTERDOMAIN, evtchn::BindInterdomain;
    /// `EVTCHNOP_bind_virq`.
    evtchn_bind_virq: nr::EVENT_CHANNEL_OP, evtchn::BIND_VIRQ, evtchn::BindVirq;
    /// `EVTCHNOP_bind_pirq`.
    evtchn_bind_pirq: nr::EVENT_CHANNEL_OP, evtchn::BIND_PIRQ, evtchn::BindPirq;
    /// `EVTCHNOP_status`.
    evtchn_status: nr::EVENT_CHANNEL_OP, evtchn::STATUS, evtchn::Status;
    /// `HVMOP_get_param`.
    hvm_get_param: nr::HVM_OP, hvm::GET_PARAM, hvm::HvmParam;
    /// `HVMOP_set_param`.
    hvm_set_param: nr::HVM_OP, hvm::SET_PARAM, hvm::HvmParam;
    /// `PHYSDEVOP_eoi`.
    physdev_eoi: nr::PHYSDEV_OP, physdev::EOI, physdev::Eoi;
    /// `PHYSDEVOP_irq_status_query`.
    physdev_irq_status_query: nr::PHYSDEV_OP, physdev::IRQ_STATUS_QUERY, physdev::IrqStatusQuery;
    /// [`xenolith::INFO`].
    info: nr::XENOLITH_OP, xenolith::INFO, xenolith::Info;
    /// [`xenolith::DOM_INFO`].
    dom_info: nr::XENOLITH_OP, xenolith::DOM_INFO, xenolith::DomInfo;
    /// [`xenolith::DOM_RESTART`].
    dom_restart: nr::XENOLITH_OP, xenolith::DOM_RESTART, xenolith::DomOp;
    /// [`xenolith::DOM_PAUSE`].
    dom_pause: nr::XENOLITH_OP, xenolith::DOM_PAUSE, xenolith::DomOp;
    /// [`xenolith::DOM_UNPAUSE`].
    dom_unpause: nr::XENOLITH_OP, xenolith::DOM_UNPAUSE, xenolith::DomOp;
    /// [`xenolith::DOM_KILL`].
    dom_kill: nr::XENOLITH_OP, xenolith::DOM_KILL, xenolith::DomOp;
    /// [`xenolith::DOM_CREATE`].
    dom_create: nr::XENOLITH_OP, xenolith::DOM_CREATE, xenolith::DomOp;
    /// [`xenolith::DOM_DESTROY`].
    dom_destroy: nr::XENOLITH_OP, xenolith::DOM_DESTROY, xenolith::DomOp;
    /// [`xenolith::NEXT_EVENT`].
    next_event: nr::XENOLITH_OP, xenolith::NEXT_EVENT, xenolith::Event;
    /// [`xenolith::DEVICE_INFO`].
    device_info: nr::XENOLITH_OP, xenolith::DEVICE_INFO, xenolith::DeviceInfo;
    /// [`xenolith::PCI_READ`].
    pci_read: nr::XENOLITH_OP, xenolith::PCI_READ, xenolith::PciAccess;
    /// [`xenolith::PCI_WRITE`].
    pci_write: nr::XENOLITH_OP, xenolith::PCI_WRITE, xenolith::PciAccess;
    /// [`xenolith::SELF_INFO`].
    self_info: nr::XENOLITH_OP, xenolith::SELF_INFO, xenolith::SelfInfo;
}

/// [`xenolith::CONSOLE_READ`]: bytes of `domid`'s console log from `seq` on. Answers the sequence number of the first byte
/// given and how many were written to `buffer`.
///
/// # Errors
/// The hypervisor's.
pub fn console_read(domid: abi::DomId, seq: u64, buffer: &mut [u8]) -> Result<(u64, usize)> {
    let room = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let address = buffer.as_mut_ptr().expose_provenance() as u64;
    let mut arg = xenolith::ConsoleRead { domid, pad: 0, len: room, seq, buffer: address };
    with(nr::XENOLITH_OP, xenolith::CONSOLE_READ, &mut arg)?;
    Ok((arg.seq, arg.len.min(room) as usize))
}

/// [`xenolith::WATCHDOG_MS`]: arms or feeds the fine watchdog; 0 ends it.
///
/// # Errors
/// The hypervisor's.
pub fn watchdog_ms(ms: u64) -> Result {
    plain(nr::XENOLITH_OP, [xenolith::WATCHDOG_MS, ms, 0, 0, 0])
}

/// [`xenolith::POWEROFF`]: ends the machine with an exit code. Only the control domain may.
///
/// # Errors
/// EPERM for any other domain.
pub fn poweroff(code: u64) -> Result {
    plain(nr::XENOLITH_OP, [xenolith::POWEROFF, code, 0, 0, 0])
}

/// `EVTCHNOP_send`.
///
/// # Errors
/// EINVAL for a port that is not bound to a peer.
pub fn evtchn_send(port: EvtchnPort) -> Result {
    with(nr::EVENT_CHANNEL_OP, evtchn::SEND, &mut evtchn::Port { port })
}

/// `EVTCHNOP_close`.
///
/// # Errors
/// EINVAL for a port that is not open.
pub fn evtchn_close(port: EvtchnPort) -> Result {
    with(nr::EVENT_CHANNEL_OP, evtchn::CLOSE, &mut evtchn::Port { port })
}

/// `EVTCHNOP_unmask`.
///
/// # Errors
/// EINVAL for a port that is not open.
pub fn evtchn_unmask(port: EvtchnPort) -> Result {
    with(nr::EVENT_CHANNEL_OP, evtchn::UNMASK, &mut evtchn::Port { port })
}

fn grant_op<T: FromBytes + IntoBytes>(cmd: u64, ops: &mut [T]) -> Result {
    let address = ops.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: I2 – an exclusively borrowed slice of plain data, its length beside it.
    check(unsafe { raw::call(nr::GRANT_TABLE_OP, [cmd, address, ops.len() as u64, 0, 0]) })
}

/// `GNTTABOP_map_grant_ref`; each operation's `status` tells its own result.
///
/// # Errors
/// The hypervisor's, for the call as a whole.
///
/// # Safety
/// `host_addr` of each must lie in the caller's part of the foreign window, unused by anything else.
pub unsafe fn grant_map(ops: &mut [grant::MapGrantRef]) -> Result {
    grant_op(grant::MAP_GRANT_REF, ops)
}

/// `GNTTABOP_unmap_grant_ref`.
///
/// # Errors
/// The hypervisor's, for the call as a whole.
///
/// # Safety
/// Nothing may use the mappings any more.
pub unsafe fn grant_unmap(ops: &mut [grant::UnmapGrantRef]) -> Result {
    grant_op(grant::UNMAP_GRANT_REF, ops)
}

/// `GNTTABOP_copy`; each operation's `status` tells its own result.
///
/// # Errors
/// The hypervisor's, for the call as a whole.
///
/// # Safety
/// Every local destination (`DOMID_SELF` frame) must be memory that may change under the program: DMA or shared pages.
pub unsafe fn grant_copy(ops: &mut [grant::GrantCopy]) -> Result {
    grant_op(grant::COPY, ops)
}

/// `GNTTABOP_query_size`.
///
/// # Errors
/// The hypervisor's.
pub fn grant_query_size(op: &mut grant::QuerySize) -> Result {
    grant_op(grant::QUERY_SIZE, core::slice::from_mut(op))
}

/// `SCHEDOP_poll` on `ports` until one is pending or `deadline_ns` (system time; 0 = none) has passed.
///
/// # Errors
/// EINVAL for a port out of range or too many ports.
pub fn poll(ports: &[EvtchnPort], deadline_ns: u64) -> Result {
    let mut arg = sched::Poll {
        ports: ports.as_ptr().expose_provenance() as u64,
        nr_ports: u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?,
        pad: 0,
        timeout: deadline_ns,
    };
    with(nr::SCHED_OP, sched::POLL, &mut arg)
}

/// `SCHEDOP_block`: sleeps until an unmasked event is pending; upcalls are enabled atomically with it.
///
/// # Errors
/// The hypervisor's.
pub fn block() -> Result {
    plain(nr::SCHED_OP, [sched::BLOCK, 0, 0, 0, 0])
}

/// `SCHEDOP_yield`.
///
/// # Errors
/// The hypervisor's.
pub fn yield_cpu() -> Result {
    plain(nr::SCHED_OP, [sched::YIELD, 0, 0, 0, 0])
}

/// `SCHEDOP_shutdown` with a reason of [`abi::sched`]; the domain does not run on.
pub fn shutdown(reason: u32) -> ! {
    loop {
        let _ = with(nr::SCHED_OP, sched::SHUTDOWN, &mut sched::Shutdown { reason });
        core::hint::spin_loop();
    }
}

/// `VCPUOP_set_singleshot_timer`: `VIRQ_TIMER` at an absolute system time.
///
/// # Errors
/// The hypervisor's.
pub fn set_singleshot_timer(at_ns: u64) -> Result {
    let mut arg = vcpu::SetSingleshotTimer { timeout_abs_ns: at_ns, flags: 0, pad: 0 };
    let address = (&raw mut arg).expose_provenance() as u64;
    // SAFETY: I2 – `arg` outlives the call.
    check(unsafe { raw::call(nr::VCPU_OP, [vcpu::SET_SINGLESHOT_TIMER, 0, address, 0, 0]) })
}

/// `VCPUOP_stop_singleshot_timer`.
///
/// # Errors
/// The hypervisor's.
pub fn stop_singleshot_timer() -> Result {
    plain(nr::VCPU_OP, [vcpu::STOP_SINGLESHOT_TIMER, 0, 0, 0, 0])
}

/// Several hypercalls in one world switch (`multicall`), at most `N`.
///
/// It owns what its entries point to, so an entry can never outlive its argument.
pub struct Batch<const N: usize> {
    entries: [nr::MulticallEntry; N],
    ports: [evtchn::Port; N],
    len: usize,
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Batch<N> {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        let entry = nr::MulticallEntry { op: 0, result: 0, args: [0; 6] };
        Self { entries: [entry; N], ports: [evtchn::Port { port: EvtchnPort(0) }; N], len: 0 }
    }

    /// Queues `EVTCHNOP_send`; `false` when the batch is full.
    pub fn notify(&mut self, port: EvtchnPort) -> bool {
        let (Some(entry), Some(arg)) = (self.entries.get_mut(self.len), self.ports.get_mut(self.len)) else {
            return false;
        };
        *arg = evtchn::Port { port };
        *entry = nr::MulticallEntry { op: nr::EVENT_CHANNEL_OP, result: 0, args: [evtchn::SEND, 0, 0, 0, 0, 0] };
        self.len = self.len.wrapping_add(1);
        true
    }

    /// Issues what is queued: nothing, a plain hypercall, or one multicall.
    ///
    /// # Errors
    /// The hypervisor's, for the call as a whole.
    pub fn issue(&mut self) -> Result<()> {
        let queued = core::mem::take(&mut self.len);
        if let (1, Some(first)) = (queued, self.ports.first()) {
            return evtchn_send(first.port).map(|_| ());
        }
        let entries = self.entries.get_mut(..queued).unwrap_or_default();
        if entries.is_empty() {
            return Ok(());
        }
        // The batch may have moved since `notify`, so the addresses are filled in here.
        for (entry, arg) in entries.iter_mut().zip(&mut self.ports) {
            entry.args[1] = core::ptr::from_mut(arg).expose_provenance() as u64;
        }
        let address = entries.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: I2 – entries and their arguments are borrowed exclusively until the call returns.
        check(unsafe { raw::call(nr::MULTICALL, [address, queued as u64, 0, 0, 0]) }).map(|_| ())
    }
}
