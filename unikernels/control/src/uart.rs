//! A 16550A serial port, driven by its interrupt both ways. Source: National Semiconductor PC16550D data sheet, sections 8.1–8.7.
//!
//! The port is a host socket under QEMU, so bytes go as fast as they are put; the FIFO of 16 saves interrupts. The interrupt is
//! edge-triggered: [`Uart::service`] therefore goes on until the chip has no cause left, within a bound.

use alloc::collections::VecDeque;

/// Access to the eight registers.
pub trait Registers {
    /// Reads register `offset` (0..8).
    fn read(&mut self, offset: u8) -> u8;
    /// Writes register `offset`.
    fn write(&mut self, offset: u8, value: u8);
}

/// Register offsets (DLAB = 0 unless said).
mod reg {
    /// Receiver buffer (read), transmitter holding (write); divisor low byte with DLAB.
    pub const DATA: u8 = 0;
    /// Interrupt enable; divisor high byte with DLAB.
    pub const IER: u8 = 1;
    /// FIFO control (write).
    pub const FCR: u8 = 2;
    /// Line control.
    pub const LCR: u8 = 3;
    /// Modem control.
    pub const MCR: u8 = 4;
    /// Line status.
    pub const LSR: u8 = 5;
    /// Scratch: keeps what is written; tells whether there is a chip.
    pub const SCRATCH: u8 = 7;
}
/// Received data available.
const IER_RX: u8 = 1 << 0;
/// Transmitter holding register empty.
const IER_TX: u8 = 1 << 1;
const LSR_DATA: u8 = 1 << 0;
const LSR_TX_EMPTY: u8 = 1 << 5;
/// FIFOs on and cleared, interrupt at 8 bytes (or after four character times).
const FCR_SETUP: u8 = 0x87;
const LCR_8N1: u8 = 0x03;
const LCR_DLAB: u8 = 0x80;
/// DTR, RTS, and OUT2, which lets the interrupt out of the chip on a PC.
const MCR_SETUP: u8 = 0x0b;
/// 115200 baud from 1.8432 MHz.
const DIVISOR: u8 = 1;
/// Bytes of the transmit FIFO.
const FIFO: usize = 16;
/// Looks at the chip in one service: at most as many bytes are taken, and FIFOs filled. What is left waits for the next turn,
/// because a register access may be a world switch, and under QEMU each byte sent is a system call of the emulator; domains
/// wait for their restart and the store meanwhile.
const ROUNDS: usize = 6;

/// Bytes of queue that are kept when it is empty.
const OUT_KEPT: usize = 4096;

/// Nothing answers at the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoUart;

/// The port and its transmit queue.
#[derive(Debug)]
pub struct Uart<R> {
    registers: R,
    out: VecDeque<u8>,
    ier: u8,
    lost: u64,
}

impl<R: Registers> Uart<R> {
    /// Bytes that may wait to be sent.
    pub const OUT_MAX: usize = 128 * 1024;

    /// Finds the chip and sets it up: 115200 8N1, FIFOs, receive interrupt.
    ///
    /// # Errors
    /// [`NoUart`].
    pub fn new(mut registers: R) -> Result<Self, NoUart> {
        registers.write(reg::SCRATCH, 0x5a);
        if registers.read(reg::SCRATCH) != 0x5a {
            return Err(NoUart);
        }
        registers.write(reg::IER, 0);
        registers.write(reg::LCR, LCR_DLAB | LCR_8N1);
        registers.write(reg::DATA, DIVISOR);
        registers.write(reg::IER, 0);
        registers.write(reg::LCR, LCR_8N1);
        registers.write(reg::FCR, FCR_SETUP);
        registers.write(reg::MCR, MCR_SETUP);
        registers.write(reg::IER, IER_RX);
        Ok(Self { registers, out: VecDeque::with_capacity(OUT_KEPT), ier: IER_RX, lost: 0 })
    }

    /// Whether a text of `len` bytes may be queued by [`Uart::send`].
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.out.len().saturating_add(len) <= Self::OUT_MAX
    }

    /// Queues a whole text, or, where there is no room, nothing. Call [`Uart::service`] to start it.
    pub fn send(&mut self, text: &[u8]) -> bool {
        if !self.has_room(text.len()) {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        self.out.extend(text);
        true
    }

    /// Texts refused since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        core::mem::take(&mut self.lost)
    }

    /// Whether all that was queued has been handed to the chip.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Gives received bytes to `take` (where `receiving`; else they stay in the chip), fills the transmit FIFO. Answers whether
    /// there is more to do at once.
    pub fn service(&mut self, receiving: bool, mut take: impl FnMut(u8)) -> bool {
        let mut again = true;
        for _ in 0..ROUNDS {
            let status = self.registers.read(reg::LSR);
            if status == 0xff {
                // No chip answers so; it is gone.
                return false;
            }
            let receive = receiving && status & LSR_DATA != 0;
            let transmit = status & LSR_TX_EMPTY != 0 && !self.out.is_empty();
            if receive {
                take(self.registers.read(reg::DATA));
            }
            if transmit {
                for _ in 0..FIFO {
                    let Some(byte) = self.out.pop_front() else { break };
                    self.registers.write(reg::DATA, byte);
                }
            }
            again = receive || transmit;
            if !again {
                break;
            }
        }
        if self.out.is_empty() && self.out.capacity() > OUT_KEPT {
            self.out = VecDeque::with_capacity(OUT_KEPT);
        }
        // Enabled with an empty FIFO, the transmit interrupt comes at once: nothing is missed in between.
        let wanted = if self.out.is_empty() { IER_RX } else { IER_RX | IER_TX };
        if wanted != self.ier {
            self.ier = wanted;
            self.registers.write(reg::IER, wanted);
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// The chip, as far as a driver can tell; the transmitter drains only when the test says so.
    #[derive(Default)]
    struct Chip {
        input: VecDeque<u8>,
        fifo: Vec<u8>,
        sent: Vec<u8>,
        scratch: u8,
        ier: u8,
        lcr: u8,
        absent: bool,
    }
    impl Registers for &mut Chip {
        fn read(&mut self, offset: u8) -> u8 {
            match offset {
                _ if self.absent => 0xff,
                reg::DATA => self.input.pop_front().unwrap_or(0),
                reg::LSR => u8::from(!self.input.is_empty()) | if self.fifo.is_empty() { 0x60 } else { 0 },
                reg::SCRATCH => self.scratch,
                other => panic!("read of register {other}"),
            }
        }
        fn write(&mut self, offset: u8, value: u8) {
            match offset {
                reg::DATA if self.lcr & LCR_DLAB == 0 => {
                    assert!(self.fifo.len() < FIFO, "FIFO overrun");
                    self.fifo.push(value);
                }
                reg::IER if self.lcr & LCR_DLAB == 0 => self.ier = value,
                reg::LCR => self.lcr = value,
                reg::SCRATCH => self.scratch = value,
                _ => {}
            }
        }
    }
    impl Chip {
        fn drain(&mut self) {
            self.sent.append(&mut self.fifo);
        }
    }

    #[test]
    fn sending_fills_the_fifo_and_asks_for_an_interrupt_until_all_is_out() {
        let mut chip = Chip::default();
        let mut uart = Uart::new(&mut chip).unwrap();
        assert!(uart.send(&[7; 40]));
        for left in [24, 8, 0] {
            uart.service(true, |_| panic!("nothing came"));
            assert_eq!(uart.out.len(), left);
            assert_eq!(uart.registers.ier, if left > 0 { 3 } else { 1 });
            uart.registers.drain();
        }
        assert!(uart.is_idle());
        assert_eq!(chip.sent, [7; 40]);
    }

    #[test]
    fn a_flood_is_taken_in_bounded_turns() {
        let mut chip = Chip { input: (0..600).map(|i| i as u8).collect(), ..Chip::default() };
        let mut uart = Uart::new(&mut chip).unwrap();
        let mut got = Vec::new();
        assert!(uart.service(true, |b| got.push(b)));
        assert_eq!(got.len(), ROUNDS);
        while uart.service(true, |b| got.push(b)) {}
        assert_eq!(got, (0..600).map(|i| i as u8).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_refuses_whole_texts_and_counts_them() {
        let mut chip = Chip::default();
        let mut uart = Uart::new(&mut chip).unwrap();
        assert!(uart.send(&vec![1; Uart::<&mut Chip>::OUT_MAX]));
        assert!(!uart.send(b"x"));
        assert_eq!((uart.take_lost(), uart.take_lost()), (1, 0));
    }

    #[test]
    fn an_empty_bus_is_no_uart() {
        assert!(Uart::new(&mut Chip { absent: true, ..Chip::default() }).is_err());
    }
}
