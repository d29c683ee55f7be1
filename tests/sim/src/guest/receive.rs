//! What comes back to an honest guest, and what must be true of it.

use super::{Guest, Link, Slot, TX_PAGES, rx_gref, tx_gref};
use crate::wire;
use abi::PAGE_SIZE;
use abi::io::netif::{extra, rsp, rxf};

/// Bytes that Linux takes from a frame's first buffer without looking: the Ethernet header.
const MIN_HEAD: usize = 14;

impl Guest {
    /// Answers come in the order of the slots, each once, and the grant is free by then.
    pub(super) fn take_answers(&mut self, link: &mut Link) {
        loop {
            match link.tx.take() {
                Ok(Some((_, [word]))) => {
                    let (id, status) = (word as u16, (word >> 16) as i16);
                    match link.slots.pop_front() {
                        Some(Slot::Extra) if status == rsp::NULL => {}
                        Some(Slot::Data(page)) if usize::from(id) == page && status != rsp::NULL => {
                            self.answered += 1;
                            self.refused += u64::from(status == rsp::ERROR);
                            if !self.world.revoke(self.dom, tx_gref(page)) {
                                self.fail(format!("page {page} in use after its answer"));
                            }
                            // The page is another's now: whatever is still read from it is a leak.
                            self.mark(2 + page);
                            link.free_tx.push(page);
                        }
                        Some(_) => self.fail(format!("answer {word:08x} is another slot's")),
                        None => self.fail("an answer to nothing"),
                    }
                }
                Ok(None) => match link.tx.arm(1) {
                    Ok(true) => {}
                    Ok(false) => break link.tx_awake = false,
                    Err(fault) => break self.fail(fault),
                },
                Err(fault) => break self.fail(fault),
            }
        }
        if self.nature.hostile {
            link.tx_awake = false;
        }
    }

    pub(super) fn mark(&self, page: usize) {
        if self.nature.hostile {
            self.search_page(self.frames[page]);
        }
        self.world.write(self.frames[page].0 * PAGE_SIZE as u64, &[self.dom.0 as u8; PAGE_SIZE]);
    }

    pub(super) fn take_frames(&mut self, link: &mut Link) {
        loop {
            match link.rx.take() {
                Ok(Some((_, [head, tail]))) => self.take_slot(link, head, tail),
                Ok(None) => match link.rx.arm(1) {
                    Ok(true) => {}
                    Ok(false) => break link.rx_awake = false,
                    Err(fault) => break self.fail(fault),
                },
                Err(fault) => break self.fail(fault),
            }
        }
        if self.nature.hostile {
            link.rx_awake = false;
        }
    }

    fn take_slot(&mut self, link: &mut Link, head: u32, tail: u32) {
        let Some((page, life)) = link.posted.pop_front() else { return self.fail("a frame in no buffer") };
        if !self.world.revoke(self.dom, rx_gref(page)) {
            self.fail(format!("buffer {page} in use after its answer"));
        }
        link.free_rx.push(page);
        if std::mem::take(&mut link.expect_extra) {
            link.cut = true;
            if head as u8 != extra::GSO || tail as u8 != extra::GSO_TCPV4 || head >> 16 == 0 {
                self.fail(format!("extra info {head:08x} {tail:08x}"));
            }
            if link.first_flags & rxf::MORE_DATA == 0 {
                self.frame(link);
            }
            return;
        }
        let (id, offset) = (head as u16, (head >> 16) as usize);
        let (flags, status) = (tail as u16, (tail >> 16) as i16);
        if usize::from(id) != page {
            return self.fail(format!("frame in buffer {id}, not {page}"));
        }
        let Ok(len) = usize::try_from(status) else { return self.fail(format!("buffer answered with {status}")) };
        if offset + len > PAGE_SIZE {
            return self.fail(format!("{len} bytes at {offset}"));
        }
        let addr = self.frames[2 + TX_PAGES + page].0 * PAGE_SIZE as u64;
        let mut bytes = vec![0; PAGE_SIZE];
        self.world.read(addr, &mut bytes);
        let mark = self.dom.0 as u8;
        // A life that ended before it answered may have left another frame of ours there.
        let untouched = bytes[..offset].iter().chain(&bytes[offset + len..]).all(|&byte| byte == mark);
        if !untouched && life == self.world.generation.get() {
            self.fail("bytes around the frame were written");
        }
        if link.partial.is_empty() {
            link.first_flags = flags;
            link.expect_extra = flags & rxf::EXTRA_INFO != 0;
            if len < MIN_HEAD {
                self.fail(format!("{len} bytes in a frame's first buffer"));
            }
        }
        link.partial.extend(&bytes[offset..offset + len]);
        if flags & rxf::MORE_DATA == 0 && !link.expect_extra {
            self.frame(link);
        } else if flags & rxf::MORE_DATA == 0 {
            link.first_flags &= !rxf::MORE_DATA;
        }
    }

    /// A whole frame has arrived.
    fn frame(&mut self, link: &mut Link) {
        let frame = std::mem::take(&mut link.partial);
        let cut = std::mem::take(&mut link.cut);
        let blank = link.first_flags & rxf::CSUM_BLANK != 0;
        if (blank && !self.nature.blank) || (cut && !self.nature.gso) || (frame.len() > PAGE_SIZE && !self.nature.sg) {
            self.fail(format!("frame of {} bytes it did not ask for (blank {blank}, to cut {cut})", frame.len()));
        }
        if !cut && frame.len() > 1514 {
            self.fail(format!("frame of {} bytes", frame.len()));
        }
        match wire::check(&frame, blank) {
            _ if self.world.from_hostile(&frame) => {}
            Ok(seen) => {
                if frame[..6] != wire::mac(self.dom.0 as u8) && frame[..6] != [0xFF; 6] && frame[..6] != wire::GROUP {
                    self.fail(format!("a frame for {:02x?}", &frame[..6]));
                }
                self.received.push(seen);
            }
            Err(why) => self.fail(why),
        }
    }
}
