//! What netfront reads of its backend, and what it writes about itself as Linux' does (`public/io/netif.h`, "Feature negotiation").

use crate::store::{Store, StoreError};
use crate::xenbus::Device;
use alloc::string::ToString;

/// What the backend offers to take from us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// More than one slot per frame.
    pub scatter_gather: bool,
    /// Blank checksums, IPv4.
    pub checksum_v4: bool,
    /// Blank checksums, IPv6.
    pub checksum_v6: bool,
    /// TCP segmentation, IPv4.
    pub gso_v4: bool,
    /// TCP segmentation, IPv6.
    pub gso_v6: bool,
}

impl Offers {
    /// Whether this has everything `promised` has.
    pub const fn covers(&self, promised: &Self) -> bool {
        (self.scatter_gather || !promised.scatter_gather)
            && (self.gso_v4 || !promised.gso_v4)
            && (self.gso_v6 || !promised.gso_v6)
    }

    /// Reads the backend's directory.
    ///
    /// # Errors
    /// The store's.
    pub fn read(store: &mut Store, device: &Device) -> Result<Self, StoreError> {
        let mut flag = |name: &str| device.offers(store, name);
        let scatter_gather = flag("feature-sg")?;
        // The IPv4 offload is on unless refused; segmentation needs it, and slots for the segments.
        let checksum_v4 = !flag("feature-no-csum-offload")?;
        let checksum_v6 = flag("feature-ipv6-csum-offload")?;
        Ok(Self {
            scatter_gather,
            checksum_v4,
            checksum_v6,
            gso_v4: flag("feature-gso-tcpv4")? && scatter_gather && checksum_v4,
            gso_v6: flag("feature-gso-tcpv6")? && scatter_gather && checksum_v6,
        })
    }
}

/// What we tell the backend.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Grant of the TX ring.
    pub tx: abi::GrantRef,
    /// Grant of the RX ring.
    pub rx: abi::GrantRef,
    /// Our port.
    pub port: abi::EvtchnPort,
}

/// Writes rings and features.
///
/// # Errors
/// The store's.
pub fn publish(store: &mut Store, device: &Device, rings: Rings) -> Result<(), StoreError> {
    let nodes = [
        ("tx-ring-ref", rings.tx.0),
        ("rx-ring-ref", rings.rx.0),
        ("event-channel", rings.port.0),
        ("request-rx-copy", 1),
        ("feature-rx-notify", 1),
        ("feature-sg", 1),
        ("feature-gso-tcpv4", 1),
        ("feature-gso-tcpv6", 1),
        ("feature-ipv6-csum-offload", 1),
    ];
    device.publish(store, &nodes.map(|(name, value)| (name, value.to_string())))
}

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_parse_exactly() {
        assert_eq!(parse_mac("00:16:3e:00:0a:fF"), Some([0, 0x16, 0x3e, 0, 0x0a, 0xff]));
        for bad in ["", "00:16:3e:00:0a", "00:16:3e:00:0a:ff:01", "0:16:3e:00:0a:ff", "00:16:3e:00:0a:+1"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
