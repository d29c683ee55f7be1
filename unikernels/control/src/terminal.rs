//! The console ring of a domain that has one (`public/io/console.h`): what it writes is kept for those who ask, what is typed
//! waits for room in the ring. Its neighbours: `live/link.rs` maps the page, `live/socket.rs` tells of what is kept.
//!
//! Before it uses its ring, a life of the domain may speak to the hypervisor (`earlyprintk=xen`, a failure at the start). That is kept
//! here as well, so that there is one row of numbers for both and for all lives.
//!
//! The domain's two indices are read once and checked; one that is impossible costs the domain the bytes in the ring, nothing else.

use abi::console::ring::{IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use alloc::collections::VecDeque;
use ring::SharedMem;

/// Bytes of output that are kept, the oldest go first.
pub const KEPT_MAX: usize = 32 * 1024;
/// Bytes of input that may wait for room in the ring.
pub const INPUT_MAX: usize = 4096;

/// One domain's console.
#[derive(Debug, Default)]
pub struct Terminal {
    kept: VecDeque<u8>,
    /// Bytes that were there before the first one kept.
    gone: u64,
    input: VecDeque<u8>,
    /// This life has written to the ring: what it tells the hypervisor beside that is not kept.
    spoke: bool,
    /// Bytes of the hypervisor's log of the domain that were looked at.
    logged: u64,
}

/// Bytes of the hypervisor's log that are copied at a time.
const CHUNK: usize = 1024;

impl Terminal {
    /// A fresh instance: what was typed for the old one is not for it. It has not used its ring yet.
    pub fn restarted(&mut self) {
        self.input.clear();
        self.spoke = false;
    }

    /// Keeps what the domain told the hypervisor since the last time, or passes over it where this life uses its ring. `read` gives
    /// bytes of that log from a number on: the number of the first one, and how many.
    #[inline(never)]
    pub fn follow_log(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> Option<(u64, usize)>) {
        let mut buffer = [0; CHUNK];
        // Not for ever, should the domain write meanwhile.
        for _ in 0..KEPT_MAX / CHUNK {
            let Some((first, len)) = read(self.logged, &mut buffer) else { return };
            self.logged = first.saturating_add(len as u64);
            if !self.spoke {
                self.keep(buffer.iter().take(len).copied());
            }
            if len == 0 {
                return;
            }
        }
    }

    #[inline(never)]
    fn keep(&mut self, bytes: impl Iterator<Item = u8>) {
        self.kept.extend(bytes);
        let over = self.kept.len().saturating_sub(KEPT_MAX);
        self.kept.drain(..over);
        self.gone = self.gone.saturating_add(over as u64);
    }

    /// Queues what was typed, all or nothing; answers whether there was room.
    pub fn type_in(&mut self, bytes: &[u8]) -> bool {
        let room = INPUT_MAX.saturating_sub(self.input.len());
        let fits = bytes.len() <= room;
        if fits {
            self.input.extend(bytes);
        }
        fits
    }

    /// Moves bytes in both directions; answers whether the domain is to be told. `log` is as of [`Terminal::follow_log`].
    pub fn turn(&mut self, page: &impl SharedMem, log: impl FnMut(u64, &mut [u8]) -> Option<(u64, usize)>) -> bool {
        let out = self.take_output(page, log);
        let input = self.give_input(page);
        out || input
    }

    fn take_output(&mut self, page: &impl SharedMem, log: impl FnMut(u64, &mut [u8]) -> Option<(u64, usize)>) -> bool {
        let prod = page.load_acquire(OUT_PROD);
        let cons = page.read(OUT_CONS);
        let len = prod.wrapping_sub(cons);
        if len == 0 {
            return false;
        }
        // More than the ring holds is no output; the ring goes on from where the domain says it is.
        if len <= OUT_SIZE {
            if !self.spoke {
                self.follow_log(log);
                self.spoke = true;
            }
            let at = |n| OUT + (cons.wrapping_add(n) & (OUT_SIZE - 1)) as usize;
            self.keep((0..len).map(|n| byte(page, at(n))));
        }
        // The bytes are read before their room is given away.
        page.fence();
        page.store_release(OUT_CONS, prod);
        true
    }

    fn give_input(&mut self, page: &impl SharedMem) -> bool {
        if self.input.is_empty() {
            return false;
        }
        let cons = page.load_acquire(IN_CONS);
        let prod = page.read(IN_PROD);
        let used = prod.wrapping_sub(cons);
        let room = IN_SIZE.saturating_sub(used) as usize;
        let count = room.min(self.input.len());
        let mut next = prod;
        for byte in self.input.drain(..count) {
            let at = IN + (next & (IN_SIZE - 1)) as usize;
            let shift = (at & 3) * 8;
            let word = page.read(at & !3) & !(0xff << shift);
            page.write(at & !3, word | u32::from(byte) << shift);
            next = next.wrapping_add(1);
        }
        page.store_release(IN_PROD, next);
        count != 0
    }

    /// Whether this life has written to its ring.
    #[must_use]
    pub const fn spoke(&self) -> bool {
        self.spoke
    }

    /// Copies kept bytes from number `seq` on; answers the number of the first one given, and how many.
    pub fn read(&self, seq: u64, buffer: &mut [u8]) -> (u64, usize) {
        let end = self.gone.saturating_add(self.kept.len() as u64);
        let first = seq.clamp(self.gone, end);
        let from = usize::try_from(first.saturating_sub(self.gone)).unwrap_or(usize::MAX);
        let mut len = 0;
        for (to, &byte) in buffer.iter_mut().zip(self.kept.iter().skip(from)) {
            *to = byte;
            len += 1;
        }
        (first, len)
    }
}

fn byte(page: &impl SharedMem, at: usize) -> u8 {
    (page.read(at & !3) >> ((at & 3) * 8)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::TestPage;

    fn page() -> TestPage {
        TestPage::default()
    }
    /// A domain that has told the hypervisor nothing.
    fn silent(_: u64, _: &mut [u8]) -> Option<(u64, usize)> {
        None
    }
    /// The hypervisor's log of a domain.
    fn log(text: &[u8]) -> impl FnMut(u64, &mut [u8]) -> Option<(u64, usize)> {
        move |seq, to| {
            let rest = &text[(seq as usize).min(text.len())..];
            let len = rest.len().min(to.len());
            to[..len].copy_from_slice(&rest[..len]);
            Some((seq.min(text.len() as u64), len))
        }
    }
    /// The domain writes.
    fn say(page: &TestPage, text: &[u8]) {
        for &b in text {
            let prod = page.read(OUT_PROD);
            let at = OUT + (prod & (OUT_SIZE - 1)) as usize;
            let shift = (at & 3) * 8;
            page.write(at & !3, page.read(at & !3) & !(0xff << shift) | u32::from(b) << shift);
            page.write(OUT_PROD, prod.wrapping_add(1));
        }
    }
    /// The domain reads all there is.
    fn hear(page: &TestPage) -> Vec<u8> {
        let (cons, prod) = (page.read(IN_CONS), page.read(IN_PROD));
        page.write(IN_CONS, prod);
        (0..prod.wrapping_sub(cons)).map(|n| byte(page, IN + (cons.wrapping_add(n) & (IN_SIZE - 1)) as usize)).collect()
    }

    #[test]
    fn bytes_go_both_ways_over_the_end_of_the_ring_and_of_the_numbers() {
        let (page, mut terminal) = (page(), Terminal::default());
        for index in [OUT_PROD, OUT_CONS, IN_PROD, IN_CONS] {
            page.write(index, u32::MAX - 700);
        }
        let mut told = Vec::new();
        for round in 0..40u32 {
            let line = format!("line {round} of some length, so that the ring wraps around in the middle of one\n");
            say(&page, line.as_bytes());
            assert!(terminal.type_in(line.as_bytes()));
            assert!(terminal.turn(&page, silent));
            assert_eq!(hear(&page), line.as_bytes());
            told.extend(line.bytes());
        }
        assert!(!terminal.turn(&page, silent), "nothing moved, nobody is told");
        let mut buffer = vec![0; KEPT_MAX];
        let (first, len) = terminal.read(0, &mut buffer);
        assert_eq!((first, &buffer[..len]), (0, &told[..]));
        assert_eq!(terminal.read(5, &mut buffer[..4]), (5, 4));
        assert_eq!(&buffer[..4], b"0 of");
    }

    #[test]
    fn one_row_of_numbers_leads_through_the_log_and_the_ring_of_all_lives() {
        let (page, mut terminal) = (page(), Terminal::default());
        let mut buffer = vec![0; KEPT_MAX];
        terminal.follow_log(log(b"early; "));
        assert_eq!(terminal.read(0, &mut buffer), (0, 7));
        // A follower at byte 7 sees what comes by the ring, at once, and what came by the log meanwhile.
        say(&page, b"ring; ");
        terminal.turn(&page, log(b"early; late; "));
        assert_eq!(terminal.read(7, &mut buffer), (7, 12));
        assert_eq!(&buffer[..12], b"late; ring; ");
        // The log goes on beside the ring; the next life fails before it has a ring.
        terminal.follow_log(log(b"early; late; beside; "));
        terminal.restarted();
        assert!(!terminal.spoke());
        terminal.follow_log(log(b"early; late; beside; second life"));
        assert_eq!(terminal.read(19, &mut buffer), (19, 11));
        assert_eq!(&buffer[..11], b"second life");
    }

    #[test]
    fn the_oldest_output_goes_first_and_its_reader_is_told() {
        let (page, mut terminal) = (page(), Terminal::default());
        for n in 0..100u8 {
            say(&page, &[n; 1000]);
            terminal.turn(&page, silent);
        }
        let mut buffer = vec![0; 10];
        assert_eq!(terminal.read(0, &mut buffer), (100_000 - KEPT_MAX as u64, 10));
        assert_eq!(terminal.read(u64::MAX, &mut buffer), (100_000, 0));
    }

    #[test]
    fn impossible_indices_cost_the_liar_its_bytes_only() {
        let (page, mut terminal) = (page(), Terminal::default());
        page.write(OUT_PROD, OUT_SIZE + 1);
        assert!(terminal.turn(&page, silent) && !terminal.spoke());
        say(&page, b"x");
        terminal.turn(&page, silent);
        assert!(terminal.spoke());
        page.write(IN_CONS, 5);
        assert!(terminal.type_in(b"abc"));
        assert!(!terminal.turn(&page, silent), "a full ring gets nothing");
        page.write(IN_CONS, 0);
        assert!(terminal.turn(&page, silent));
        assert_eq!(hear(&page), b"abc");
    }

    #[test]
    fn input_beyond_its_room_is_refused_whole() {
        let mut terminal = Terminal::default();
        assert!(terminal.type_in(&[1; INPUT_MAX]) && !terminal.type_in(&[1]));
        terminal.restarted();
        assert!(terminal.type_in(&[1]));
    }
}
