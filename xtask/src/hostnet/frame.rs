//! Frames made and taken apart by hand where no socket of smoltcp fits: DHCP answers, probes, and what is counted.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, Icmpv6Message,
    Icmpv6Packet, IpAddress, IpEndpoint, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet,
    TcpPacket, TcpSeqNumber, UdpPacket, UdpRepr,
};

/// Address of the endpoint: Ethernet.
pub const HOST_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0x78, 0x65, 0xfe]);
/// Address of the endpoint: IPv4, gateway and DHCP server in one.
pub const HOST_IP: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
/// Bytes of the prefix of the network.
pub const PREFIX_LEN: u8 = 24;

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Ethernet.
    pub mac: EthernetAddress,
    /// IPv4.
    pub ip: Ipv4Address,
}

fn ipv4(target: Target, protocol: IpProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let ethernet = EthernetRepr { src_addr: HOST_MAC, dst_addr: target.mac, ethertype: EthernetProtocol::Ipv4 };
    let ip =
        Ipv4Repr { src_addr: HOST_IP, dst_addr: target.ip, next_header: protocol, payload_len: len, hop_limit: 64 };
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::header_len() + ip.buffer_len() + len];
    let mut frame = EthernetFrame::new_unchecked(bytes.as_mut_slice());
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    bytes
}

/// A UDP datagram from the endpoint.
pub fn udp(target: Target, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: from, dst_port: to };
    ipv4(target, IpProtocol::Udp, repr.header_len() + payload.len(), |bytes| {
        repr.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &HOST_IP.into(),
            &target.ip.into(),
            payload.len(),
            |out| out.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

/// An echo request from the endpoint.
pub fn echo(target: Target, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
    ipv4(target, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

/// The header of a TCP segment (RFC 9293, 3.1), as far as it tells what became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: IpEndpoint,
    /// Receiver.
    pub to: IpEndpoint,
    /// Number of its first byte.
    pub seq: TcpSeqNumber,
    /// Number of the byte it expects, if ACK is set.
    pub ack: Option<TcpSeqNumber>,
    /// SYN is set.
    pub syn: bool,
    /// FIN is set.
    pub fin: bool,
    /// RST is set.
    pub rst: bool,
    /// As sent, not scaled.
    pub window: u16,
    /// Bytes of its payload.
    pub len: usize,
}

impl Segment {
    fn of(bytes: &[u8], from: IpAddress, to: IpAddress) -> Option<Self> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        Some(Self {
            from: IpEndpoint::new(from, packet.src_port()),
            to: IpEndpoint::new(to, packet.dst_port()),
            seq: packet.seq_number(),
            ack: packet.ack().then(|| packet.ack_number()),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            window: packet.window_len(),
            len: packet.payload().len(),
        })
    }
}

/// What the endpoint wants to know of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// An echo reply to the endpoint: identifier and data.
    EchoReply {
        /// Who answers.
        from: Ipv4Address,
        /// Of the request.
        ident: u16,
        /// Of the request.
        data: &'a [u8],
    },
    /// An echo reply over IPv6 to the endpoint.
    EchoReply6 {
        /// Who answers.
        from: Ipv6Address,
    },
    /// A datagram to a DHCP server.
    Dhcp(&'a [u8]),
    /// A TCP segment, v4 or v6.
    Tcp(Segment),
    /// Anything else, for the stack.
    Other,
}

/// Looks into a frame; what is malformed is [`Kind::Other`] and left to the stack, which drops it.
pub fn inspect(bytes: &[u8]) -> Kind<'_> {
    look(bytes).unwrap_or(Kind::Other)
}

fn look(bytes: &[u8]) -> Option<Kind<'_>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            let payload = packet.payload();
            match packet.next_header() {
                IpProtocol::Tcp => {
                    Segment::of(payload, packet.src_addr().into(), packet.dst_addr().into()).map(Kind::Tcp)
                }
                IpProtocol::Udp => {
                    let datagram = UdpPacket::new_checked(payload).ok()?;
                    (datagram.dst_port() == 67).then(|| Kind::Dhcp(datagram.payload()))
                }
                IpProtocol::Icmp if packet.dst_addr() == HOST_IP => {
                    let message = Icmpv4Packet::new_checked(payload).ok()?;
                    match Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).ok()? {
                        Icmpv4Repr::EchoReply { ident, data, .. } => {
                            Some(Kind::EchoReply { from: packet.src_addr(), ident, data })
                        }
                        _ => None,
                    }
                }
                _ => None,
            }
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            match packet.next_header() {
                IpProtocol::Tcp => {
                    Segment::of(packet.payload(), packet.src_addr().into(), packet.dst_addr().into()).map(Kind::Tcp)
                }
                IpProtocol::Icmpv6 if packet.dst_addr() == super::router::HOST_IP => {
                    let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
                    let valid = message.verify_checksum(&packet.src_addr(), &packet.dst_addr());
                    let reply = message.msg_type() == Icmpv6Message::EchoReply;
                    (valid && reply).then(|| Kind::EchoReply6 { from: packet.src_addr() })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The sender of a frame.
pub fn source(bytes: &[u8]) -> Option<EthernetAddress> {
    Some(EthernetFrame::new_checked(bytes).ok()?.src_addr())
}

/// The receiver of a frame.
pub fn destination(bytes: &[u8]) -> Option<EthernetAddress> {
    Some(EthernetFrame::new_checked(bytes).ok()?.dst_addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Target =
        Target { mac: EthernetAddress([0x52, 0x54, 0, 0, 0, 0x10]), ip: Ipv4Address::new(10, 0, 2, 16) };

    #[test]
    fn an_echo_is_recognised_when_it_comes_back() {
        let mut frame = echo(GUEST, 7, 9, b"12345678");
        assert_eq!(inspect(&frame), Kind::Other, "a request is not a reply");
        assert_eq!(destination(&frame), Some(GUEST.mac));
        // What the guest does: addresses turned round, type 0, checksums anew.
        frame[26..34].rotate_left(4);
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.fill_checksum();
        let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
        icmp.set_msg_type(smoltcp::wire::Icmpv4Message::EchoReply);
        icmp.fill_checksum();
        assert_eq!(inspect(&frame), Kind::EchoReply { from: GUEST.ip, ident: 7, data: b"12345678" });
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(inspect(&frame), Kind::Other, "a damaged reply counts for nothing");
    }

    #[test]
    fn a_segment_is_what_its_header_says() {
        let segment = |flags: u8| {
            ipv4(GUEST, IpProtocol::Tcp, 23, |tcp| {
                tcp[..20].copy_from_slice(&[0, 80, 192, 1, 0, 0, 0, 5, 0, 0, 1, 0, 5 << 4, flags, 2, 0, 0, 0, 0, 0]);
            })
        };
        let header = Segment {
            from: IpEndpoint::new(HOST_IP.into(), 80),
            to: IpEndpoint::new(GUEST.ip.into(), 0xc001),
            seq: TcpSeqNumber(5),
            ack: Some(TcpSeqNumber(256)),
            syn: false,
            fin: false,
            rst: false,
            window: 512,
            len: 3,
        };
        assert_eq!(inspect(&segment(0x10)), Kind::Tcp(header));
        assert_eq!(inspect(&segment(0x14)), Kind::Tcp(Segment { rst: true, ..header }));
        assert_eq!(inspect(&segment(0x11)), Kind::Tcp(Segment { fin: true, ..header }));
        assert_eq!(inspect(&segment(0x02)), Kind::Tcp(Segment { syn: true, ack: None, ..header }));
        assert_eq!(inspect(&segment(0x14)[..40]), Kind::Other);
    }
}
