//! What a hostile guest does.

use super::{DATA_PAGES, Guest, LISTS, RING_PAGES, data_gref, list_gref, ring_gref};
use abi::PAGE_SIZE;

impl Guest {
    /// Something that no honest frontend does, in memory and with calls that are its own.
    pub(super) fn misbehave(&mut self) {
        let dice = || self.world.chance.borrow_mut().draw();
        let (what, place, value) = (dice() % 10, dice(), dice());
        let Some(link) = &mut self.link else { return };
        let base = self.frames[place as usize % (1 << self.nature.order)].0 * PAGE_SIZE as u64;
        match what {
            // An index, near to what it was or anywhere.
            0 if place.is_multiple_of(4) => {
                let at = self.frames[0].0 * PAGE_SIZE as u64 + u64::from(place >> 4 & 3) * 4;
                let old = self.world.read32(at);
                let new = if value & 1 == 0 { old.wrapping_add(value >> 26).wrapping_sub(30) } else { value };
                self.world.write32(at, new);
            }
            // A slot, whole or in part.
            0..=3 => {
                let at = base + 64 + u64::from(place >> 1) % 1000 * 4;
                self.world.write32(at, if value & 1 == 0 { value } else { value >> 24 });
            }
            // A list of segments, while it may be read.
            4 => {
                let list = self.frames[RING_PAGES + DATA_PAGES + place as usize % LISTS];
                self.world.write32(list.0 * PAGE_SIZE as u64 + u64::from(place >> 8) % 40 * 4, value >> (place >> 27));
            }
            // Any grant, in use or not.
            5 => {
                let gref = match place % 8 {
                    0 => ring_gref(value as usize % RING_PAGES),
                    1 => list_gref(value as usize % LISTS),
                    _ => data_gref(value as usize % DATA_PAGES),
                };
                self.world.tear(self.dom, gref);
            }
            6 => self.world.send(self.dom, link.port),
            // A slot of any words at all.
            7 => {
                let mut words = [(); 28].map(|()| dice() >> (place % 32));
                words[0] = (words[0] & !0xFF) | (value % 8);
                let _full = link.ring.push(words);
                if link.ring.publish() {
                    self.world.send(self.dom, link.port);
                }
            }
            8 if place.is_multiple_of(16) => self.say("state", &(value % 9).to_string()),
            _ => link.awake = true,
        }
    }
}
