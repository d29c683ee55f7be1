//! Where the headers of a frame are, as far as offloads need to know. Nothing here trusts a length field: every offset it
//! returns lies within the bytes it was given.

use crate::nic::{Checksum, GsoKind};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// Bytes of a frame that are looked at: Ethernet with a tag, IPv6 with extension headers, the longest TCP header.
pub(crate) const HEAD: usize = 256;

/// Offsets from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Headers {
    /// IP header.
    pub ip: usize,
    /// It is IPv6.
    pub v6: bool,
    /// TCP or UDP header.
    pub transport: usize,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// First byte after the transport header.
    pub payload: usize,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let end = at.checked_add(2)?;
    Some(u16::from_be_bytes(bytes.get(at..end)?.try_into().ok()?))
}

fn byte(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at).map(|&b| usize::from(b))
}

impl Headers {
    /// Finds TCP or UDP in a frame that begins with `head`. `None`: neither, or a fragment, or cut off.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let (ip, ethertype) = match be16(head, 12)? {
            ETHERTYPE_VLAN => (18, be16(head, 16)?),
            other => (14, other),
        };
        let (v6, transport, protocol) = match ethertype {
            ETHERTYPE_IPV4 => Self::ipv4(head, ip)?,
            ETHERTYPE_IPV6 => Self::ipv6(head, ip)?,
            _ => return None,
        };
        let len = match protocol {
            TCP => byte(head, transport.checked_add(12)?)?.wrapping_shr(4).saturating_mul(4),
            UDP => 8,
            _ => return None,
        };
        let min = if protocol == TCP { 20 } else { 8 };
        let payload = transport.checked_add(len)?;
        (len >= min && payload <= head.len()).then_some(Self { ip, v6, transport, protocol, payload })
    }

    fn ipv4(head: &[u8], ip: usize) -> Option<(bool, usize, u8)> {
        let first = byte(head, ip)?;
        let len = (first & 15).saturating_mul(4);
        let fragment = be16(head, ip.checked_add(6)?)? & 0x3FFF != 0; // MF or an offset
        let protocol = *head.get(ip.checked_add(9)?)?;
        (first & 0xF0 == 0x40 && len >= 20 && !fragment).then_some((false, ip.checked_add(len)?, protocol))
    }

    fn ipv6(head: &[u8], ip: usize) -> Option<(bool, usize, u8)> {
        if byte(head, ip)? & 0xF0 != 0x60 {
            return None;
        }
        let mut next = *head.get(ip.checked_add(6)?)?;
        let mut at = ip.checked_add(40)?;
        // Hop-by-hop, routing and destination options may stand before; a fragment header ends the search.
        for _ in 0..4 {
            if !matches!(next, 0 | 43 | 60) {
                break;
            }
            next = *head.get(at)?;
            let units = byte(head, at.checked_add(1)?)?;
            at = at.checked_add(units.saturating_add(1).saturating_mul(8))?;
        }
        Some((true, at, next))
    }

    /// Offset of the checksum field in the transport header.
    pub const fn checksum_offset(&self) -> u16 {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// What the NIC needs to insert the checksum.
    pub fn checksum(&self) -> Checksum {
        Checksum { start: self.transport as u16, offset: self.checksum_offset() }
    }

    /// Is this what a frame of `kind` to be segmented must look like?
    pub fn fits_gso(&self, kind: GsoKind) -> bool {
        self.protocol == TCP && self.v6 == matches!(kind, GsoKind::TcpV6)
    }

    /// One's complement sum of the pseudo-header, `len` being the transport length it names (0 to leave it out).
    pub fn pseudo_sum(&self, head: &[u8], len: u32) -> u32 {
        let (at, bytes) = if self.v6 { (8usize, 32usize) } else { (12, 8) };
        let start = self.ip.saturating_add(at);
        let addresses = head.get(start..start.saturating_add(bytes)).unwrap_or(&[]);
        let len = (len & 0xFFFF).wrapping_add(len.wrapping_shr(16));
        sum(addresses, 0).wrapping_add(u32::from(self.protocol)).wrapping_add(len)
    }
}

/// Adds `bytes`, as big-endian 16-bit words (the last padded), to `sum`. Good for up to 64 KiB between folds.
pub(crate) fn sum(bytes: &[u8], sum: u32) -> u32 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = words.by_ref().fold(sum, |sum, word| match word {
        [high, low] => sum.wrapping_add(u32::from(u16::from_be_bytes([*high, *low]))),
        _ => sum,
    });
    if let [last] = words.remainder() {
        sum = sum.wrapping_add(u32::from(*last) << 8);
    }
    sum
}

/// Folds a sum to 16 bits, end-around carry.
pub(crate) fn fold(sum: u32) -> u16 {
    let once = (sum & 0xFFFF).wrapping_add(sum.wrapping_shr(16));
    (once & 0xFFFF).wrapping_add(once.wrapping_shr(16)) as u16
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An Ethernet frame with TCP over IPv4 or IPv6 and `payload` bytes of payload; the TCP checksum field is zero.
    pub(crate) fn tcp(v6: bool, payload: &[u8]) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let len = 20 + payload.len();
        if v6 {
            f.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            f.extend((len as u16).to_be_bytes());
            f.extend([TCP, 64]);
            f.extend((0..32).map(|n| 0x20 + n));
        } else {
            f.extend([8, 0, 0x45, 0]);
            f.extend((20 + len as u16).to_be_bytes());
            f.extend([0x12, 0x34, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        f.extend([0x1F, 0x90, 0xC0, 0, 0, 0, 1, 0, 0, 0, 0, 9, 0x50, 0x19, 1, 0, 0, 0, 0, 0]); // ACK PSH FIN
        f.extend(payload);
        f
    }

    #[test]
    fn tcp_is_found_in_both_families() {
        let v4 = Headers::parse(&tcp(false, b"x")).unwrap();
        assert_eq!(v4, Headers { ip: 14, v6: false, transport: 34, protocol: TCP, payload: 54 });
        let v6 = Headers::parse(&tcp(true, b"x")).unwrap();
        assert_eq!((v6.transport, v6.payload, v6.checksum().offset), (54, 74, 16));
        assert!(v4.fits_gso(GsoKind::TcpV4) && !v4.fits_gso(GsoKind::TcpV6));
    }

    #[test]
    fn fragments_and_cut_frames_have_no_transport() {
        let mut frame = tcp(false, b"x");
        assert_eq!(Headers::parse(&frame[..53]), None);
        frame[20] = 0x20; // more fragments
        assert_eq!(Headers::parse(&frame), None);
    }

    #[test]
    fn checksum_of_rfc_1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
        assert_eq!(fold(sum(&[0x01], 0)), 0x0100);
    }

    proptest! {
        #[test]
        fn offsets_stay_inside(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, cut in 0usize..120) {
            let mut frame = tcp(v6, &bytes);
            for (n, b) in bytes.iter().enumerate().take(60) {
                if b % 3 == 0 && n + 14 < frame.len() { frame[n + 14] = *b; }
            }
            frame.truncate(cut);
            if let Some(h) = Headers::parse(&frame) {
                prop_assert!(h.ip < h.transport && h.transport < h.payload && h.payload <= frame.len());
            }
        }
    }
}
