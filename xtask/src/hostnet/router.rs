//! IPv6 router advertisements, from which guests make their addresses (RFC 4861 §4.2, RFC 4862).

use super::frame::HOST_MAC;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags,
};

/// Link-local address of the endpoint.
pub const HOST_LINK_LOCAL: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Address of the endpoint in the prefix it advertises.
pub const HOST_IP: Ipv6Address = Ipv6Address::new(0xfd78, 0x656e, 0, 0, 0, 0, 0, 2);
const PREFIX: Ipv6Address = Ipv6Address::new(0xfd78, 0x656e, 0, 0, 0, 0, 0, 0);
const ALL_NODES: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The frame of an advertisement to all nodes.
pub fn advertisement() -> Vec<u8> {
    let lifetime = Duration::from_secs(86_400);
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::from_secs(1800),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(HOST_MAC.into()),
        mtu: None,
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: lifetime,
            preferred_lifetime: lifetime,
            prefix: PREFIX,
        }),
    });
    let everybody = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
    frame(&repr, HOST_LINK_LOCAL, (everybody, ALL_NODES))
}

/// An echo request to a guest.
pub fn echo(mac: EthernetAddress, to: Ipv6Address) -> Vec<u8> {
    frame(&Icmpv6Repr::EchoRequest { ident: 0x584c, seq_no: 1, data: b"xenolith" }, HOST_IP, (mac, to))
}

fn frame(repr: &Icmpv6Repr<'_>, from: Ipv6Address, (mac, to): (EthernetAddress, Ipv6Address)) -> Vec<u8> {
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len(),
        // Neighbour discovery takes nothing that could have crossed a router.
        hop_limit: 255,
    };
    let ethernet = EthernetRepr { src_addr: HOST_MAC, dst_addr: mac, ethertype: EthernetProtocol::Ipv6 };
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::header_len() + ip.buffer_len() + repr.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(bytes.as_mut_slice());
    ethernet.emit(&mut frame);
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet);
    let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
    repr.emit(&from, &to, &mut message, &ChecksumCapabilities::default());
    bytes
}

/// Whether a frame is a router solicitation.
pub fn solicited(bytes: &[u8]) -> bool {
    let look = || {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        (frame.ethertype() == EthernetProtocol::Ipv6).then_some(())?;
        let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
        (packet.next_header() == IpProtocol::Icmpv6).then_some(())?;
        Some(Icmpv6Packet::new_checked(packet.payload()).ok()?.msg_type() == Icmpv6Message::RouterSolicit)
    };
    look().unwrap_or(false)
}

/// The address a guest makes of the prefix and its MAC (modified EUI-64, RFC 4291 appendix A).
pub fn guest_address(mac: EthernetAddress) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac.0;
    let mut octets = PREFIX.octets();
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Address::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advertisement_is_valid_and_names_the_prefix() {
        let bytes = advertisement();
        let frame = EthernetFrame::new_checked(bytes.as_slice()).unwrap();
        let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
        assert_eq!(packet.hop_limit(), 255);
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let repr =
            Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &message, &ChecksumCapabilities::default());
        let Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { prefix_info: Some(info), lladdr, .. })) = repr else {
            panic!("no advertisement with a prefix: {repr:?}");
        };
        assert_eq!((info.prefix, info.prefix_len), (PREFIX, 64));
        assert_eq!(lladdr, Some(HOST_MAC.into()));
        assert!(!solicited(&bytes));
    }

    #[test]
    fn a_guest_address_is_the_modified_eui_64() {
        let address = guest_address(EthernetAddress([0x52, 0x54, 0, 0x78, 0x65, 0x10]));
        assert_eq!(address.to_string(), "fd78:656e::5054:ff:fe78:6510");
    }
}
