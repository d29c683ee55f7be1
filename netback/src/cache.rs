//! What a restart must know of the connected vifs, kept in the part of the survivor page that the journal leaves free. With it a
//! fresh instance takes up all rings without asking xenstore; it compares with xenstore once traffic flows again.
//!
//! The page is written by code that may have been failing, so the cache is believed only whole: magic, size and CRC-32 must fit, and every
//! field must be one that xenstore could have said. It is all or nothing, because the journal's record must find its ring: where a vif does not fit,
//! there is no cache, and the next start asks xenstore first. What it names is then checked by who gives it: grants and ports by
//! the hypervisor, indices by the ring.
//!
//! ```text
//! word 0 magic   1 vifs   2 words behind the header   3 CRC-32 of 1, 2 and those words
//! a vif: frontend | device << 16, mac[0..4], mac[4..6] | features << 16, tx ring, rx ring, tx port, rx port, bytes of rules + 1 or 0, rules
//! ```

use crate::negotiate::{Directory, Features, Keys, back_path, front_path};
use crate::nic::is_group;
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};
use alloc::string::String;
use alloc::vec::Vec;
use ring::{SURVIVOR_OWNER, SharedMem};

/// "vifs".
const MAGIC: u32 = 0x7366_6976;
const HEADER: usize = 4;
/// Words behind the header that fit.
const ROOM: usize = (PAGE_SIZE - SURVIVOR_OWNER) / 4 - HEADER;
/// Words of a vif without its rules.
const FIXED: usize = 8;

fn at(word: usize) -> usize {
    SURVIVOR_OWNER.saturating_add(word.saturating_mul(4))
}

fn crc(count: u32, body: &[u32]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for word in [count, body.len() as u32].iter().chain(body) {
        crc.update(&word.to_le_bytes());
    }
    crc.finalize()
}

/// Forgets what was kept.
pub(crate) fn clear<S: SharedMem>(page: &S) {
    page.store_release(at(0), 0);
}

/// Keeps the connected vifs, or nothing where they do not fit.
pub(crate) fn save<'a, S: SharedMem>(page: &S, me: DomId, vifs: impl Iterator<Item = &'a Directory>) {
    clear(page);
    let mut body = Vec::new();
    let mut count = 0u32;
    for vif in vifs {
        if encode(&mut body, me, vif).is_none() {
            return;
        }
        count = count.saturating_add(1);
    }
    if body.len() > ROOM {
        return;
    }
    for (word, value) in (HEADER..).zip(&body) {
        page.store_release(at(word), *value);
    }
    page.store_release(at(1), count);
    page.store_release(at(2), body.len() as u32);
    page.store_release(at(3), crc(count, &body));
    page.store_release(at(0), MAGIC);
}

/// What was kept; `None` where nothing was, or it is damaged.
pub(crate) fn load<S: SharedMem>(page: &S, me: DomId) -> Option<Vec<Directory>> {
    let [magic, count, words, stored] = [0, 1, 2, 3].map(|word| page.load_acquire(at(word)));
    if magic != MAGIC || words as usize > ROOM {
        return None;
    }
    let body: Vec<u32> = (HEADER..).take(words as usize).map(|word| page.read(at(word))).collect();
    if crc(count, &body) != stored {
        return None;
    }
    let mut rest = body.as_slice();
    let mut vifs = Vec::new();
    for _ in 0..count {
        vifs.push(decode(&mut rest, me)?);
    }
    rest.is_empty().then_some(vifs)
}

const FEATURES: u32 = 16;

fn encode(body: &mut Vec<u32>, me: DomId, vif: &Directory) -> Option<()> {
    let keys = vif.keys.as_ref().ok()?;
    let [a, b, c, d, e, f] = vif.mac?;
    // Paths are not kept; a vif with others than the usual ones has no place here.
    if vif.back != back_path(me, vif.frontend, vif.device) || vif.front != front_path(vif.frontend, vif.device) {
        return None;
    }
    let x = &keys.features;
    let features = [x.sg, x.gso_v4, x.gso_v6, x.blank_v4, x.blank_v6, x.groups];
    let bits = features.iter().zip(FEATURES..).fold(0, |bits, (&on, bit)| bits | u32::from(on) << bit);
    let rules = vif.rules.as_deref();
    body.extend([
        u32::from(vif.frontend.0) | u32::from(vif.device) << 16,
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, 0, 0]) | bits,
        keys.tx_ring.0,
        keys.rx_ring.0,
        keys.tx_port.0,
        keys.rx_port.0,
        rules.map_or(0, |text| (text.len() as u32).saturating_add(1)),
    ]);
    for chunk in rules.unwrap_or_default().as_bytes().chunks(4) {
        let mut word = [0; 4];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        body.push(u32::from_le_bytes(word));
    }
    Some(())
}

fn decode(rest: &mut &[u32], me: DomId) -> Option<Directory> {
    let ([id, mac, more, tx_ring, rx_ring, tx_port, rx_port, rules], tail) = rest.split_first_chunk::<FIXED>()?;
    let ([a, b, c, d], [e, f, ..]) = (mac.to_le_bytes(), more.to_le_bytes());
    let mac = [a, b, c, d, e, f];
    let bit = |n: u32| more >> FEATURES >> n & 1 != 0;
    let port = |n: u32| (n != 0 && n < abi::evtchn::NR_CHANNELS_2L).then_some(EvtchnPort(n));
    let (rules, tail) = match rules.checked_sub(1) {
        None => (None, tail),
        Some(len) => {
            let (words, tail) = tail.split_at_checked((len as usize).div_ceil(4))?;
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).take(len as usize).collect();
            (Some(String::from_utf8(bytes).ok()?), tail)
        }
    };
    *rest = tail;
    let (frontend, device) = (DomId(*id as u16), (*id >> 16) as u16);
    Some(Directory {
        frontend,
        device,
        back: back_path(me, frontend, device),
        front: front_path(frontend, device),
        mac: Some(mac).filter(|mac| !is_group(mac) && *mac != [0; 6])?.into(),
        rules,
        back_state: XenbusState::Connected,
        front_state: XenbusState::Connected,
        keys: Ok(Keys {
            tx_ring: GrantRef(*tx_ring),
            rx_ring: GrantRef(*rx_ring),
            tx_port: port(*tx_port)?,
            rx_port: port(*rx_port)?,
            features: Features {
                sg: bit(0),
                gso_v4: bit(1),
                gso_v6: bit(2),
                blank_v4: bit(3),
                blank_v6: bit(4),
                groups: bit(5),
            },
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    struct Page(RefCell<Vec<u32>>);
    impl Page {
        fn new() -> Self {
            Self(RefCell::new(vec![0; PAGE_SIZE / 4]))
        }
    }
    impl SharedMem for Page {
        fn read(&self, offset: usize) -> u32 {
            self.0.borrow()[offset / 4]
        }
        fn write(&self, offset: usize, value: u32) {
            self.0.borrow_mut()[offset / 4] = value;
        }
        fn load_acquire(&self, offset: usize) -> u32 {
            self.read(offset)
        }
        fn store_release(&self, offset: usize, value: u32) {
            self.write(offset, value);
        }
        fn fence(&self) {}
    }

    const ME: DomId = DomId(1);

    fn vif(frontend: u16, device: u16, rules: Option<String>, seed: u32) -> Directory {
        let frontend = DomId(frontend);
        Directory {
            frontend,
            device,
            back: back_path(ME, frontend, device),
            front: front_path(frontend, device),
            mac: Some([2, 0, 0, 0, (seed >> 8) as u8, seed as u8]),
            rules,
            back_state: XenbusState::Connected,
            front_state: XenbusState::Connected,
            keys: Ok(Keys {
                tx_ring: GrantRef(seed),
                rx_ring: GrantRef(seed + 1),
                tx_port: EvtchnPort(seed % 4095 + 1),
                rx_port: EvtchnPort(seed % 4094 + 2),
                features: Features {
                    sg: seed & 1 != 0,
                    gso_v4: seed & 2 != 0,
                    gso_v6: seed & 4 != 0,
                    blank_v4: seed & 8 != 0,
                    blank_v6: seed & 16 != 0,
                    groups: seed & 32 != 0,
                },
            }),
        }
    }

    fn vifs() -> impl Strategy<Value = Vec<Directory>> {
        let one = (0u16..0x7ff0, any::<u16>(), proptest::option::of("[ -~]{0,40}"), 0u32..1 << 30);
        proptest::collection::vec(one.prop_map(|(f, d, rules, seed)| vif(f, d, rules, seed)), 0..16)
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(kept in vifs()) {
            let page = Page::new();
            save(&page, ME, kept.iter());
            prop_assert_eq!(load(&page, ME), Some(kept));
            clear(&page);
            prop_assert_eq!(load(&page, ME), None);
        }

        /// A death after any store leaves the old cache, none, or the new one; never a mixture.
        #[test]
        fn half_a_cache_is_none(old in vifs(), new in vifs(), stores in 0usize..700) {
            struct Dying<'a>(&'a Page, std::cell::Cell<usize>);
            impl SharedMem for Dying<'_> {
                fn read(&self, offset: usize) -> u32 { self.0.read(offset) }
                fn write(&self, offset: usize, value: u32) {
                    if let Some(left) = self.1.get().checked_sub(1) {
                        self.1.set(left);
                        self.0.write(offset, value);
                    }
                }
                fn load_acquire(&self, offset: usize) -> u32 { self.0.read(offset) }
                fn store_release(&self, offset: usize, value: u32) { self.write(offset, value); }
                fn fence(&self) {}
            }
            let page = Page::new();
            save(&page, ME, old.iter());
            save(&Dying(&page, stores.into()), ME, new.iter());
            let found = load(&page, ME);
            prop_assert!(found.is_none() || found.as_ref() == Some(&new) || stores == 0 && found == Some(old));
        }

        #[test]
        fn a_damaged_cache_is_none(kept in vifs(), word in 0usize..448, bit in 0u32..32) {
            let page = Page::new();
            save(&page, ME, kept.iter());
            let before = load(&page, ME);
            page.write(at(word), page.read(at(word)) ^ 1 << bit);
            let used = HEADER + page.read(at(2)) as usize;
            let found = load(&page, ME);
            prop_assert!(found.is_none() || word >= used && found == before);
        }
    }

    #[test]
    fn the_journals_part_is_not_touched() {
        let page = Page::new();
        save(&page, ME, [vif(2, 0, None, 7)].iter());
        assert!((0..SURVIVOR_OWNER).step_by(4).all(|offset| page.read(offset) == 0));
    }

    #[test]
    fn what_does_not_fit_is_not_kept_by_half() {
        let page = Page::new();
        let mut odd = vif(3, 0, None, 7);
        odd.front = "/local/domain/3/device/other/0".into();
        save(&page, ME, [vif(2, 0, None, 7), odd].iter());
        assert_eq!(load(&page, ME), None);
        save(&page, ME, [vif(2, 0, Some("x".repeat(1800)), 7)].iter());
        assert_eq!(load(&page, ME), None);
    }
}
