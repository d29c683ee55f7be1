use super::*;
use proptest::prelude::*;

fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut f = vec![0; 12];
    f.extend(kind.to_be_bytes());
    f.extend(body);
    f
}

fn v4(protocol: u8, source: [u8; 4], destination: [u8; 4], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 1]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, protocol, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    ip.extend(payload);
    ethernet(0x0800, &ip)
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 64]);
    ip.extend("fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
    ip.extend("fd00::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
    ip.extend(payload);
    ethernet(0x86dd, &ip)
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut p = Vec::from(source.to_be_bytes());
    p.extend(destination.to_be_bytes());
    p.extend([0; 16]);
    p
}

fn tcp(source: u16, destination: u16) -> Vec<u8> {
    v4(6, [10, 0, 0, 9], [10, 0, 0, 2], 0, &ports(source, destination))
}

fn parse(text: &str) -> Firewall {
    Firewall::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

const ARP: u16 = 0x0806;
use Direction::{In, Out};

#[test]
fn the_first_match_decides() {
    let f = parse("allow in tcp port 80; deny in tcp port 1-1024\n allow in tcp ; default deny");
    assert!(f.permits(In, &tcp(5000, 80)));
    assert!(!f.permits(In, &tcp(5000, 81)));
    assert!(!f.permits(In, &tcp(5000, 1)) && !f.permits(In, &tcp(5000, 1024)));
    assert!(f.permits(In, &tcp(5000, 1025)));
    assert!(!f.permits(Out, &tcp(5000, 80)));
    assert!(!f.permits(In, &v4(17, [1; 4], [2; 4], 0, &ports(1, 80))));
}

#[test]
fn no_rules_pass_everything_and_closed_nothing_but_arp() {
    for frame in [tcp(1, 2), ethernet(ARP, &[]), ethernet(0x88cc, &[1]), vec![]] {
        assert!(parse("").permits(In, &frame));
        assert_eq!(Firewall::closed().permits(In, &frame), frame == ethernet(ARP, &[]));
    }
}

#[test]
fn directions_sources_and_prefixes() {
    let f = parse("allow out udp sport 53 from 10.0.0.0/8 to 192.168.1.128/25; default deny");
    let dns = |from, to, port| v4(17, from, to, 0, &ports(port, 9));
    assert!(f.permits(Out, &dns([10, 255, 0, 1], [192, 168, 1, 200], 53)));
    assert!(!f.permits(In, &dns([10, 255, 0, 1], [192, 168, 1, 200], 53)));
    assert!(!f.permits(Out, &dns([11, 255, 0, 1], [192, 168, 1, 200], 53)));
    assert!(!f.permits(Out, &dns([10, 255, 0, 1], [192, 168, 1, 127], 53)));
    assert!(!f.permits(Out, &dns([10, 255, 0, 1], [192, 168, 1, 200], 54)));
    let all = parse("deny any from 0.0.0.0/0");
    assert!(!all.permits(In, &tcp(1, 2)) && all.permits(In, &v6(6, &ports(1, 2))));
}

#[test]
fn families_and_protocols() {
    let f = parse("allow any icmp6; allow in ip6 tcp port 443; allow in 47; default deny");
    assert!(f.permits(In, &v6(58, &[135, 0])) && f.permits(Out, &v6(58, &[136, 0])));
    assert!(f.permits(In, &v6(6, &ports(1, 443))) && !f.permits(In, &tcp(1, 443)));
    assert!(f.permits(In, &v4(47, [1; 4], [2; 4], 0, &[])));
    let host = parse("deny in from fd00::1; deny in to 10.0.0.2");
    assert!(!host.permits(In, &v6(17, &ports(1, 2))) && !host.permits(In, &tcp(1, 2)));
    assert!(host.permits(In, &v4(6, [1; 4], [10, 0, 0, 3], 0, &ports(1, 2))));
}

#[test]
fn later_fragments_are_denied_where_ports_are_asked_for() {
    let later = v4(6, [10, 0, 0, 9], [10, 0, 0, 2], 100, &ports(5000, 80));
    assert!(!parse("deny in tcp port 22").permits(In, &later), "it may belong to port 22");
    assert!(!parse("allow in tcp port 80").permits(In, &later));
    assert!(parse("deny in udp port 22").permits(In, &later), "another protocol");
    assert!(parse("allow in tcp; deny in tcp port 22").permits(In, &later), "decided before");
    assert!(parse("deny in tcp port 22 from 11.0.0.0/8").permits(In, &later), "another host");
    // More-fragments on the first one hides nothing.
    assert!(parse("deny in tcp port 22").permits(In, &v4(6, [1; 4], [2; 4], 0x2000, &ports(1, 80))));
}

#[test]
fn short_headers_are_denied_where_they_are_asked_for() {
    let tiny = v4(6, [10, 0, 0, 9], [10, 0, 0, 2], 0x2000, &[0x13, 0x88, 0]);
    assert!(!parse("deny in tcp port 22").permits(In, &tiny));
    assert!(parse("deny in udp port 22").permits(In, &tiny));
    // Padding behind the packet is not part of it.
    let mut padded = v4(6, [10, 0, 0, 9], [10, 0, 0, 2], 0, &[0x13, 0x88]);
    padded.extend([0, 80, 0, 0]);
    assert!(!parse("allow in tcp port 80").permits(In, &padded));
    let mut bad = tcp(1, 80);
    bad[14] = 0x44;
    assert!(!parse("allow in").permits(In, &bad), "a header length of 16");
    bad[14] = 0x65;
    assert!(!parse("allow in").permits(In, &bad), "version 6 as IPv4");
    assert!(!parse("allow in").permits(In, &tcp(1, 80)[..30]));
    assert!(!parse("allow in").permits(In, &ethernet(0x88cc, &[0; 40])), "neither IP nor ARP");
}

#[test]
fn ipv6_extension_headers() {
    let f = parse("allow in tcp port 80; default deny");
    let chain = |mut front: Vec<u8>, payload: &[u8]| {
        front.extend(payload);
        front
    };
    let hop = chain(vec![6, 0, 1, 4, 0, 0, 0, 0], &ports(1, 80));
    assert!(f.permits(In, &v6(0, &hop)));
    let first = chain(vec![6, 0, 0, 1, 0, 0, 0, 9], &ports(1, 80));
    assert!(f.permits(In, &v6(44, &first)));
    let later = chain(vec![6, 0, 0, 9, 0, 0, 0, 9], &ports(1, 80));
    assert!(!f.permits(In, &v6(44, &later)));
    assert!(parse("deny in udp").permits(In, &v6(44, &later)), "the fragment header names the protocol");
    // Destination options longer than the head: the protocol is not known.
    let long = vec![6, 200, 0, 0, 0, 0, 0, 0];
    assert!(!parse("deny in udp").permits(In, &v6(60, &long)));
    assert!(parse("deny out udp").permits(In, &v6(60, &long)));
    // A fragment header that points at another extension header proves nothing.
    assert!(!parse("deny in udp").permits(In, &v6(44, &[60, 0, 0, 9, 0, 0, 0, 9])));
}

#[test]
fn one_vlan_tag_is_looked_through() {
    let f = parse("allow in tcp port 80; default deny");
    let inner = tcp(1, 80);
    let mut tagged = inner[..12].to_vec();
    tagged.extend([0x81, 0, 0, 7]);
    tagged.extend(&inner[12..]);
    assert!(f.permits(In, &tagged));
    let mut twice = inner[..12].to_vec();
    twice.extend([0x81, 0, 0, 7, 0x81, 0, 0, 8]);
    twice.extend(&inner[12..]);
    assert!(!f.permits(In, &twice));
}

#[test]
fn defects_are_named() {
    let word = |w: &str| RuleError::Word(w.to_string());
    for (text, error) in [
        ("permit in", word("permit")),
        ("allow", RuleError::Missing("the direction")),
        ("allow inward", word("inward")),
        ("allow in tcp port", RuleError::Missing("a port")),
        ("allow in tcp port 80-70", word("80-70")),
        ("allow in tcp port 65536", word("65536")),
        ("allow in tcp port 1 port 2", word("2")),
        ("allow in tcp udp", word("udp")),
        ("allow in 256", word("256")),
        ("allow in ip4 ip6", word("ip6")),
        ("allow in from 10.0.0.0/33", word("10.0.0.0/33")),
        ("allow in from host", word("host")),
        ("allow in port 80", RuleError::PortsWithoutProtocol),
        ("allow in icmp sport 80", RuleError::PortsWithoutProtocol),
        ("allow in from 10.0.0.1 to fd00::1", RuleError::Family),
        ("allow in ip6 to 10.0.0.1", RuleError::Family),
        ("default maybe", word("maybe")),
        ("default deny all", word("all")),
    ] {
        assert_eq!(Firewall::parse(text), Err(error), "{text}");
    }
    assert_eq!(Firewall::parse(&"allow in;".repeat(MAX_RULES + 1)), Err(RuleError::TooMany));
    assert!(Firewall::parse(&"allow in;".repeat(MAX_RULES)).is_ok());
}

proptest! {
    #[test]
    fn prefixes_are_what_the_mask_says(a in any::<u32>(), b in any::<u32>(), len in 0u8..=32) {
        let prefix = Prefix { address: IpAddr::from(a.to_be_bytes()), len };
        let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
        prop_assert_eq!(prefix.contains(IpAddr::from(b.to_be_bytes())), a & mask == b & mask);
    }

    #[test]
    fn no_head_is_too_strange(head in proptest::collection::vec(any::<u8>(), 0..128), kind in 0usize..4) {
        let mut frame = ethernet([0x0800, 0x86dd, 0x8100, 0x1234][kind], &head);
        frame.truncate(128);
        // With nothing but a port rule in front of "allow", whatever passes is not provably port 22, and nothing panics.
        let f = parse("deny in tcp port 22; default allow");
        if f.permits(In, &frame) && let Parsed::Ip(packet) = Packet::parse(&frame) {
            prop_assert!(packet.protocol.is_some());
            prop_assert!(packet.protocol != Some(6) || packet.ports.is_some_and(|(_, port)| port != 22));
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "[a-z0-9 ;/:.-]{0,80}") {
        let _ = Firewall::parse(&text);
    }
}
