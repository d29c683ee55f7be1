//! What a restart must know of the connected vifs; how it is kept is every backend's ([`::backend::cache`]). Every field must be one that
//! xenstore could have said; what they name is then checked by who gives it: grants and ports by the hypervisor, indices by the ring.
//!
//! ```text
//! frontend | device << 16, mac[0..4], mac[4..6] | features << 16, tx ring, rx ring, tx port, rx port, rules
//! ```

use crate::negotiate::{Directory, Features, KIND, Keys};
use crate::nic::is_group;
use ::backend::cache;
use ::backend::xenbus::Place;
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef};
use alloc::vec::Vec;
use ring::SharedMem;

/// "vifs".
const MAGIC: u32 = 0x7366_6976;
/// Words of a vif without its rules.
const FIXED: usize = 7;

/// Keeps the connected vifs, or nothing where they do not fit or one is not known.
pub(crate) fn save<'a, S: SharedMem>(page: &S, me: DomId, vifs: impl Iterator<Item = Option<&'a Directory>>) {
    cache::save(page, MAGIC, vifs, |body, vif| encode(body, me, vif?));
}

/// What was kept; `None` where nothing was, or it is damaged.
pub(crate) fn load<S: SharedMem>(page: &S, me: DomId) -> Option<Vec<Directory>> {
    cache::load(page, MAGIC, |rest| decode(rest, me))
}

const FEATURES: u32 = 16;

fn encode(body: &mut Vec<u32>, me: DomId, vif: &Directory) -> Option<()> {
    let keys = vif.keys.as_ref().ok()?;
    let [a, b, c, d, e, f] = vif.mac?;
    // Paths are not kept; a vif with others than the usual ones has no place here.
    let Place { frontend, device, .. } = vif.place;
    if vif.place != Place::usual(me, KIND, frontend, device) {
        return None;
    }
    let x = &keys.features;
    let features = [x.sg, x.gso_v4, x.gso_v6, x.blank_v4, x.blank_v6, x.groups];
    let bits = features.iter().zip(FEATURES..).fold(0, |bits, (&on, bit)| bits | u32::from(on) << bit);
    body.extend([
        u32::from(frontend.0) | u32::from(device) << 16,
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, 0, 0]) | bits,
        keys.tx_ring.0,
        keys.rx_ring.0,
        keys.tx_port.0,
        keys.rx_port.0,
    ]);
    cache::put_text(body, vif.rules.as_deref());
    Some(())
}

fn decode(rest: &mut &[u32], me: DomId) -> Option<Directory> {
    let ([id, mac, more, tx_ring, rx_ring, tx_port, rx_port], tail) = rest.split_first_chunk::<FIXED>()?;
    let ([a, b, c, d], [e, f, ..]) = (mac.to_le_bytes(), more.to_le_bytes());
    let mac = [a, b, c, d, e, f];
    let bit = |n: u32| more >> FEATURES >> n & 1 != 0;
    let port = |n: u32| (n != 0 && n < abi::evtchn::NR_CHANNELS_2L).then_some(EvtchnPort(n));
    *rest = tail;
    let rules = cache::take_text(rest)?;
    Some(Directory {
        place: Place::usual(me, KIND, DomId(*id as u16), (*id >> 16) as u16),
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
    use ring::TestPage;

    const ME: DomId = DomId(1);

    fn vif(frontend: u16, device: u16, rules: Option<String>, seed: u32) -> Directory {
        Directory {
            place: Place::usual(ME, KIND, DomId(frontend), device),
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
            let page = TestPage::default();
            save(&page, ME, kept.iter().map(Some));
            prop_assert_eq!(load(&page, ME), Some(kept));
        }
    }

    #[test]
    fn a_vif_with_other_paths_is_not_kept() {
        let page = TestPage::default();
        let mut odd = vif(3, 0, None, 7);
        odd.place.front = "/local/domain/3/device/other/0".into();
        save(&page, ME, [vif(2, 0, None, 7), odd].iter().map(Some));
        assert_eq!(load(&page, ME), None);
    }
}
