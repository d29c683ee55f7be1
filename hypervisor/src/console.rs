//! The hypervisor's one device driver: the 16550 at COM1. Lines of domains are printed as `(name) text`, the hypervisor's own as
//! `(xenolith) text`; each is also kept in a log ring per domain that the control domain reads (`CONSOLE_READ`).

use crate::domain::Domain;
use crate::{lifecycle, time};
use alloc::boxed::Box;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::{Mutex, MutexGuard};
use x86_64::instructions::port::Port;

/// Bytes a log keeps.
pub const LOG_LEN: usize = 32 * 1024;
/// Longest line kept together; longer ones are broken.
const LINE_LEN: usize = 240;
/// COM1.
const COM1: u16 = 0x3f8;
/// Transmit FIFO of a 16550A.
const FIFO_LEN: usize = 16;
/// Transmitter holding register empty.
const THRE: u8 = 0x20;
/// Bytes that may wait for the line.
const BACKLOG_LEN: usize = 32 * 1024;

/// The last [`LOG_LEN`] bytes of a console, counted from its creation.
#[derive(Debug)]
pub struct Log {
    ring: Box<[u8]>,
    end: u64,
    line: heapless::Vec<u8, LINE_LEN>,
}

impl Log {
    /// An empty log.
    pub fn new() -> Self {
        Self { ring: alloc::vec![0; LOG_LEN].into_boxed_slice(), end: 0, line: heapless::Vec::new() }
    }
    fn push(&mut self, byte: u8) {
        let at = (self.end % LOG_LEN as u64) as usize;
        if let Some(slot) = self.ring.get_mut(at) {
            *slot = byte;
        }
        self.end += 1;
    }
    /// Copies bytes from number `seq` on into `to`; gives the number of the first byte copied (later than `seq` where older ones
    /// are gone) and how many there were.
    pub fn read(&self, seq: u64, to: &mut [u8]) -> (u64, usize) {
        let start = seq.max(self.end.saturating_sub(LOG_LEN as u64)).min(self.end);
        let len = to.len().min((self.end - start) as usize);
        for (n, slot) in (start..).zip(to.iter_mut().take(len)) {
            *slot = self.ring.get((n % LOG_LEN as u64) as usize).copied().unwrap_or(0);
        }
        (start, len)
    }
    /// The last complete line written, without its newline.
    pub fn last_line(&self) -> heapless::Vec<u8, LINE_LEN> {
        let mut back = [0; LINE_LEN];
        let (_, len) = self.read(self.end.saturating_sub(LINE_LEN as u64), &mut back);
        let text = back.get(..len).unwrap_or_default().trim_ascii_end();
        let start = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        heapless::Vec::from_slice(text.get(start..).unwrap_or_default()).unwrap_or_default()
    }
    /// Appends `bytes`; calls `print` with each line that became complete.
    fn write(&mut self, bytes: &[u8], mut print: impl FnMut(&[u8])) {
        for &byte in bytes.iter().filter(|&&b| b != b'\r' && b != 0) {
            self.push(byte);
            if byte != b'\n' {
                // Control characters of a guest must not reach the terminal.
                let shown = if byte >= b' ' || byte == b'\t' || byte == 0x1b { byte } else { b'?' };
                let _ = self.line.push(shown);
            }
            if byte == b'\n' || self.line.is_full() {
                print(&self.line);
                self.line.clear();
            }
        }
    }
}

/// What is still to be sent. Nobody waits for the line: a byte goes when the UART takes it, and what does not fit is counted.
struct Output {
    queue: heapless::Deque<u8, BACKLOG_LEN>,
    lost: u64,
}

/// When [`pump`] is due, ns of system time; `u64::MAX` = nothing is to be sent. Changed with [`OUTPUT`] locked.
static DUE_NS: AtomicU64 = AtomicU64::new(u64::MAX);
/// How long a line waits before it is sent. A domain that dies says so, and under QEMU each byte is a system call: sent at once, its last
/// words and ours take as long as its restart.
const DELAY_NS: u64 = 10 * time::MS;
/// One FIFO full at 115200 baud.
const PORTION_NS: u64 = 1400 * 1000;
/// FIFOs full that an emulated line takes in that time, so that nobody is held up by a whole text.
const PORTIONS: usize = 4;

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.queue.push_back(byte).is_err() {
                self.lost += 1;
            }
        }
    }
    /// A line with its origin; what had to be left out before it is told.
    fn line(&mut self, name: &str, line: &[u8]) {
        if self.lost > 0 && self.queue.len() < BACKLOG_LEN / 2 {
            let mut note = heapless::String::<64>::new();
            let _ = writeln!(note, "(xenolith) {} bytes of console output lost", core::mem::take(&mut self.lost));
            self.push(note.as_bytes());
        }
        for part in [b"(", name.as_bytes(), b") ", line, b"\n"] {
            self.push(part);
        }
    }
    /// Sends one FIFO full, if the UART has room. False when there is nothing to do any more, or it has none.
    fn send(&mut self) -> bool {
        // SAFETY: reading COM1's line status changes nothing we rely on.
        let status: u8 = unsafe { Port::new(COM1 + 5).read() };
        if status & THRE == 0 {
            DUE_NS.store(time::now_ns() + PORTION_NS, Relaxed);
            return false;
        }
        for _ in 0..FIFO_LEN {
            let Some(byte) = self.queue.pop_front() else { break };
            // SAFETY: COM1 belongs to the hypervisor.
            unsafe { Port::new(COM1).write(byte) };
        }
        let more = !self.queue.is_empty();
        DUE_NS.store(if more { time::now_ns() + PORTION_NS } else { u64::MAX }, Relaxed);
        more
    }
}

static OUTPUT: Mutex<Output> = Mutex::new(Output { queue: heapless::Deque::new(), lost: 0 });
static OWN: Mutex<Option<Log>> = Mutex::new(None);

/// When [`pump`] is to be called; `u64::MAX` = not before something is written.
pub fn due_ns() -> u64 {
    DUE_NS.load(Relaxed)
}

/// Sends a little, if it is due.
pub fn pump() {
    if due_ns() <= time::now_ns() {
        let _ = (0..PORTIONS).all(|_| OUTPUT.lock().send());
    }
}

/// Sends at once what had better not wait: at boot, where nobody waits for anything else, and when there is much of it.
fn relieve() {
    let sends = |mut o: MutexGuard<Output>| {
        (lifecycle::boot_ns() == 0 || o.queue.len() > BACKLOG_LEN / 2) && o.send()
    };
    while sends(OUTPUT.lock()) {}
}

fn print_line(name: &str, line: &[u8]) {
    let mut output = OUTPUT.lock();
    output.line(name, line);
    DUE_NS.fetch_min(time::now_ns() + DELAY_NS, Relaxed);
}

/// A domain's output: into its log, and complete lines to the serial line.
pub fn domain_write(domain: &Domain, bytes: &[u8]) {
    domain.console.lock().write(bytes, |line| print_line(&domain.name, line));
    relieve();
}

/// Reads the hypervisor's own log; see [`Log::read`].
pub fn read_own(seq: u64, to: &mut [u8]) -> (u64, usize) {
    OWN.lock().as_ref().map_or((seq, 0), |log| log.read(seq, to))
}

struct Logger;

struct OwnLine;

impl Write for OwnLine {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        match OWN.lock().as_mut() {
            Some(log) => log.write(text.as_bytes(), |line| print_line("xenolith", line)),
            // Before there is a heap.
            None => OUTPUT.lock().push(text.as_bytes()),
        }
        relieve();
        Ok(())
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        // One lock for the line would need a buffer; instead the line is formed on the stack and written at once.
        let mut line = heapless::String::<512>::new();
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        // A line that does not fit is cut, never lost.
        let _ = write!(line, "{level}{}", record.args());
        let _ = writeln!(OwnLine, "{line}");
    }
    fn flush(&self) {}
}

/// Sets up COM1 and the `log` facade. Before the heap exists lines go to the serial line only.
pub fn init() {
    // 115200 8n1, FIFOs on, no interrupts, DTR and RTS (16550 data sheet, table of registers).
    for (reg, value) in [(1, 0u8), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        // SAFETY: COM1 belongs to the hypervisor; no domain gets its ports.
        unsafe { Port::new(COM1 + reg).write(value) };
    }
    // Fails only if called twice, and the first logger stays.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// From now on the hypervisor's lines are kept as well.
pub fn start_log() {
    *OWN.lock() = Some(Log::new());
}

/// For the panic path only: this CPU is the last one to speak, whoever held the locks is stopped.
///
/// # Safety
/// No other CPU runs hypervisor code any more, and the caller never returns.
pub unsafe fn break_locks() {
    // SAFETY: by this function's contract nobody is inside.
    unsafe { OUTPUT.force_unlock() };
    // SAFETY: as above.
    unsafe { OWN.force_unlock() };
}

/// For the end: sends everything, waiting for the line, but no longer than it takes at 115200 baud.
pub fn drain() {
    const POLLS: u32 = 4_000_000;
    for _ in 0..POLLS {
        if OUTPUT.lock().queue.is_empty() {
            return;
        }
        OUTPUT.lock().send();
    }
}
