//! Transport checksums of Ethernet frames, for what the other end cannot do: where to find TCP's and UDP's, the pseudo-header's part
//! (what a blank checksum carries, RFC 9293 section 3.1, RFC 8200 section 8.1), and the whole.

/// Where a frame's transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Byte offset of the header.
    start: usize,
    /// First byte after the transport data (padding of short frames does not count).
    end: usize,
    /// Byte offset of the checksum field.
    field: usize,
    /// Sum of the pseudo header, not yet folded to 16 bits.
    pseudo: u32,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    udp: bool,
}

/// What [`find`] sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// TCP or UDP, whole.
    Transport(Transport),
    /// Something without a checksum of this kind (ARP, ICMP, …).
    Other,
    /// Part of a fragmented datagram: its checksum covers more than this frame.
    Fragment,
    /// Lengths that contradict the frame.
    Malformed,
}

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([*pair.first()?, *pair.get(1)?]))
}

/// One's-complement sum of big-endian 16-bit words; an odd last byte counts as the high half.
fn sum(bytes: &[u8], mut acc: u64) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        if let Ok(eight) = <[u8; 8]>::try_from(chunk) {
            // Sums of 16-bit words may be taken in wider words as long as carries are kept (RFC 1071, section 2).
            let word = u64::from_be_bytes(eight);
            let (total, carry) = acc.overflowing_add(word);
            acc = total.wrapping_add(u64::from(carry));
        }
    }
    let mut last = [0u8; 8];
    for (to, from) in last.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    let (total, carry) = acc.overflowing_add(u64::from_be_bytes(last));
    total.wrapping_add(u64::from(carry))
}

/// Folds to 16 bits.
fn fold(acc: u64) -> u16 {
    let mut acc = (acc >> 32).wrapping_add(acc & 0xffff_ffff);
    acc = (acc >> 16).wrapping_add(acc & 0xffff);
    acc = (acc >> 16).wrapping_add(acc & 0xffff);
    acc = (acc >> 16).wrapping_add(acc & 0xffff);
    acc as u16
}

/// Looks for a TCP or UDP header.
pub fn find(frame: &[u8]) -> Found {
    match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => ipv4(frame).unwrap_or(Found::Malformed),
        Some(ETHERTYPE_IPV6) => ipv6(frame).unwrap_or(Found::Malformed),
        Some(_) => Found::Other,
        None => Found::Malformed,
    }
}

fn ipv4(frame: &[u8]) -> Option<Found> {
    let header_len = usize::from(frame.get(ETHERNET)? & 0xf).checked_mul(4)?;
    let total_len = usize::from(be16(frame, ETHERNET.checked_add(2)?)?);
    let fragment = be16(frame, ETHERNET.checked_add(6)?)?;
    let protocol = *frame.get(ETHERNET.checked_add(9)?)?;
    let addresses = frame.get(ETHERNET.checked_add(12)?..ETHERNET.checked_add(20)?)?;
    if header_len < 20 || total_len < header_len {
        return None;
    }
    // More-fragments, or an offset.
    if fragment & 0x3fff != 0 {
        return Some(Found::Fragment);
    }
    let start = ETHERNET.checked_add(header_len)?;
    transport(frame, start, ETHERNET.checked_add(total_len)?, protocol, addresses, false)
}

fn ipv6(frame: &[u8]) -> Option<Found> {
    let start = ETHERNET.checked_add(40)?;
    let len = usize::from(be16(frame, ETHERNET.checked_add(4)?)?);
    let protocol = *frame.get(ETHERNET.checked_add(6)?)?;
    let addresses = frame.get(ETHERNET.checked_add(8)?..start)?;
    transport(frame, start, start.checked_add(len)?, protocol, addresses, true)
}

fn transport(frame: &[u8], start: usize, end: usize, protocol: u8, addresses: &[u8], v6: bool) -> Option<Found> {
    let (field, least) = match protocol {
        TCP => (16, 20),
        UDP => (6, 8),
        _ => return Some(Found::Other),
    };
    let len = end.checked_sub(start)?;
    if len < least || end > frame.len() {
        return None;
    }
    let acc = sum(addresses, (len as u64).checked_add(u64::from(protocol))?);
    let pseudo = u32::from(fold(acc));
    let field = start.checked_add(field)?;
    Some(Found::Transport(Transport { start, end, field, pseudo, v6, udp: protocol == UDP }))
}

impl Transport {
    /// Bytes of the headers before the transport data's own header.
    #[cfg(test)]
    pub const fn start(&self) -> usize {
        self.start
    }

    fn put(&self, frame: &mut [u8], value: u16) {
        for (to, from) in frame.iter_mut().skip(self.field).zip(value.to_be_bytes()) {
            *to = from;
        }
    }

    /// Writes what a blank checksum holds: the pseudo header's sum, not inverted.
    pub fn blank(&self, frame: &mut [u8]) {
        self.put(frame, fold(u64::from(self.pseudo)));
    }

    /// Writes the whole checksum.
    pub fn fill(&self, frame: &mut [u8]) {
        self.put(frame, 0);
        let data = frame.get(self.start..self.end).unwrap_or_default();
        let value = !fold(sum(data, u64::from(self.pseudo)));
        // Zero means "none" in UDP (RFC 768).
        self.put(frame, if value == 0 && self.udp { 0xffff } else { value });
    }

    /// Whether the frame's checksum is right (or, for UDP over IPv4, absent).
    pub fn verify(&self, frame: &[u8]) -> bool {
        if self.udp && !self.v6 && be16(frame, self.field) == Some(0) {
            return true;
        }
        let data = frame.get(self.start..self.end).unwrap_or_default();
        fold(sum(data, u64::from(self.pseudo))) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// UDP over IPv4, 192.0.2.1:1 → 192.0.2.2:2, data "abc", padded to 60 bytes; checksum worked by hand:
    /// c000+0201+c000+0202+0011+000b + 0001+0002+000b+0000+6162+6300 → 0x1048e... folded and inverted below.
    fn udp4() -> Vec<u8> {
        let mut f = Vec::from([0u8; 12]);
        f.extend([8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        f.extend([0, 1, 0, 2, 0, 11, 0, 0, b'a', b'b', b'c']);
        f.resize(60, 0xee);
        f
    }

    #[test]
    fn golden_udp_checksum() {
        let mut frame = udp4();
        let Found::Transport(t) = find(&frame) else { panic!("{:?}", find(&frame)) };
        assert_eq!((t.start(), t.end, t.v6), (34, 45, false));
        // 0xc000+0x0201+0xc000+0x0202+0x0011+0x000b = 0x1841f → 0x8420
        t.blank(&mut frame);
        assert_eq!(be16(&frame, 40), Some(0x8420));
        // + 0x0001+0x0002+0x000b+0x6162+0x6300 = 0x14890 → 0x4891 → inverted 0xb76e
        t.fill(&mut frame);
        assert_eq!(be16(&frame, 40), Some(0xb76e));
        assert!(t.verify(&frame));
        for bit in 0..11 * 8 {
            let mut wrong = frame.clone();
            wrong[34 + bit / 8] ^= 1 << (bit % 8);
            if let Found::Transport(t) = find(&wrong) {
                assert!(!t.verify(&wrong), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_no_whole_datagram_is_told() {
        let mut frame = udp4();
        frame[20] = 0x20;
        assert_eq!(find(&frame), Found::Fragment);
        let mut frame = udp4();
        frame[17] = 60;
        assert_eq!(find(&frame), Found::Malformed);
        frame[13] = 6;
        assert_eq!(find(&frame), Found::Other);
        assert_eq!(find(&frame[..13]), Found::Malformed);
        for len in 14..45 {
            assert_eq!(find(&udp4()[..len]), Found::Malformed, "{len}");
        }
    }

    #[test]
    fn tcp_over_ipv6_fills_and_verifies() {
        let mut f = Vec::from([0u8; 12]);
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 23, 6, 64]);
        f.extend((0..32u8).map(|i| i.wrapping_mul(7)));
        f.extend((0..23u8).map(|i| i ^ 0x5a));
        let Found::Transport(t) = find(&f) else { panic!() };
        assert!(t.v6);
        t.fill(&mut f);
        assert!(t.verify(&f));
        f[60] ^= 4;
        assert!(!t.verify(&f));
    }
}
