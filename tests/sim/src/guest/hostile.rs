//! What a hostile guest does, and the search for what it got hold of.

use super::Guest;
use crate::scenario::OUTSIDE;
use abi::{DomId, GrantRef, PAGE_SIZE};
use hv_core::Mfn;

impl Guest {
    /// Something that no honest frontend does, in memory and with calls that are its own.
    pub(super) fn misbehave(&mut self) {
        let dice = || self.world.chance.borrow_mut().draw();
        let (what, where_, value) = (dice() % 8, dice(), dice());
        let Some(link) = &mut self.link else { return };
        let page = if where_ & 1 == 0 { self.frames[0] } else { self.frames[1] };
        let base = page.0 * PAGE_SIZE as u64;
        match what {
            // An index, near to what it was or anywhere.
            0 => {
                let at = base + u64::from(where_ >> 1 & 3) * 4;
                let old = self.world.read32(at);
                let new = if value & 1 == 0 { old.wrapping_add(value >> 24).wrapping_sub(60) } else { value };
                self.world.write32(at, new);
            }
            // A slot, whole or in part.
            1..=3 => {
                let at = base + 64 + u64::from(where_ >> 1) % 1000 * 4;
                self.world.write32(at, if value & 1 == 0 { value } else { value >> 20 });
            }
            // Any grant, in use or not.
            4 => {
                let gref = GrantRef(if where_ & 7 == 0 { 8 + (value & 1) } else { 100 + value % 150 });
                self.world.tear(self.dom, gref);
            }
            5 => self.world.send(self.dom, link.tx_port),
            // A wish for something not its own.
            6 => {
                let _full = link.tx.push([value % 300, 0, where_ << 16]);
                if link.tx.publish() {
                    self.world.send(self.dom, link.tx_port);
                }
            }
            _ if where_ % 16 == 0 => {
                let path = self.front("state");
                self.world.store.borrow_mut().set(&path, &(value % 9).to_string());
            }
            _ => link.tx_awake = true,
        }
    }

    /// Looks through the memory of a hostile guest for what is not its own: frames between others, others' memory.
    pub fn search(&self) {
        if self.nature.hostile {
            self.frames[2..].iter().for_each(|&mfn| self.search_page(mfn));
        }
    }

    pub(super) fn search_page(&self, mfn: Mfn) {
        let hostile = self.world.hostile.borrow();
        let mut page = [0; PAGE_SIZE];
        self.world.read(mfn.0 * PAGE_SIZE as u64, &mut page);
        for head in page.windows(15) {
            // Only addresses that somebody has: with slots it scribbled on, a hostile guest has one frame of its own written over another.
            let exists =
                |station: u8| station == OUTSIDE || self.world.hv.borrow().tables.contains_key(&DomId(station.into()));
            let foreign =
                |mac: &[u8]| mac[..5] == [2, 0, 0, 0, 0] && mac[5] >= 5 && !hostile.contains(&mac[5]) && exists(mac[5]);
            if foreign(&head[..6]) && foreign(&head[6..]) && head[12..] == [8, 0, 0x45] {
                return self.world.fail(format!("guest {} has a frame {head:02x?}", self.dom));
            }
        }
        for run in page.chunks(64) {
            let mark = run[0];
            if (5..64).contains(&mark) && !hostile.contains(&mark) && run.iter().all(|&byte| byte == mark) {
                return self.world.fail(format!("guest {} has memory of guest {mark}", self.dom));
            }
        }
    }
}
