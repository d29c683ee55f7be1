//! The machine without a hypervisor (feature `bare`): what little of the hypervisor's interface a measuring image needs, made here. QEMU
//! enters the same PVH note; where there is no Xen signature in CPUID, lines go to COM1, time is the TSC measured against the PIT, a
//! wait returns at once, and every other call answers ENOSYS. PCI functions are found by configuration mechanism 1.
//!
//! An image built with the feature still runs as a domain: everything here asks [`active`] first.

use crate::device::Mmio;
use crate::shared_page::SharedPage;
use abi::shared::{shared_info, time_info, vcpu_info};
use abi::{Errno, console, hypercall as nr, sched};
use core::sync::atomic::{AtomicBool, Ordering};
use ring::SharedMem;
use x86_64::instructions::port::{Port, PortReadOnly, PortWriteOnly};

static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Transmit and line-status register of COM1 (16550), and the status' "transmit holding register empty".
const COM1: (u16, u16, u8) = (0x3f8, 0x3fd, 0x20);
/// QEMU's `isa-debug-exit`: a value written here ends it with `value << 1 | 1`.
const DEBUG_EXIT: u16 = 0xf4;

/// Whether this is the bare machine.
#[must_use]
pub fn active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// There is no hypervisor: serve its calls here from now on.
pub(crate) fn activate() {
    ACTIVE.store(true, Ordering::Relaxed);
}

fn out8(port: u16, value: u8) {
    // SAFETY: I12 – no other owner of the machine's ports; none of those used here reaches memory.
    unsafe { PortWriteOnly::new(port).write(value) };
}
fn in8(port: u16) -> u8 {
    // SAFETY: I12 – as above.
    unsafe { PortReadOnly::new(port).read() }
}

/// What a hypercall answers here.
pub(crate) fn call(op: u64, [cmd, len, buffer, ..]: [u64; 5]) -> i64 {
    match (op, cmd) {
        (nr::CONSOLE_IO, console::WRITE) => {
            let from = core::ptr::with_exposed_provenance::<u8>(buffer as usize);
            for i in 0..len as usize {
                // SAFETY: I2 – the only caller passes a slice's address and length.
                let byte = unsafe { from.wrapping_add(i).read() };
                send(byte);
            }
            0
        }
        (nr::SCHED_OP, sched::POLL | sched::YIELD | sched::BLOCK) => {
            core::hint::spin_loop();
            0
        }
        (nr::SCHED_OP, sched::SHUTDOWN) => exit(false),
        _ => Errno::ENOSYS.to_return(),
    }
}

fn send(byte: u8) {
    // A UART that is never ready loses the byte.
    for _ in 0..100_000 {
        if in8(COM1.1) & COM1.2 != 0 {
            break;
        }
    }
    out8(COM1.0, byte);
}

/// Ends QEMU: exit code 1 for `passed`, else 3.
pub fn exit(passed: bool) -> ! {
    out8(DEBUG_EXIT, u8::from(!passed));
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Ticks of the TSC in a second, against channel 2 of the PIT (8254 data sheet, mode 0; its gate and output at port 0x61).
fn tsc_hz() -> u64 {
    /// The PIT's input, in Hz.
    const PIT_HZ: u64 = 1_193_182;
    /// What is counted: 50 ms.
    const COUNT: u16 = 59_659;
    /// Gate of channel 2 on, speaker off; bit 5 is the output.
    const PORT: (u16, u8, u8, u8) = (0x61, 0x01, 0x02, 0x20);
    let gate = in8(PORT.0) & !PORT.2;
    out8(PORT.0, gate & !PORT.1);
    // Channel 2, low and high byte, mode 0, binary.
    out8(0x43, 0xb0);
    let [low, high] = COUNT.to_le_bytes();
    out8(0x42, low);
    out8(0x42, high);
    out8(PORT.0, gate | PORT.1);
    let start = crate::clock::tsc();
    // A machine without the timer ends the count as well, with a clock that is wrong.
    for _ in 0..100_000_000 {
        if in8(PORT.0) & PORT.3 != 0 {
            break;
        }
    }
    let ticks = crate::clock::tsc().wrapping_sub(start);
    ticks.saturating_mul(PIT_HZ) / u64::from(COUNT)
}

/// A page such as the hypervisor would share: no event, and the time since now.
pub(crate) fn shared_info() -> Option<SharedPage> {
    const TIME: usize = shared_info::VCPU_INFO + vcpu_info::TIME;
    let page = SharedPage::alloc()?;
    // ns = (ticks << shift) * mul >> 32, with the largest multiplier that fits.
    let mut mul = (1_000_000_000u128 << 32) / u128::from(tsc_hz().max(1));
    let mut shift = 0u32;
    while mul > u128::from(u32::MAX) {
        mul >>= 1;
        shift = shift.wrapping_add(1);
    }
    let stamp = crate::clock::tsc();
    page.write(TIME + time_info::TSC_TIMESTAMP, stamp as u32);
    page.write(TIME + time_info::TSC_TIMESTAMP + 4, (stamp >> 32) as u32);
    page.write(TIME + time_info::TSC_TO_SYSTEM_MUL, mul as u32);
    page.write(TIME + time_info::TSC_SHIFT, shift & 0xff);
    Some(page)
}

/// A PCI function of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(u32);

impl Function {
    /// The first function of bus 0 with this base class, class and interface (one byte each).
    #[must_use]
    pub fn of_class(class: u32) -> Option<Self> {
        (0..256u32).map(|devfn| Self(devfn << 8)).find(|f| f.read(0) as u16 != 0xffff && f.read(8) >> 8 == class)
    }

    /// Selects a register (PCI Local Bus 3.0, 3.2.2.3.2).
    fn select(self, offset: u8) -> Port<u32> {
        // SAFETY: I12 – configuration space is nobody else's.
        unsafe { PortWriteOnly::new(0xcf8).write(0x8000_0000 | self.0 | u32::from(offset & 0xfc)) };
        Port::new(0xcfc)
    }
    /// A register of configuration space.
    #[must_use]
    pub fn read(self, offset: u8) -> u32 {
        // SAFETY: I12 – as above.
        unsafe { self.select(offset).read() }
    }

    /// Where the capability with this number is (PCI Local Bus 3.0, 6.7).
    #[must_use]
    pub fn capability(self, id: u8) -> Option<u8> {
        // No list has more entries than there are places for them.
        let next = |at: &u8| Some((self.read(*at) >> 8) as u8 & 0xfc).filter(|at| *at != 0);
        let first = Some(self.read(0x34) as u8 & 0xfc).filter(|at| *at != 0);
        core::iter::successors(first, next).take(48).find(|at| self.read(*at) as u8 == id)
    }

    /// Lets it decode its registers and do DMA.
    pub fn enable(self) {
        let command = self.read(4) & 0xffff | 6;
        // SAFETY: I12 – the device reaches all of memory from here on, as every device of a bare machine; its driver bounds it.
        unsafe { self.select(4).write(command) };
    }

    /// Registers that no BAR names, below 4 GiB and above RAM.
    #[must_use]
    pub fn registers(self, base: u64, len: usize) -> Option<Mmio> {
        let end = base.checked_add(len as u64)?;
        (base >= crate::memory::window::START && end <= crate::memory::window::END)
            .then(|| Mmio::bare(base as usize, len))
    }

    /// The registers behind 32-bit memory BAR `index`, as firmware placed them.
    #[must_use]
    pub fn mmio(self, index: u8, len: usize) -> Option<Mmio> {
        let bar = self.read(0x10u8.checked_add(index.checked_mul(4)?)?);
        let base = (bar & !0xf) as usize;
        (bar & 7 == 0 && base as u64 >= crate::memory::window::START).then(|| Mmio::bare(base, len))
    }
}
