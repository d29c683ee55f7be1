//! What a guest gives to the backend: empty buffers and packets of all shapes.

use super::{Guest, Link, Slot, TX_PAGES, rx_gref, tx_gref};
use crate::wire;
use abi::PAGE_SIZE;
use abi::io::netif::{extra, txf};

impl Guest {
    pub(super) fn post(&mut self, link: &mut Link) -> bool {
        let mut any = false;
        while let Some(&page) = link.free_rx.last() {
            self.mark(2 + TX_PAGES + page);
            self.world.grant(self.dom, rx_gref(page), self.frames[2 + TX_PAGES + page], false);
            if link.rx.push([page as u32, rx_gref(page).0]).is_err() {
                break;
            }
            link.free_rx.pop();
            link.posted.push_back((page, self.world.generation.get()));
            any = true;
        }
        if link.rx.publish() {
            self.world.send(self.dom, link.rx_port);
        }
        any
    }

    /// Sends a packet or a few.
    pub(super) fn send(&mut self, link: &mut Link) -> bool {
        let mut any = false;
        for _ in 0..=self.chance(3) {
            let Some(frame) = self.make_frame(link) else { break };
            self.push(link, &frame);
            any = true;
        }
        if link.tx.publish() {
            self.world.send(self.dom, link.tx_port);
        }
        any
    }

    fn make_frame(&mut self, link: &Link) -> Option<(Vec<u8>, bool, Option<u16>)> {
        if self.to_send == 0 || link.free_tx.len() < 20 || link.tx.free() < 22 {
            return None;
        }
        self.to_send -= 1;
        self.flow += 1;
        let sender = self.dom.0 as u8;
        let to = match self.chance(20) {
            0 => [0xFF; 6],
            n => self.peers[n as usize % self.peers.len()],
        };
        let blank = self.chance(2) == 0;
        Some(match self.chance(4) {
            0 if self.nature.gso => {
                let len = 1500 + self.chance(30_000) as usize;
                let to = if to == [0xFF; 6] { self.peers[0] } else { to }; // TCP is never for all
                (wire::tcp(to, sender, self.flow, len, true), true, Some(self.nature.mss))
            }
            1 => (wire::tcp(to, sender, self.flow, self.chance(1400) as usize, blank), blank, None),
            _ => (wire::udp(to, sender, self.flow, self.chance(1400) as usize, blank), blank, None),
        })
    }

    fn push(&mut self, link: &mut Link, (frame, blank, cut): &(Vec<u8>, bool, Option<u16>)) {
        // A few cuts at random places, more where a page is not enough.
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut rest = frame.as_slice();
        let small = self.chance(3);
        // Less than a header, then whole pages that it cannot be joined with. (A hostile guest might so make a frame that looks like
        // another's from what it wrote over what it got.)
        let tight = !self.nature.hostile && self.chance(2) == 0;
        for _ in 0..small {
            let longest = if tight && self.chance(4) == 0 { 13 } else { 200 };
            let at = 1 + self.chance(longest) as usize;
            if self.nature.sg && rest.len() > at {
                let (piece, tail) = rest.split_at(at);
                pieces.push(piece);
                rest = tail;
            }
        }
        let margin = if tight { 0 } else { 64 };
        pieces.extend(rest.chunks(PAGE_SIZE - margin));
        let count = pieces.len();
        for (n, piece) in pieces.into_iter().enumerate() {
            let page = link.free_tx.pop().expect("a page for each slot");
            let mfn = self.frames[2 + page];
            let offset = self.chance(64).min((PAGE_SIZE - piece.len()) as u32) as u64;
            self.world.write(mfn.0 * PAGE_SIZE as u64 + offset, piece);
            self.world.grant(self.dom, tx_gref(page), mfn, true);
            let mut flags = if n + 1 < count { txf::MORE_DATA } else { 0 };
            let mut size = piece.len();
            if n == 0 {
                size = frame.len();
                flags |= if *blank { txf::CSUM_BLANK | txf::DATA_VALIDATED } else { 0 };
                flags |= if cut.is_some() { txf::EXTRA_INFO } else { 0 };
            }
            let slot = [tx_gref(page).0, offset as u32 | u32::from(flags) << 16, page as u32 | (size as u32) << 16];
            link.tx.push(slot).expect("a slot for each page");
            link.slots.push_back(Slot::Data(page));
            if let (0, Some(mss)) = (n, cut) {
                let [low, high] = mss.to_le_bytes();
                let info = [u32::from_le_bytes([extra::GSO, 0, low, high]), u32::from(extra::GSO_TCPV4), 0];
                link.tx.push(info).expect("a slot for the extra info");
                link.slots.push_back(Slot::Extra);
            }
        }
    }
}
