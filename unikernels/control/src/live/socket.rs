//! The control socket: COM2, lines in, lines out, a console that is followed.

use super::{Control, FOLLOW};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use control::json::Object;
use control::protocol::{self, Line, Lines, REPLY_MAX, TEXT_MAX};
use control::uart::{NoUart, Registers, Uart};
use core::time::Duration;
use libxenrt::device::{DeviceError, Interrupt};
use libxenrt::io_port::IoPorts;
use libxenrt::{DomId, EvtchnPort, Instant, clock, hypercall, log};

/// COM2 of a PC: its ports and its interrupt, both given to this domain by the system manifest.
const COM2: IoPorts = IoPorts::new(0x2f8, 8);
const COM2_IRQ: u32 = 3;
/// Lines that may wait to be carried out; the peer has to wait for replies beyond.
const LINES_MAX: usize = 16;
/// Bytes no reply is longer than: what the lists stop at, and one more element of text in the worst case of escapes.
const LONGEST_REPLY: usize = REPLY_MAX + 6 * TEXT_MAX as usize / 2;
/// How long the last reply before a power-off may take to leave.
const FLUSH: Duration = Duration::from_millis(500);

impl Registers for Ports {
    fn read(&mut self, offset: u8) -> u8 {
        self.0.read8(u16::from(offset))
    }
    fn write(&mut self, offset: u8, value: u8) {
        self.0.write8(u16::from(offset), value);
    }
}
struct Ports(IoPorts);

/// Why there is no control socket.
pub enum NoSocket {
    Uart(NoUart),
    Interrupt(DeviceError),
}

impl core::fmt::Display for NoSocket {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Uart(NoUart) => f.write_str("no serial port at 0x2f8"),
            Self::Interrupt(e) => write!(f, "interrupt {COM2_IRQ} refused: {e:?}"),
        }
    }
}

/// A console that is followed.
pub struct Follow {
    pub domid: DomId,
    pub name: String,
    pub seq: u64,
    pub next: Instant,
}

/// The serial port and the state of its one client.
pub struct Socket {
    uart: Uart<Ports>,
    interrupt: Interrupt,
    lines: Lines,
    waiting: VecDeque<Line>,
    pub subscribed: bool,
    /// At most one for each domain.
    pub follow: Vec<Follow>,
    /// The machine ends with this code once the last reply is out, or at the time.
    pub poweroff: Option<(u64, Instant)>,
    /// The chip wants another look at once.
    again: bool,
}

impl Socket {
    /// Takes the port.
    ///
    /// # Errors
    /// See [`NoSocket`].
    pub fn open() -> Result<Self, NoSocket> {
        let interrupt = Interrupt::of_pirq(COM2_IRQ).map_err(NoSocket::Interrupt)?;
        let uart = Uart::new(Ports(COM2)).map_err(NoSocket::Uart)?;
        Ok(Self {
            uart,
            interrupt,
            lines: Lines::default(),
            waiting: VecDeque::new(),
            subscribed: false,
            follow: Vec::new(),
            poweroff: None,
            again: true,
        })
    }

    pub const fn port(&self) -> Option<EvtchnPort> {
        Some(self.interrupt.port())
    }

    /// When it wants attention without an interrupt.
    pub fn deadline(&self) -> Option<Instant> {
        let off = self.poweroff.map(|(_, at)| at);
        self.follow.iter().map(|f| f.next).chain(off).min()
    }

    /// Looks at the chip in the next round although no interrupt came.
    pub const fn look_again(&mut self) {
        self.again = true;
    }

    /// Whether the longest reply has room; until then the peer waits, and what it sends stays in its own buffers.
    fn takes_requests(&self) -> bool {
        self.uart.has_room(LONGEST_REPLY)
    }

    /// Queues a line, or drops it whole and counts it.
    pub fn send(&mut self, line: &str) {
        self.uart.send(line.as_bytes());
        self.again = true;
    }

    /// Moves bytes; answers whether there is more to do at once.
    fn service(&mut self) -> bool {
        if !self.interrupt.take_pending() && !self.again {
            return false;
        }
        let full = self.waiting.len() >= LINES_MAX;
        let Self { uart, lines, waiting, .. } = self;
        self.again = uart.service(!full, |byte| waiting.extend(lines.push(byte)));
        if let Err(e) = self.interrupt.done() {
            log::warn!("end of interrupt {COM2_IRQ} refused: {e:?}");
        }
        self.again
    }
}

impl Control {
    /// Moves bytes and carries out at most one line; answers whether there is more to do at once.
    pub fn serve_socket(&mut self) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        socket.service();
        let ready = socket.takes_requests();
        if let Some(line) = ready.then(|| socket.waiting.pop_front()).flatten() {
            let request = protocol::read(&line);
            let reply = self.carry_out(&request);
            if let Some(socket) = &mut self.socket {
                // This also has the chip looked at for what it held back while the lines were full.
                socket.send(&reply);
            }
        }
        self.follow_console();
        let Some(socket) = &mut self.socket else { return false };
        let lost = if socket.takes_requests() { socket.uart.take_lost() } else { 0 };
        if lost > 0 {
            let line = protocol::event("lost", |o| {
                o.number("count", lost);
            });
            socket.send(&line);
        }
        socket.service();
        if let Some((code, at)) = socket.poweroff
            && (socket.uart.is_idle() || clock::now() >= at)
        {
            if let Err(e) = hypercall::poweroff(code) {
                log::error!("POWEROFF refused: {e}");
            }
            socket.poweroff = None;
        }
        socket.again || (!socket.waiting.is_empty() && socket.takes_requests())
    }

    /// Ends the machine once the reply is out.
    pub fn power_off(&mut self, code: u64) {
        if let Some(socket) = &mut self.socket {
            socket.poweroff = Some((code, clock::now() + FLUSH));
        }
    }

    /// Sends an event line to a subscriber.
    pub fn tell(&mut self, name: &str, fill: impl FnOnce(&mut Object)) {
        if self.socket.as_ref().is_some_and(|s| s.subscribed) {
            self.send_later(protocol::event(name, fill));
        }
    }

    /// The one event that needs no subscription.
    pub fn announce_ready(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.send(&protocol::event("ready", |o| {
                o.number("version", protocol::VERSION);
            }));
        }
    }

    fn follow_console(&mut self) {
        let Self { socket: Some(socket), links, .. } = self else { return };
        let now = clock::now();
        let mut buffer = Vec::new();
        let Socket { follow, uart, again, .. } = socket;
        follow.retain_mut(|follow| {
            if follow.next > now {
                return true;
            }
            follow.next = now + FOLLOW;
            buffer.resize(TEXT_MAX as usize, 0);
            // Six bytes of JSON for one of text at worst.
            if !uart.has_room(buffer.len() * 6) {
                return true;
            }
            match super::link::console_bytes(links, follow.domid, follow.seq, &mut buffer) {
                Ok((first, len)) => {
                    let bytes = protocol::whole_text(buffer.get(..len).unwrap_or_default(), buffer.len());
                    if bytes.is_empty() {
                        return true;
                    }
                    let text = String::from_utf8_lossy(bytes);
                    follow.seq = first.saturating_add(bytes.len() as u64);
                    let line = protocol::event("console", |o| {
                        o.number("id", follow.domid.0).text("dom", &follow.name).number("seq", first);
                        o.number("next", follow.seq).text("text", &text);
                    });
                    uart.send(line.as_bytes());
                    *again = true;
                }
                Err(e) => {
                    log::warn!("console of {}: {e}", follow.name);
                    return false;
                }
            }
            true
        });
    }
}
