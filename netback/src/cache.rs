//! What a restart must know of the connected vifs; how it is kept is every backend's ([`::backend::cache`]). Every field must be one that
//! xenstore could have said; what they name is then checked by who gives it: grants and ports by the hypervisor, indices by the ring.
//!
//! ```text
//! mac[0..4], mac[4..6] | features << 16, tx ring, rx ring, tx port, rx port, rules
//! ```

use crate::negotiate::{Features, Keys, Nodes};
use crate::nic::is_group;
use ::backend::cache::{Kept, put_text, take_text};
use abi::{EvtchnPort, GrantRef};
use alloc::vec::Vec;

const FEATURES: u32 = 16;

impl Kept for Nodes {
    /// "vifs".
    const MAGIC: u32 = 0x7366_6976;

    fn encode(&self, body: &mut Vec<u32>) -> Option<()> {
        let keys = self.keys.as_ref().ok()?;
        let [a, b, c, d, e, f] = self.mac?;
        let x = &keys.features;
        let features = [x.sg, x.gso_v4, x.gso_v6, x.blank_v4, x.blank_v6, x.groups];
        let bits = features.iter().zip(FEATURES..).fold(0, |bits, (&on, bit)| bits | u32::from(on) << bit);
        body.extend([
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, 0, 0]) | bits,
            keys.tx_ring.0,
            keys.rx_ring.0,
            keys.tx_port.0,
            keys.rx_port.0,
        ]);
        put_text(body, self.rules.as_deref());
        Some(())
    }

    fn decode(rest: &mut &[u32]) -> Option<Self> {
        let ([mac, more, tx_ring, rx_ring, tx_port, rx_port], tail) = rest.split_first_chunk()?;
        let ([a, b, c, d], [e, f, ..]) = (mac.to_le_bytes(), more.to_le_bytes());
        let mac = [a, b, c, d, e, f];
        let bit = |n: u32| more >> FEATURES >> n & 1 != 0;
        let port = |n: u32| (n != 0 && n < abi::evtchn::NR_CHANNELS_2L).then_some(EvtchnPort(n));
        *rest = tail;
        let rules = take_text(rest)?;
        Some(Self {
            mac: Some(mac).filter(|mac| !is_group(mac) && *mac != [0; 6])?.into(),
            rules,
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vif(rules: Option<String>, seed: u32) -> Nodes {
        Nodes {
            mac: Some([2, 0, 0, 0, (seed >> 8) as u8, seed as u8]),
            rules,
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

    fn vifs() -> impl Strategy<Value = Vec<Nodes>> {
        let one = (proptest::option::of("[ -~]{0,40}"), 0u32..1 << 30);
        proptest::collection::vec(one.prop_map(|(rules, seed)| vif(rules, seed)), 0..16)
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(kept in vifs()) {
            let mut body = Vec::new();
            for vif in &kept {
                prop_assert_eq!(vif.encode(&mut body), Some(()));
            }
            let mut rest = body.as_slice();
            for vif in kept {
                prop_assert_eq!(Nodes::decode(&mut rest), Some(vif));
            }
            prop_assert!(rest.is_empty());
        }
    }
}
