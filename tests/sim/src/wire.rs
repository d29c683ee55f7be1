//! Frames whose every byte tells who sent it, and the check that they arrive as they left.
//!
//! Payload byte `i` of flow `f` of sender `s` is a function of the three. UDP carries the flow in its first four bytes; TCP
//! carries it in the acknowledgment number and the offset in the sequence number, so that each segment of a cut frame can be
//! checked alone. The checksums here are written independently of the backend's.

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A multicast group's address.
pub const GROUP: Mac = [1, 0, 0x5E, 0, 0, 1];

/// Bytes of Ethernet, IPv4 and UDP header.
pub const UDP_HEAD: usize = 42;
/// Bytes of Ethernet, IPv4 and TCP header.
pub const TCP_HEAD: usize = 54;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub sender: u8,
    pub flow: u32,
    pub offset: u32,
    pub len: u32,
}

/// The address of a domain, or of a host on the wire.
pub fn mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}

fn pattern(sender: u8, flow: u32, i: u32) -> u8 {
    let x = (u32::from(sender) << 24 ^ flow.wrapping_mul(0x9E37_79B1) ^ i.wrapping_mul(0x85EB_CA6B))
        .wrapping_mul(0xC2B2_AE35);
    (x >> 21) as u8
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum()
}

pub fn fold(mut sum: u32) -> u16 {
    while sum > 0xFFFF {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    sum as u16
}

/// The pseudo-header's sum of an IPv4 frame.
pub fn pseudo(frame: &[u8], len: usize) -> u32 {
    sum(&frame[26..34]) + u32::from(frame[23]) + len as u32
}

fn ip(frame: &mut Vec<u8>, to: Mac, sender: u8, protocol: u8, total: usize) {
    frame.extend(to);
    frame.extend(mac(sender));
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((total as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, sender, 10, 0, 0, to[5]]);
    let checksum = !fold(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// A UDP frame with `len` bytes after the flow number; the checksum complete, or blank (the pseudo-header's sum).
pub fn udp(to: Mac, sender: u8, flow: u32, len: usize, blank: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let transport = 8 + 4 + len;
    ip(&mut frame, to, sender, 17, 20 + transport);
    frame.extend([0x10, 0, 0x20, 0]);
    frame.extend((transport as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(flow.to_be_bytes());
    frame.extend((0..len as u32).map(|i| pattern(sender, flow, i)));
    finish(&mut frame, 40, blank);
    frame
}

/// A TCP frame with `len` bytes of payload from `offset` of the flow on.
pub fn tcp(to: Mac, sender: u8, flow: u32, len: usize, blank: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(&mut frame, to, sender, 6, 20 + 20 + len);
    frame.extend([0x10, 0, 0x20, 0]);
    frame.extend(0u32.to_be_bytes());
    frame.extend(flow.to_be_bytes());
    frame.extend([0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..len as u32).map(|i| pattern(sender, flow, i)));
    finish(&mut frame, 50, blank);
    frame
}

/// Sets the checksum field at `field`.
pub fn finish(frame: &mut [u8], field: usize, blank: bool) {
    let len = frame.len() - 34;
    let head = pseudo(frame, len);
    frame[field..field + 2].fill(0);
    let value = if blank { fold(head) } else { !fold(head + sum(&frame[34..])) };
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// Checks a frame that arrived whole. `blank`: its transport checksum was left to the receiver.
///
/// # Errors
/// What is wrong with it.
pub fn check(frame: &[u8], blank: bool) -> Result<Seen, String> {
    if frame.len() < UDP_HEAD + 4 || frame[12..14] != [8, 0] {
        return Err(format!("{} bytes that nobody sent: {:02x?}", frame.len(), &frame[..frame.len().min(60)]));
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    if total + 14 != frame.len() {
        return Err(format!("IP length {total} in a frame of {}", frame.len()));
    }
    if fold(sum(&frame[14..34])) != 0xFFFF {
        return Err("bad IP checksum".into());
    }
    let transport = frame.len() - 34;
    let field = if frame[23] == 6 { 50 } else { 40 };
    if blank {
        let want = fold(pseudo(frame, transport));
        let got = u16::from_be_bytes([frame[field], frame[field + 1]]);
        if got != want {
            return Err(format!("blank checksum {got:04x}, pseudo-header's sum {want:04x}"));
        }
    } else if fold(pseudo(frame, transport) + sum(&frame[34..])) != 0xFFFF {
        return Err(format!("bad transport checksum in {:02x?}", &frame[..frame.len().min(64)]));
    }
    let sender = frame[11];
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let (flow, offset, payload) =
        if frame[23] == 6 { (word(42), word(38), &frame[TCP_HEAD..]) } else { (word(42), 0, &frame[UDP_HEAD + 4..]) };
    for (i, &byte) in (0u32..).zip(payload) {
        let want = pattern(sender, flow, offset + i);
        if byte != want {
            return Err(format!(
                "byte {i} of {} of flow {flow} of {sender} is {byte:02x}, not {want:02x}",
                payload.len()
            ));
        }
    }
    Ok(Seen { sender, flow, offset, len: payload.len() as u32 })
}

/// What a NIC makes of a frame to be segmented.
pub fn segment(frame: &[u8], header: usize, mss: usize) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    let last = frame[header..].len().div_ceil(mss).saturating_sub(1);
    for (n, payload) in frame[header..].chunks(mss).enumerate() {
        let mut segment = frame[..header].to_vec();
        segment.extend(payload);
        if n < last {
            segment[47] &= !0x09; // FIN and PSH are the last one's
        }
        let total = (segment.len() - 14) as u16;
        segment[16..18].copy_from_slice(&total.to_be_bytes());
        segment[24..26].fill(0);
        let checksum = !fold(sum(&segment[14..34]));
        segment[24..26].copy_from_slice(&checksum.to_be_bytes());
        let seq = u32::from_be_bytes(segment[38..42].try_into().expect("four bytes")) + (n * mss) as u32;
        segment[38..42].copy_from_slice(&seq.to_be_bytes());
        finish(&mut segment, 50, false);
        segments.push(segment);
    }
    segments
}
